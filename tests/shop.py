"""A small shop for the tests of the whole path: 48 customers, 24 items in four rooms, and what follows is known.

Customer ``u`` only buys things of room ``u % 4``, in baskets of two that go round the six things of that room: things 0
and 1, then 2 and 3, then 4 and 5, then 0 and 1 again. One customer only ever returned something.
"""

import functools
from typing import Any

import polars as pl

from tesserec.bundle import Contents
from tesserec.pipeline import fit, read_data
from tesserec.recipe import Recipe, parse_recipe
from tesserec.types import Catalog, Interactions

DAY_S = 86_400
START_S = 1_600_000_000 // DAY_S * DAY_S
ROOMS = ("kitchen", "garden", "office", "nursery")
THINGS = ("red lamp", "red lamp large", "oak shelf", "oak shelf wide", "tin box", "tin box round")
COOCCURRENCE = "tesserec.retrievers.cooccurrence:Cooccurrence"
POPULARITY = "tesserec.retrievers.popularity:Popularity"


def items() -> pl.DataFrame:
    """Item ``i07`` is the second thing of the second room."""
    rows = [
        {"item_id": f"i{6 * r + t:02}", "title": f"{room} {thing}", "price": 1.0 + t}
        for r, room in enumerate(ROOMS)
        for t, thing in enumerate(THINGS)
    ]
    return pl.DataFrame(rows)


def events(days: range = range(6)) -> pl.DataFrame:
    """Basket ``n`` of customer ``u`` is on day ``10 n + u % 10``."""
    rows: list[dict[str, Any]] = [
        {
            "user_id": f"u{user:02}",
            "item_id": f"i{6 * (user % 4) + thing:02}",
            "timestamp": START_S + (10 * n + user % 10) * DAY_S,
            "kind": "purchase",
        }
        for user in range(48)
        for n in days
        for thing in (2 * n % 6, 2 * n % 6 + 1)
    ]
    if 0 in days:
        rows.append({"user_id": "u99", "item_id": "i00", "timestamp": START_S, "kind": "return"})
    return pl.DataFrame(rows)


def table(**changes: Any) -> dict[str, Any]:
    """A recipe of counting parts with small Semantic IDs; keyword arguments replace its tables."""
    return {
        "seed": 3,
        "data": {"positive_kinds": ["purchase"]},
        "embedder": {"class": "tesserec.embedders.tfidf_svd:TfidfSVD", "num_features": 8},
        "semantic_ids": {
            "class": "tesserec.semantic_ids.rq_kmeans:ResidualKMeans",
            "num_levels": 2,
            "codebook_size": 4,
        },
        "retriever": {"class": COOCCURRENCE},
        "baselines": {"popularity": {"class": POPULARITY}},
        **changes,
    }


def recipe(**changes: Any) -> Recipe:
    """``table`` as a recipe."""
    return parse_recipe(table(**changes))


def data() -> tuple[Interactions, Catalog]:
    """``events`` and ``items`` as read."""
    return read_data(recipe().data, events(), items())


@functools.cache
def contents() -> Contents:
    """The shop, fitted once."""
    return fit(recipe(), *data())
