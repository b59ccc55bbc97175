"""A store in tables: what SQLite and PostgreSQL do alike.

A database gives sessions: one to write, in a transaction that is durable when it ends, and any number to read.
Statements are written with ``?`` for their parameters.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, islice
from typing import Any, Protocol, TypeVar

from tesserec.errors import StoreError
from tesserec.serving.group_commit import GroupCommit
from tesserec.serving.records import Audit, Event, Impression, Item, Revised, StoredEvent, UserData
from tesserec.serving.store_rows import (
    AUDIT,
    EVENT,
    IMPRESSION,
    ITEM,
    SCHEMA,
    TABLES,
    audit_of,
    audit_row,
    digest,
    event_of,
    event_row,
    impression_of,
    impression_row,
    item_of,
    item_row,
)

__all__ = [
    "IMPORTED_AT_ONCE",
    "Cursor",
    "Database",
    "SQLStore",
    "Session",
    "check_schema",
    "check_version",
    "in_chunks",
    "prepare",
]

T = TypeVar("T")
Row = tuple[Any, ...]

IMPORTED_AT_ONCE = 10_000
"""Events of an import that share a transaction; other writes wait for one of these at most."""
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


class Database(Protocol):
    """Where the tables are. Everything that fails raises ``StoreError``."""

    name: str

    def transaction(self) -> AbstractContextManager[Session]:
        """The only writer; durable at its end, or rolled back where something is raised. From one thread at a time."""

    def reading(self) -> AbstractContextManager[Session]:
        """A session to read with, that sees every transaction that has ended."""

    def scrub(self) -> bool:
        """Take what was deleted out of the files as well; False where somebody reads it now, and it has to wait."""

    def close(self) -> None:
        """Let go of all connections."""


class SQLStore:
    """The store over a ``Database``; see ``Store`` for what its methods promise."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._to_scrub = False
        self._group: GroupCommit[_Write] = GroupCommit(f"commit {database.name}", self._commit)

    def add_events(self, events: Sequence[Event]) -> Future[list[bool]]:
        """For each event whether its ``event_id`` is new."""
        return self._group.submit(_AddEvents(events))

    def put_items(self, items: Sequence[Item]) -> Future[int]:
        """The revision that has these items."""
        return self._group.submit(lambda session: _put_items(session, items))

    def add_impressions(self, impressions: Sequence[Impression]) -> Future[None]:
        """Keep answers, each ``response_id`` once; those to a deleted user without his id."""
        return self._group.submit(lambda session: _add_impressions(session, impressions))

    def add_audit(self, entry: Audit) -> Future[None]:
        """Keep an administrator's action."""

        def write(session: Session) -> None:
            session.execute(f"INSERT INTO audit ({AUDIT}) VALUES (?, ?, ?, ?)", audit_row(entry))

        return self._group.submit(write)

    def delete_user(self, user_id: str) -> Future[int]:
        """How many events and impressions went, from the files too."""

        def write(session: Session) -> int:
            self._to_scrub = True
            return _delete_user(session, user_id)

        return self._group.submit(write)

    def import_events(self, source: str, events: Iterator[Sequence[Event]]) -> int:
        """How many were new. Events of deleted users stay out: a history that is read again brings nobody back."""
        known = self._rows("SELECT complete FROM imports WHERE source = ?", (source,))
        if known and known[0][0]:
            return 0
        num_new = 0
        for chunk in in_chunks(chain.from_iterable(events), IMPORTED_AT_ONCE):
            num_new += self._group.submit(partial(_import, source=source, events=chunk)).result()
        self._group.submit(lambda session: _note_import(session, source, complete=True)).result()
        return num_new

    def history(self, user_id: str, limit: int) -> list[Event]:
        """The last events of a user by (time, sequence), oldest first."""
        rows = self._rows(
            f"SELECT {EVENT} FROM events WHERE user_id = ? ORDER BY time DESC, sequence DESC LIMIT ?", (user_id, limit)
        )
        return [Event(*row) for row in reversed(rows)]

    def events_after(self, sequence: int, limit: int) -> list[StoredEvent]:
        """Events in order of arrival."""
        rows = self._rows(
            f"SELECT sequence, {EVENT} FROM events WHERE sequence > ? ORDER BY sequence LIMIT ?", (sequence, limit)
        )
        return [StoredEvent(row[0], event_of(row[1:])) for row in rows]

    def items_after(self, revision: int) -> list[Revised]:
        """Items changed since, by (revision, id)."""
        rows = self._rows(f"SELECT {ITEM} FROM items WHERE revision > ? ORDER BY revision, item_id", (revision,))
        return [item_of(row) for row in rows]

    def revision(self) -> int:
        """The table revision."""
        return int(self._rows("SELECT value FROM meta WHERE name = 'revision'")[0][0])

    def user(self, user_id: str) -> UserData | None:
        """Everything of a user."""
        events = self._rows(f"SELECT {EVENT} FROM events WHERE user_id = ? ORDER BY time, sequence", (user_id,))
        impressions = self.impressions_of(user_id, float("-inf"))
        if not events and not impressions:
            return None
        return UserData(user_id, tuple(map(event_of, events)), tuple(impressions))

    def users(self, prefix: str, limit: int) -> list[str]:
        """Ids that begin with ``prefix``; those of users with events."""
        rows = self._rows("SELECT user_id FROM users WHERE user_id >= ? ORDER BY user_id LIMIT ?", (prefix, limit))
        return [user_id for (user_id,) in rows if user_id.startswith(prefix)]

    def impressions_of(self, user_id: str, since: float) -> list[Impression]:
        """Answers to a user since then, oldest first."""
        rows = self._rows(
            f"SELECT {IMPRESSION} FROM impressions WHERE user_id = ? AND time >= ? ORDER BY time, number",
            (user_id, since),
        )
        return list(map(impression_of, rows))

    def is_deleted(self, user_id: str) -> bool:
        """Whether the user is deleted and sent nothing since."""
        with self._database.reading() as session:
            return bool(_deleted(session, [user_id]))

    def audit(self, limit: int) -> list[Audit]:
        """The last entries, latest first."""
        return list(map(audit_of, self._rows(f"SELECT {AUDIT} FROM audit ORDER BY number DESC LIMIT ?", (limit,))))

    def counts(self) -> dict[str, int]:
        """Rows a table."""
        tables = ("events", "users", "items", "impressions")
        [row] = self._rows("SELECT " + ", ".join(f"(SELECT COUNT(*) FROM {table})" for table in tables))
        return dict(zip(tables, row, strict=True))

    def check(self) -> None:
        """A number in the files grows by one, and is read again over another connection."""
        number = self._group.submit(lambda session: _raise_by_one(session, "check")).result()
        [(found,)] = self._rows("SELECT value FROM meta WHERE name = 'check'")
        if int(found) < number:
            raise StoreError(f"{self._database.name}: {number} was written and {found} read: do not trust this disk")

    def watch_commits(self, committed: Callable[[int, float], None]) -> None:
        """Tell of each durable transaction."""
        self._group.watch(committed)

    def close(self) -> None:
        """Write what was accepted, then let go."""
        self._group.close()
        self._database.close()

    def _commit(self, writes: Sequence[_Write]) -> list[Any]:
        results: list[Any] = []
        with self._database.transaction() as session:
            for is_events, run in groupby(writes, key=lambda write: isinstance(write, _AddEvents)):
                some = list(run)
                results += _add_together(session, some) if is_events else [write(session) for write in some]
        if self._to_scrub:
            self._to_scrub = not self._database.scrub()
        return results

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        with self._database.reading() as session:
            return session.execute(sql, parameters).fetchall()


@dataclass(frozen=True, slots=True)
class _AddEvents:
    """Events to keep; those of writes that follow each other share their statements."""

    events: Sequence[Event]

    def __call__(self, session: Session) -> list[bool]:
        return _add_events(session, self.events)


_Write = Callable[[Session], Any]


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


def in_chunks(things: Iterable[T], size: int) -> Iterator[list[T]]:
    """The same things in lists of ``size``; the last may be shorter."""
    rest = iter(things)
    while chunk := list(islice(rest, size)):
        yield chunk


def _add_events(session: Session, events: Sequence[Event]) -> list[bool]:
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
    returned = _deleted(session, users)
    session.executemany("DELETE FROM deleted WHERE digest = ?", [(known,) for known in returned.values()])
    is_new = []
    for event in events:
        is_new.append(event.event_id in new)
        new.discard(event.event_id)  # the second of two with one id in the same list is not new
    return is_new


def _add_together(session: Session, writes: Sequence[Any]) -> list[list[bool]]:
    is_new = iter(_add_events(session, [event for write in writes for event in write.events]))
    return [list(islice(is_new, len(write.events))) for write in writes]


def _put_items(session: Session, items: Sequence[Item]) -> int:
    revision = _raise_by_one(session, "revision")
    session.executemany(
        f"""INSERT INTO items ({ITEM}) VALUES (?, ?, ?, ?, ?) ON CONFLICT (item_id) DO UPDATE SET
            revision = excluded.revision, attributes = excluded.attributes, available = excluded.available,
            deleted = excluded.deleted""",
        [item_row(item, revision) for item in items],
    )
    return revision


def _add_impressions(session: Session, impressions: Sequence[Impression]) -> None:
    deleted = _deleted(session, [shown.user_id for shown in impressions if shown.user_id is not None])
    rows = [impression_row(impression) for impression in impressions]
    session.executemany(
        f"INSERT INTO impressions ({IMPRESSION}) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [(response_id, time, None if user in deleted else user, content) for response_id, time, user, content in rows],
    )


def _delete_user(session: Session, user_id: str) -> int:
    gone = 0
    for table, number in (("events", "sequence"), ("impressions", "number")):
        gone += len(session.execute(f"DELETE FROM {table} WHERE user_id = ? RETURNING {number}", (user_id,)).fetchall())
    session.execute("DELETE FROM users WHERE user_id = ?", (user_id,))
    session.execute("INSERT INTO deleted VALUES (?) ON CONFLICT DO NOTHING", (digest(_salt(session), user_id),))
    return gone


def _import(session: Session, source: str, events: Sequence[Event]) -> int:
    deleted = _deleted(session, sorted({event.user_id for event in events}))
    _note_import(session, source, complete=False)
    return sum(_add_events(session, [event for event in events if event.user_id not in deleted]))


def _note_import(session: Session, source: str, *, complete: bool) -> None:
    session.execute(
        "INSERT INTO imports VALUES (?, ?) ON CONFLICT (source) DO UPDATE SET complete = excluded.complete",
        (source, int(complete)),
    )


def _deleted(session: Session, users: Sequence[str]) -> dict[str, str]:
    """Those of these users who are deleted, with their digests."""
    if not users or session.execute("SELECT 1 FROM deleted LIMIT 1").fetchone() is None:
        return {}
    salt, found = _salt(session), {}
    for user_id in users:
        known = digest(salt, user_id)
        if session.execute("SELECT 1 FROM deleted WHERE digest = ?", (known,)).fetchone():
            found[user_id] = known
    return found


def _salt(session: Session) -> str:
    return str(session.execute("SELECT value FROM meta WHERE name = 'salt'").fetchone()[0])


def _raise_by_one(session: Session, name: str) -> int:
    number = int(session.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0]) + 1
    session.execute("UPDATE meta SET value = ? WHERE name = ?", (str(number), name))
    return number
