"""The statements of a store in tables, over a session of SQLite or PostgreSQL.

Each is a part of a transaction that somebody else begins and ends. Parameters are written as ``?``.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

from tesserec.errors import StoreError
from tesserec.serving.records import Event, Impression, Item
from tesserec.serving.store_rows import (
    EVENT,
    IMPRESSION,
    ITEM,
    SCHEMA,
    TABLES,
    digest,
    event_row,
    impression_row,
    item_row,
)

__all__ = [
    "Cursor",
    "Session",
    "add_events",
    "add_impressions",
    "check_schema",
    "check_version",
    "delete_user",
    "deleted_digests",
    "import_events",
    "note_import",
    "prepare",
    "put_items",
    "raise_by_one",
]

ROWS_A_STATEMENT = 500


class Cursor(Protocol):
    """What a statement answered."""

    def fetchone(self) -> Any:
        """The next row, or None."""

    def fetchall(self) -> list[Any]:
        """All rows that are left."""


class Session(Protocol):
    """A connection, to one thread at a time."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Cursor:
        """Run a statement."""

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> object:
        """Run a statement for each row."""


def prepare(session: Session, words: Mapping[str, str], name: str) -> None:
    """Make the tables where they are missing; raises ``StoreError`` for tables of a newer version than these."""
    session.execute(TABLES[0].format(**words))
    check_schema(session, name)
    for table in TABLES[1:]:
        session.execute(table.format(**words))
    first = {"schema": str(SCHEMA), "salt": secrets.token_hex(16), "revision": "0", "check": "0"}
    session.executemany("INSERT INTO meta VALUES (?, ?) ON CONFLICT DO NOTHING", list(first.items()))


def check_schema(session: Session, name: str) -> None:
    """Raise ``StoreError`` for tables of a newer version than these."""
    found = session.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    if found:
        check_version(int(found[0]), name)


def check_version(found: int, name: str) -> None:
    """Raise ``StoreError`` for a version that is newer than ``SCHEMA``."""
    if found > SCHEMA:
        raise StoreError(
            f"{name} was written by a newer tesserec (its tables are of version {found}, this one knows {SCHEMA}): "
            "update tesserec"
        )


def add_events(session: Session, events: Sequence[Event]) -> list[bool]:
    """For each event whether its ``event_id`` is new; those that are not change nothing."""
    new: set[str] = set()
    for start in range(0, len(events), ROWS_A_STATEMENT):
        rows = [event_row(event) for event in events[start : start + ROWS_A_STATEMENT]]
        places = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?)"] * len(rows))
        inserted = session.execute(
            f"INSERT INTO events ({EVENT}) VALUES {places} ON CONFLICT DO NOTHING RETURNING event_id",
            list(chain.from_iterable(rows)),
        )
        new.update(event_id for (event_id,) in inserted.fetchall())
    users = sorted({event.user_id for event in events if event.event_id in new})
    session.executemany("INSERT INTO users VALUES (?) ON CONFLICT DO NOTHING", [(user_id,) for user_id in users])
    returned = deleted_digests(session, users)
    session.executemany("DELETE FROM deleted WHERE digest = ?", [(known,) for known in returned.values()])
    is_new = []
    for event in events:
        is_new.append(event.event_id in new)
        new.discard(event.event_id)  # the second of two with one id in the same list is not new
    return is_new


def put_items(session: Session, items: Sequence[Item]) -> int:
    """The revision that has these items."""
    revision = raise_by_one(session, "revision")
    session.executemany(
        f"""INSERT INTO items ({ITEM}) VALUES (?, ?, ?, ?, ?) ON CONFLICT (item_id) DO UPDATE SET
            revision = excluded.revision, attributes = excluded.attributes, available = excluded.available,
            deleted = excluded.deleted""",
        [item_row(item, revision) for item in items],
    )
    return revision


def add_impressions(session: Session, impressions: Sequence[Impression]) -> None:
    """Keep answers, each ``response_id`` once; those to a deleted user without his id."""
    deleted = deleted_digests(session, [shown.user_id for shown in impressions if shown.user_id is not None])
    rows = [impression_row(impression) for impression in impressions]
    session.executemany(
        f"INSERT INTO impressions ({IMPRESSION}) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [(response_id, time, None if user in deleted else user, content) for response_id, time, user, content in rows],
    )


def delete_user(session: Session, user_id: str) -> int:
    """How many events and impressions went; the user is known as deleted from now on."""
    gone = 0
    for table, number in (("events", "sequence"), ("impressions", "number")):
        gone += len(session.execute(f"DELETE FROM {table} WHERE user_id = ? RETURNING {number}", (user_id,)).fetchall())
    session.execute("DELETE FROM users WHERE user_id = ?", (user_id,))
    session.execute("INSERT INTO deleted VALUES (?) ON CONFLICT DO NOTHING", (digest(_salt(session), user_id),))
    return gone


def import_events(session: Session, source: str, events: Sequence[Event]) -> int:
    """How many events of a part of an import are new; those of deleted users stay out."""
    deleted = deleted_digests(session, sorted({event.user_id for event in events}))
    note_import(session, source, complete=False)
    return sum(add_events(session, [event for event in events if event.user_id not in deleted]))


def note_import(session: Session, source: str, *, complete: bool) -> None:
    """Note that an import has begun, or is complete."""
    session.execute(
        "INSERT INTO imports VALUES (?, ?) ON CONFLICT (source) DO UPDATE SET complete = excluded.complete",
        (source, int(complete)),
    )


def deleted_digests(session: Session, users: Sequence[str]) -> dict[str, str]:
    """Those of these users who are deleted, with their digests."""
    if not users or session.execute("SELECT 1 FROM deleted LIMIT 1").fetchone() is None:
        return {}
    salt, found = _salt(session), {}
    for user_id in users:
        known = digest(salt, user_id)
        if session.execute("SELECT 1 FROM deleted WHERE digest = ?", (known,)).fetchone():
            found[user_id] = known
    return found


def raise_by_one(session: Session, name: str) -> int:
    """Count on in ``meta``; the new number."""
    number = int(session.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0]) + 1
    session.execute("UPDATE meta SET value = ? WHERE name = ?", (str(number), name))
    return number


def _salt(session: Session) -> str:
    return str(session.execute("SELECT value FROM meta WHERE name = 'salt'").fetchone()[0])
