"""The kinds of attributes: what a column holds, in the words of error messages, and the type it is compared in."""

from __future__ import annotations

import polars as pl

__all__ = ["BOOLEAN", "EMPTY", "NUMBER", "TEXT", "TEXTS", "TIME", "comparable", "kind_of"]

NUMBER, TEXT, BOOLEAN, TIME, TEXTS = "a number", "text", "true or false", "a time", "a list of texts"
EMPTY = "missing everywhere"
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
