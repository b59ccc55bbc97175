"""What people write in columns, and what is made of it or refused."""

import datetime as dt
import logging

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tesserec.data.columns import (
    encode_ids,
    positions,
    read_groups,
    read_labels,
    read_numbers,
    read_seconds,
    read_whole,
)
from tesserec.data.tables import Table, open_table
from tesserec.errors import DataError
from tesserec.types import NO_TIME, Vocabulary


def column(values, kind=None) -> Table:
    return open_table(pa.table({"c": pa.array(values, kind)}))


def text(values) -> Table:
    """As if read from a text file."""
    chunks = pa.chunked_array([pa.array(values, pa.large_string())])
    return Table("t.csv", ("c",), lambda name: chunks, from_text=True)


def ids_of(table: Table):
    codes, ids = encode_ids(table, "c")
    assert codes.dtype == np.int32
    return codes.tolist(), ids.to_pylist(), str(ids.type)


@pytest.mark.parametrize(
    ("table", "codes", "ids", "kind"),
    [
        (column([7, 3, 7]), [1, 0, 1], [3, 7], "int64"),
        (column([10**15, 3, -5]), [2, 1, 0], [-5, 3, 10**15], "int64"),
        (column([7, 3], pa.uint16()), [1, 0], [3, 7], "int64"),
        (column([2.0, 1.0, 2.0]), [1, 0, 1], [1, 2], "int64"),
        (column(["b", "a", "b"]), [1, 0, 1], ["a", "b"], "large_string"),
        (column(["10", "9"]), [0, 1], ["10", "9"], "large_string"),
        (text(["10", "9", "0", "-1"]), [3, 2, 1, 0], [-1, 0, 9, 10], "int64"),
        (text(["10", "09"]), [1, 0], ["09", "10"], "large_string"),
        (text(["10", "x"]), [0, 1], ["10", "x"], "large_string"),
        (text(["1" + "0" * 18]), [0], ["1" + "0" * 18], "large_string"),
        (open_table(pl.DataFrame({"c": ["b", "a"]})), [1, 0], ["a", "b"], "large_string"),
        (open_table(pl.DataFrame({"c": ["b", "a"]}, schema={"c": pl.Categorical})), [1, 0], ["a", "b"], "large_string"),
    ],
)
def test_ids_are_numbered_in_sorted_order(table, codes, ids, kind):
    assert ids_of(table) == (codes, ids, kind)


@pytest.mark.parametrize("spread", [1, 1000])
def test_ids_in_chunks_and_across_slices(spread):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 5000, 150_000) * spread**2
    chunks = pa.chunked_array([values[:70_000], values[70_000:]])
    codes, ids = encode_ids(open_table(pa.table({"c": chunks})), "c")
    expected_ids, expected = np.unique(values, return_inverse=True)
    assert np.array_equal(ids.to_numpy(), expected_ids)
    assert np.array_equal(codes, expected)
    as_text = pa.chunked_array([chunk.cast(pa.string()) for chunk in chunks.chunks])
    codes, ids = encode_ids(open_table(pa.table({"c": as_text})), "c")
    assert [ids[int(code)].as_py() for code in codes[69_990:70_010]] == [str(v) for v in values[69_990:70_010]]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (column([1, None]), r"the pyarrow Table: column c is null in row 1: every event and item needs its ids; fill"),
        (column([1.0, float("nan"), 2.0]), r"column c is null in row 1"),
        (column(["a", "b", None]), r"column c is null in row 2"),
        (column([1.0, 2.5]), r"column c is 2\.5 in row 1, not a whole number: give integers or strings"),
        (column([1e300]), r"column c is 1e\+300 in row 0, not a whole number"),
        (column([float("inf")]), r"column c is inf in row 0, not a whole number"),
        (column([True]), r"column c has type bool: ids must be strings or integers, cast the column"),
        (
            column([2**63], pa.uint64()),
            r"column c holds 9223372036854775808, more than int64 does: give such ids as str",
        ),
    ],
)
def test_unusable_ids_are_refused(table, message):
    with pytest.raises(DataError, match=message):
        encode_ids(table, "c")


def test_positions_compare_numbers_and_their_spelling():
    numbers, words = Vocabulary.of([30, 10, 20]), Vocabulary.of(["x", "10"])
    assert positions(pa.array([10, 11, 30]), numbers).tolist() == [1, -1, 0]
    assert positions(pa.array(["20", "x", "020"]), numbers).tolist() == [2, -1, -1]
    assert positions(pa.array([10, 11]), words).tolist() == [1, -1]
    assert positions(pa.array(["x"], pa.large_string()), words).tolist() == [0]


def test_labels_and_groups():
    codes, labels = read_labels(column(["view", "buy", "view"]), "c")
    assert (codes.tolist(), labels, codes.dtype) == ([1, 0, 1], ("buy", "view"), np.int32)
    assert read_labels(column([2, 1]), "c")[1] == ("1", "2")
    with pytest.raises(DataError, match=r"column c is null in row 0: give each row a label, or drop the column"):
        read_labels(column([None, "x"]), "c")
    groups = read_groups(column(["s", None, "a", "s"]), "c")
    assert (groups.tolist(), groups.dtype) == ([1, -1, 0, 1], np.int64)
    assert read_groups(column([None, None], pa.int64()), "c").tolist() == [-1, -1]


def test_numbers_and_whole_numbers():
    numbers = read_numbers(column([1, 2]), "c")
    assert (numbers.tolist(), numbers.dtype) == ([1.0, 2.0], np.float32)
    assert read_numbers(text(["1", "2.5", "-3e2"]), "c").tolist() == [1.0, 2.5, -300.0]
    whole = read_whole(column([3.0, -1.0]), "c")
    assert (whole.tolist(), whole.dtype) == ([3, -1], np.int64)
    assert read_whole(text(["4", "-7"]), "c").tolist() == [4, -7]
    assert read_whole(column([5], pa.int8()), "c").tolist() == [5]


@pytest.mark.parametrize(
    ("read", "table", "message"),
    [
        (read_numbers, column([1.0, None]), r"column c is null in row 1: give each row a number, or drop the column"),
        (read_numbers, column([float("nan")]), r"column c is null in row 0"),
        (read_numbers, column([0.0, float("inf")]), r"column c is infinite in row 1: give a finite number"),
        (read_numbers, column(["1"]), r"column c has type string: expected numbers, cast the column"),
        (read_numbers, text(["1", "2", "x", "y"]), r"t\.csv: column c is 'x' in row 2, not a number: correct or drop"),
        (read_whole, column([1, None]), r"column c is null in row 1: give each row its place, or drop the column"),
        (read_whole, column([1.5]), r"column c is 1\.5 in row 0, not a whole number"),
    ],
)
def test_unusable_numbers_are_refused(read, table, message):
    with pytest.raises(DataError, match=message):
        read(table, "c")


NOON = 1_717_156_800  # 2024-05-31T12:00:00Z


@pytest.mark.parametrize(
    ("table", "seconds"),
    [
        (column([NOON, 0]), [NOON, 0]),
        (column([99_999_999_999]), [99_999_999_999]),
        (column([NOON, None]), [NOON, NO_TIME]),
        (column([NOON + 0.9, float("nan")]), [NOON, NO_TIME]),
        (column([None, None]), [NO_TIME, NO_TIME]),
        (column([dt.datetime(2024, 5, 31, 12, 0, 0, 999_999)]), [NOON]),
        (column([dt.datetime(2024, 5, 31, 14, tzinfo=dt.timezone(dt.timedelta(hours=2)))]), [NOON]),
        (column([NOON * 10**9 + 5], pa.timestamp("ns")), [NOON]),
        (column([dt.date(2024, 5, 31), None]), [NOON - 43_200, NO_TIME]),
        (column(["2024-05-31", "2024-05-31T12:00", "2024-05-31 12:00:00.25"]), [NOON - 43_200, NOON, NOON]),
        (column(["2024-05-31T12:00:00Z", "2024-05-31T14:00:00+02:00"]), [NOON, NOON]),
        (column(["2024-05-31", None]), [NOON - 43_200, NO_TIME]),
        (text([str(NOON), "5"]), [NOON, 5]),
        (text([f"{NOON}.5", "1e3"]), [NOON, 1000]),
        (text(["2024-05-31", None]), [NOON - 43_200, NO_TIME]),
    ],
)
def test_times_become_seconds(table, seconds):
    found = read_seconds(table, "c")
    assert found.dtype == np.int64
    assert found.tolist() == seconds


@pytest.mark.parametrize(
    ("factor", "unit"), [(1000, "milliseconds"), (1_000_000, "microseconds"), (1_000_000_000, "nanoseconds")]
)
def test_smaller_units_are_recognised_and_said(caplog, factor, unit):
    with caplog.at_level(logging.WARNING):
        found = read_seconds(column([NOON * factor + factor - 1, None, 10**8 * factor]), "c")
    assert found.tolist() == [NOON, NO_TIME, 10**8]
    assert f"column c holds times like {NOON * factor + factor - 1}: read as {unit}" in caplog.text


def test_plain_seconds_are_not_remarked_on(caplog):
    read_seconds(column([NOON]), "c")
    assert not caplog.text


TIME = r"not a time: expected seconds since 1970 or ISO 8601, such as 2024-05-31T18:30:00Z"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (column([5, -1]), r"column c is -1 in row 1: times are seconds since 1970 and not negative"),
        (column([dt.date(1969, 12, 31)]), r"column c is -86400 in row 0: times are"),
        (
            column([NOON, NOON * 1000]),
            rf"column c mixes seconds \({NOON}\) and milliseconds \({NOON}000\): convert all",
        ),
        (column([0.0, float("inf")]), r"column c is infinite in row 1: give a time, or null"),
        (column([True]), r"column c has type bool: expected seconds since 1970, dates or ISO 8601 strings"),
        (column(["2024-05-31", "31.05.2024"]), rf"column c is '31\.05\.2024' in row 1, {TIME}"),
        (column(["2024-05-31", "2024-05-31T18"]), rf"column c is '2024-05-31T18' in row 1, {TIME}$"),
        (column([str(NOON)]), rf"column c is '{NOON}' in row 0, {TIME}"),
        (text(["2024-05-31", str(NOON)]), rf"column c is '{NOON}' in row 1, {TIME}"),
        (text(["2024-05-31", "2024-06-31", "2024-07-01", "2024-13-01"]), rf"column c is '2024-06-31' in row 1, {TIME}"),
        (text(["1", "2", "1-2"]), rf"column c is '1-2' in row 2, {TIME}"),
        (
            column(["2024-05-31T12:00:00", "2024-05-31T12:00:00Z"]),
            r"column c is '2024-05-31T12:00:00Z' in row 1, but other rows have no zone: use one form",
        ),
    ],
)
def test_unusable_times_are_refused(table, message):
    with pytest.raises(DataError, match=message):
        read_seconds(table, "c")
