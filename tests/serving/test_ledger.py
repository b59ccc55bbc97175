"""The comparison notices what it is there to notice."""

import sqlite3

import pytest
from tests.serving.kept import event
from tests.serving.ledger import Verdict, compare, read_notes

from tesserec.serving.sqlite_store import SQLiteStore


@pytest.fixture
def store(tmp_path):
    store = SQLiteStore(tmp_path / "state.sqlite")
    store.add_events([event(number) for number in range(3)]).result()
    yield store
    store.close()


def test_all_is_well(store):
    assert compare({"e0", "e1", "e2", "e3"}, {"e0", "e1", "e2"}, store) == Verdict(3, (), (), ())


def test_what_was_acknowledged_and_is_not_there_is_lost(store):
    assert compare({"e0", "e1", "e2", "e3"}, {"e1", "e3"}, store) == Verdict(2, ("e3",), (), ())


def test_what_nobody_sent_is_strange(store):
    assert compare({"e0", "e1"}, {"e1"}, store) == Verdict(1, (), (), ("e2",))


def test_what_is_there_twice_is_named(store, tmp_path):
    columns = "event_id, user_id, item_id, kind, time"
    with sqlite3.connect(tmp_path / "state.sqlite") as other:
        other.execute("CREATE TABLE copy AS SELECT * FROM events")
        other.execute("DROP TABLE events")
        other.execute("ALTER TABLE copy RENAME TO events")
        other.execute(f"INSERT INTO events (sequence, {columns}) SELECT 9, {columns} FROM events LIMIT 1")
    other.close()
    assert compare({"e0", "e1", "e2"}, {"e1"}, store) == Verdict(1, (), ("e0",), ())


def test_notes_are_read(tmp_path):
    (tmp_path / "notes").write_text("sent a\nsent b\nkept a\n")
    assert read_notes(tmp_path / "notes") == ({"a", "b"}, {"a"})
