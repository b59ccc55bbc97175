"""The attributes of items as columns: which type each has, what fits it, and how a table of them is changed.

The service keeps seven types: Int64, Float64 (NaN is missing), String, Boolean, Date, Datetime (UTC, microseconds) and
lists of String. A column that a bundle has in another type is brought to the nearest of them, or left out.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from tesserec.data.catalog import made_text
from tesserec.errors import DataError
from tesserec.serving.kinds import BOOLEAN, EMPTY, NUMBER, TEXT, TEXTS, TIME, kind_of, microseconds
from tesserec.serving.records import Value
from tesserec.types import Catalog, Vocabulary

__all__ = [
    "MAX_ATTRIBUTES",
    "AttributeTypes",
    "appended",
    "as_catalog",
    "attribute_frame",
    "described",
    "patched",
    "with_columns",
]

LOGGER = logging.getLogger(__name__)
MAX_ATTRIBUTES = 256
"""Attributes that the items of one namespace may have between them, at most."""

_TEXTS = pl.List(pl.String())
_KNOWN: dict[str, pl.DataType] = {name: pl.String() for name in ("title", "text", "brand", "description", "domain")}
_KNOWN["price"] = pl.Float64()
_NOT_ATTRIBUTES = ("item_id", "available")
_SHOWN = 40
_FEW = 16


def attribute_frame(catalog: Catalog) -> pl.DataFrame:
    """The columns of a catalog in our types, ``item_id`` first; availability is kept elsewhere."""
    columns = [pl.Series("item_id", catalog.items.ids).cast(pl.String)]
    for column in catalog.frame.drop("item_id", "available", strict=False):
        typed = _typed(column)
        if typed is not None:
            columns.append(typed)
    return pl.DataFrame(columns)


def _typed(column: pl.Series) -> pl.Series | None:
    kind, dtype = kind_of(column.dtype), column.dtype
    if _is_nested(dtype):
        flat = column.to_frame().select(pl.all().list.eval(pl.element().explode().drop_nulls())).to_series()
        return _typed(flat)
    if kind == NUMBER:
        whole = dtype.is_integer() and dtype not in (pl.UInt64, pl.Int128)
        return column.cast(pl.Int64) if whole else column.cast(pl.Float64).fill_nan(None)
    if isinstance(dtype, pl.Datetime):
        zoned = column.dt.convert_time_zone("UTC") if dtype.time_zone else column.dt.replace_time_zone("UTC")
        return zoned.dt.cast_time_unit("us")
    if kind in (TEXT, TEXTS):
        return column.cast(pl.String if kind == TEXT else _TEXTS)
    return None if kind is None else column


class AttributeTypes:
    """The types of all attributes that items have, by name; new ones are typed by what is given first. Thread-safe."""

    def __init__(self, schema: Mapping[str, pl.DataType]) -> None:
        typed = {name: dtype for name, dtype in schema.items() if kind_of(dtype) != EMPTY}
        self._types = _KNOWN | {name: dtype for name, dtype in typed.items() if name != "item_id"}
        self._lock = threading.Lock()

    def check(self, attributes: Mapping[str, Value]) -> None:
        """Whether an item may have these attributes; types of new ones are settled by it.

        Raises ``DataError`` for a value of another type than its column, and for more than ``MAX_ATTRIBUTES`` columns.
        """
        with self._lock:
            found = {name: self._fitted(name, value)[0] for name, value in attributes.items() if value is not None}
            new = sorted(set(found) - set(self._types))  # items that came while another version was live may be more
            if new and len(self._types) + len(new) > MAX_ATTRIBUTES:
                raise DataError(
                    f"{', '.join(new)[:200]}: items have {len(self._types)} attributes between them, "
                    f"{MAX_ATTRIBUTES} are possible: use those there are"
                )
            self._types |= found

    def frame(self, items: Sequence[tuple[str, Mapping[str, Value]]]) -> pl.DataFrame:
        """Rows of attributes, each of an id and what it has, with a ``text`` made where there is none.

        A value that does not fit, which only another bundle than the one it was checked for can have let in, counts as
        missing and is logged.
        """
        with self._lock:
            rows = [(item_id, self._row(item_id, attributes)) for item_id, attributes in items]
            names = dict.fromkeys(name for _, row in rows for name in row)
            types = {name: self._types[name] for name in names}
        ids = pl.Series("item_id", [item_id for item_id, _ in rows], dtype=pl.String)
        frame = pl.DataFrame([ids, *(pl.Series(n, [row.get(n) for _, row in rows], dtype=t) for n, t in types.items())])
        made = made_text(frame)
        return frame.with_columns(pl.coalesce("text", made) if "text" in names else made)

    def _row(self, item_id: str, attributes: Mapping[str, Value]) -> dict[str, Any]:
        row = {}
        for name, value in attributes.items():
            if value is not None:
                try:
                    dtype, row[name] = self._fitted(name, value)
                except DataError as error:
                    LOGGER.warning("item %s: %s; it counts as missing", item_id, error)
                else:
                    self._types[name] = dtype
        return row

    def _fitted(self, name: str, value: Value) -> tuple[pl.DataType, Any]:
        """(type of the column, the value as it is stored)."""
        if name in _NOT_ATTRIBUTES:
            raise DataError(f"{name} is no attribute: say it beside the attributes")
        dtype = self._types.get(name) or _first_type(name, value)
        kind = kind_of(dtype)
        assert kind is not None, "columns of other types are left out"
        if kind == NUMBER:
            return dtype, _number(name, value, dtype)
        if kind == TIME:
            return dtype, _time(name, value, dtype)
        if kind == BOOLEAN and isinstance(value, bool):
            return dtype, value
        if kind == TEXT and isinstance(value, str):
            return dtype, _text(name, value)
        if kind == TEXTS and isinstance(value, list) and all(isinstance(v, str) for v in value):
            return dtype, [_text(name, v) for v in value]
        raise _misfit(name, value, kind)


def _misfit(name: str, value: object, expected: str) -> DataError:
    shown = repr(value)
    return DataError(
        f"attribute {name} is {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'}: "
        f"expected {expected}, as other items have"
    )


def _first_type(name: str, value: object) -> pl.DataType:
    if isinstance(value, bool):
        return pl.Boolean()
    if isinstance(value, int | float):
        return pl.Float64()
    if isinstance(value, str):
        return pl.String()
    if isinstance(value, list):
        return _TEXTS
    raise DataError(f"attribute {name} is a {type(value).__name__}: give text, a number, true or false, or texts")


def _number(name: str, value: object, dtype: pl.DataType) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _misfit(name, value, NUMBER)
    if not abs(value) < 2**63:
        raise DataError(f"attribute {name} is too large or no number: give one below 9223372036854775808")
    if name == "price" and value < 0:
        raise DataError(f"attribute price is {value}: expected a number of at least 0, or null")
    if isinstance(dtype, pl.Float64):
        return float(value)
    if value != math.floor(value):
        raise _misfit(name, value, "a whole number")
    return int(value)


def _time(name: str, value: object, dtype: pl.DataType) -> date | datetime:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _misfit(name, value, TIME)
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds(value))
    except (ValueError, OverflowError):
        raise _misfit(name, value, "seconds since 1970 or ISO 8601, such as 2024-05-31") from None
    return moment.date() if isinstance(dtype, pl.Date) else moment


def _text(name: str, value: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise DataError(f"attribute {name} holds half a surrogate pair, which is no text: send valid Unicode")
    return value


def with_columns(frame: pl.DataFrame, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """The frame with all columns of ``schema``, in its types; those that it lacks (or that are all null) are null."""
    missing = [
        pl.lit(None, dtype).alias(name)
        for name, dtype in schema.items()
        if frame.schema.get(name, pl.Null()) == pl.Null
    ]
    return frame.with_columns(missing) if missing else frame


def as_catalog(rows: pl.DataFrame, schema: Mapping[str, pl.DataType]) -> Catalog:
    """Rows of ours as a catalog in the types of ``schema``, which a model's own catalog has."""
    typed = [
        _nested(column, schema[column.name]) if _is_nested(schema[column.name]) else column.cast(schema[column.name])
        for column in rows.drop("item_id")
        if column.name in schema and schema[column.name] not in (column.dtype, pl.Null, pl.Enum)
    ]
    return Catalog(Vocabulary.of(rows["item_id"].to_list()), rows.with_columns(typed))


def _nested(column: pl.Series, dtype: pl.DataType) -> pl.Series:
    return pl.Series(column.name, [None if value is None else [value] for value in column.to_list()], dtype=dtype)


def _is_nested(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.List)


def patched(frame: pl.DataFrame, indices: Sequence[int], rows: pl.DataFrame) -> pl.DataFrame:
    """The frame with the rows at distinct ``indices`` replaced; columns in which nothing changes are shared."""
    frame = with_columns(frame, rows.schema)
    rows = with_columns(rows, frame.schema).select(frame.columns)
    pairs = zip(frame, frame[list(indices)], rows, strict=True)
    changed = [_replaced(whole, indices, new) for whole, old, new in pairs if old.to_list() != new.to_list()]
    return frame.with_columns(changed) if changed else frame


def appended(frame: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The frame with more rows at its end; columns that one has not are null."""
    frame = with_columns(frame, rows.schema)
    return pl.concat([frame, with_columns(rows, frame.schema).select(frame.columns)], rechunk=True)


def _replaced(old: pl.Series, indices: Sequence[int], new: pl.Series) -> pl.Series:
    if len(indices) > _FEW:
        order = np.arange(len(old), dtype=np.int64)
        order[list(indices)] = len(old) + np.arange(len(indices))
        return pl.concat([old, new]).gather(pl.Series(order))
    parts, start = [], 0
    for position, index in sorted(enumerate(indices), key=lambda pair: pair[1]):
        parts += [old[start:index], new[position : position + 1]]
        start = index + 1
    return pl.concat([*parts, old[start:]], rechunk=True)


def described(frame: pl.DataFrame, index: int) -> dict[str, Any]:
    """The attributes of one row that it has, as JSON knows them: times are ISO 8601, a ``text`` that was made is left
    out."""
    row = frame[index]
    found = {name: value for name, value in row.row(0, named=True).items() if value is not None and name != "item_id"}
    if "text" in found and found["text"] == row.select(made_text(row)).item():
        del found["text"]
    return {name: value.isoformat() if isinstance(value, date) else value for name, value in found.items()}
