"""Steam: reviews of games with dates, or the older 200k purchases and plays that have no times.

``reviews`` (Kang and McAuley 2018): every review is a positive event, the hours played are its weight. ``200k``
(Tamber, Kaggle): the order of its file stands in for time but means nothing, so only protocols such as ``cold_items``
make sense.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from tesserec.data.interactions import read_events
from tesserec.data.sources.files import catalog_for, choose, fetch, local, notice, records
from tesserec.types import Catalog, Interactions

__all__ = ["NAMES", "TERMS", "load"]

NAMES = ("reviews", "200k")
TERMS = {
    "reviews": "no licence stated: research use; cite Kang and McAuley (2018)",
    "200k": "Kaggle tamber/steam-video-games; it has no times: the order of the file is used and means nothing",
}
URL = "https://cseweb.ucsd.edu/~wckang/"


def load(name: str = "reviews", folder: Path | None = None, *, url: str = URL) -> tuple[Interactions, Catalog]:
    """One of ``NAMES``: ``reviews`` from ``folder`` or the network, ``200k`` from ``folder`` (steam-200k.csv)."""
    choose("steam", name, NAMES)
    notice(f"Steam {name}", TERMS[name])
    if name == "200k":
        return _load_200k(local(folder, "steam-200k.csv", "https://www.kaggle.com/datasets/tamber/steam-video-games"))
    reviews, games = (fetch(f"{url}steam_{file}.json.gz", folder, "steam") for file in ("reviews", "games"))
    fields = ("username", "product_id", "hours", "date")
    rows = [[record.get(field) for field in fields] for record in records(reviews, literal=True)]
    schema = {"user_id": pl.String, "item_id": pl.String, "value": pl.Float32, "timestamp": pl.String}
    log = read_events(pl.DataFrame(rows, schema=schema, orient="row").with_columns(pl.col("value").fill_null(0)))
    return log, catalog_for(log, _games(games))


def _games(path: Path) -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    for game in records(path, literal=True):
        price = game.get("price")
        rows.append(
            {
                "item_id": game.get("id"),
                "title": game.get("app_name") or game.get("title"),
                "brand": game.get("developer"),
                "categories": game.get("genres") or game.get("tags") or [],
                "price": float(price) if isinstance(price, int | float) else None,
            }
        )
    schema = {"item_id": pl.String, "title": pl.String, "brand": pl.String}
    return pl.DataFrame(rows, schema={**schema, "categories": pl.List(pl.String), "price": pl.Float64})


def _load_200k(path: Path) -> tuple[Interactions, Catalog]:
    """Rows of user, title, purchase or play, hours, 0; a title is its item's id."""
    names = ["user_id", "item_id", "kind", "value", "nothing"]
    types = [pl.Int64, pl.String, pl.String, pl.Float32, pl.Int64]
    frame = pl.read_csv(path, has_header=False, new_columns=names, schema_overrides=types).with_row_index("order")
    log = read_events(frame)
    titles = pl.DataFrame({"item_id": pl.Series(log.items.ids), "title": pl.Series(log.items.ids)})
    return log, catalog_for(log, titles)
