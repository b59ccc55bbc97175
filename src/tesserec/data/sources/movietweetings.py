"""MovieTweetings: ratings of movies (0 to 10) posted on Twitter. Every rating is a positive event."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl

from tesserec.data.interactions import read_events
from tesserec.data.sources.files import catalog_for, choose, fetch, notice
from tesserec.types import Catalog, Interactions

__all__ = ["NAMES", "TERMS", "load"]

NAMES = ("latest", "10K", "20K", "50K", "100K", "200K")
TERMS = "MIT (Simon Dooms, 2013); cite Dooms, De Pessemier and Martens (2013)"
URL = "https://raw.githubusercontent.com/sidooms/MovieTweetings/master/"


def load(name: str = "latest", folder: Path | None = None, *, url: str = URL) -> tuple[Interactions, Catalog]:
    """One of ``NAMES``, from ``folder`` (with ratings.dat and movies.dat) or from GitHub. Item ids are IMDb's
    numbers."""
    choose("movietweetings", name, NAMES)
    notice(f"MovieTweetings {name}", TERMS)
    base = f"{url}latest/" if name == "latest" else f"{url}snapshots/{name}/"
    ratings, movies = (
        fetch(f"{base}{file}", folder, f"movietweetings/{name}") for file in ("ratings.dat", "movies.dat")
    )
    log = read_events(_table(ratings, dict.fromkeys(("user_id", "item_id", "value", "timestamp"), pl.Int64)))
    items = _table(movies, {"item_id": pl.Int64, "title": pl.String, "categories": pl.String})
    return log, catalog_for(log, items.with_columns(pl.col("categories").str.split("|")))


def _table(path: Path, schema: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    """A file of rows ``a::b::c``, of which some lack their last fields."""
    data = path.read_bytes().replace(b"::", b"\t")
    return pl.read_csv(
        io.BytesIO(data), separator="\t", has_header=False, quote_char=None, schema=schema, truncate_ragged_lines=True
    )
