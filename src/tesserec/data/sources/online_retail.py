"""UCI Online Retail: a year of a UK gift-ware shop; the data set that comes with the package.

Purchases are positive, returns are signals; the invoice is the basket, the quantity the weight.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from tesserec.data.catalog import read_catalog
from tesserec.data.interactions import read_events
from tesserec.data.sources.files import choose, notice
from tesserec.types import Catalog, Interactions

__all__ = ["NAMES", "TERMS", "load"]

NAMES = ("online-retail",)
TERMS = (
    "CC BY 4.0 (UCI, doi 10.24432/C5BW33); cite Chen, Sain and Guo (2012), doi 10.1057/dbm.2012.17; "
    "changes are listed in online_retail_data/SOURCE.md"
)


def load(name: str = "online-retail", folder: Path | None = None) -> tuple[Interactions, Catalog]:
    """385,188 purchases and 8,439 returns of 3,775 items by 4,361 users, 2010-12-01 to 2011-12-09.

    ``folder`` has other copies of interactions.parquet and items.parquet than the package's.
    """
    choose("online_retail", name, NAMES)
    notice("Online Retail", TERMS)
    packaged = resources.files("tesserec.data.sources") / "online_retail_data"
    with resources.as_file(packaged) as own:
        place = own if folder is None else Path(folder)
        catalog = read_catalog(place / "items.parquet", columns={"price": "price_gbp"})
        columns = {"kind": "behavior", "session": "invoice", "value": "quantity"}
        path = place / "interactions.parquet"
        return read_events(path, columns=columns, positive_kinds=("purchase",), items=catalog.items), catalog
