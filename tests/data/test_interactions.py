"""Events from files and frames: what comes out, sorted, and what is refused."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.data.interactions import compact, k_core, read_events
from tesserec.errors import DataError, UnknownIdError
from tesserec.types import NO_TIME, Interactions, Vocabulary


def frame(*rows, names=("user_id", "item_id", "timestamp")) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=list(names), orient="row")


def rows_of(events: Interactions) -> list[tuple]:
    """(user id, item id, time) of each event, in order."""
    users, items = events.users.ids.to_pylist(), events.items.ids.to_pylist()
    triples = zip(events.user_E.tolist(), events.item_E.tolist(), events.time_E.tolist(), strict=True)
    return [(users[user], items[item], time) for user, item, time in triples]


def test_events_are_numbered_and_sorted():
    events = read_events(frame(("b", 9, 3), ("a", 8, 5), ("b", 7, 1), ("a", 9, 5)))
    assert rows_of(events) == [("a", 8, 5), ("a", 9, 5), ("b", 7, 1), ("b", 9, 3)]
    assert events.users.ids.to_pylist() == ["a", "b"]
    assert events.items.ids.to_pylist() == [7, 8, 9]
    assert events.order_E.tolist() == [1, 3, 2, 0]
    assert not events.has_order
    assert (events.user_E.dtype, events.item_E.dtype) == (torch.int32, torch.int32)
    assert (events.time_E.dtype, events.order_E.dtype) == (torch.int64, torch.int64)
    assert list(events.columns()) == ["user_E", "item_E", "time_E", "order_E"]


def test_every_column_is_kept_and_moved_with_its_row():
    names = ("user", "asin", "date", "rating", "behavior", "domain", "invoice", "impression", "pos")
    events = read_events(
        frame(
            (1, "x", "2024-05-31", 2.0, "view", "shop", "i2", None, 4),
            (1, "y", "2024-05-30", 1.0, "buy", "club", "i1", "p", 9),
            (1, "z", "2024-05-30", 0.5, "view", "shop", None, "q", 3),
            names=names,
        ),
        positive_kinds=["buy"],
    )
    assert [row[1] for row in rows_of(events)] == ["z", "y", "x"]
    assert events.value_E.tolist() == [0.5, 1.0, 2.0]
    assert (events.kinds, events.kind_E.tolist()) == (("buy", "view"), [1, 0, 1])
    assert (events.domains, events.domain_E.tolist()) == (("club", "shop"), [1, 0, 1])
    assert events.session_E.tolist() == [-1, 0, 1]
    assert events.impression_E.tolist() == [1, 0, -1]
    assert events.order_E.tolist() == [3, 9, 4]
    assert events.has_order
    assert events.positive_kinds == ("buy",)
    assert events.is_positive_E.tolist() == [False, True, False]


def test_order_alone_and_missing_times_beside_it():
    only_order = read_events(frame((1, 5, 2), (1, 6, 1), names=("user_id", "item_id", "order")))
    assert rows_of(only_order) == [(1, 6, NO_TIME), (1, 5, NO_TIME)]
    names = ("user_id", "item_id", "timestamp", "order")
    mixed = read_events(frame((1, 5, 9, 2), (1, 6, None, 3), (1, 7, 99, 1), (2, 5, 8, 1), (2, 6, 7, 2), names=names))
    assert rows_of(mixed) == [(1, 7, 99), (1, 5, 9), (1, 6, NO_TIME), (2, 6, 7), (2, 5, 8)]


def test_given_vocabularies_decide_the_numbers():
    items, users = Vocabulary.of([9, 7, 8, 5]), Vocabulary.of(["c", "b", "a"])
    events = read_events(frame(("a", "8", 1), ("b", "9", 1)), items=items, users=users)
    assert events.items is items
    assert events.users is users
    assert (events.user_E.tolist(), events.item_E.tolist()) == ([1, 2], [0, 2])


def test_unknown_items_are_refused_or_dropped_with_their_count():
    table, items = frame((1, 7, 1), (2, 8, 1), (3, 9, 1), (3, 7, 2)), Vocabulary.of([7, 5])
    message = (
        r"Frame: 2 events are of items not in the catalog, the first in row 1: 8; add them to the catalog, or drop the "
        r'events with unknown_items = "drop" \(under \[data\] in a recipe\)'
    )
    with pytest.raises(UnknownIdError, match=message):
        read_events(table, items=items)
    with pytest.warns(UserWarning, match=r"Frame: 2 of 4 events dropped: their items are not in the catalog"):
        events = read_events(table, items=items, unknown_items="drop")
    assert rows_of(events) == [(1, 7, 1), (3, 7, 2)]
    assert events.users.ids.to_pylist() == [1, 3]
    assert events.items is items
    assert events.order_E.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"none of the 4 events is of an item in the catalog: compare their ids"):
        read_events(table, items=Vocabulary.of([1]), unknown_items="drop")


def test_dropping_keeps_users_that_were_given():
    users = Vocabulary.of([3, 2, 1])
    with pytest.warns(UserWarning, match="1 of 2 events dropped"):
        events = read_events(frame((1, 7, 1), (2, 8, 1)), items=Vocabulary.of([7]), users=users, unknown_items="drop")
    assert events.users is users


@pytest.mark.parametrize(
    ("table", "settings", "error", "message"),
    [
        (
            frame((1, 2), names=("item_id", "date")),
            {},
            DataError,
            r"has the columns item_id, date: none is user_id; say",
        ),
        (
            frame((1, 2), names=("user_id", "date")),
            {},
            DataError,
            r'none is item_id; say which is with columns=\{"item_id"',
        ),
        (
            frame((1, 2), names=("user_id", "item_id")),
            {},
            DataError,
            r"has the columns user_id, item_id: neither timestamp nor order is .*; say which is with columns=",
        ),
        (frame((1, 2, 3)).clear(), {}, DataError, r"the polars DataFrame holds no events: give at least one row"),
        (
            frame((1, 2, 3), (1, 2, None)),
            {},
            DataError,
            r"column timestamp is null in row 1: give each event a time, drop the row, or add an order column",
        ),
        (
            frame((1, 2, 3)),
            {"users": Vocabulary.of([7])},
            UnknownIdError,
            r"row 0 is of user 1, who is not among the users",
        ),
        (
            frame((1, 2, 3)),
            {"positive_kinds": ["buy"]},
            DataError,
            r"has no kind column, so no event is one of positive_kinds \['buy'\]",
        ),
        (
            frame((1, 2, 3, "view"), names=("user_id", "item_id", "time", "kind")),
            {"positive_kinds": ["view", "buy"]},
            DataError,
            r"positive_kinds \['buy'\] do not occur in the polars DataFrame: its kinds are \['view'\]",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(table, settings, error, message):
    with pytest.raises(error, match=message):
        read_events(table, **settings)


def test_columns_may_point_elsewhere():
    table = frame((1, 2, 3, 4), names=("who", "what", "day", "user_id"))
    events = read_events(table, columns={"user_id": "who", "item_id": "what", "timestamp": "day"})
    assert rows_of(events) == [(1, 2, 3)]


IDS = st.one_of(
    st.lists(st.integers(-(10**6), 10**6), min_size=2, max_size=5, unique=True),
    st.lists(
        st.text("ab0é,\"' ", min_size=1, max_size=4).filter(str.strip).map(lambda s: f"k{s}"), min_size=2, unique=True
    ),
)


@st.composite
def logs(draw) -> pl.DataFrame:
    users, items = draw(IDS), draw(IDS)
    row = st.tuples(
        st.sampled_from(users),
        st.sampled_from(items),
        st.integers(0, 10**11 - 1),
        st.integers(-9, 9).map(lambda n: n / 4),
        st.sampled_from(["buy", "view"]),
    )
    names = ("user_id", "item_id", "timestamp", "value", "kind")
    return frame(*draw(st.lists(row, min_size=1, max_size=12)), names=names)


def write_formats(table: pl.DataFrame, folder: Path) -> list[Path]:
    paths = [folder / f"t.{suffix}" for suffix in ("parquet", "csv", "jsonl", "inter")]
    pq.write_table(table.to_arrow(), paths[0], row_group_size=3)
    table.write_csv(paths[1])
    paths[2].write_text("".join(json.dumps(row) + "\n" for row in table.to_dicts()), encoding="utf-8")
    types = {"user_id": "token", "item_id": "token", "timestamp": "float", "value": "float", "kind": "token"}
    lines = ["\t".join(f"{name}:{types[name]}" for name in table.columns)]
    lines += ["\t".join(str(value) for value in row) for row in table.rows()]
    paths[3].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


@settings(max_examples=25, deadline=None)
@given(logs())
def test_every_format_gives_the_same_events(assert_same, table):
    expected = read_events(table)
    assert rows_of(expected) == sorted(
        table.select("user_id", "item_id", "timestamp").rows(), key=lambda r: (r[0], r[2])
    )
    with tempfile.TemporaryDirectory() as folder:
        for source in (*write_formats(table, Path(folder)), table.to_arrow(), table.to_pandas(), table.lazy()):
            assert_same(read_events(source), expected)


def test_pandas_nulls_are_nulls():
    table = pd.DataFrame({"user_id": [1, np.nan], "item_id": [1, 2], "timestamp": [1, 2]})
    with pytest.raises(DataError, match=r"the pandas DataFrame: column user_id is null in row 1"):
        read_events(table)


def test_compact_drops_ids_without_events():
    events = read_events(frame((1, 7, 1), (2, 8, 1), (3, 9, 1)))
    part = events.select(torch.tensor([False, False, True]))
    assert rows_of(compact(part)) == [(3, 9, 1)]
    assert compact(part).users.ids.to_pylist() == [3]
    assert compact(part, users=False).users is events.users
    assert compact(part, items=False).items is events.items
    assert compact(part, users=False).items.ids.to_pylist() == [9]
    assert compact(part).user_E.dtype == torch.int32


CORE = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 3), (4, 3), (4, 4)]


def test_k_core_repeats_until_nothing_changes():
    """Item 4 has one event; without it user 4 has one, without whom item 3 has one, and so on to users 1 and 2."""
    events = read_events(frame(*((user, item, time) for time, (user, item) in enumerate(CORE))))
    core = k_core(events, 2, 2)
    assert rows_of(core) == [(1, 1, 0), (1, 2, 1), (2, 1, 2), (2, 2, 3)]
    assert core.users.ids.to_pylist() == [1, 2]
    assert core.items.ids.to_pylist() == [1, 2]
    assert rows_of(k_core(events, 1, 1)) == rows_of(events)
    assert rows_of(k_core(events, 1, 3)) == [(1, 1, 0), (2, 1, 2), (3, 1, 4)]
    with pytest.raises(DataError, match=r"no event is left with 3 a user and 2 an item: ask for fewer"):
        k_core(events, 3, 2)


def test_k_core_keeps_signals_but_does_not_count_them():
    names = ("user_id", "item_id", "timestamp", "kind")
    log = [
        (1, 1, 1, "buy"),
        (1, 1, 2, "back"),
        (1, 2, 3, "buy"),
        (2, 1, 4, "buy"),
        (2, 2, 5, "back"),
        (2, 2, 6, "back"),
    ]
    events = read_events(frame(*log, names=names), positive_kinds=["buy"])
    assert rows_of(k_core(events, 2, 1)) == [(1, 1, 1), (1, 1, 2), (1, 2, 3)]


def test_k_core_defaults_to_five_of_each():
    table = pa.table({"user_id": np.repeat(range(6), 5), "item_id": np.tile(range(5), 6), "timestamp": np.arange(30)})
    events = read_events(table.slice(0, 29))
    assert len(k_core(events)) == 25


def test_steps_are_sessions_else_times():
    """A session wins over a timestamp where both neighbours have one; a missing time joins nothing."""
    names = ("user_id", "item_id", "timestamp", "session", "order")
    log = [
        (1, 1, 5, 1, 0),
        (1, 2, 5, 2, 1),
        (1, 3, 6, 2, 2),
        (1, 4, 6, None, 3),
        (1, 5, 6, None, 4),
        (2, 6, 6, None, 5),
    ]
    assert read_events(frame(*log, names=names)).step_E.tolist() == [0, 1, 1, 1, 1, 2]
    bare = read_events(frame(*log, names=names), columns={"session": None})
    assert bare.step_E.tolist() == [0, 0, 1, 1, 1, 2]
    untimed = read_events(frame(*log, names=names), columns={"session": None, "timestamp": None})
    assert untimed.step_E.tolist() == [0, 1, 2, 3, 4, 5]
    assert untimed.select(torch.zeros(6, dtype=torch.bool)).step_E.tolist() == []
