"""MovieLens (GroupLens): ratings of movies, with titles and genres. Every rating is a positive event."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl

from tesserec.data.interactions import read_events
from tesserec.data.sources.files import catalog_for, choose, member, notice
from tesserec.types import Catalog, Interactions

__all__ = ["NAMES", "TERMS", "load"]

NAMES = ("100k", "1m", "10m", "20m", "25m", "32m", "latest-small")
TERMS = (
    "GroupLens licence: research use, no redistribution and no commercial use without permission; "
    "cite Harper and Konstan (2015), doi 10.1145/2827872"
)
URL = "https://files.grouplens.org/datasets/movielens/"

_EVENTS = ["user_id", "item_id", "value", "timestamp"]
_INNER = {"10m": "ml-10M100K"}
_GENRES_100K = [
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
]


def load(name: str = "1m", folder: Path | None = None, *, url: str = URL) -> tuple[Interactions, Catalog]:
    """One of ``NAMES``, from ``folder`` (with ml-NAME.zip, or unpacked) or from GroupLens."""
    choose("movielens", name, NAMES)
    notice(f"MovieLens {name}", TERMS)
    inner = _INNER.get(name, f"ml-{name}")

    def read(file: str) -> bytes:
        return member(f"{url}ml-{name}.zip", folder, "movielens", f"{inner}/{file}")

    if name == "100k":
        events = _table(read("u.data"), "\t")
        items = _items_100k(read("u.item"))
    elif name in ("1m", "10m"):
        events = _table(read("ratings.dat").replace(b"::", b"\t"), "\t")
        items = _items(read("movies.dat").replace(b"::", b"\t"), "\t", "latin-1" if name == "1m" else "utf-8")
    else:
        events = _table(read("ratings.csv"), ",", has_header=True)
        items = _items(read("movies.csv"), ",", "utf-8", has_header=True)
    log = read_events(events)
    return log, catalog_for(log, items)


def _table(data: bytes, separator: str, *, has_header: bool = False) -> pl.DataFrame:
    types = [pl.Int64, pl.Int64, pl.Float32, pl.Int64]
    return pl.read_csv(
        io.BytesIO(data),
        separator=separator,
        has_header=has_header,
        new_columns=_EVENTS,
        schema_overrides=types,
    )


def _items(data: bytes, separator: str, encoding: str, *, has_header: bool = False) -> pl.DataFrame:
    quote = '"' if has_header else None
    text = data.decode(encoding).encode()
    frame = pl.read_csv(
        io.BytesIO(text),
        separator=separator,
        has_header=has_header,
        quote_char=quote,
        new_columns=["item_id", "title", "categories"],
        schema_overrides=[pl.Int64, pl.String, pl.String],
    )
    return frame.with_columns(pl.col("categories").str.split("|"))


def _items_100k(data: bytes) -> pl.DataFrame:
    rows = [line.split("|") for line in data.decode("latin-1").splitlines()]
    flags = [[genre for genre, flag in zip(_GENRES_100K, row[5:], strict=True) if flag == "1"] for row in rows]
    return pl.DataFrame(
        {"item_id": [int(row[0]) for row in rows], "title": [row[1] for row in rows], "categories": flags}
    )
