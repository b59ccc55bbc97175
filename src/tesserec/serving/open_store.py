"""Which store a namespace has: SQLite in its folder, or the server that an address names."""

from __future__ import annotations

import re
import shutil
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit

from tesserec.errors import StoreError
from tesserec.files import completed
from tesserec.serving.records import Store
from tesserec.serving.sql_store import check_schema
from tesserec.serving.sqlite_store import SQLiteStore, make_folder, sync, told

__all__ = ["check_namespace", "open_store", "restore_backup", "state_file"]


def open_store(url: str | None, home: Path, namespace: str) -> Store:
    """The store of a namespace: ``postgresql://…``, or SQLite below ``home`` where ``url`` is None.

    Raises ``StoreError`` for another address, and where the store cannot be opened.
    """
    check_namespace(namespace)
    if url is None:
        return SQLiteStore(state_file(home, namespace))
    raise StoreError(f"no store has an address like {urlsplit(url).scheme}://: leave it out for SQLite")


def state_file(home: Path, namespace: str) -> Path:
    """Where the SQLite store of a namespace is."""
    return home / "namespaces" / namespace / "state.sqlite"


def check_namespace(namespace: str) -> None:
    """Raise ``StoreError`` for a name that is not 1 to 40 of a-z, 0-9, "_" and "-", a letter or digit first."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", namespace):
        raise StoreError(
            f"{namespace!r} is no name for a namespace: give 1 to 40 of a-z, 0-9, '_' and '-', a letter or digit first"
        )


def restore_backup(backup: Path, home: Path, namespace: str) -> None:
    """Make the SQLite store of a namespace from a backup, which is checked first. The service must not run.

    Raises ``StoreError`` where the namespace has a store already, and for a backup that is damaged or too new.
    """
    check_namespace(namespace)
    target = state_file(home, namespace)
    for file in (target, *(target.with_name(target.name + end) for end in ("-wal", "-shm"))):
        if file.exists():  # a log that is left behind would be played into the restored file
            raise StoreError(f"{file} is there already: move it away first, if the backup is to take its place")
    with told(backup):
        make_folder(target.parent)
        with completed(target) as part:
            shutil.copyfile(backup, part)
            _check_backup(part, backup)
            sync(part)
        sync(target.parent)


def _check_backup(copy: Path, backup: Path) -> None:
    connection = sqlite3.connect(copy)
    try:
        found = connection.execute("PRAGMA integrity_check").fetchone()[0]
        if found != "ok":
            raise StoreError(f"{backup} is damaged ({found}): restore an earlier one")
        check_schema(connection, str(backup))
    finally:
        connection.close()
