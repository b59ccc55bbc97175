"""RetailRocket: views, carts and purchases of an anonymous shop. Only purchases are positive unless said otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from tesserec.data.interactions import read_events
from tesserec.data.sources.files import catalog_for, choose, local, notice
from tesserec.types import Catalog, Interactions

__all__ = ["NAMES", "TERMS", "load"]

NAMES = ("events",)
TERMS = "CC BY-NC-SA 4.0: no commercial use"
PAGE = "https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset"


def load(
    name: str = "events", folder: Path | None = None, *, positive_kinds: Sequence[str] = ("transaction",)
) -> tuple[Interactions, Catalog]:
    """Events and items, from ``folder`` with events.csv and item_properties_part1.csv, …_part2.csv.

    Kinds are view, addtocart and transaction; the transaction is the basket. The catalog has each item's last category
    number; other properties are hashed and left out.
    """
    choose("retailrocket", name, NAMES)
    notice("RetailRocket", TERMS)
    path = local(folder, "events.csv", PAGE)
    events = pl.read_csv(path).with_columns(pl.col("timestamp") // 1000)
    columns = {"user_id": "visitorid", "kind": "event", "item_id": "itemid", "session": "transactionid"}
    log = read_events(events, columns=columns, positive_kinds=positive_kinds)
    parts = [pl.scan_csv(local(folder, f"item_properties_part{i}.csv", PAGE), infer_schema=False) for i in (1, 2)]
    categories = (
        pl.concat(parts)
        .filter(pl.col("property") == "categoryid")
        .with_columns(pl.col("timestamp").cast(pl.Int64), item_id=pl.col("itemid").cast(pl.Int64))
        .sort("timestamp", descending=True, maintain_order=True)
        .select("item_id", pl.col("value").alias("categories"))
    )
    return log, catalog_for(log, categories.collect())
