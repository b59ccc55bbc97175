"""Histories cut from a log, against a loop over its rows."""

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tesserec.data.interactions import read_events
from tesserec.data.requests import history_requests, ranges, requests_before, user_requests

LOG = pl.DataFrame(
    [
        (1, 7, 5, "buy", 1.0),
        (1, 8, 5, "back", 2.0),
        (1, 9, 6, "buy", 3.0),
        (2, 7, 1, "buy", 4.0),
        (2, 7, 9, "buy", 5.0),
    ],
    schema=["user_id", "item_id", "timestamp", "kind", "value"],
    orient="row",
)


@pytest.fixture
def events():
    return read_events(LOG.with_columns(domain=pl.lit("shop")), positive_kinds=["buy"])


def test_histories_are_what_came_before(events):
    requests = requests_before(events, torch.tensor([4, 2, 0]))
    assert requests.user_B.tolist() == [1, 0, 0]
    assert requests.time_B.tolist() == [9, 6, 5]
    history = requests.history
    assert history.offsets.tolist() == [0, 1, 3, 3]
    assert history.items.tolist() == [0, 0, 1]
    assert {name: column.tolist() for name, column in history.columns.items()} == {
        "time": [1, 5, 5],
        "step": [2, 0, 0],
        "positive": [True, True, False],
        "kind": [1, 1, 0],
        "domain": [0, 0, 0],
        "value": [4.0, 1.0, 2.0],
    }
    types = {name: column.dtype for name, column in history.columns.items()}
    assert types["time"] == types["step"] == types["kind"] == types["domain"] == history.items.dtype == torch.int64
    assert types["positive"] == torch.bool
    assert not requests.filters.exclude_history
    assert requests.filters.available_N is None


def test_users_times_and_filters_may_be_given(events):
    available_N = torch.tensor([True, False, True])
    requests = requests_before(
        events,
        torch.tensor([3]),
        user_B=torch.tensor([0]),
        time_B=torch.tensor([77]),
        exclude_history=True,
        available_N=available_N,
    )
    assert requests.history.items.tolist() == [0, 1, 2]
    assert (requests.user_B.tolist(), requests.time_B.tolist()) == ([0], [77])
    assert requests.filters.exclude_history
    assert requests.filters.available_N is available_N


def test_all_a_user_did(events):
    available_N = torch.ones(3, dtype=torch.bool)
    requests = user_requests(events, torch.tensor([1, 0]), exclude_history=True, available_N=available_N)
    assert requests.history.offsets.tolist() == [0, 2, 5]
    assert requests.history.items.tolist() == [0, 0, 0, 1, 2]
    assert requests.time_B.tolist() == [9, 9]
    assert requests.user_B.tolist() == [1, 0]
    assert requests.filters.exclude_history
    assert requests.filters.available_N is available_N
    assert not user_requests(events, torch.tensor([1])).filters.exclude_history


def test_columns_the_log_lacks_are_left_out():
    bare = read_events(LOG.select("user_id", "item_id", "timestamp"))
    assert list(requests_before(bare, torch.tensor([1])).history.columns) == ["time", "step", "positive"]


def test_histories_of_nobody():
    available_N = torch.ones(9, dtype=torch.bool)
    requests = history_requests([[3, 1], [], [2]], exclude_history=True, available_N=available_N)
    assert requests.history.offsets.tolist() == [0, 2, 2, 3]
    assert requests.history.items.tolist() == [3, 1, 2]
    assert requests.history.columns["step"].tolist() == [0, 1, 2]
    assert requests.history.columns["positive"].tolist() == [True, True, True]
    assert (requests.user_B, requests.time_B) == (None, None)
    assert requests.filters.exclude_history
    assert requests.filters.available_N is available_N
    assert len(history_requests([])) == 0
    assert not history_requests([[1]]).filters.exclude_history


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), max_size=8))
def test_ranges_one_after_the_other(pairs):
    start, length = (
        torch.tensor(column, dtype=torch.int64) for column in ([p[0] for p in pairs], [p[1] for p in pairs])
    )
    offsets, positions = ranges(start, start + length)
    assert positions.tolist() == [place for first, count in pairs for place in range(first, first + count)]
    assert offsets.diff().tolist() == [count for _, count in pairs]
