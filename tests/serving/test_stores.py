"""What every store promises, tested on each of them."""

import dataclasses
import math
import threading
import time
import uuid
from concurrent.futures import wait

import pytest
from tests.serving.kept import event, ids, impression

from tesserec.errors import StoreError
from tesserec.serving.open_store import open_store, restore_backup
from tesserec.serving.records import Audit, Item, Store, StoredEvent, UserData


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def address(request):
    """The address to give to ``open_store``."""
    return None if request.param == "sqlite" else request.getfixturevalue(f"shared_{request.param}").url


@pytest.fixture
def namespace():
    """One that no other test has: they share the servers."""
    return f"shop{uuid.uuid4().hex}"


@pytest.fixture
def reopen(address, tmp_path, namespace):
    """Closes the store that is open, and opens the same state again."""
    opened = []

    def again():
        if opened:
            opened.pop().close()
        opened.append(open_store(address, tmp_path, namespace))
        return opened[-1]

    yield again
    opened.pop().close()


@pytest.fixture
def store(reopen):
    return reopen()


def test_it_has_the_methods_of_a_store(store):
    assert isinstance(store, Store)


def test_durable_transactions_are_told(store):
    told = []
    store.watch_commits(lambda num_writes, seconds: told.append((num_writes, seconds > 0)))
    store.add_events([event(1), event(2)]).result()
    assert told == [(1, True)]


def test_an_event_is_kept_as_it_was_given(store, reopen):
    full = event(1, value=2.5, session="basket", response_id="r1", user="ünï\n")
    assert store.add_events([full, event(2)]).result() == [True, True]
    again = reopen()
    assert again.history("ünï\n", 10) == [full]
    assert again.history("ann", 10) == [event(2)]
    assert again.events_after(0, 10) == [StoredEvent(1, full), StoredEvent(2, event(2))]


def test_an_event_that_is_sent_twice_is_kept_once(store):
    first = store.add_events([event(1), event(2), event(1, kind="purchase")])
    second = store.add_events([event(2, item_id="other"), event(3)])
    assert first.result() == [True, True, False]
    assert second.result() == [False, True]
    assert store.history("ann", 10) == [event(1), event(2), event(3)]
    assert ids(stored.event for stored in store.events_after(0, 10)) == ["e1", "e2", "e3"]


def test_more_events_than_fit_into_a_statement_in_one_call(store):
    events = [event(number % 1_500, user=f"u{number % 7}") for number in range(2_000)]
    assert store.add_events(events).result() == [True] * 1_500 + [False] * 500
    assert store.counts()["events"] == 1_500
    assert store.users("", 100) == [f"u{number}" for number in range(7)]
    assert [stored.sequence for stored in store.events_after(1_490, 5)] == [1_491, 1_492, 1_493, 1_494, 1_495]


def test_writes_of_all_kinds_that_wait_together_are_answered_in_their_order(store):
    writes = []
    for number in range(30):
        writes.append((store.add_events([event(number), event(number + 1)]), [number == 0, True]))
        writes.append((store.add_events([event(number)]), [False]))
        writes.append((store.add_events([]), []))
        if number % 5 == 0:
            writes.append((store.put_items([Item("pen", {"price": number})]), number // 5 + 1))
        if number == 20:
            writes.append((store.delete_user("bob"), 0))
    assert [write.result() for write, _ in writes] == [expected for _, expected in writes]
    assert ids(store.history("ann", 100)) == [f"e{number}" for number in range(31)]


def test_nothing_to_add_is_no_error(store):
    assert store.add_events([]).result() == []
    assert store.add_impressions([]).result() is None
    assert store.counts() == {"events": 0, "users": 0, "items": 0, "impressions": 0}


def test_a_history_is_ordered_by_time_and_then_by_arrival(store):
    for number, when in ((1, 50.0), (2, 10.0), (3, 50.0), (4, -5.5), (5, 50.0)):
        store.add_events([event(number, time=when)]).result()
    assert ids(store.history("ann", 10)) == ["e4", "e2", "e1", "e3", "e5"]
    assert ids(store.history("ann", 2)) == ["e3", "e5"]
    assert store.history("ann", 0) == []
    assert store.history("bob", 10) == []


def test_a_clock_that_is_set_back_loses_nothing_and_changes_no_order_of_arrival(store, reopen):
    store.add_events([event(1, time=1e9), event(2, time=1e9 + 1)]).result()
    store.add_events([event(3, time=1e9 - 3600)]).result()
    reopen().add_events([event(4, time=5.0)]).result()
    again = reopen()
    assert [(stored.sequence, stored.event.event_id) for stored in again.events_after(0, 10)] == [
        (1, "e1"),
        (2, "e2"),
        (3, "e3"),
        (4, "e4"),
    ]
    assert ids(again.history("ann", 10)) == ["e4", "e3", "e1", "e2"]


def test_numbers_of_deleted_events_are_not_given_again(store, reopen):
    store.add_events([event(1), event(2, user="bob")]).result()
    store.delete_user("bob").result()
    again = reopen()
    again.add_events([event(3)]).result()
    assert [stored.sequence for stored in again.events_after(0, 10)] == [1, 3]


def test_each_call_with_items_is_one_revision(store, reopen):
    assert store.revision() == 0
    pen = Item("pen", {"title": "A pen", "price": 1.5, "tags": ["blue", "ink"], "sold": 3, "new": True, "old": None})
    cup = Item("cup", {"title": "Cup \x00 \ud800"}, available=False)
    assert store.put_items([pen, cup]).result() == 1
    gone = dataclasses.replace(cup, deleted=True)
    assert store.put_items([gone]).result() == 2
    again = reopen()
    assert again.revision() == 2
    assert [(revised.revision, revised.item) for revised in again.items_after(0)] == [(1, pen), (2, gone)]
    assert [revised.item for revised in again.items_after(1)] == [gone]
    assert again.items_after(2) == []
    assert again.counts()["items"] == 2
    assert again.put_items([pen]).result() == 3


def test_the_last_of_two_items_with_one_id_counts(store):
    store.put_items([Item("pen", {"price": 1}), Item("pen", {"price": 2})]).result()
    assert [revised.item.attributes for revised in store.items_after(0)] == [{"price": 2}]


def test_answers_are_kept_as_they_were_given(store, reopen):
    sampled = dataclasses.replace(impression(2), propensities=(0.5, 1.0), codebook_version=None)
    store.add_impressions([impression(1), sampled, impression(3, user=None), impression(4, user="bob")]).result()
    store.add_impressions([impression(1)]).result()
    again = reopen()
    assert again.impressions_of("ann", 0.0) == [impression(1), sampled]
    assert again.impressions_of("ann", 1.5) == [sampled]
    assert again.impressions_of("ann", 2.0) == [sampled]
    assert again.counts()["impressions"] == 4


def test_the_latest_actions_come_first(store, reopen):
    entries = [Audit(float(-number), "key", "publish", {"version": f"v{number}", "share": 0.5}) for number in range(3)]
    for entry in entries:
        store.add_audit(entry).result()
    assert reopen().audit(2) == [entries[2], entries[1]]


def test_everything_of_a_user(store):
    assert store.user("ann") is None
    store.add_events([event(2), event(1), event(3, user="bob")]).result()
    store.add_impressions([impression(5), impression(6, user="bob")]).result()
    assert store.user("ann") == UserData("ann", (event(1), event(2)), (impression(5),))
    store.add_impressions([impression(7, user="eve")]).result()
    assert store.user("eve") == UserData("eve", (), (impression(7, user="eve"),))


def test_users_are_found_by_how_their_ids_begin(store):
    names = ["anna", "ann", "a%", "bob", "Ann", "änn", "an"]
    store.add_events([event(number, user=name) for number, name in enumerate(names)]).result()
    assert store.users("ann", 10) == ["ann", "anna"]
    assert store.users("a%", 10) == ["a%"]
    assert store.users("", 10) == ["Ann", "a%", "an", "ann", "anna", "bob", "änn"]
    assert store.users("a", 2) == ["a%", "an"]
    assert store.users("x", 10) == []


def test_a_deleted_user_is_gone_and_known_as_deleted(store, reopen):
    store.add_events([event(1), event(2), event(3, user="bob")]).result()
    store.add_impressions([impression(1)]).result()
    assert not store.is_deleted("ann")
    assert store.delete_user("ann").result() == 3
    again = reopen()
    assert again.is_deleted("ann")
    assert not again.is_deleted("bob")
    assert again.user("ann") is None
    assert again.users("", 10) == ["bob"]
    assert again.counts() == {"events": 1, "users": 1, "items": 0, "impressions": 0}
    assert again.delete_user("ann").result() == 0


def test_a_deleted_user_who_sends_an_event_starts_anew(store):
    store.add_events([event(1), event(2)]).result()
    store.delete_user("ann").result()
    assert store.add_events([event(2), event(3)]).result() == [True, True]
    assert not store.is_deleted("ann")
    assert ids(store.history("ann", 10)) == ["e2", "e3"]


def test_an_answer_to_a_user_who_was_deleted_meanwhile_is_kept_without_his_id(store):
    store.add_events([event(1)]).result()
    store.delete_user("ann").result()
    store.add_impressions([impression(1), impression(2, user="bob")]).result()
    assert store.user("ann") is None
    assert store.counts()["impressions"] == 2
    assert store.impressions_of("bob", 0.0) == [impression(2, user="bob")]


def test_a_history_is_imported_once(store, reopen):
    batches = [[event(1), event(2)], [], [event(3), event(1)]]
    store.add_events([event(2)]).result()
    assert store.import_events("bundle:1", iter(batches)) == 2
    again = reopen()
    assert again.import_events("bundle:1", iter([[event(9)]])) == 0
    assert again.import_events("bundle:2", iter([[event(9)]])) == 1
    assert sorted(ids(again.history("ann", 10))) == ["e1", "e2", "e3", "e9"]


def test_an_import_that_was_cut_off_goes_on(store, reopen, monkeypatch):
    monkeypatch.setattr("tesserec.serving.sql_store.IMPORTED_AT_ONCE", 3)

    def broken():
        yield [event(number) for number in range(5)]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.import_events("file", broken())
    again = reopen()
    assert again.counts()["events"] == 3
    again.delete_user("ann").result()
    rest = [event(number, user="bob" if number > 5 else "ann") for number in range(8)]
    assert again.import_events("file", iter([rest])) == 2
    assert again.import_events("file", iter([rest])) == 0
    assert ids(again.history("bob", 10)) == ["e6", "e7"]
    assert again.is_deleted("ann")


def test_one_write_that_cannot_be_kept_does_not_take_others_with_it(store):
    bad = event(2, item_id=None)
    worse = event(4, user="\ud800")
    writes = [store.add_events([event(1)]), store.add_events([event(5), bad]), store.add_events([event(3)])]
    writes += [store.add_events([worse]), store.put_items([Item("pen", {"price": math.inf})])]
    writes += [store.put_items([Item("cup", {})])]
    wait(writes)
    assert [type(write.exception()) for write in writes] == [
        *(type(None), StoreError, type(None)),
        *(StoreError, StoreError, type(None)),
    ]
    assert ids(store.history("ann", 10)) == ["e1", "e3"]
    assert store.revision() == 1


def test_text_that_is_none_cannot_be_asked_for(store):
    with pytest.raises(StoreError, match="surrogates"):
        store.history("\ud800", 5)


def test_writes_of_many_threads_are_all_kept_in_one_order(store):
    def write(thread):
        for number in range(20):
            store.add_events([event(f"{thread}.{number}", user=f"u{thread}"), event("same")]).result()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = store.events_after(0, 1_000)
    assert len(stored) == len({kept.event.event_id for kept in stored}) == 161
    assert [kept.sequence for kept in stored] == sorted({kept.sequence for kept in stored})
    for number in range(8):
        assert ids(store.history(f"u{number}", 100)) == [f"e{number}.{count}" for count in range(20)]


def test_the_check_passes_again_and_again(store):
    store.check()
    store.check()


def test_a_closed_store_refuses(reopen):
    closed = reopen()
    closed.close()
    with pytest.raises(StoreError, match="the store is closed: nothing was kept"):
        closed.add_events([event(1)]).result()


def test_namespaces_do_not_see_each_other(store, address, tmp_path, namespace):
    store.add_events([event(1)]).result()
    other = open_store(address, tmp_path, f"{namespace}2")
    try:
        assert other.history("ann", 10) == []
        assert other.add_events([event(1)]).result() == [True]
        other.delete_user("ann").result()
    finally:
        other.close()
    assert store.history("ann", 10) == [event(1)]
    assert not store.is_deleted("ann")


def test_a_backup_holds_everything_and_can_be_restored(store, address, tmp_path, namespace):
    store.add_events([event(1), event(2, user="bob"), event(3, value=0.5, session="s")]).result()
    store.put_items([Item("pen", {"title": "A pen"}), Item("cup", {}, available=False, deleted=True)]).result()
    store.add_impressions([impression(1), impression(2, user=None)]).result()
    store.add_audit(Audit(1.0, "key", "backup", {"by": "night"})).result()
    store.import_events("file", iter([[event(4, user="eve")]]))
    store.delete_user("eve").result()
    backup = tmp_path / "backups" / "monday.sqlite"
    store.backup(backup)
    store.add_events([event(5)]).result()
    for place, name in ((address, f"{namespace}2"), (None, "other")):
        restore_backup(backup, tmp_path, name, place)
        copy = open_store(place, tmp_path, name)
        try:
            assert copy.user("ann") == UserData("ann", (event(1), event(3, value=0.5, session="s")), (impression(1),))
            assert copy.counts() == {"events": 3, "users": 2, "items": 2, "impressions": 2}
            assert copy.items_after(0) == store.items_after(0)
            assert copy.audit(5) == store.audit(5)
            assert (copy.revision(), copy.is_deleted("eve")) == (1, True)
            assert copy.import_events("file", iter([[event(4, user="eve")]])) == 0
            copy.add_events([event(6)]).result()
            copy.add_impressions([impression(3)]).result()
            copy.add_audit(Audit(2.0, "key", "restore")).result()
            assert [stored.sequence for stored in copy.events_after(0, 10)] == [1, 2, 3, 5]
        finally:
            copy.close()
    assert [file.name for file in backup.parent.iterdir()] == [backup.name]


def test_a_backup_taken_while_writes_go_on_has_all_that_came_before_and_no_half_of_anything(store, tmp_path, address):
    store.import_events("file", iter([[event(f"old{number}") for number in range(5_000)]]))
    stop, acknowledged = threading.Event(), []

    def write():
        while not stop.is_set():
            number = len(acknowledged)
            pair = [event(f"{number}.{half}", user="pairs") for half in "ab"]
            store.add_events(pair).result()
            acknowledged.append(pair)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(acknowledged) < 5:
            time.sleep(0.01)
        before = len(acknowledged)
        store.backup(tmp_path / "copy.sqlite")
        after = len(acknowledged)
    finally:
        stop.set()
        writer.join()
    restore_backup(tmp_path / "copy.sqlite", tmp_path, "restored")
    copy = open_store(None, tmp_path, "restored")
    kept = copy.history("pairs", 100_000)
    copy.close()
    assert before * 2 <= len(kept) <= (after + 1) * 2
    assert kept == [event for pair in acknowledged for event in pair][: len(kept)]
    assert len(kept) % 2 == 0


def test_a_store_that_is_not_empty_is_not_restored_over(store, address, tmp_path, namespace):
    store.add_events([event(1)]).result()
    store.backup(tmp_path / "copy.sqlite")
    with pytest.raises(StoreError, match="already"):
        restore_backup(tmp_path / "copy.sqlite", tmp_path, namespace, address)
    assert store.history("ann", 5) == [event(1)]
