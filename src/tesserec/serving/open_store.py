"""Which store a namespace has: SQLite in its folder, or the server that an address names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tesserec.errors import StoreError
from tesserec.serving.backup_file import checked_copy
from tesserec.serving.durable import make_folder, write_text
from tesserec.serving.records import Store
from tesserec.serving.sqlite_store import SQLiteStore

if TYPE_CHECKING:
    from tesserec.serving.postgres_store import PostgresStore
    from tesserec.serving.redis_store import RedisStore

__all__ = ["check_namespace", "open_store", "restore_backup", "state_file"]

_KINDS = {
    "postgresql": "PostgreSQL",
    "postgres": "PostgreSQL",
    "redis": "Redis",
    "rediss": "Redis",
    "unix": "Redis",
}
"""What the schemes of addresses mean."""


def open_store(url: str | None, home: Path, namespace: str) -> Store:
    """The store of a namespace: ``postgresql://…``, ``redis://…``, or SQLite below ``home`` where ``url`` is None.

    Which kind it is stays in the home folder, so that nobody who forgets the address begins a second, empty store
    beside it. Raises ``StoreError`` for another kind or address, and where the store cannot be opened.
    """
    check_namespace(namespace)
    kind = _kind(url, home, namespace)
    store = SQLiteStore(state_file(home, namespace)) if url is None else _server_store(url, namespace)
    _keep_kind(kind, home, namespace)
    return store


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
    kind = _kind(url, home, namespace)
    if url is not None:
        store = _server_store(url, namespace)
        try:
            store.restore(backup)
        finally:
            store.close()
        _keep_kind(kind, home, namespace)
        return
    target = state_file(home, namespace)
    for file in (target, *(target.with_name(target.name + end) for end in ("-wal", "-shm"))):
        if file.exists():  # a log that is left behind would be played into the restored file
            raise StoreError(f"{file} is there already: move it away first, if the backup is to take its place")
    checked_copy(backup, target)
    _keep_kind(kind, home, namespace)


def _kind_file(home: Path, namespace: str) -> Path:
    """Says in a word where the namespace keeps its events; the address, which may hold a password, is not there."""
    return home / "namespaces" / namespace / "store"


def _kind(url: str | None, home: Path, namespace: str) -> str:
    """The kind of store that ``url`` means; raises ``StoreError`` where the namespace has one of another kind."""
    kind = "SQLite" if url is None else _KINDS.get(urlsplit(url).scheme)
    if kind is None:
        scheme = urlsplit(str(url)).scheme
        raise StoreError(
            f"no store has an address like {scheme}://: give postgresql:// or redis://, or none for SQLite"
        )
    file = _kind_file(home, namespace)
    before = file.read_text(encoding="utf-8").strip() if file.is_file() else kind
    if before != kind:
        give = "leave the address of a store out" if before == "SQLite" else f"give the address of that {before} store"
        raise StoreError(
            f"the events of {namespace!r} are kept in {before}, not in {kind}: {give}; to move, restore a backup into "
            f"the other store after {file} is removed"
        )
    return kind


def _keep_kind(kind: str, home: Path, namespace: str) -> None:
    file = _kind_file(home, namespace)
    if not file.is_file():
        make_folder(file.parent)
        write_text(file, f"{kind}\n")


def _server_store(url: str, namespace: str) -> PostgresStore | RedisStore:
    if _KINDS[urlsplit(url).scheme] == "PostgreSQL":
        from tesserec.serving.postgres_store import PostgresStore  # an extra

        return PostgresStore(url, namespace)
    from tesserec.serving.redis_store import RedisStore  # an extra

    return RedisStore(url, namespace)
