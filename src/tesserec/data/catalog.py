"""Item tables: any table → ``Catalog``, and catalogs made to fit a vocabulary.

``text``, what embedders read, is taken from a column of that name; otherwise it is made of what there is: the title,
then "Brand: …", "Categories: …", the description, joined with ". ". Lists are joined with ", " (paths of categories
with " > ").
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import torch

from tesserec.data.columns import encode_ids, positions
from tesserec.data.tables import Source, Table, advice, match_columns, open_table, to_frame
from tesserec.errors import DataError
from tesserec.types import Catalog, Interactions, Vocabulary

__all__ = ["ITEM_COLUMNS", "align_catalog", "catalog_of", "made_text", "read_catalog"]

ITEM_COLUMNS: dict[str, tuple[str, ...]] = {
    "item_id": ("item", "iid", "product_id", "product", "asin", "parent_asin", "movie_id", "article_id", "venue_id"),
    "title": ("name", "item_name", "product_name", "movie_title"),
    "text": (),
    "brand": ("manufacturer", "store"),
    "categories": ("category", "genres", "genre", "class"),
    "description": (),
    "price": (),
    "domain": (),
    "available": (),
}
"""Our column names and the other names that are understood, compared without case and punctuation."""

_TEXT_PARTS = (("title", ""), ("brand", "Brand: "), ("categories", "Categories: "), ("description", ""))
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def read_catalog(source: Source, *, columns: Mapping[str, str | None] | None = None) -> Catalog:
    """The items of a file or frame, in the order of their sorted ids, with all their columns.

    Columns that we know take our names (``columns`` maps as in ``read_events``), the others keep theirs. Raises
    ``DataError`` (with row, column and remedy) for a missing or null id, an item that occurs twice, an unusable price
    or availability.
    """
    table = open_table(source)
    names = match_columns(table, ITEM_COLUMNS, columns, "item_columns")
    if "item_id" not in names:
        raise DataError(
            f"{table.name} has the columns {', '.join(table.names)}: none is item_id; "
            f"{advice('item_id', '...', 'item_columns')}"
        )
    codes, ids = encode_ids(table, names["item_id"])
    if not len(codes):
        raise DataError(f"{table.name} holds no items: give at least one row")
    _refuse_duplicates(table, names["item_id"], codes, ids)
    frame = _typed(_named(to_frame(table), names), table.name)
    frame = frame[pl.Series(codes).arg_sort()].with_columns(pl.Series("item_id", ids))
    frame = frame.select("item_id", pl.exclude("item_id"))
    available_N = frame["available"].to_torch() if "available" in names else None
    return Catalog(Vocabulary(ids), frame, available_N)


def _refuse_duplicates(table: Table, name: str, codes: npt.NDArray[np.int32], ids: pa.Array) -> None:
    counts = np.bincount(codes)
    if counts.max() > 1:
        rows = np.flatnonzero(codes == int(np.argmax(counts > 1)))
        raise DataError(
            f"{table.name}: column {name} is {ids[int(codes[rows[0]])].as_py()!r} in rows {rows[0]} and {rows[1]} "
            f"({int((counts > 1).sum())} items occur more than once): keep one row an item"
        )


def _named(frame: pl.DataFrame, names: Mapping[str, str]) -> pl.DataFrame:
    """Their names → ours; where ``columns`` points our name elsewhere, a column that had it gives way."""
    replaced = [ours for ours, theirs in names.items() if ours != theirs and ours in frame.columns]
    return frame.drop(replaced).rename({theirs: ours for ours, theirs in names.items()})


def _typed(frame: pl.DataFrame, where: str) -> pl.DataFrame:
    """Texts as strings, ``price`` as a number, ``available`` as a boolean, and ``text`` made where it is absent."""
    lists = [name for name in frame.columns if isinstance(frame.schema[name], pl.List)]
    known = [name for name in ("title", "text", "brand", "description", "domain") if name in frame.columns]
    frame = frame.with_columns(
        _joined(frame, name) if name in lists else pl.col(name).cast(pl.String) for name in known
    )
    if "price" in frame.columns:
        frame = frame.with_columns(_price(frame["price"], where))
    if "available" in frame.columns:
        frame = frame.with_columns(_available(frame["available"], where))
    return frame if "text" in frame.columns else frame.with_columns(made_text(frame))


def _joined(frame: pl.DataFrame, name: str) -> pl.Expr:
    """A column of strings, lists or lists of lists as one string a row."""
    column, kind = pl.col(name), frame.schema[name]
    if not isinstance(kind, pl.List):
        return column.cast(pl.String)
    if isinstance(kind.inner, pl.List):
        column = column.list.eval(pl.element().cast(pl.List(pl.String)).list.join(" > "))
    return column.cast(pl.List(pl.String)).list.join(", ").alias(name)


def made_text(frame: pl.DataFrame) -> pl.Expr:
    """The column ``text`` for a frame without one, made of its title, brand, categories and description."""
    parts = []
    for name, label in _TEXT_PARTS:
        if name in frame.columns:
            part = _joined(frame, name).str.strip_chars()
            parts.append(pl.when(part != "").then(pl.concat_str(pl.lit(label), part)))
    return pl.concat_str(parts, separator=". ", ignore_nulls=True).alias("text") if parts else pl.lit("").alias("text")


def _price(column: pl.Series, where: str) -> pl.Series:
    price = column.cast(pl.Float64, strict=False)
    broken = (price.is_null() & column.is_not_null()) | ~price.fill_null(0).is_finite() | (price < 0).fill_null(False)
    if broken.any():
        row = int(broken.arg_max() or 0)
        raise DataError(
            f"{where}: column price is {column[row]!r} in row {row}: expected a number of at least 0, or null"
        )
    return price


def _available(column: pl.Series, where: str) -> pl.Series:
    words = column.cast(pl.String).str.to_lowercase()
    broken = ~words.is_in([*_TRUE, *_FALSE]).fill_null(False)
    if broken.any():
        row = int(broken.arg_max() or 0)
        raise DataError(f"{where}: column available is {column[row]!r} in row {row}: expected true or false")
    return words.is_in(_TRUE).alias("available")


def catalog_of(interactions: Interactions) -> Catalog:
    """A catalog of nothing but the ids of the log's items, for logs without one."""
    ids = interactions.items.ids
    return Catalog(interactions.items, pl.DataFrame({"item_id": pl.Series(ids)}))


def align_catalog(catalog: Catalog, items: Vocabulary) -> Catalog:
    """The rows of ``catalog`` for ``items``, in their order (after a k-core filter, for example).

    Raises ``DataError`` for items that the catalog does not hold.
    """
    rows = positions(items.ids, catalog.items)
    if len(rows) and rows.min() < 0:
        missing = items.ids[int(np.argmin(rows))].as_py()
        count = int((rows < 0).sum())
        raise DataError(f"the catalog lacks {count} of {len(items)} items, {missing!r} among them: add their rows")
    available_N = None if catalog.available_N is None else catalog.available_N[torch.from_numpy(rows).long()]
    return Catalog(items, catalog.frame[rows], available_N)
