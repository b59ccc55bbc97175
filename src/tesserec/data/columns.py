"""Columns as people have them → the arrays we compute with; whatever cannot be used is refused with its row.

Rows are counted from 0. Ids become int32 positions in a sorted vocabulary, times whole seconds, labels (kinds, domains)
int32 positions in their sorted names, groups (sessions, impressions) int64 numbers with −1 for none.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tesserec.data.tables import Table
from tesserec.errors import DataError
from tesserec.types import NO_TIME, Vocabulary

__all__ = ["encode_ids", "positions", "read_groups", "read_labels", "read_numbers", "read_seconds", "read_whole"]

LOGGER = logging.getLogger(__name__)

IntArray = npt.NDArray[np.integer]

_SLICE = 1 << 16
"""Values that are encoded at a time, so that what lies between fits the processor's cache."""

_WHOLE = r"^(0|-?[1-9][0-9]{0,17})$"
_ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:?\d{2})?)?$"
_ZONED = r"(Z|[T ].*[+-]\d{2}:?\d{2})$"
_UNITS = ((1, "seconds"), (1_000, "milliseconds"), (1_000_000, "microseconds"), (1_000_000_000, "nanoseconds"))
_LATEST_S = 100_000_000_000
"""Seconds of the year 5138: a larger number is a time in a smaller unit (milliseconds reach it in March 1973)."""


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Dictionaries and string views as plain values."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        values = pa.large_string() if pa.types.is_string_view(kind.value_type) else kind.value_type
        return pa.chunked_array([c.dictionary.cast(values).take(c.indices) for c in column.chunks], values)
    return column.cast(pa.large_string()) if pa.types.is_string_view(kind) else column


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _first(mask: pa.ChunkedArray) -> int:
    return int(pc.index(mask, True).as_py())


def _refuse_nulls(column: pa.ChunkedArray, where: str, remedy: str) -> None:
    missing = pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))
    if column.null_count or bool(pc.any(missing).as_py()):
        raise DataError(f"{where} is null in row {_first(missing)}: {remedy}")


def encode_ids(table: Table, name: str) -> tuple[npt.NDArray[np.int32], pa.Array]:
    """(position of each row's id [E] int32, the distinct ids sorted): int64 or large_string.

    Floats are taken where all are whole; strings of a text file become integers where all are plain whole numbers.
    Raises ``DataError`` for nulls, NaN and types that are no ids.
    """
    where = f"{table.name}: column {name}"
    column = _plain(table.read(name))
    _refuse_nulls(column, where, "every event and item needs its ids; fill the row or drop it")
    if pa.types.is_floating(column.type):
        column = _whole(column, where)
    if pa.types.is_integer(column.type):
        return _encode_integers(column, where)
    if not _is_text(column.type):
        raise DataError(f"{where} has type {column.type}: ids must be strings or integers, cast the column")
    codes, ids = _encode(column)
    if table.from_text and bool(pc.all(pc.match_substring_regex(ids, _WHOLE)).as_py()):
        return _sorted(codes, ids.cast(pa.int64()))
    return _sorted(codes, ids.cast(pa.large_string()))


def _whole(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    broken = pc.not_equal(column, pc.trunc(column))
    broken = pc.or_(broken, pc.invert(pc.less(pc.abs(column), 2.0**53)))
    if bool(pc.any(broken).as_py()):
        row = _first(broken)
        raise DataError(f"{where} is {column[row]} in row {row}, not a whole number: give integers or strings")
    return column.cast(pa.int64())


def _encode_integers(column: pa.ChunkedArray, where: str) -> tuple[npt.NDArray[np.int32], pa.Array]:
    limits = pc.min_max(column)
    low, high = limits["min"].as_py(), limits["max"].as_py()
    if high is not None and high >= 2**63:
        raise DataError(f"{where} holds {high}, more than int64 does: give such ids as strings")
    if high is None or high - low > 4 * len(column) + 1_000_000:
        codes, ids = _encode(column)
        return _sorted(codes, ids.cast(pa.int64()))
    slices = [c[i : i + _SLICE] for c in map(_numpy, column.chunks) for i in range(0, len(c), _SLICE)]
    present = np.zeros(high - low + 1, bool)
    for values in slices:
        present[values - low] = True
    ranks = np.cumsum(present, dtype=np.int32) - np.int32(1)
    codes = np.empty(len(column), np.int32)
    start = 0
    for values in slices:
        codes[start : start + len(values)] = ranks[values - low]
        start += len(values)
    return codes, pa.array(np.flatnonzero(present) + low, pa.int64())


def _numpy(chunk: pa.Array) -> npt.NDArray[Any]:
    return np.asarray(chunk.to_numpy())


def _encode(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], pa.Array]:
    """(position in the distinct values [E] int32, −1 where null; the distinct values as they come)."""
    encoded = column.dictionary_encode()
    if not encoded.num_chunks:
        return np.zeros(0, np.int32), pa.array([], column.type)
    codes = [chunk.indices.fill_null(-1).to_numpy() for chunk in encoded.chunks]
    return np.concatenate(codes), encoded.chunk(encoded.num_chunks - 1).dictionary


def _sorted(codes: npt.NDArray[np.int32], values: pa.Array) -> tuple[npt.NDArray[np.int32], pa.Array]:
    order = pc.array_sort_indices(values).to_numpy()
    ranks = np.full(len(order) + 1, -1, np.int32)
    ranks[order] = np.arange(len(order), dtype=np.int32)
    return ranks[codes], values.take(pa.array(order))


def positions(ids: pa.Array, vocabulary: Vocabulary) -> npt.NDArray[np.int32]:
    """The dense index of each id in ``vocabulary`` (int32), −1 where unknown; "12" and 12 are the same id."""
    known, kind = vocabulary.ids, vocabulary.ids.type
    if vocabulary.is_text:
        ids = ids.cast(kind)
    elif _is_text(ids.type):
        ids = pc.if_else(pc.match_substring_regex(ids, _WHOLE), ids, pa.scalar(None, ids.type)).cast(kind)
    return np.array(pc.index_in(ids, value_set=known).fill_null(-1).to_numpy())


def read_labels(table: Table, name: str) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """(position of each row's label [E] int32, the labels sorted, as strings); nulls are refused."""
    where = f"{table.name}: column {name}"
    column = _plain(table.read(name))
    _refuse_nulls(column, where, "give each row a label, or drop the column")
    codes, values = _encode(column)
    codes, values = _sorted(codes, values.cast(pa.large_string()))
    return codes, tuple(values.to_pylist())


def read_groups(table: Table, name: str) -> npt.NDArray[np.int64]:
    """A number for each distinct value [E] int64, −1 where null (in no group)."""
    column = _plain(table.read(name))
    codes, values = _encode(column)
    return _sorted(codes, values)[0].astype(np.int64)


def read_numbers(table: Table, name: str) -> npt.NDArray[np.float32]:
    """A column of weights [E] float32; nulls, NaN, infinity and what is no number are refused."""
    where = f"{table.name}: column {name}"
    column = _numeric(table, name, where)
    _refuse_nulls(column, where, "give each row a number, or drop the column")
    values = column.cast(pa.float32(), safe=False).to_numpy()
    if not np.isfinite(values).all():
        raise DataError(f"{where} is infinite in row {int(np.argmin(np.isfinite(values)))}: give a finite number")
    return np.asarray(values)


def read_whole(table: Table, name: str) -> npt.NDArray[np.int64]:
    """A column of whole numbers [E] int64, the tie-break ``order``; nulls and fractions are refused."""
    where = f"{table.name}: column {name}"
    column = _numeric(table, name, where)
    _refuse_nulls(column, where, "give each row its place, or drop the column")
    if pa.types.is_floating(column.type):
        column = _whole(column, where)
    return np.asarray(column.cast(pa.int64()).to_numpy())


def _numeric(table: Table, name: str, where: str) -> pa.ChunkedArray:
    column = _plain(table.read(name))
    if _is_text(column.type) and table.from_text:
        kind = pa.int64() if bool(pc.all(pc.match_substring_regex(column, _WHOLE)).as_py()) else pa.float64()
        return _cast(column, kind, where, "a number")
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"{where} has type {column.type}: expected numbers, cast the column")
    return column


def _cast(column: pa.ChunkedArray, kind: pa.DataType, where: str, expected: str) -> pa.ChunkedArray:
    """``column.cast(kind)``; where a value does not parse, the error names the first such row."""
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        low, high = 0, len(column)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if _fails(column.slice(low, middle - low), kind) else (middle, high)
        value = column[low].as_py()
        raise DataError(f"{where} is {value!r} in row {low}, not {expected}: correct or drop the row") from None


def _fails(column: pa.ChunkedArray, kind: pa.DataType) -> bool:
    try:
        column.cast(kind)
    except pa.ArrowInvalid:
        return True
    return False


def read_seconds(table: Table, name: str) -> npt.NDArray[np.int64]:
    """A column of times as whole seconds since 1970 UTC [E] int64, ``NO_TIME`` where null or NaN.

    Numbers are seconds unless all are so large (from 10¹¹, in seconds the year 5138) that they can only be milli-,
    micro- or nanoseconds, which is logged; columns that mix units are refused. Dates count from midnight; times
    without a zone are UTC; strings are ISO 8601. Fractions of a second are cut. Raises ``DataError`` for negative and
    unparsable times.
    """
    where = f"{table.name}: column {name}"
    column = _plain(table.read(name))
    if _is_text(column.type):
        column = _parse_times(column, where, numbers=table.from_text)
    if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        column = pc.floor_temporal(column.cast(pa.timestamp("us"), safe=False), unit="second")
        column = column.cast(pa.timestamp("s"))
        return _checked(column.cast(pa.int64()), where, read=False)
    if pa.types.is_floating(column.type):
        column = _finite_floor(column, where)
    if not (pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
        raise DataError(f"{where} has type {column.type}: expected seconds since 1970, dates or ISO 8601 strings")
    return _checked(column.cast(pa.int64()), where, read=True)


def _parse_times(column: pa.ChunkedArray, where: str, *, numbers: bool) -> pa.ChunkedArray:
    expected = "a time: expected seconds since 1970 or ISO 8601, such as 2024-05-31T18:30:00Z"
    if numbers and bool(pc.all(pc.match_substring_regex(column, r"^[-+0-9.eE]+$")).as_py()):
        iso_like = bool(pc.any(pc.match_substring_regex(column, _ISO)).as_py())
        if not iso_like:
            whole = bool(pc.all(pc.match_substring_regex(column, _WHOLE)).as_py())
            return _cast(column, pa.int64() if whole else pa.float64(), where, expected)
    broken = pc.invert(pc.match_substring_regex(column, _ISO))
    if bool(pc.any(broken).as_py()):
        row = _first(broken)
        raise DataError(f"{where} is {column[row].as_py()!r} in row {row}, not {expected}")
    zoned = pc.match_substring_regex(column, _ZONED)
    if bool(pc.all(zoned).as_py()):
        return _cast(column, pa.timestamp("us", "UTC"), where, expected)
    if bool(pc.any(zoned).as_py()):
        row = _first(zoned)
        raise DataError(f"{where} is {column[row].as_py()!r} in row {row}, but other rows have no zone: use one form")
    return _cast(column, pa.timestamp("us"), where, expected)


def _finite_floor(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    infinite = pc.is_inf(column)
    if bool(pc.any(infinite).as_py()):
        raise DataError(f"{where} is infinite in row {_first(infinite)}: give a time, or null")
    return pc.floor(column).cast(pa.int64(), safe=False)


def _checked(column: pa.ChunkedArray, where: str, *, read: bool) -> npt.NDArray[np.int64]:
    """Whole numbers as seconds: none negative, all of one unit; ``read`` means the unit must be read off them."""
    limits = pc.min_max(column)
    low, high = limits["min"].as_py(), limits["max"].as_py()
    if low is not None and low < 0:
        row = _first(pc.less(column, 0))
        raise DataError(f"{where} is {column[row]} in row {row}: times are seconds since 1970 and not negative")
    values: npt.NDArray[np.int64] = (column.fill_null(NO_TIME) if column.null_count else column).to_numpy()
    if not read or high is None or high < _LATEST_S:
        return values
    (low_unit, low_name), (unit, name) = _unit(low), _unit(high)
    if low_unit != unit:
        raise DataError(f"{where} mixes {low_name} ({low}) and {name} ({high}): convert all times to seconds")
    LOGGER.warning("%s holds times like %d: read as %s", where, high, name)
    seconds = values // unit
    seconds[values == NO_TIME] = NO_TIME
    return seconds


def _unit(number: int) -> tuple[int, str]:
    return next((u for u in reversed(_UNITS) if number >= _LATEST_S * u[0] // 1000), _UNITS[0])
