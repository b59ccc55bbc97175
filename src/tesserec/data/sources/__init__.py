"""Public data sets by name: ``load("movielens/1m")``; one module a source, each with its terms, said at every load."""

from __future__ import annotations

import importlib
from pathlib import Path

from tesserec.errors import DataError
from tesserec.types import Catalog, Interactions

__all__ = ["SOURCES", "load"]

SOURCES = ("amazon", "movielens", "movietweetings", "online_retail", "retailrocket", "steam", "yelp")


def load(name: str, folder: Path | None = None) -> tuple[Interactions, Catalog]:
    """The data set ``SOURCE`` or ``SOURCE/NAME``, from ``folder`` or, where the source allows, from the network.

    Raises ``DataError`` for an unknown name and for files that are missing or damaged.
    """
    source, _, rest = name.partition("/")
    if source not in SOURCES:
        raise DataError(f"there is no source {source!r}: choose one of {', '.join(SOURCES)}")
    module = importlib.import_module(f"tesserec.data.sources.{source}")
    loaded: tuple[Interactions, Catalog] = module.load(rest, folder) if rest else module.load(folder=folder)
    return loaded
