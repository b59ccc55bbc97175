"""The sort of a log against Python's own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesserec.data.ordering import sorted_rows
from tesserec.types import NO_TIME

TIMES = st.one_of(st.integers(0, 3), st.integers(0, 2**40), st.sampled_from([0, 2**61]))
EVENTS = st.lists(st.tuples(st.integers(0, 4), TIMES, st.integers(-3, 3)), min_size=1, max_size=40)


def columns(events):
    users, times, orders = zip(*events, strict=True)
    return np.array(users, np.int32), np.array(times, np.int64), np.array(orders, np.int64)


@given(EVENTS)
def test_sorts_by_user_and_time_and_is_stable(events):
    users, times, _ = columns(events)
    expected = sorted(range(len(events)), key=lambda row: (users[row], times[row]))
    assert sorted_rows(users, times, None, 5).tolist() == expected


@given(EVENTS)
def test_order_breaks_ties(events):
    users, times, orders = columns(events)
    expected = sorted(range(len(events)), key=lambda row: (users[row], times[row], orders[row]))
    assert sorted_rows(users, times, orders, 5).tolist() == expected


@given(EVENTS, st.data())
def test_a_user_without_a_time_is_sorted_by_order_alone(events, data):
    users, times, orders = columns(events)
    times[data.draw(st.integers(0, len(events) - 1))] = NO_TIME
    untimed = set(users[times == NO_TIME].tolist())

    def key(row):
        return users[row], 0 if users[row] in untimed else times[row], orders[row]

    assert sorted_rows(users, times, orders, 5).tolist() == sorted(range(len(events)), key=key)


@pytest.mark.parametrize("length", [65535, 65536, 65537, 140000])
def test_logs_longer_than_a_slice(length):
    rng = np.random.default_rng(0)
    users, times = rng.integers(0, 50, length).astype(np.int32), rng.integers(1000, 1100, length)
    assert np.array_equal(sorted_rows(users, times, None, 50), np.lexsort((times, users)))
    in_order = np.sort(users)
    assert np.array_equal(sorted_rows(in_order, np.arange(length), None, 50), np.arange(length))
