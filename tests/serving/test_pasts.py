import polars as pl
import pytest
import torch
from tests.serving.served_shop import stored_events

import shop
from tesserec.data.interactions import read_events
from tesserec.data.requests import history_requests, user_requests
from tesserec.serving.pasts import Past, Question, Reader, requests_of
from tesserec.serving.records import Event
from tesserec.types import NO_TIME, Interactions

ALL = torch.ones(24, dtype=torch.bool)


def log_with_sessions() -> Interactions:
    """Baskets that share a time, sessions that last, events without a session, and a return."""
    rows = [
        ("u1", "a", 10, "purchase", "s1"),
        ("u1", "b", 10, "purchase", "s2"),
        ("u1", "c", 20, "purchase", "s2"),
        ("u1", "b", 20, "return", None),
        ("u1", "a", 20, "purchase", "s3"),
        ("u2", "c", 10, "purchase", None),
        ("u2", "a", 10, "purchase", None),
        ("u2", "b", 11, "return", None),
    ]
    frame = pl.DataFrame(rows, ["user_id", "item_id", "timestamp", "kind", "session"], orient="row")
    return read_events(frame, positive_kinds=["purchase"])


def index_of(log: Interactions) -> dict[str, int]:
    return {str(item): number for number, item in enumerate(log.items.ids.to_pylist())}


@pytest.mark.parametrize("make", [log_with_sessions, lambda: shop.data()[0]])
def test_a_stored_history_reads_as_the_log_does(make) -> None:
    log = make()
    users = [str(user) for user in log.users.ids.to_pylist()]
    wanted = user_requests(log, torch.arange(len(users)))
    reader = Reader.of(log)
    pasts = [reader.read(index_of(log), stored_events(log, user), user=n) for n, user in enumerate(users)]
    found = requests_of([Question(past, 5, ALL) for past in pasts])
    assert torch.equal(found.history.offsets, wanted.history.offsets)
    assert torch.equal(found.history.items, wanted.history.items)
    for name in ("time", "positive", "kind"):
        assert torch.equal(found.history.columns[name], wanted.history.columns[name]), name
    same_row = found.history.rows.diff() == 0
    same, expected = (r.history.columns["step"].diff() == 0 for r in (found, wanted))
    assert torch.equal(same[same_row], expected[same_row]), "the same events are one step"
    assert torch.equal(found.user_B, wanted.user_B)


def test_items_alone_read_as_histories_of_items_do() -> None:
    log = shop.data()[0]
    past = Reader.of(log).read(index_of(log), [], ["i03", "i07", "i03"])
    found = requests_of([Question(past, 5, ALL), Question(Past(), 5, ALL)])
    wanted = history_requests([[3, 7, 3], []])
    assert torch.equal(found.history.items, wanted.history.items)
    assert torch.equal(found.history.offsets, wanted.history.offsets)
    assert torch.equal(found.history.columns["step"], wanted.history.columns["step"])
    assert found.history.columns["positive"].all()
    assert found.history.columns["time"].tolist() == [NO_TIME] * 3
    assert found.history.columns["kind"].tolist() == [log.kinds.index("purchase")] * 3


def test_items_come_after_events_in_steps_of_their_own() -> None:
    log = shop.data()[0]
    past = Reader.of(log).read(index_of(log), stored_events(log, "u00")[:3], ["i09"])
    assert past.items[3:] == (9,)
    assert past.steps == (0, 0, 1, 2)


def test_what_the_model_does_not_know_is_left_out_and_named() -> None:
    reader = Reader(("purchase", "return"), ("purchase",), timed=True)
    events = [
        Event("1", "u", "a", "purchase", 1.5),
        Event("2", "u", "new", "purchase", 1.9),
        Event("3", "u", "b", "view", 2.0),
        Event("4", "u", "b", "return", 3.0),
        Event("5", "u", "new", "purchase", 3.0),
    ]
    past = reader.read({"a": 0, "b": 1}, events, ["other", "b"])
    assert past.items == (0, 1, 1)
    assert past.positive == (True, False, True)
    assert past.times == (1, 3, NO_TIME)
    assert past.unknown_items == ("new", "other")
    assert past.unknown_kinds == ("view",)
    assert not past.is_empty
    assert reader.read({"b": 1}, events[3:4]).is_empty, "who only returned something is new"


def test_a_model_without_kinds_reads_all_but_returns_and_impressions() -> None:
    reader = Reader((), (), timed=False)
    kinds = ("purchase", "view", "return", "impression")
    events = [Event(kind, "u", "a", kind, 7.0) for kind in kinds]
    past = reader.read({"a": 0}, events)
    assert (past.items, past.positive, past.kinds) == ((0, 0), (True, True), (0, 0))
    assert past.times == (NO_TIME, NO_TIME)
    assert past.steps == (0, 1), "without times, each event is a step of its own"
    assert past.unknown_kinds == ("return", "impression")


def test_filters_of_questions() -> None:
    one, two = Question(Past(), 5, ALL, (3, 4), exclude_history=True), Question(Past(), 5, ALL, exclude_history=True)
    filters = requests_of([one, two]).filters
    assert filters.exclude_history
    assert filters.available_N is ALL
    assert filters.excluded is not None
    assert [row.tolist() for row in (filters.excluded[0], filters.excluded[1])] == [[3, 4], []]
    assert requests_of([two]).filters.excluded is None
