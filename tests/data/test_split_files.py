"""A split written to disk is the same split when read, in the user's own ids on the way."""

import json

import polars as pl
import pyarrow.parquet as pq
import pytest

from tesserec.data.interactions import read_events
from tesserec.data.split_files import export_split, load_split
from tesserec.data.splits import SplitConfig, split
from tesserec.errors import DataError, LeakError

NAMES = ["user_id", "item_id", "timestamp", "kind", "session", "value", "domain", "impression_id"]
ROWS = [
    ("u1", 30, 10, "buy", None, 1.0, "x", 5),
    ("u1", 10, 20, "back", "s", -1.0, "x", None),
    ("u1", 20, 30, "buy", "s", 2.0, "y", None),
    ("u1", 10, 40, "buy", "t", 0.5, "x", 4),
    ("u2", 20, 35, "buy", None, 1.0, "x", None),
]


@pytest.fixture
def parts():
    events = read_events(pl.DataFrame(ROWS, schema=NAMES, orient="row"), positive_kinds=["buy"])
    return split(events, SplitConfig(t1=30, t2=40))


def test_a_split_comes_back_as_it_was(parts, tmp_path, assert_same):
    export_split(parts, tmp_path / "new" / "folder")
    assert_same(load_split(tmp_path / "new" / "folder"), parts)


def test_bare_logs_without_times_come_back_too(tmp_path, assert_same):
    rows = [(1, 7, 1), (1, 8, 2), (1, 9, 3)]
    events = read_events(pl.DataFrame(rows, schema=["user_id", "item_id", "order"], orient="row"))
    bare = split(events, SplitConfig(protocol="last_out"))
    export_split(bare, str(tmp_path))
    assert_same(load_split(str(tmp_path)), bare)
    assert pl.read_parquet(tmp_path / "train.parquet").to_dicts() == [
        {"user_id": 1, "item_id": 7, "timestamp": None, "order": 1}
    ]
    assert pl.read_parquet(tmp_path / "test.parquet")["timestamp"].to_list() == [None]


def test_files_hold_the_ids_of_the_user(parts, tmp_path):
    export_split(parts, tmp_path)
    assert pl.read_parquet(tmp_path / "users.parquet")["user_id"].to_list() == ["u1", "u2"]
    assert pl.read_parquet(tmp_path / "items.parquet")["item_id"].to_list() == [10, 20, 30]
    train = pl.read_parquet(tmp_path / "train.parquet")
    assert train.columns == [*NAMES[:3], "order", "value", "session", "impression_id", "kind", "domain"]
    assert train.row(1) == ("u1", 10, 20, 1, -1.0, 0, -1, "back", "x")
    assert len(pl.read_parquet(tmp_path / "refit.parquet")) == 4
    assert pl.read_parquet(tmp_path / "validation.parquet").to_dicts() == [
        {
            "request": 0,
            "user_id": "u1",
            "timestamp": 30,
            "history": [30, 10],
            "history_time": [10, 20],
            "history_step": [0, 1],
            "history_positive": [True, False],
            "history_kind": ["buy", "back"],
            "history_domain": ["x", "x"],
            "history_value": [1.0, -1.0],
            "targets": [20],
        },
        {"request": 1, "user_id": "u2", "timestamp": 35, "history": [], "targets": [20]}
        | {f"history_{name}": [] for name in ("time", "step", "positive", "kind", "domain", "value")},
    ]
    about = json.loads((tmp_path / "split.json").read_text())
    assert about["format"] == 1
    assert about["config"]["t1"] == 30
    assert about["report"]["test"]["requests"] == 1
    assert about["positive_kinds"] == ["buy"]


def test_a_folder_without_a_split_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no split\.json in .*: give a folder that export_split wrote"):
        load_split(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("split.json", "{", r"split\.json is damaged: .*; export the split again"),
        (
            "split.json",
            '{"format": 2}',
            r"split\.json has format 2, this version reads 1: use the version that wrote it",
        ),
        ("refit.parquet", "x", r"refit\.parquet is missing or damaged \(.*\): export the split again"),
        ("test.parquet", None, r"test\.parquet is missing or damaged \("),
    ],
)
def test_damaged_files_are_refused_by_name(parts, tmp_path, name, content, message):
    export_split(parts, tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_split(tmp_path)


def test_an_id_that_the_lists_lack_is_refused(parts, tmp_path):
    export_split(parts, tmp_path)
    items = pq.read_table(tmp_path / "items.parquet")
    pq.write_table(items.slice(0, 2), tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"the exported split has an id or label that its lists lack \(int64\): export"):
        load_split(tmp_path)


def test_a_split_that_leaks_is_refused(parts, tmp_path):
    export_split(parts, tmp_path)
    (tmp_path / "train.parquet").write_bytes((tmp_path / "refit.parquet").read_bytes())
    with pytest.raises(LeakError, match=r"train has 3 events of user 'u1', but only 2 precede the validation request"):
        load_split(tmp_path)
