"""Every protocol against a second writing of its rule, a loop over users, and against cases done by hand."""

import dataclasses

import numpy as np
import polars as pl
import pydantic
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tesserec.config import build
from tesserec.data.interactions import read_events
from tesserec.data.protocols import SplitConfig
from tesserec.data.splits import split
from tesserec.errors import DataError, RecipeError
from tesserec.types import NO_TIME

NAMES = ["user_id", "item_id", "timestamp", "kind", "session", "order"]


def log(*rows, positive_kinds=("buy",)):
    """Events from (user, item, time, kind, session), in the order of the file."""
    numbered = [(*row, place) for place, row in enumerate(rows)]
    schema = dict.fromkeys(NAMES, pl.Int64) | {"kind": pl.String}
    frame = pl.DataFrame(numbered, schema=schema, orient="row")
    bare = frame.drop("session") if frame["session"].is_null().all() else frame
    return read_events(bare, positive_kinds=positive_kinds)


def asked(holdout, events):
    """user → (time, history as item ids, targets as item ids)."""
    users, items = events.users.ids.to_pylist(), events.items.ids.to_pylist()
    requests, out = holdout.requests, {}
    for row in range(len(holdout)):
        history = requests.history.as_ragged()[row].tolist()
        targets = [items[i] for i in holdout.relevant[row].tolist()]
        out[users[int(requests.user_B[row])]] = (int(requests.time_B[row]), [items[i] for i in history], targets)
    assert len(out) == len(holdout)
    return out


def rows_of(part):
    users, items = part.users.ids.to_pylist(), part.items.ids.to_pylist()
    return [(users[u], items[i]) for u, i in zip(part.user_E.tolist(), part.item_E.tolist(), strict=True)]


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


def test_global_time_by_hand():
    parts = split(log(*SHOP), SplitConfig(t1=100, t2=200))
    assert parts.name == "global_time"
    assert rows_of(parts.train) == [(1, 1), (3, 1), (4, 6)]
    assert rows_of(parts.refit) == [(1, 1), (1, 3), (1, 2), (1, 4), (2, 5), (3, 1), (3, 2), (4, 6), (4, 6)]
    assert asked(parts.validation, parts.train) == {
        1: (110, [1], [2, 3]),
        2: (150, [], [5]),
        4: (100, [6], [6]),
    }
    assert asked(parts.test, parts.train) == {1: (210, [1, 3, 2, 4], [1]), 3: (200, [1, 2], [3])}
    assert parts.test.requests.history.columns["positive"].tolist() == [True, True, True, True, True, False]


def test_no_event_of_a_request_s_time_is_in_its_history_at_the_start_of_the_log_either():
    events = log(
        (1, 1, 110, "back", None),
        (1, 2, 110, "buy", None),
        (2, 1, 10, "buy", None),
        (2, 2, 210, "buy", None),
    )
    assert asked(split(events, SplitConfig(t1=100, t2=200)).validation, events) == {1: (110, [], [2])}


def test_a_session_wins_over_a_timestamp():
    """User 1: two invoices of one minute are two baskets, one that spans two minutes is one, within the window."""
    events = log(
        (1, 1, 10, "buy", 1),
        (1, 2, 110, "buy", 2),
        (1, 3, 110, "buy", 3),
        (1, 4, 111, "buy", 2),
        (1, 5, 199, "buy", 4),
        (1, 6, 200, "buy", 4),
        (1, 7, 201, "buy", None),
        (2, 1, 10, "buy", None),
        (2, 2, 110, "buy", None),
        (2, 3, 110, "buy", 9),
        (2, 4, 110, "buy", None),
        (2, 5, 250, "buy", None),
    )
    parts = split(events, SplitConfig(t1=100, t2=200))
    assert asked(parts.validation, events) == {1: (110, [1], [2, 4]), 2: (110, [1], [2, 4])}
    assert asked(parts.test, events) == {1: (200, [1, 2, 3, 4, 5], [6]), 2: (250, [1, 2, 3, 4], [5])}
    assert parts.report.validation.tie_share == 1.0
    assert parts.report.test.tie_share == 0.0


def test_times_are_quantiles_of_positive_events():
    rows = [(1, item, time, "buy", None) for item, time in enumerate(range(10, 110, 10))]
    parts = split(log(*rows, (1, 99, 100_000, "back", None)))
    assert (parts.report.t1, parts.report.t2) == (90, 100)
    parts = split(log(*rows), SplitConfig(quantiles=(0.1, 0.5)))
    assert (parts.report.t1, parts.report.t2) == (20, 60)


def test_last_out_by_hand():
    parts = split(log(*SHOP), SplitConfig(protocol="last_out"))
    assert rows_of(parts.train) == [(1, 1), (1, 3), (1, 2), (2, 5), (3, 1), (3, 2), (4, 6), (4, 6)]
    assert rows_of(parts.refit) == [
        (1, 1),
        (1, 3),
        (1, 2),
        (1, 4),
        *rows_of(parts.train)[3:5],
        (3, 2),
        (3, 3),
        *[(4, 6)] * 2,
    ]
    assert asked(parts.validation, parts.train) == {1: (120, [1, 3, 2], [4]), 3: (200, [1, 2], [3])}
    assert asked(parts.test, parts.train) == {1: (210, [1, 3, 2, 4], [1]), 3: (200, [1, 2, 3], [3])}
    assert (parts.report.validation.tie_share, parts.report.test.tie_share) == (0.5, 0.5)
    assert (parts.report.t1, parts.report.t2) == (None, None)


def test_signals_after_the_last_target_are_in_no_part():
    rows = [(1, item, item, "buy", None) for item in (1, 2, 3)]
    parts = split(log(*rows, (1, 3, 4, "back", None)), SplitConfig(protocol="last_out"))
    assert rows_of(parts.refit) == [(1, 1), (1, 2)]
    assert parts.report.events_in_no_part == 2


def test_last_out_other_day_leaves_out_ties_with_the_event_before():
    tied_last = [(1, 1, 1, "buy", None), (1, 2, 2, "buy", None), (1, 3, 3, "buy", None), (1, 4, 3, "buy", None)]
    tied_before = [(2, 1, 1, "buy", None), (2, 2, 1, "buy", None), (2, 3, 2, "buy", None)]
    parts = split(log(*tied_last, *tied_before), SplitConfig(protocol="last_out_other_day"))
    assert asked(parts.validation, parts.train) == {1: (3, [1, 2], [3])}
    assert asked(parts.test, parts.train) == {2: (2, [1, 2], [3])}
    assert rows_of(parts.train) == [(1, 1), (1, 2), (2, 1)]
    assert parts.report.validation.tie_share == 1.0
    assert parts.report.test.tie_share == 0.0


def test_rows_without_a_time_take_no_part_where_times_count():
    timed = [(1, item, 10 * item, "buy", None) for item in range(1, 6)]
    untimed = [(2, item, None, "buy", None) for item in range(1, 4)]
    mixed = [(3, 1, 30, "buy", None), (3, 2, None, "buy", None), (3, 3, 20, "buy", None), (3, 4, 45, "buy", None)]
    events = log(*timed, *untimed, *mixed)
    parts = split(events, SplitConfig(t1=25, t2=45))
    assert parts.report.events_without_time == 4
    assert rows_of(parts.train) == [(1, 1), (1, 2), (3, 3)]
    assert asked(parts.test, events) == {1: (50, [1, 2, 3, 4], [5]), 3: (45, [3, 1], [4])}
    assert split(events, SplitConfig(protocol="last_out")).report.events_without_time == 0
    other_day = split(events, SplitConfig(protocol="last_out_other_day"))
    assert set(asked(other_day.test, events)) == {1, 3}
    assert other_day.report.events_without_time == 4
    without = log(*untimed)
    for protocol in ("global_time", "last_out_other_day"):
        with pytest.raises(
            DataError, match=f"{protocol} needs times and this log has none: use last_out or user_ratio"
        ):
            split(without, SplitConfig(protocol=protocol))
    assert asked(split(without, SplitConfig(protocol="last_out")).test, without) == {2: (NO_TIME, [1, 2], [3])}


def test_cold_items_are_a_seeded_share():
    rows = [(user, item, item, "buy", None) for user in (1, 2) for item in range(20)]
    events = log(*rows, (1, 99, 50, "back", None))
    config = SplitConfig(protocol="cold_items", cold_share=0.2)
    parts = split(events, config)
    held = [set(parts.validation.relevant.values.tolist()), set(parts.test.relevant.values.tolist())]
    in_train = set(parts.train.item_E.tolist())
    assert len(in_train) == 20 - 4 - 4 + 1
    assert not in_train & (held[0] | held[1])
    assert len(set(parts.refit.item_E.tolist())) == 17
    again, other = split(events, config), split(events, dataclasses.replace(config, seed=1))
    assert rows_of(again.train) == rows_of(parts.train)
    assert rows_of(other.train) != rows_of(parts.train)


def test_at_least_one_item_is_withheld_and_one_must_train():
    events = log(*[(1, item, item, "buy", None) for item in range(3)])
    parts = split(events, SplitConfig(protocol="cold_items", cold_share=0.01))
    assert parts.report.train.items == 1
    with pytest.raises(DataError, match=r"cold_items cannot withhold 2 x 1 of 2 items and train: give more items"):
        split(log((1, 1, 1, "buy", None), (1, 2, 1, "buy", None)), SplitConfig(protocol="cold_items"))


def test_a_log_of_signals_has_nothing_to_ask_for():
    events = log((1, 1, 1, "buy", None), (1, 2, 2, "back", None))
    with pytest.raises(DataError, match=r"no event is of a positive kind \['buy'\], so global_time has no quantiles"):
        split(events.select(~events.is_positive_E))


def test_cold_items_that_only_signals_share():
    rows = [(1, item, item, "buy", None) for item in range(8)]
    events = log(*rows)
    only_first = events.select(torch.arange(8) < 1)
    with pytest.raises(DataError, match=r"cold_items cannot withhold 2 x 1 of 1 items"):
        split(only_first, SplitConfig(protocol="cold_items"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"t1": 5}, r"t1 = 5 and t2 = None: give both, t1 the earlier, or neither"),
        ({"t1": 5, "t2": 5}, r"t1 = 5 and t2 = 5: give both"),
        ({"quantiles": [0.9, 0.9]}, r"quantiles = \(0\.9, 0\.9\): the first must be smaller than the second"),
        ({"shares": [0.5, 0.5]}, r"shares = \(0\.5, 0\.5\): they must leave something to train"),
        ({"cold_share": 0.5}, r"split\.cold_share = 0\.5: Input should be less than 0\.5"),
        ({"shares": [0.0, 0.5]}, r"Input should be greater than 0"),
        ({"protocol": "leave_one_out"}, r"split\.protocol = 'leave_one_out': Input should be 'global_time'"),
    ],
)
def test_settings_out_of_range_are_refused(table, message):
    with pytest.raises(RecipeError, match=message):
        build(SplitConfig, table, "split")
    with pytest.raises(pydantic.ValidationError):
        SplitConfig(**table)


# The same rules once more, a loop over users. An event is (user, item, time, kind, session, order).


def by_user(events):
    out = {}
    for event in sorted(events, key=lambda e: (e[0], e[2], e[5])):
        out.setdefault(event[0], []).append(event)
    return out


def items_of(events):
    return [event[1] for event in events]


def global_time(events, t1, t2):
    train, refit = ([e for own in by_user(events).values() for e in own if e[2] < limit] for limit in (t1, t2))
    return train, refit, window(events, t1, t2), window(events, t2, 10**9)


def window(events, start, end):
    out = {}
    for user, own in by_user(events).items():
        inside = [e for e in own if e[3] == "buy" and start <= e[2] < end]
        if inside:
            first = inside[0]
            if first[4] is None:
                basket = [e for e in inside if e[2] == first[2] and e[4] is None]
            else:
                basket = [e for e in inside if e[4] == first[4]]
            out[user] = first[2], items_of(e for e in own if e[2] < first[2]), sorted(set(items_of(basket)))
    return out


def user_ratio(events, shares):
    train, refit, validation, test = [], [], {}, {}
    for user, own in by_user(events).items():
        at = [place for place, e in enumerate(own) if e[3] == "buy"]
        if shares is None:
            num_validation = num_test = 1
        else:
            num_validation, num_test = (max(1, int(len(at) * share + 1e-9)) for share in shares)
        if len(at) - num_validation - num_test < 1:
            train += own
            refit += own
            continue
        first, second = at[len(at) - num_validation - num_test], at[len(at) - num_test]
        train += own[:first]
        refit += own[:second]
        for out, start, end in ((validation, first, second), (test, second, len(own))):
            targets = sorted({e[1] for e in own[start:end] if e[3] == "buy"})
            out[user] = own[start][2], items_of(own[:start]), targets
    return train, refit, validation, test


def cold_items(events, for_validation, for_test):
    either = for_validation | for_test
    ordered = [e for own in by_user(events).values() for e in own]
    train, refit = ([e for e in ordered if e[1] not in held] for held in (either, for_test))
    return train, refit, cold(events, for_validation, either), cold(events, for_test, for_test)


def cold(events, asked_for, withheld):
    out = {}
    for user, own in by_user(events).items():
        wanted = [place for place, e in enumerate(own) if e[3] == "buy" and e[1] in asked_for]
        if wanted:
            start = wanted[-1]
            while start and together(own[start - 1], own[start]):
                start -= 1
            targets = sorted({own[place][1] for place in wanted if place >= start})
            out[user] = own[wanted[-1]][2], items_of(e for e in own[:start] if e[1] not in withheld), targets
    return out


def together(one, two):
    if one[4] is not None and two[4] is not None:
        return one[4] == two[4]
    return one[2] == two[2]


EVENTS = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.integers(1, 12),
        st.integers(0, 9),
        st.sampled_from(["buy", "buy", "buy", "back"]),
        st.sampled_from([None, None, 1, 2, 3]),
    ),
    min_size=6,
    max_size=40,
)


def split_or_skip(rows, **settings):
    assume(any(row[3] == "buy" for row in rows))
    try:
        return split(log(*rows), SplitConfig(**settings))
    except DataError as error:
        assume("leaves no" not in str(error) and "cannot withhold" not in str(error))
        raise


def agrees(parts, expected):
    train, refit, validation, test = expected
    assert rows_of(parts.train) == [(e[0], e[1]) for e in train]
    assert rows_of(parts.refit) == [(e[0], e[1]) for e in refit]
    assert asked(parts.validation, parts.train) == validation
    assert asked(parts.test, parts.train) == test


def numbered(rows):
    return [(*row, place) for place, row in enumerate(rows)]


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.integers(1, 5), st.integers(1, 4))
def test_global_time_agrees_with_the_loop(rows, t1, gap):
    parts = split_or_skip(rows, t1=t1, t2=t1 + gap)
    agrees(parts, global_time(numbered(rows), t1, t1 + gap))


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.sampled_from([None, (0.1, 0.1), (0.2, 0.4), (0.3, 0.3)]))
def test_cuts_by_position_agree_with_the_loop(rows, shares):
    chosen = {"protocol": "last_out"} if shares is None else {"protocol": "user_ratio", "shares": shares}
    agrees(split_or_skip(rows, **chosen), user_ratio(numbered(rows), shares))


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.integers(0, 3), st.sampled_from([0.1, 0.3]))
def test_cold_items_agree_with_the_loop(rows, seed, share):
    parts = split_or_skip(rows, protocol="cold_items", cold_share=share, seed=seed)
    bought, of_train, of_refit = (
        {row[1] for row in rows if row[3] == "buy"},
        *({item for _, item in rows_of(part)} for part in (parts.train, parts.refit)),
    )
    for_test, for_validation = bought - of_refit, (bought & of_refit) - of_train
    assert len(for_test) == len(for_validation) == max(1, round(share * len(bought)))
    agrees(parts, cold_items(numbered(rows), for_validation, for_test))


@settings(max_examples=40, deadline=None)
@given(EVENTS)
def test_tie_share_is_that_of_the_loop(rows):
    parts = split_or_skip(rows, protocol="last_out")
    ties = {"validation": [], "test": []}
    for own in by_user(numbered(rows)).values():
        at = [place for place, e in enumerate(own) if e[3] == "buy"]
        if len(at) >= 3:
            tied = [own[place][2] == own[place - 1][2] for place in at[-2:]]
            ties["validation"].append(any(tied))
            ties["test"].append(tied[1])
    assert parts.report.validation.tie_share == pytest.approx(np.mean(ties["validation"]))
    assert parts.report.test.tie_share == pytest.approx(np.mean(ties["test"]))
