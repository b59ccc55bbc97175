"""Tables of every format give the same columns, and names are matched as documented."""

import gzip
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tesserec.data.tables import Table, match_columns, open_table, to_frame
from tesserec.errors import DataError

ALIASES = {"user_id": ("user", "customer_id"), "timestamp": ("date", "time"), "value": ()}


def named(*names: str) -> Table:
    return open_table(pa.table({name: [1] for name in names}))


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "frame",
    [
        pa.table({"a": [1, 2], "b": ["x", "y"]}),
        pl.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
        pl.LazyFrame({"a": [1, 2], "b": ["x", "y"]}),
        pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
    ],
    ids=["arrow", "polars", "lazy", "pandas"],
)
def test_frames_of_every_library(frame):
    table = open_table(frame)
    assert table.names == ("a", "b")
    assert table.read("a").to_pylist() == [1, 2]
    assert table.read("b").to_pylist() == ["x", "y"]
    assert not table.from_text


def test_the_name_of_a_frame_says_what_it_is():
    assert open_table(pl.DataFrame({"a": [1]})).name == "the polars DataFrame"
    assert open_table(pa.table({"a": [1]})).name == "the pyarrow Table"


def test_parquet_file_and_folder_of_parts(tmp_path):
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": [3]}), tmp_path / "2.parquet")
    assert open_table(tmp_path / "1.parquet").read("a").to_pylist() == [1, 2]
    assert open_table(str(tmp_path)).read("a").to_pylist() == [1, 2, 3]
    assert open_table(tmp_path).name == str(tmp_path)


@pytest.mark.parametrize(("name", "separator"), [("t.csv", ","), ("t.tsv", "\t"), ("t.CSV", ",")])
def test_text_stays_text(tmp_path, name, separator):
    table = open_table(write(tmp_path, name, f'a{separator}b\n01{separator}"x{separator}y"\n{separator}z\n'))
    assert table.from_text
    assert table.read("a").to_pylist() == ["01", None]
    assert table.read("b").to_pylist() == [f"x{separator}y", "z"]


def test_atomic_files_lose_their_types_and_are_not_quoted(tmp_path):
    table = open_table(write(tmp_path, "t.inter", 'user_id:token\trating:float\n"1\t2.5\n'))
    assert table.names == ("user_id", "rating")
    assert table.texts == {"user_id"}
    assert table.from_text
    assert table.read("user_id").to_pylist() == ['"1']


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson", "t.json"])
def test_json_lines(tmp_path, name):
    table = open_table(write(tmp_path, name, '{"a": 1, "b": "x"}\n{"a": 2}\n'))
    assert table.read("a").to_pylist() == [1, 2]
    assert table.read("b").to_pylist() == ["x", None]
    assert not table.from_text


def test_json_lines_of_some_megabytes(tmp_path):
    texts = ["x" * 3_000_000, "y"]
    lines = "".join(f'{{"a": "{text}"}}\n' for text in texts)
    assert open_table(write(tmp_path, "t.jsonl", lines)).read("a").to_pylist() == texts


@pytest.mark.parametrize(("name", "text"), [("t.csv.gz", "a\n7\n"), ("t.jsonl.gz", '{"a": "7"}\n')])
def test_compressed_text(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()))
    assert open_table(path).read("a").to_pylist() == ["7"]


def test_unreadable_sources_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": ["1"]}), tmp_path / "2.parquet")
    cases = {
        tmp_path / "none.csv": r"no file at .*none\.csv: check the path",
        write(tmp_path, "t.xlsx", ""): r"unknown format \.xlsx: expected \.parquet, \.csv",
        write(tmp_path, "plain", ""): r"unknown format \(no suffix\)",
        write(tmp_path, "bad.parquet", "no"): r"bad\.parquet is not readable as Parquet: ",
        tmp_path / "empty": r"empty holds no \.parquet files: give a file or a folder",
        tmp_path: r"2\.parquet has other columns or types than .*1\.parquet: write all parts alike",
        write(tmp_path, "empty.csv", ""): r"empty\.csv is not readable as CSV: empty CSV$",
        write(tmp_path, "ragged.tsv", "a\tb\n1\t2\t3\n"): r"ragged\.tsv is not readable as TSV: found more fields",
        write(
            tmp_path, "mixed.jsonl", '{"a": 1}\n{"a": "x"}\n'
        ): r"one type a column: .* from number to string in row 1",
    }
    for path, message in cases.items():
        if path == tmp_path:
            (tmp_path / "bad.parquet").unlink()
        with pytest.raises(DataError, match=message):
            open_table(path)


def test_what_is_no_table_is_refused():
    with pytest.raises(DataError, match=r"cannot read events or items from the builtins int: give a path or an Arrow"):
        open_table(5)
    with pytest.raises(DataError, match=r"the pandas DataFrame has a column of mixed types: .*column a.*: cast it to"):
        open_table(pd.DataFrame({"a": [1, "x"]}))


def test_to_frame_reads_numbers_off_text(tmp_path):
    text = "a,b,c,d\n1,1.5,x,\n2,,1,\n"
    frame = to_frame(open_table(write(tmp_path, "t.csv", text)))
    assert frame.schema == {"a": pl.Int64, "b": pl.Float64, "c": pl.String, "d": pl.String}
    assert frame.rows() == [(1, 1.5, "x", None), (2, None, "1", None)]
    atomic = to_frame(open_table(write(tmp_path, "t.item", "a:token\tb:float\n1\t2\n")))
    assert atomic.schema == {"a": pl.String, "b": pl.Int64}
    typed = to_frame(open_table(pa.table({"a": ["1"]})))
    assert typed.schema == {"a": pl.String}


def test_our_own_name_comes_first_then_its_spellings_then_aliases():
    assert match_columns(named("user_id", "UserId", "user"), ALIASES, None) == {"user_id": "user_id"}
    assert match_columns(named("user", "UserId"), ALIASES, None) == {"user_id": "UserId"}
    assert match_columns(named("CustomerID", "Date"), ALIASES, None) == {"user_id": "CustomerID", "timestamp": "Date"}
    assert match_columns(named("VALUE", "users"), ALIASES, None) == {"value": "VALUE"}


def test_columns_decide_and_can_leave_out():
    table = named("user", "date", "time", "weight")
    assert match_columns(table, ALIASES, {"timestamp": "time", "value": "weight"}) == {
        "user_id": "user",
        "timestamp": "time",
        "value": "weight",
    }
    assert match_columns(table, ALIASES, {"timestamp": None}) == {"user_id": "user"}
    assert match_columns(named("user", "date"), ALIASES, {"value": "date"}) == {"user_id": "user", "value": "date"}


def test_ambiguous_and_wrong_mappings_are_refused():
    both = r'columns date and time could each be timestamp: say which is with columns=\{"timestamp": "date"\} in Python'
    with pytest.raises(DataError, match=rf"{both}, or rename columns$"):
        match_columns(named("date", "time"), ALIASES, None)
    with pytest.raises(
        DataError, match=rf'{both}, c.timestamp = "date" under \[data\] in a recipe, or rename columns$'
    ):
        match_columns(named("date", "time"), ALIASES, None, "c")
    with pytest.raises(DataError, match=r"columns names 'users', which is not one of ours: user_id, timestamp, value"):
        match_columns(named("user"), ALIASES, {"users": "user"})
    with pytest.raises(DataError, match=r"the pyarrow Table has no column 'x': it has user, date"):
        match_columns(named("user", "date"), ALIASES, {"user_id": "x"})
