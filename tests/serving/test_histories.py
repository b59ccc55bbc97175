import threading

import pytest
from tests.serving.kept import event, ids

from tesserec.errors import StoreError
from tesserec.serving.histories import Histories
from tesserec.serving.sqlite_store import SQLiteStore


class Counted(SQLiteStore):
    """Counts what is read, and can stop between reading and answering."""

    def __init__(self, path):
        super().__init__(path)
        self.reads, self.read, self.go, self.fails = 0, threading.Event(), threading.Event(), False
        self.go.set()

    def history(self, user_id, limit):
        self.reads += 1
        events = super().history(user_id, limit)
        self.read.set()
        assert self.go.wait(60)
        if self.fails:
            raise StoreError("away")
        return events


@pytest.fixture
def store(tmp_path):
    store = Counted(tmp_path / "state.sqlite")
    store.add_events([event(number) for number in range(5)]).result()
    yield store
    store.close()


def test_a_history_is_read_once(store):
    histories = Histories(store, 10)
    assert ids(histories.of("ann", 3)) == ["e2", "e3", "e4"]
    assert ids(histories.of("ann", 3)) == ["e2", "e3", "e4"]
    assert ids(histories.of("ann", 2)) == ["e3", "e4"]
    assert histories.of("ann", 0) == []
    assert store.reads == 1


def test_a_longer_one_is_read_again_unless_all_is_known(store):
    histories = Histories(store, 10)
    histories.of("ann", 3)
    assert len(histories.of("ann", 9)) == 5
    assert len(histories.of("ann", 100)) == 5
    assert store.reads == 2


def test_new_events_are_in_the_next_answer_in_the_order_of_the_store(store):
    histories = Histories(store, 10)
    histories.of("ann", 3)
    new = [event(9, time=2.0), event(8, user="bob")]
    store.add_events(new).result()
    histories.added(new)
    assert histories.of("ann", 4) == store.history("ann", 4)
    assert ids(histories.of("ann", 4)) == ["e2", "e9", "e3", "e4"]


def test_a_forgotten_user_has_no_history(store):
    histories = Histories(store, 10)
    histories.of("ann", 3)
    store.delete_user("ann").result()
    histories.forget("ann")
    assert histories.of("ann", 3) == []


def test_what_was_read_before_a_change_and_arrives_after_it_is_not_kept(store):
    histories = Histories(store, 10)
    store.go.clear()
    answers = []
    slow = threading.Thread(target=lambda: answers.append(histories.of("ann", 10)))
    slow.start()
    assert store.read.wait(60)
    store.add_events([event(9)]).result()
    histories.added([event(9)])
    store.go.set()
    slow.join(60)
    assert len(answers[0]) == 5
    assert ids(histories.of("ann", 10))[-1] == "e9"
    assert len(histories) == 1
    assert not histories._changes
    assert not histories._reading


def test_a_read_that_fails_leaves_nothing_behind(store):
    histories = Histories(store, 10)
    store.fails = True
    with pytest.raises(StoreError, match="away"):
        histories.of("ann", 10)
    store.fails = False
    assert len(histories.of("ann", 10)) == 5
    assert not histories._reading


def test_those_who_were_not_asked_for_lately_make_room(store):
    histories = Histories(store, 2)
    for user in ("ann", "bob", "ann", "eve"):
        histories.of(user, 5)
    assert (len(histories), store.reads) == (2, 3)
    histories.of("ann", 5)
    assert store.reads == 3
    histories.of("bob", 5)
    assert store.reads == 4


def test_the_caller_may_change_what_it_was_given(store):
    histories = Histories(store, 2)
    histories.of("ann", 5).clear()
    histories.of("ann", 5).clear()
    assert len(histories.of("ann", 5)) == 5


def test_what_is_in_memory_is_there_without_reading(store):
    histories = Histories(store, 10)
    assert histories.kept("ann", 3) is None
    histories.of("ann", 3)
    assert ids(histories.kept("ann", 2)) == ["e3", "e4"]
    assert histories.kept("ann", 4) is None, "more than was read"
    histories.forget("ann")
    assert histories.kept("ann", 2) is None
    assert store.reads == 1
