"""Which store a namespace has: SQLite in its folder, or the server that an address names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tesserec.errors import StoreError
from tesserec.serving.backup_file import checked_copy
from tesserec.serving.records import Store
from tesserec.serving.sqlite_store import SQLiteStore

if TYPE_CHECKING:
    from tesserec.serving.postgres_store import PostgresStore
    from tesserec.serving.redis_store import RedisStore

__all__ = ["check_namespace", "open_store", "restore_backup", "state_file"]


def open_store(url: str | None, home: Path, namespace: str) -> Store:
    """The store of a namespace: ``postgresql://…``, ``redis://…``, or SQLite below ``home`` where ``url`` is None.

    Raises ``StoreError`` for another address, and where the store cannot be opened.
    """
    check_namespace(namespace)
    if url is None:
        return SQLiteStore(state_file(home, namespace))
    return _server_store(url, namespace)


def state_file(home: Path, namespace: str) -> Path:
    """Where the SQLite store of a namespace is."""
    return home / "namespaces" / namespace / "state.sqlite"


def check_namespace(namespace: str) -> None:
    """Raise ``StoreError`` for a name that is not 1 to 40 of a-z, 0-9, "_" and "-", a letter or digit first."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", namespace):
        raise StoreError(
            f"{namespace!r} is no name for a namespace: give 1 to 40 of a-z, 0-9, '_' and '-', a letter or digit first"
        )


def restore_backup(backup: Path, home: Path, namespace: str, url: str | None = None) -> None:
    """Make the store of a namespace from a backup, which is checked first. The service must not run.

    The backup may come from another kind of store. Raises ``StoreError`` where the namespace has a store with something
    in it already, and for a backup that is damaged or too new.
    """
    check_namespace(namespace)
    if url is not None:
        store = _server_store(url, namespace)
        try:
            store.restore(backup)
        finally:
            store.close()
        return
    target = state_file(home, namespace)
    for file in (target, *(target.with_name(target.name + end) for end in ("-wal", "-shm"))):
        if file.exists():  # a log that is left behind would be played into the restored file
            raise StoreError(f"{file} is there already: move it away first, if the backup is to take its place")
    checked_copy(backup, target)


def _server_store(url: str, namespace: str) -> PostgresStore | RedisStore:
    scheme = urlsplit(url).scheme
    if scheme in ("postgresql", "postgres"):
        from tesserec.serving.postgres_store import PostgresStore  # an extra

        return PostgresStore(url, namespace)
    if scheme in ("redis", "rediss", "unix"):
        from tesserec.serving.redis_store import RedisStore  # an extra

        return RedisStore(url, namespace)
    raise StoreError(f"no store has an address like {scheme}://: give postgresql:// or redis://, or none for SQLite")
