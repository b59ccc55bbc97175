"""The kinds of attributes: what a column holds, in the words of error messages, and the type it is compared in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl

__all__ = ["BOOLEAN", "EMPTY", "NUMBER", "TEXT", "TEXTS", "TIME", "comparable", "kind_of", "microseconds"]

NUMBER, TEXT, BOOLEAN, TIME, TEXTS = "a number", "text", "true or false", "a time", "a list of texts"
EMPTY = "missing everywhere"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST_S = 253_402_300_799
"""The last second of the year 9999."""
_WHOLE = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)


def kind_of(dtype: pl.DataType) -> str | None:
    """What a column of this type holds; None where it is nothing that can be compared, such as a struct."""
    if dtype.is_numeric():
        return NUMBER
    if isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        return TEXT
    if isinstance(dtype, pl.Date | pl.Datetime):
        return TIME
    if isinstance(dtype, pl.List | pl.Array):
        inner = dtype.inner
        assert isinstance(inner, pl.DataType), "types of a frame's columns are whole"
        return TEXTS if kind_of(inner) in (TEXT, EMPTY) else None
    if isinstance(dtype, pl.Boolean):
        return BOOLEAN
    return EMPTY if isinstance(dtype, pl.Null) else None


def comparable(column: pl.Expr, dtype: pl.DataType, kind: str) -> pl.Expr:
    """A column as the one type in which its kind is compared: times are microseconds since 1970, NaN is missing."""
    if kind == NUMBER:
        return column.cast(pl.Int64) if dtype in _WHOLE else column.cast(pl.Float64).fill_nan(None)
    if kind == TIME:
        return column.dt.timestamp("us")
    if kind == TEXTS:
        return column.cast(pl.List(pl.String))
    return column.cast(pl.String) if kind == TEXT else column


def microseconds(time: str | int | float) -> int:
    """Seconds since 1970 or an ISO 8601 string (UTC where it has no zone) as microseconds since 1970.

    Raises ``ValueError`` for what is no time of the years 1 to 9999.
    """
    if isinstance(time, str):
        moment = datetime.fromisoformat(time)
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return (aware - _EPOCH) // timedelta(microseconds=1)
    earliest_s = datetime.min.replace(tzinfo=UTC).timestamp()
    if not earliest_s <= time <= _LATEST_S:
        raise ValueError(f"{time} is not between the years 1 and 9999")
    return round(time * 1_000_000)
