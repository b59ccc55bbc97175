"""Amazon reviews (McAuley lab) of 2014, 2018 and 2023, a category at a time. Every review is a positive event.

Names are ``VERSION/Category`` with the file's spelling: 2014/Beauty, 2018/Industrial_and_Scientific, 2023/All_Beauty
(all 5-core) or 2023-raw/All_Beauty. Items are parent products in 2023. The catalog holds the items that have reviews.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.json as pj

from tesserec.data.interactions import read_events
from tesserec.data.sources.files import catalog_for, choose, fetch, notice, records
from tesserec.errors import DataError
from tesserec.types import Catalog, Interactions

__all__ = ["TERMS", "VERSIONS", "Version", "load"]

TERMS = "no open licence: research use, do not redistribute; cite the version's paper (McAuley 2015, Ni 2019, Hou 2024)"

_LAB = "https://mcauleylab.ucsd.edu/public_datasets/data/"
_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
_OLD = {"user_id": "reviewerID", "item_id": "asin", "value": "overall", "timestamp": "unixReviewTime"}
_NEW = {"user_id": "user_id", "item_id": "parent_asin", "value": "rating", "timestamp": "timestamp"}


@dataclass(frozen=True)
class Version:
    """The addresses ({} is the category) and field names of one version."""

    reviews: str
    items: str
    columns: Mapping[str, str]
    item_fields: Mapping[str, str]
    """Our name → the field's, of ``item_id``, ``title``, ``brand``, ``categories``, ``description``, ``price``."""
    literal: bool = False
    """Whether item lines are Python literals instead of JSON."""


def _fields(item_id: str, brand: str, categories: str) -> dict[str, str]:
    same = {name: name for name in ("title", "description", "price")}
    return {"item_id": item_id, "brand": brand, "categories": categories, **same}


VERSIONS = {
    "2014": Version(
        f"{_SNAP}reviews_{{}}_5.json.gz",
        f"{_SNAP}meta_{{}}.json.gz",
        _OLD,
        _fields("asin", "brand", "categories"),
        literal=True,
    ),
    "2018": Version(
        f"{_LAB}amazon_v2/categoryFilesSmall/{{}}_5.json.gz",
        f"{_LAB}amazon_v2/metaFiles2/meta_{{}}.json.gz",
        _OLD,
        _fields("asin", "brand", "category"),
    ),
    "2023": Version(
        f"{_LAB}amazon_2023/benchmark/5core/rating_only/{{}}.csv.gz",
        f"{_LAB}amazon_2023/raw/meta_categories/meta_{{}}.jsonl.gz",
        _NEW,
        _fields("parent_asin", "store", "categories"),
    ),
    "2023-raw": Version(
        f"{_LAB}amazon_2023/raw/review_categories/{{}}.jsonl.gz",
        f"{_LAB}amazon_2023/raw/meta_categories/meta_{{}}.jsonl.gz",
        _NEW,
        _fields("parent_asin", "store", "categories"),
    ),
}


def load(
    name: str = "2014/Beauty", folder: Path | None = None, *, versions: Mapping[str, Version] = VERSIONS
) -> tuple[Interactions, Catalog]:
    """Reviews and products of ``name``, from ``folder`` (with both files as they are named in public) or the
    network."""
    year, separator, category = name.partition("/")
    if not separator or not category:
        raise DataError(f"amazon has no data set {name!r}: give VERSION/Category, such as 2014/Beauty")
    version = versions[choose("amazon", year, tuple(versions))]
    notice(f"Amazon {name}", TERMS)
    reviews, meta = (fetch(url.format(category), folder, f"amazon/{year}") for url in (version.reviews, version.items))
    log = _events(reviews, version)
    return log, catalog_for(log, _items(meta, version, log))


def _events(path: Path, version: Version) -> Interactions:
    if ".csv" in path.suffixes:
        return read_events(path)
    types = {"user_id": pa.string(), "item_id": pa.string(), "value": pa.float64(), "timestamp": pa.int64()}
    schema = pa.schema([(version.columns[ours], kind) for ours, kind in types.items()])
    options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        with pa.input_stream(path, compression="detect") as stream:
            table = pj.read_json(stream, pj.ReadOptions(block_size=16 << 20), options)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not readable as reviews: {error}; get the file again") from None
    return read_events(table)


def _items(path: Path, version: Version, log: Interactions) -> pl.DataFrame:
    wanted = set(log.items.ids.to_pylist())
    rows: list[dict[str, Any]] = []
    for record in records(path, literal=version.literal):
        if record.get(version.item_fields["item_id"]) in wanted:
            row = {ours: record.get(theirs) for ours, theirs in version.item_fields.items()}
            row["categories"], row["description"] = _flat(row["categories"]), " ".join(_flat(row["description"]))
            row["price"] = _price(row["price"])
            rows.append(row)
    schema = dict.fromkeys(("item_id", "title", "brand", "description"), pl.String)
    return pl.DataFrame(rows, schema={**schema, "categories": pl.List(pl.String), "price": pl.Float64}, strict=False)


def _flat(value: Any) -> list[str]:
    """Texts that may stand alone, in a list, or (categories of 2014: paths) in a list of lists, of which the first
    counts."""
    if not value:
        return []
    if isinstance(value, str):
        return [value]
    return [str(text) for text in (value[0] if isinstance(value[0], list) else value)]


def _price(value: Any) -> float | None:
    """A number, or a text such as "$12.99"; anything else ("$1.00 - $5.00") is no price."""
    found = re.fullmatch(r"\$?(\d[\d,]*(?:\.\d+)?)", str(value))
    return float(found[1].replace(",", "")) if found else None
