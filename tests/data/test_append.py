"""Later events and items at the end of what is known."""

import dataclasses

import polars as pl
import pytest
import torch

from tesserec.data.append import append_catalog, append_events, append_ids
from tesserec.data.catalog import catalog_of, read_catalog
from tesserec.data.interactions import read_events
from tesserec.errors import DataError
from tesserec.types import Vocabulary


def _log(rows: list[tuple[object, ...]], names: str = "user_id item_id timestamp kind session value") -> pl.DataFrame:
    return pl.DataFrame(rows, schema=names.split(), orient="row")


OLD = _log([("b", "x", 10, "buy", "s1", 1.0), ("d", "y", 20, "view", "s2", 2.0), ("d", "x", 20, "buy", "s2", 3.0)])
NEW = _log(
    [
        ("d", "x", 20, "buy", "s2", 3.0),
        ("d", "w", 30, "return", "s9", 4.0),
        ("a", "y", 25, "buy", None, 5.0),
        ("b", "z", 40, "buy", "s1", 6.0),
    ]
)


def test_later_events_join_the_log() -> None:
    old = read_events(OLD, positive_kinds=["buy"])
    merged = append_events(old, read_events(NEW))
    assert merged.users.ids.to_pylist() == ["b", "d", "a"]
    assert merged.items.ids.to_pylist() == ["x", "y", "w", "z"]
    rows = list(zip(merged.user_E.tolist(), merged.item_E.tolist(), merged.time_E.tolist(), strict=True))
    assert rows == [(0, 0, 10), (0, 3, 40), (1, 1, 20), (1, 0, 20), (1, 2, 30), (2, 1, 25)]
    assert merged.kinds == ("buy", "view", "return")
    assert merged.positive_kinds == ("buy",)
    assert merged.kind_E is not None
    assert merged.kind_E.tolist() == [0, 0, 1, 0, 2, 0]
    assert merged.value_E is not None
    assert merged.value_E.tolist() == [1.0, 6.0, 2.0, 3.0, 4.0, 5.0]
    assert merged.session_E is not None
    sessions = merged.session_E.tolist()
    assert sessions[5] == -1
    assert sessions[2] == sessions[3] == 1
    assert sessions[0] == 0
    assert min(sessions[1], sessions[4]) >= 2, "sessions of the new file are new sessions"
    assert sessions[1] != sessions[4]
    assert merged.item_E.dtype == torch.int32
    assert merged.order_E.tolist() == [0, 6, 1, 2, 4, 5], "rows of the new file count on from those of the old"


def test_known_events_are_not_taken_twice() -> None:
    old = read_events(OLD)
    everything = pl.concat([OLD, NEW[1:]])
    assert len(append_events(old, read_events(everything))) == 6
    with pytest.raises(DataError, match=r"none of the 3 events is later than the last one known, at 20 s: nothing"):
        append_events(old, read_events(OLD))


def test_what_cannot_be_joined_is_refused() -> None:
    old = read_events(OLD)
    with pytest.raises(DataError, match=r"new events have the columns .*'time', 'order'.*, those before .*'session'"):
        append_events(old, read_events(NEW.drop("session", "value", "kind")))
    untimed = dataclasses.replace(old, time_E=torch.full((3,), -1))
    for first, second in ((untimed, read_events(NEW)), (old, untimed)):
        with pytest.raises(DataError, match="only be added where all have a time: fit anew on the whole log"):
            append_events(first, second)
    numbers = read_events(OLD.with_columns(user_id=pl.Series([1, 2, 3])))
    with pytest.raises(DataError, match="the ids known are int64, the new ones large_string: cast the new ones"):
        append_events(numbers, read_events(NEW))


def test_new_ids_that_are_all_numbers_join_those_that_are_text() -> None:
    merged = append_ids(Vocabulary.of(["a", "7"]), Vocabulary.of([7, 8]))
    assert merged.ids.to_pylist() == ["a", "7", "8"]
    old = read_events(OLD)
    grown = append_events(old, read_events(NEW.with_columns(user_id=pl.Series([1, 2, 3, 4]))))
    assert grown.users.ids.to_pylist() == [*old.users.ids.to_pylist(), "1", "2", "3", "4"]
    assert grown.users.to_ids(grown.user_E[-3:].long()) == ["2", "3", "4"]


def test_ids_keep_their_places() -> None:
    merged = append_ids(Vocabulary.of([5, 3]), Vocabulary.of([4, 5, 9]))
    assert merged.ids.to_pylist() == [5, 3, 4, 9]


def test_catalogs_are_joined() -> None:
    old = read_catalog(pl.DataFrame({"item_id": ["b", "c"], "title": ["B", "C"], "price": [1.0, 2.0]}))
    new = read_catalog(pl.DataFrame({"item_id": ["c", "a"], "title": ["other", "A"], "colour": ["red", "blue"]}))
    merged = append_catalog(old, new)
    assert merged.items.ids.to_pylist() == ["b", "c", "a"]
    assert merged.titles == ["B", "C", "A"]
    assert merged.frame["price"].to_list() == [1.0, 2.0, None]
    assert merged.frame["colour"].to_list() == [None, None, "blue"]
    assert merged.available_N is None


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [([False], None, [False, True]), (None, [False, False], [True, False]), ([True], [True, False], [True, False])],
)
def test_availability_is_joined(before: list[bool] | None, after: list[bool] | None, expected: list[bool]) -> None:
    old = catalog_of(read_events(pl.DataFrame({"user_id": [1], "item_id": ["b"], "order": [1]})))
    new = catalog_of(read_events(pl.DataFrame({"user_id": [1, 1], "item_id": ["b", "c"], "order": [1, 2]})))
    old = dataclasses.replace(old, available_N=None if before is None else torch.tensor(before))
    new = dataclasses.replace(new, available_N=None if after is None else torch.tensor(after))
    merged = append_catalog(old, new)
    assert merged.available_N is not None
    assert merged.available_N.tolist() == expected
