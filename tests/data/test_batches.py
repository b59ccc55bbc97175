import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tesserec.data.batches import (
    Windows,
    history_of,
    next_step_labels,
    shuffled_batches,
    training_windows,
    windows_of,
)
from tesserec.testing.data import DAY_S, interactions_of, requests_of
from tesserec.types import NO_TIME, PAD, History


def history(*lengths, **columns):
    """Histories of the given lengths whose items are 0, 1, 2 … over all of them."""
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return History(offsets, torch.arange(int(offsets[-1])), columns)


def labels(windows):
    positions, items = next_step_labels(windows)
    return list(zip(positions.tolist(), items.tolist(), strict=True))


def test_windows_hold_the_last_events_at_the_right():
    found = windows_of(history(2, 0, 4), 3)
    assert found.items_BT.tolist() == [[PAD, 0, 1], [PAD] * 3, [3, 4, 5]]
    assert found.valid_BT.tolist() == [[False, True, True], [False] * 3, [True] * 3]
    assert found.steps_BT.tolist() == [[0, 1, 0], [0] * 3, [2, 1, 0]]
    assert found.kinds_BT.tolist() == found.days_BT.tolist() == [[0] * 3] * 3
    assert not bool(found.fresh_BT.any())
    assert len(found) == 3
    assert windows_of(history(2, 1), 9).items_BT.tolist() == [[0, 1], [PAD, 2]]


def test_steps_days_and_kinds_count_back_from_the_last_event():
    steps = torch.tensor([4, 4, 5, 5, 5, 7])
    times = torch.tensor([0, 0, DAY_S // 2, DAY_S // 2, DAY_S // 2, 3 * DAY_S])
    found = windows_of(history(5, 1, step=steps, time=times, kind=torch.tensor([0, 1, 2, 0, 1, 2])), 4)
    assert found.steps_BT.tolist() == [[1, 0, 0, 0], [0] * 4]
    assert found.days_BT.tolist() == [[0.5, 0, 0, 0], [0] * 4]
    assert found.days_BT.dtype == torch.float32
    assert found.kinds_BT.tolist() == [[1, 2, 0, 1], [0, 0, 0, 2]]
    assert windows_of(requests_of([[[1], [2, 3], [4]]]).history, 9).days_BT.tolist() == [[2, 1, 1, 0]]


def test_gaps_are_days_between_steps():
    step = torch.tensor([0, 1, 1, 2, 3, 0])
    time = torch.tensor([0, 2 * DAY_S, 2 * DAY_S, 2 * DAY_S, 9 * DAY_S, 0])
    found = windows_of(history(5, 1, step=step, time=time), 5)
    assert found.gaps_BT.tolist() == [[-1, 2, 2, 0, 7], [-1] * 5]
    time[3] = NO_TIME
    unknown = windows_of(history(5, 1, step=step, time=time), 5).gaps_BT[0].isnan()
    assert unknown.tolist() == [False, False, False, True, True]
    assert windows_of(history(3), 3).gaps_BT.isnan().tolist() == [[False, True, True]]


def test_a_step_of_the_user_before_is_not_the_same_step():
    found = windows_of(history(2, 3, step=torch.tensor([0, 1, 1, 1, 2])), 3)
    assert found.steps_BT.tolist() == [[0, 1, 0], [1, 1, 0]]


def test_unknown_times_and_times_after_the_last_are_zero_days():
    known = windows_of(history(3, time=torch.tensor([NO_TIME, 5 * DAY_S, 4 * DAY_S])), 3)
    assert known.days_BT.tolist() == [[0, 0, 0]]
    unknown_last = windows_of(history(2, time=torch.tensor([DAY_S, NO_TIME])), 2)
    assert unknown_last.days_BT.tolist() == [[0, 0]]
    assert unknown_last.times_BT.tolist() == [[DAY_S, NO_TIME]]


def test_times_are_unknown_where_there_is_no_event():
    found = windows_of(history(2, 1, time=torch.tensor([2**40 + 1, 2**40 + 2, 7])), 2)
    assert found.times_BT.tolist() == [[2**40 + 1, 2**40 + 2], [NO_TIME, 7]]
    assert windows_of(history(2), 2).times_BT.tolist() == [[NO_TIME] * 2]


@pytest.mark.parametrize("windows", [windows_of, training_windows])
def test_without_any_event_there_is_nothing_to_read(windows):
    found = windows(history(0, 0), 4)
    assert found.items_BT.tolist() == ([[PAD]] * 2 if windows is windows_of else [])
    assert found.items_BT.shape[1] == found.days_BT.shape[1] == 1
    assert not bool(found.fresh_BT.any())
    assert labels(found) == []
    assert windows_of(history(), 4).items_BT.shape == (0, 1)


def test_long_histories_are_cut_from_the_end_and_overlap_by_half():
    found = training_windows(history(7, 4, 0), 4)
    assert found.items_BT.tolist() == [[3, 4, 5, 6], [1, 2, 3, 4], [PAD, 0, 1, 2], [7, 8, 9, 10]]
    fresh = [[False, False, True, True], [False, False, True, True], [False, True, True, True], [True] * 4]
    assert found.fresh_BT.tolist() == fresh


@given(st.lists(st.integers(0, 25), max_size=4), st.integers(1, 9), st.integers(0, 3))
def test_each_positive_event_is_fresh_once_with_half_a_window_before_it(lengths, most, signals):
    log = history(*lengths, positive=torch.arange(sum(lengths)) % 4 >= signals)
    found = training_windows(log, most)
    assert all(bool((w != PAD).any()) for w in found.items_BT)
    assert sorted(found.items_BT[found.fresh_BT].tolist()) == log.items[log.columns["positive"]].tolist()
    first = log.offsets[:-1].repeat_interleave(log.lengths)
    for items, fresh in zip(found.items_BT.tolist(), found.fresh_BT.tolist(), strict=True):
        events = [i for i in items if i != PAD]
        assert events == list(range(events[0], events[0] + len(events)))
        assert items == [PAD] * (len(items) - len(events)) + events
        for place in (i for i, is_fresh in zip(items, fresh, strict=True) if is_fresh):
            before = place - int(first[place])
            assert place - events[0] >= min(before, most - max(most // 2, 1))
    expected = sum(1 + -(-max(n - most, 0) // max(most // 2, 1)) for n in lengths if n)
    assert len(found) == expected


def test_each_event_is_a_label_of_the_last_event_of_the_step_before():
    log = requests_of([[[5], [6, 7], [8], [9, 4]], [[1, 2], [3]]]).history
    windows = training_windows(log, 6)
    assert windows.items_BT.tolist() == [[5, 6, 7, 8, 9, 4], [PAD] * 3 + [1, 2, 3]]
    assert labels(windows) == [(0, 6), (0, 7), (2, 8), (3, 9), (3, 4), (10, 3)]


def test_a_basket_that_begins_before_the_window_is_not_predicted():
    log = requests_of([[[0], [1, 2, 3, 4], [5]]]).history
    windows = training_windows(log, 4)
    assert windows.items_BT.tolist() == [[2, 3, 4, 5], [0, 1, 2, 3]]
    assert labels(windows) == [(2, 5), (4, 1), (4, 2), (4, 3)]


def test_signals_are_context_and_never_labels():
    log = requests_of([[[0], [1], [2], [3, 4]]]).history
    positive = torch.tensor([True, False, True, False, True])
    windows = training_windows(dataclasses.replace(log, columns={**log.columns, "positive": positive}), 5)
    assert labels(windows) == [(1, 2), (2, 4)]
    assert labels(windows_of(log, 5)) == []


def test_a_log_is_a_history_a_user():
    log = interactions_of([[[0, 1], [2]], [], [[3]]], 4)
    found = history_of(log)
    assert found.offsets.tolist() == [0, 3, 3, 4]
    assert found.items.tolist() == [0, 1, 2, 3]
    assert found.items.dtype == torch.int64
    assert {k: v.tolist() for k, v in found.columns.items()} == {
        "time": [0, 0, DAY_S, 0],
        "step": [0, 0, 1, 2],
        "positive": [True] * 4,
    }
    kinds = {"kind_E": torch.tensor([0, 1, 0, 0]), "kinds": ("buy", "return"), "positive_kinds": ("buy",)}
    with_kinds = history_of(dataclasses.replace(log, **kinds))
    assert with_kinds.columns["kind"].tolist() == [0, 1, 0, 0]
    assert with_kinds.columns["positive"].tolist() == [True, False, True, True]


def test_taking_windows_cuts_padding_only():
    windows = training_windows(history(1, 5, 2), 5)
    taken = windows.take(torch.tensor([2, 0]))
    assert taken.items_BT.tolist() == [[6, 7], [PAD, 0]]
    assert taken.steps_BT.tolist() == [[1, 0], [0, 0]]
    assert taken.fresh_BT.tolist() == [[True, True], [False, True]]
    assert taken.days_BT.shape == taken.kinds_BT.shape == (2, 2)
    assert windows.take(torch.tensor([1])).items_BT.tolist() == [[1, 2, 3, 4, 5]]
    assert windows_of(history(0, 3), 3).take(torch.tensor([0])).items_BT.tolist() == [[PAD]]
    assert windows.take(torch.tensor([], dtype=torch.int64)).items_BT.shape == (0, 1)


def test_batches_hold_each_window_once_in_an_order_of_the_generator():
    lengths = [1 + n % 7 for n in range(150)]
    windows = training_windows(history(*lengths), 7)

    def drawn(seed) -> list[Windows]:
        return list(shuffled_batches(windows, 2, torch.Generator().manual_seed(seed)))

    batches = drawn(1)
    assert len(batches) == 75
    assert all(len(batch) == 2 for batch in batches)
    seen = torch.cat([batch.items_BT[:, -1] for batch in batches])
    assert sorted(seen.tolist()) == windows.items_BT[:, -1].tolist()
    assert [b.items_BT.tolist() for b in drawn(1)] == [b.items_BT.tolist() for b in batches]
    assert [b.items_BT.tolist() for b in drawn(2)] != [b.items_BT.tolist() for b in batches]
    # Of the 32 batches of a run, sorted by seven lengths, at most six hold two lengths: of all 75, at most 18.
    widths = [batch.items_BT.shape[1] for batch in batches]
    assert sum(int(batch.valid_BT.sum()) < 2 * width for batch, width in zip(batches, widths, strict=True)) <= 18
    assert widths != sorted(widths)
    assert [len(b) for b in shuffled_batches(windows.take(torch.arange(3)), 2, torch.Generator())] in ([1, 2], [2, 1])
