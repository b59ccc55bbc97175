"""The store in one SQLite file: the default, without any server.

A write-ahead log that is synced at every commit (``synchronous=FULL``), one connection that writes, in the thread of
the group commit, and a pool of those that read, which never wait for it. Deleted rows are overwritten with zeros.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tesserec.errors import StoreError
from tesserec.serving.durable import durable_file, make_folder
from tesserec.serving.sql_statements import Session, prepare
from tesserec.serving.sql_store import SQLStore
from tesserec.serving.store_rows import SQLITE_WORDS

__all__ = ["SQLiteStore", "told"]

BUSY_S = 5.0
"""How long a write waits for another process that writes to the file."""
LOG_BYTES = 64 << 20
"""A write-ahead log that grew beyond this while somebody read is cut back."""

_ADVICE = {
    "full": "make space on the disk, and the next write succeeds without a restart",
    "readonly": "the file or its disk cannot be written to",
    "unable to open": "is the folder there, and may this user write to it?",
    "disk I/O error": "is the disk full or failing?",
    "locked": "another process writes to it: one service process a home",
    "malformed": "the file is damaged: restore a backup",
    "not a database": "the file is damaged or something else: restore a backup",
}


class SQLiteStore(SQLStore):
    """The state of one namespace in the file ``path``, which is made with its folder where it is missing.

    Raises ``StoreError`` where the file cannot be opened or was written by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(_File(path))

    def backup(self, destination: Path) -> None:
        """A compact copy as of now, at ``destination`` when it is complete and on disk; writes go on meanwhile."""
        with told(destination), durable_file(destination) as part:
            connection = _connect(self._path)
            try:
                connection.execute("VACUUM INTO ?", (str(part),))
            finally:
                connection.close()


class _File:
    """The connections to a file."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._idle: deque[sqlite3.Connection] = deque()
        with told(path):
            make_folder(path.parent)
            self._writer = _connect(path)
            try:
                mode = self._writer.execute("PRAGMA journal_mode=WAL").fetchone()[0]
                if mode != "wal":
                    raise StoreError(f"{path}: this file system has no write-ahead log ({mode}): use a local disk")
                self._writer.execute("PRAGMA synchronous=FULL")
                self._writer.execute("PRAGMA secure_delete=ON")
                self._writer.execute(f"PRAGMA journal_size_limit={LOG_BYTES}")
                with self.transaction() as session:
                    prepare(session, SQLITE_WORDS, str(path))
            except BaseException:
                self._writer.close()
                raise

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Holds the file's write lock from its start."""
        with told(self._path):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            finally:
                # SQLite has rolled back by itself where the disk refused.
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One that is idle, or a new one: as many as ever read at the same time."""
        with told(self._path):
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = _connect(self._path)
                connection.execute("PRAGMA query_only=ON")
            try:
                yield connection
            finally:
                self._idle.append(connection)

    def scrub(self) -> bool:
        """The log goes into the file, where deleted rows are zeros, and is emptied."""
        with told(self._path):
            self._writer.execute("PRAGMA busy_timeout=0")  # readers are not waited for: writers wait behind this
            try:
                busy, _, _ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self._writer.execute(f"PRAGMA busy_timeout={int(BUSY_S * 1000)}")
        return not busy

    def close(self) -> None:
        """The last one out puts the log into the file."""
        while self._idle:
            self._idle.pop().close()
        self._writer.close()


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Failures of SQLite and of the disk, and text that is none, as ``StoreError`` with what to do."""
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeError) as error:
        advice = next((advice for words, advice in _ADVICE.items() if words in str(error)), "nothing was kept")
        raise StoreError(f"{path}: {error}: {advice}") from error


def _connect(path: Path) -> sqlite3.Connection:
    # Transactions are begun and ended here, by name; a connection goes from thread to thread, but never to two at once.
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
