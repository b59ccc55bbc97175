"""What is particular to PostgreSQL: a server that is killed, stopped, full or set up in a way that loses data."""

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import psycopg
import pytest
from tests.serving.disks import small_disk
from tests.serving.kept import event, fill, ids
from tests.serving.servers import PostgresServer

from tesserec.errors import StoreError
from tesserec.serving.postgres_store import PostgresStore


@pytest.fixture
def server(shared_postgres):
    """One that a test may do anything to: if it does not run at the end, it is started again."""
    yield shared_postgres
    shared_postgres.start_if_down()


def test_a_killed_server_loses_nothing_and_is_connected_to_again(server):
    store = PostgresStore(server.url, "killed")
    for number in range(10):
        store.add_events([event(number)]).result()
    assert len(store.history("ann", 100)) == 10
    server.signal(signal.SIGKILL)
    with pytest.raises(StoreError, match=r"schema tesserec_killed does not answer \(.*nothing was acknowledged"):
        store.add_events([event(10)]).result(60)
    with pytest.raises(StoreError, match="does not answer"):
        store.history("ann", 100)
    server.start()
    assert store.add_events([event(11)]).result(60) == [True]
    kept = ids(store.history("ann", 100))
    assert kept[:10] == [f"e{number}" for number in range(10)]
    assert kept[-1] == "e11"
    assert len(kept) == len(set(kept))
    store.close()


def test_a_stopped_server_is_given_up_in_time_and_works_again_when_it_goes_on(server):
    store = PostgresStore(server.url, "stopped", timeout_s=1)
    store.add_events([event(1)]).result()
    store.history("ann", 5)
    server.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        writes = [store.add_events([event(number)]) for number in (2, 3)]
        for write in writes:
            with pytest.raises(StoreError, match="nothing was acknowledged"):
                write.result(60)
        with pytest.raises(StoreError, match="does not answer"):
            store.history("ann", 5)
        assert time.monotonic() - began < 60  # it answers in about six seconds, and would else wait for ever
    finally:
        server.signal(signal.SIGCONT)
    # The first attempt may have been kept: sent again, it is there once.
    store.add_events([event(2), event(3), event(4)]).result(60)
    assert ids(store.history("ann", 10)) == ["e1", "e2", "e3", "e4"]
    store.close()


def test_a_lock_that_somebody_holds_is_not_waited_for_for_ever(server):
    store = PostgresStore(server.url, "locked", timeout_s=0.3)
    with psycopg.connect(server.url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (store._server._lock_number,))
        with pytest.raises(StoreError, match="canceling statement due to statement timeout"):
            store.add_events([event(1)]).result(60)
    assert store.add_events([event(1)]).result(60) == [True]
    store.close()


@pytest.fixture
def own_server():
    """One that need not survive its test."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


def test_a_full_disk_refuses_loses_nothing_and_recovers(own_server, tmp_path):
    with small_disk(tmp_path / "disk", "3m") as disk:
        place, ballast = disk / "place", disk / "ballast"
        place.mkdir()
        shutil.chown(place, "postgres")
        for folder in (disk, *disk.parents):
            if Path(tempfile.gettempdir()) in folder.parents:
                folder.chmod(0o755)
        with psycopg.connect(own_server.url, autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
        store = PostgresStore(f"{own_server.url}&options=-c%20default_tablespace%3Dsmall", "full", timeout_s=30)
        ballast.write_bytes(bytes(500_000))
        # Events that are unlike each other, or PostgreSQL would press them into nothing.
        kept, refusal = fill(store, lambda: os.urandom(1_500).hex())
        # Which of its files finds no space first is the server's matter.
        assert "make space on its disk, and the next write succeeds" in refusal
        assert len(kept) > 10
        assert ids(store.history("ann", 10**6)) == kept
        ballast.unlink()
        assert store.add_events([event("after")]).result() == [True]
        assert ids(stored.event for stored in store.events_after(0, 10**6)) == [*kept, "eafter"]
        store.close()


def test_commits_wait_for_the_disk_also_where_the_server_is_set_not_to(server):
    store = PostgresStore(f"{server.url}&options=-c%20synchronous_commit%3Doff", "careful")
    with store._server.transaction() as session:
        assert session.execute("SHOW synchronous_commit").fetchone() == ("on",)
    store.close()


def test_several_services_write_in_one_order(server):
    stores = [PostgresStore(server.url, "several") for _ in range(2)]
    writes = [stores[number % 2].add_events([event(number), event("same")]) for number in range(40)]
    assert sum(write.result()[1] for write in writes) == 1
    numbers = [stored.sequence for stored in stores[0].events_after(0, 100)]
    assert len(numbers) == 41
    assert numbers == sorted(numbers)
    for store in stores:
        store.close()


def test_tables_of_a_newer_version_are_refused(server):
    PostgresStore(server.url, "newer").close()
    with psycopg.connect(server.url) as connection:
        connection.execute("UPDATE tesserec_newer.meta SET value = '99' WHERE name = 'schema'")
    with pytest.raises(StoreError, match="schema tesserec_newer was written by a newer tesserec"):
        PostgresStore(server.url, "newer")


def test_a_server_that_does_not_sync_is_refused(server):
    server.stop()
    server.start("fsync=off")
    try:
        with pytest.raises(StoreError, match="fsync is off, so that nothing it acknowledges is safe: turn it on"):
            PostgresStore(server.url, "unsafe")
    finally:
        server.stop()
        server.start()


def test_an_address_where_nobody_answers(tmp_path):
    with pytest.raises(StoreError, match="does not answer"):
        PostgresStore(f"postgresql://shop@/postgres?host={tmp_path}", "shop")


def test_an_address_that_is_none():
    with pytest.raises(StoreError, match="invalid URI query parameter"):
        PostgresStore("postgresql://shop@/postgres?nonsense=1", "shop")
