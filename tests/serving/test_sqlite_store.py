"""What is particular to SQLite: the disk under it."""

import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import contextmanager

import pytest
from tests.serving.disks import breaking_disk, small_disk
from tests.serving.kept import event, fill, ids
from tests.serving.servers import program
from tests.serving.serving_process import until

from tesserec.errors import StoreError
from tesserec.serving import sqlite_store
from tesserec.serving.sql_store import SQLStore
from tesserec.serving.sqlite_store import SQLiteStore, _File

LONG = "x" * 2_000


def test_a_full_disk_refuses_loses_nothing_and_recovers(tmp_path):
    with small_disk(tmp_path / "disk", "2m") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(500_000))
        store = SQLiteStore(disk / "state.sqlite")
        kept, refusal = fill(store, lambda: LONG)
        assert "make space on the disk, and the next write succeeds without a restart" in refusal
        assert len(kept) > 10
        assert ids(store.history("ann", 10**6)) == kept
        with pytest.raises(StoreError, match="make space"):
            store.check()
        ballast.unlink()
        assert store.add_events([event("after")]).result() == [True]
        store.check()
        store.close()
        again = SQLiteStore(disk / "state.sqlite")
        assert ids(stored.event for stored in again.events_after(0, 10**6)) == [*kept, "eafter"]
        again.close()


LIMITED = """
import os, resource, sys
from pathlib import Path
from tesserec.serving.sqlite_store import SQLiteStore
from tests.serving.kept import event, fill
store = SQLiteStore(Path(sys.argv[1]))
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
kept, refusal = fill(store, lambda: 'x' * 2_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert store.add_events([event("after")]).result() == [True]
print(len(kept), refusal)
os._exit(0)
"""


def test_files_that_may_not_grow_refuse_and_nothing_acknowledged_is_lost(tmp_path):
    command = [sys.executable, "-c", LIMITED, tmp_path / "state.sqlite"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    num_kept, refusal = output.split(" ", 1)
    assert int(num_kept) > 10
    assert "disk I/O error: is the disk full or failing?" in refusal
    store = SQLiteStore(tmp_path / "state.sqlite")
    expected = [*(f"e{number}" for number in range(int(num_kept))), "eafter"]
    assert ids(stored.event for stored in store.events_after(0, 10**6)) == expected
    store.close()


def test_a_disk_that_becomes_read_only_refuses_and_goes_on_answering(tmp_path):
    with breaking_disk(tmp_path / "disk") as (disk, break_it):
        store = SQLiteStore(disk / "state.sqlite")
        assert store.add_events([event(1)]).result() == [True]
        break_it()
        with pytest.raises(StoreError, match=r"state\.sqlite: .*(disk I/O error|readonly)"):
            store.add_events([event(2)]).result()
        assert ids(store.history("ann", 10)) == ["e1"]
        with pytest.raises(StoreError, match=r"state\.sqlite: "):
            store.check()
        store.close()


def test_a_home_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    with small_disk(tmp_path / "disk", "4m") as disk:
        SQLiteStore(disk / "state.sqlite").close()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(StoreError, match=r"state\.sqlite: unable to open database file: is the folder there"):
            SQLiteStore(disk / "state.sqlite")
        with pytest.raises(StoreError, match="Read-only file system"):
            SQLiteStore(disk / "new" / "state.sqlite")


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "state.sqlite").write_text("not a database " * 100)
    with pytest.raises(StoreError, match="file is not a database: the file is damaged or something else"):
        SQLiteStore(tmp_path / "state.sqlite")


def test_tables_of_a_newer_version_are_refused(tmp_path):
    SQLiteStore(tmp_path / "state.sqlite").close()
    connection = sqlite3.connect(tmp_path / "state.sqlite")
    connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match=r"by a newer tesserec \(its tables are of version 99, this one knows 1\)"):
        SQLiteStore(tmp_path / "state.sqlite")


def test_a_file_that_can_have_no_log_is_refused(monkeypatch):
    monkeypatch.setattr(sqlite_store, "make_folder", lambda folder: None)
    with pytest.raises(StoreError, match=r"this file system has no write-ahead log \(memory\): use a local disk"):
        SQLiteStore(sqlite_store.Path(":memory:"))


def test_another_process_that_writes_is_waited_for_and_then_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_store, "BUSY_S", 0.05)
    store = SQLiteStore(tmp_path / "state.sqlite")
    other = sqlite3.connect(tmp_path / "state.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another process writes to it: one service process a home"):
        store.add_events([event(1)]).result()
    other.execute("ROLLBACK")
    assert store.add_events([event(1)]).result() == [True]
    other.close()
    store.close()


def test_a_disk_that_forgets_is_not_trusted(tmp_path):
    SQLiteStore(tmp_path / "state.sqlite").close()
    shutil.copy(tmp_path / "state.sqlite", tmp_path / "old.sqlite")
    old = _File(tmp_path / "old.sqlite")

    class Forgetful(_File):
        @contextmanager
        def reading(self):
            with old.reading() as session:
                yield session

    store = SQLStore(Forgetful(tmp_path / "state.sqlite"))
    with pytest.raises(StoreError, match="1 was written and 0 read: do not trust this disk"):
        store.check()
    store.close()
    old.close()


@pytest.mark.parametrize("reader", [False, True], ids=["alone", "while somebody reads"])
def test_nothing_of_a_deleted_user_is_left_in_the_files(tmp_path, reader):
    store = SQLiteStore(tmp_path / "state.sqlite")
    secret = "somebody@example.org"
    store.add_events([event(number, user=secret) for number in range(300)]).result()
    store.add_events([event(f"other{number}") for number in range(300)]).result()
    assert secret.encode() in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    other = sqlite3.connect(tmp_path / "state.sqlite", isolation_level=None)
    if reader:
        other.execute("BEGIN")
        other.execute("SELECT COUNT(*) FROM events").fetchone()
    assert store.delete_user(secret).result() == 300
    if reader:
        other.execute("ROLLBACK")
    # While somebody reads the log cannot be emptied; it is soon afterwards, though nothing more is written.
    assert until(lambda: secret.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir()))
    other.close()
    store.close()


def test_a_backup_that_cannot_be_written_leaves_nothing(tmp_path):
    store = SQLiteStore(tmp_path / "state.sqlite")
    with small_disk(tmp_path / "disk", "64k") as disk:
        store.add_events([event(number, session=LONG) for number in range(200)]).result()
        with pytest.raises(StoreError, match="make space on the disk"):
            store.backup(disk / "copy.sqlite")
        assert not list(disk.iterdir())
    store.close()


ACKNOWLEDGES = """
import os, sys
from pathlib import Path
from tesserec.serving.sqlite_store import SQLiteStore
from tests.serving.kept import event
store = SQLiteStore(Path(sys.argv[1]))
for number in range(20):
    store.add_events([event(number)]).result()
    os.write(1, b"acknowledged %d\\n" % number)
store.close()
"""


def test_the_log_is_on_disk_before_a_write_is_acknowledged(tmp_path):
    """By the system calls of a process that writes: a log that is written, synced, and only then the reply."""
    trace = tmp_path / "trace"
    calls = "trace=pwrite64,fdatasync,fsync,write"
    command = [program("strace"), "-f", "-y", "-o", trace, "-e", calls, sys.executable, "-c", ACKNOWLEDGES]
    subprocess.run([*command, tmp_path / "state.sqlite"], check=True, stdout=subprocess.DEVNULL)
    order = order_of_calls(trace.read_text())
    while order[-1] != "acknowledged":  # what closing the store writes
        order.pop()
    assert order[-60:] == ["written", "synced", "acknowledged"] * 20


def order_of_calls(trace):
    """ "written", "synced" (when it returns) and "acknowledged", once each in a row, as they follow each other."""
    order, syncing = [], set()
    for line in trace.splitlines():
        thread, call = line.split(maxsplit=1)
        what = None
        if re.match(r"pwrite64\(\d+<[^>]*state\.sqlite-wal>", call):
            what = "written"
        elif re.match(r"(fdatasync|fsync)\(\d+<[^>]*state\.sqlite-wal>", call):
            if "unfinished" in call:
                syncing.add(thread)
            else:
                assert call.endswith("= 0"), call
                what = "synced"
        elif re.match(r"<\.\.\. (fdatasync|fsync) resumed>", call) and thread in syncing:
            assert call.endswith("= 0"), call
            syncing.discard(thread)
            what = "synced"
        elif '"acknowledged' in call:
            what = "acknowledged"
        if what and order[-1:] != [what]:
            order.append(what)
    return order
