"""Yelp Open Dataset: reviews of businesses. Every review is a positive event, its stars are the weight."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tesserec.data.interactions import read_events
from tesserec.data.sources.files import catalog_for, choose, local, notice
from tesserec.types import Catalog, Interactions

__all__ = ["NAMES", "TERMS", "load"]

NAMES = ("reviews",)
TERMS = "Yelp Dataset Terms of Use: academic use, no redistribution"
PAGE = "https://business.yelp.com/data/resources/open-dataset/"

_EVENTS = {"user_id": pl.String, "business_id": pl.String, "stars": pl.Float32, "date": pl.String}
_ITEMS = {"business_id": pl.String, "name": pl.String, "city": pl.String, "categories": pl.String, "is_open": pl.Int64}


def load(name: str = "reviews", folder: Path | None = None) -> tuple[Interactions, Catalog]:
    """Reviews and businesses, from ``folder`` with yelp_academic_dataset_review.json and …_business.json.

    ``available`` says which businesses are open; the city is kept as an attribute.
    """
    choose("yelp", name, NAMES)
    notice("Yelp", TERMS)
    reviews, businesses = (local(folder, f"yelp_academic_dataset_{file}.json", PAGE) for file in ("review", "business"))
    columns = {"item_id": "business_id", "value": "stars", "timestamp": "date"}
    log = read_events(pl.read_ndjson(reviews, schema=_EVENTS), columns=columns)
    items = pl.read_ndjson(businesses, schema=_ITEMS)
    items = items.rename({"business_id": "item_id", "name": "title"}).with_columns(
        pl.col("categories").str.split(", "), available=pl.col("is_open") == 1
    )
    return log, catalog_for(log, items.drop("is_open"))
