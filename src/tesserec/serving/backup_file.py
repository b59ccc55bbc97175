"""A backup: one SQLite file with the tables of a store, whatever kind of store it was taken from."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tesserec.errors import StoreError
from tesserec.serving.durable import durable_file
from tesserec.serving.sql_statements import check_schema, prepare
from tesserec.serving.sqlite_store import told
from tesserec.serving.store_rows import AUDIT, EVENT, IMPRESSION, ITEM, SQLITE_WORDS

__all__ = ["COLUMNS", "checked_copy", "insertion", "last_sequence", "opened_backup", "write_backup"]

COLUMNS = {
    "meta": "name, value",
    "events": f"sequence, {EVENT}",
    "users": "user_id",
    "items": ITEM,
    "impressions": f"number, {IMPRESSION}",
    "audit": f"number, {AUDIT}",
    "deleted": "digest",
    "imports": "source, complete",
}
"""The columns of each table."""


def write_backup(destination: Path, tables: Iterable[tuple[str, Iterable[Sequence[Any]]]], last: int) -> None:
    """Write rows of tables, and ``last``, the last sequence that was given, as a file that is there when complete."""
    with told(destination), durable_file(destination) as part:
        connection = sqlite3.connect(part, isolation_level=None)
        try:
            connection.execute("BEGIN")
            prepare(connection, SQLITE_WORDS, str(destination))
            connection.execute("DELETE FROM meta")
            for table, rows in tables:
                connection.executemany(insertion(table), rows)
            connection.execute("DELETE FROM sqlite_sequence WHERE name = 'events'")
            connection.execute("INSERT INTO sqlite_sequence VALUES ('events', ?)", (last,))
            connection.execute("COMMIT")
        finally:
            connection.close()


def insertion(table: str) -> str:
    """The statement that inserts a row with all columns."""
    columns = COLUMNS[table]
    return f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' for _ in columns.split(','))})"


def checked_copy(backup: Path, target: Path) -> None:
    """Copy a backup to ``target`` where it is sound; raises ``StoreError`` for one that is damaged or too new."""
    with told(backup), durable_file(target) as part:
        shutil.copyfile(backup, part)
        with opened_backup(part, str(backup)):
            pass


@contextmanager
def opened_backup(file: Path, name: str) -> Iterator[sqlite3.Connection]:
    """A backup to read from, called ``name``; raises ``StoreError`` for one that is damaged, too new or not there."""
    with told(Path(name)):
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
        try:
            found = connection.execute("PRAGMA integrity_check").fetchone()[0]
            if found != "ok":
                raise StoreError(f"{name} is damaged ({found}): restore an earlier one")
            check_schema(connection, name)
            yield connection
        finally:
            connection.close()


def last_sequence(backup: sqlite3.Connection) -> int:
    """The last sequence that was given to an event, also if that is deleted."""
    found = backup.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
    return int(found[0]) if found else 0
