"""A sound split passes; every way of leaking into one is named."""

import dataclasses

import polars as pl
import pytest
import torch

from tesserec.data.interactions import read_events
from tesserec.data.leaks import check_leaks, in_history
from tesserec.data.splits import SplitConfig, split
from tesserec.errors import LeakError
from tesserec.types import NO_TIME, Holdout, Ragged

ROWS = [(user, item, 10 * item + user) for user in (1, 2) for item in range(1, 8)]
ROWS += [(3, 1, 13)]
EVENTS = read_events(pl.DataFrame(ROWS, schema=["user_id", "item_id", "timestamp"], orient="row"))


def split_by(protocol, **settings):
    return split(EVENTS, SplitConfig(protocol=protocol, **settings))


@pytest.fixture
def by_time():
    """Times of item i: 10 i + user; T1 = 51, T2 = 61."""
    return split_by("global_time", t1=51, t2=61)


def with_history(holdout, **columns):
    """The holdout with other columns or items in its histories."""
    history = holdout.requests.history
    items = columns.pop("items", history.items)
    history = dataclasses.replace(history, items=items, columns={**history.columns, **columns})
    return dataclasses.replace(holdout, requests=dataclasses.replace(holdout.requests, history=history))


def with_requests(holdout, **changes):
    return dataclasses.replace(holdout, requests=dataclasses.replace(holdout.requests, **changes))


def with_times(events, at, time):
    time_E = events.time_E.clone()
    time_E[at] = time
    return dataclasses.replace(events, time_E=time_E)


def refused(parts, message, **changes):
    with pytest.raises(LeakError, match=message):
        check_leaks(dataclasses.replace(parts, **changes))


def test_sound_splits_pass(by_time):
    check_leaks(by_time)
    for protocol in ("last_out", "user_ratio", "cold_items"):
        check_leaks(split_by(protocol))


@pytest.mark.parametrize("name", ["validation", "test"])
def test_nobody_is_asked_twice(by_time, name):
    twice = getattr(by_time, name).take(torch.tensor([1, 0, 1]))
    refused(by_time, rf"user 2 has 2 {name} requests, one is allowed", **{name: twice})


@pytest.mark.parametrize("name", ["validation", "test"])
def test_histories_end_before_the_request(by_time, name):
    holdout = getattr(by_time, name)
    time_H = holdout.requests.history.columns["time"].clone()
    time_H[-1] = holdout.requests.time_B[-1]
    message = rf"the {name} history of user 2 has an event of time {int(time_H[-1])}, not before the request"
    refused(by_time, message, **{name: with_history(holdout, time=time_H)})


@pytest.mark.parametrize("name", ["validation", "test"])
def test_targets_are_not_in_a_history_where_nothing_repeats(name):
    parts = split_by("last_out")
    holdout = getattr(parts, name)
    had = Ragged(holdout.relevant.offsets, torch.tensor([int(holdout.relevant.values[0]), 0]))
    message = rf"the history of user 2 has the {name} target 1, though nobody has an item twice"
    refused(parts, message, **{name: Holdout(holdout.requests, had)})
    told = dataclasses.replace(parts, config=SplitConfig(protocol="last_out", exclude_history=True))
    check_leaks(dataclasses.replace(told, **{name: Holdout(holdout.requests, had)}))
    report = dataclasses.replace(parts.report, exclude_history=False)
    check_leaks(dataclasses.replace(parts, report=report, **{name: Holdout(holdout.requests, had)}))


def test_what_the_history_has_is_told_request_by_request():
    holdout = split_by("last_out").validation
    relevant = Ragged.of([[4, 5, 6], [6, 0]])
    assert in_history(Holdout(holdout.requests, relevant)).tolist() == [True, False, False, False, True]
    positive = torch.ones(len(holdout.requests.history.items), dtype=torch.bool)
    positive[4] = False
    signals = with_history(Holdout(holdout.requests, relevant), positive=positive)
    assert in_history(signals).tolist() == [False, False, False, False, True]


@pytest.mark.parametrize(("part", "limit"), [("train", 51), ("refit", 61)])
def test_training_ends_in_time(by_time, part, limit):
    for time in (limit, NO_TIME):
        events = with_times(getattr(by_time, part), -1, time)
        refused(by_time, rf"{part} has an event of user 3 at time {time}, not before {limit}", **{part: events})
    check_leaks(dataclasses.replace(by_time, **{part: with_times(getattr(by_time, part), -1, limit - 1)}))


def test_windows_hold_their_requests(by_time):
    late, early = torch.tensor([51, 61]), torch.tensor([51, 50])
    outside = r"validation requests lie in \[51, 61\], outside \[51, 61\)"
    refused(by_time, outside, validation=with_requests(by_time.validation, time_B=late))
    history = by_time.validation.requests.history
    shorter = with_history(by_time.validation, time=history.columns["time"] * 0)
    nothing = {"train": by_time.train.select(torch.arange(len(by_time.train)) < 0)}
    early_requests = with_requests(shorter, time_B=early)
    refused(by_time, r"validation requests lie in \[50, 51\], outside \[51, 61\)", validation=early_requests, **nothing)
    before = with_requests(
        with_history(by_time.test, time=by_time.test.requests.history.columns["time"] * 0), time_B=late - 1
    )
    empty = by_time.refit.select(torch.arange(len(by_time.refit)) < 0)
    refused(by_time, r"a test request of time 50 lies before 61", test=before, refit=empty, **nothing)


@pytest.mark.parametrize("protocol", ["last_out", "user_ratio", "global_time"])
def test_training_events_precede_the_request(protocol):
    settings = {"t1": 51, "t2": 61} if protocol == "global_time" else {}
    parts = split_by(protocol, **settings)
    own = len(parts.validation.requests.history.items) // 2
    message = rf"train has {own + 1} events of user 2, but only {own} precede the validation request"
    rows = torch.cat([torch.arange(own), torch.arange(7, 7 + own + 1)])
    late = EVENTS.select(rows)
    refused(parts, message, train=late)
    own = len(parts.test.requests.history.items) // 2
    message = rf"refit has {own + 1} events of user 1, but only {own} precede the test request"
    refused(parts, message, refit=EVENTS.select(torch.arange(own + 1)))


def test_training_events_are_those_of_the_history():
    parts = split_by("last_out")
    swapped = parts.validation.requests.history.items.clone()
    swapped[-1] = 6
    message = r"the train events of user 2 are not the first of the history of the validation request"
    refused(parts, message, validation=with_history(parts.validation, items=swapped))
    other_times = with_times(parts.refit, 1, 5)
    message = r"the refit events of user 1 are not the first of the history of the test request"
    refused(parts, message, refit=other_times)


def test_withheld_items_stay_withheld():
    parts = split_by("cold_items", seed=3)
    for name, part in (("validation", "train"), ("test", "train"), ("test", "refit")):
        item = int(getattr(parts, name).relevant.values[0])
        leaked = EVENTS.select(EVENTS.item_E == item)
        own_id = parts.train.items.ids[item].as_py()
        refused(parts, rf"item {own_id} is withheld for {name}, but {part} has events of it", **{part: leaked})
