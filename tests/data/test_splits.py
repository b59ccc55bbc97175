"""What a split reports, what it derives from the data, and when it is refused."""

import dataclasses

import polars as pl
import pytest

from tesserec.data.interactions import read_events
from tesserec.data.splits import SplitConfig, has_repeats, split
from tesserec.errors import DataError

NAMES = ["user_id", "item_id", "timestamp", "kind", "session", "order"]


def log(*rows, positive_kinds=("buy",)):
    """Events from (user, item, time, kind, session), in the order of the file."""
    numbered = [(*row, place) for place, row in enumerate(rows)]
    schema = dict.fromkeys(NAMES, pl.Int64) | {"kind": pl.String}
    return read_events(pl.DataFrame(numbered, schema=schema, orient="row"), positive_kinds=positive_kinds)


SHOP = [
    (1, 1, 10, "buy", None),
    (1, 3, 110, "buy", None),
    (1, 2, 110, "buy", None),
    (1, 4, 120, "buy", None),
    (1, 1, 210, "buy", None),
    (2, 5, 150, "buy", None),
    (3, 1, 50, "buy", None),
    (3, 2, 105, "back", None),
    (3, 3, 200, "buy", None),
    (3, 3, 200, "buy", None),
    (4, 6, 99, "buy", None),
    (4, 6, 100, "buy", None),
]


def test_the_report_counts_what_was_done():
    report = dataclasses.asdict(split(log(*SHOP), SplitConfig(t1=100, t2=200)).report)
    assert report == {
        "protocol": "global_time",
        "exclude_history": False,
        "t1": 100,
        "t2": 200,
        "train": {"users": 3, "items": 2, "events": 3},
        "refit": {"users": 4, "items": 6, "events": 9},
        "validation": {
            "requests": 3,
            "targets": 4,
            "empty_histories": 1,
            "unseen_targets": 3,
            "tie_share": 0.0,
            "targets_already_had": 1,
        },
        "test": {
            "requests": 2,
            "targets": 2,
            "empty_histories": 0,
            "unseen_targets": 0,
            "tie_share": 0.0,
            "targets_already_had": 1,
        },
        "events_without_time": 0,
        "events_in_no_part": 3,
    }


def test_whether_seen_items_are_left_out_comes_from_the_data():
    rows = [(1, item, item, "buy", None) for item in range(1, 8)]
    last_out = SplitConfig(protocol="last_out")
    once = split(log(*rows, (1, 3, 8, "back", None)), last_out)
    assert once.report.exclude_history
    assert once.test.requests.filters.exclude_history
    assert once.validation.requests.filters.exclude_history
    twice = split(log(*rows, (1, 3, 8, "buy", None)), last_out)
    assert not twice.report.exclude_history
    assert not twice.test.requests.filters.exclude_history
    told = split(log(*rows, (1, 3, 8, "buy", None)), dataclasses.replace(last_out, exclude_history=True))
    assert told.test.requests.filters.exclude_history
    assert told.report.test.targets_already_had == 1
    told = split(log(*rows), dataclasses.replace(last_out, exclude_history=False))
    assert not told.report.exclude_history
    assert has_repeats(log((1, 2, 1, "buy", None), (2, 1, 1, "buy", None), (1, 2, 3, "buy", None)))
    assert not has_repeats(log((1, 2, 1, "buy", None), (2, 1, 1, "buy", None), (2, 2, 1, "buy", None)))


@pytest.mark.parametrize(("others", "counts"), [(98, True), (99, False)])
def test_repeats_count_from_one_event_in_a_hundred(others, counts):
    rows = [(user, 1, 1, "buy", None) for user in range(others)]
    assert has_repeats(log((500, 1, 1, "buy", None), (500, 1, 2, "buy", None), *rows)) is counts


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (
            [(1, 1, 100, "buy", None)],
            {"t1": 50, "t2": 60},
            r"global_time leaves no event to train on: give more events",
        ),
        (
            [(1, 1, 10, "buy", None)],
            {"t1": 50, "t2": 60},
            r"leaves no validation request: choose t1 and t2 within the times",
        ),
        (
            [(1, 1, 10, "buy", None), (1, 2, 55, "buy", None)],
            {"t1": 50, "t2": 60},
            r"global_time leaves no test request: choose t1 and t2 within",
        ),
        (
            [(1, 1, 1, "buy", None), (1, 2, 2, "buy", None)],
            {"protocol": "last_out"},
            r"last_out leaves no validation request: users need three positive events, at different times where",
        ),
    ],
)
def test_parts_must_not_be_empty(rows, settings, message):
    with pytest.raises(DataError, match=message):
        split(log(*rows), SplitConfig(**settings))
