"""A store in tables: what SQLite and PostgreSQL do alike.

A database gives sessions: one to write, in a transaction that is durable when it ends, and any number to read.
Statements are written with ``?`` for their parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, islice
from typing import Any, Protocol, TypeVar

from tesserec.errors import StoreError
from tesserec.serving import sql_statements as sql
from tesserec.serving.group_commit import GroupCommit
from tesserec.serving.records import Audit, Event, Impression, Item, Revised, StoredEvent, UserData
from tesserec.serving.sql_statements import Session
from tesserec.serving.store_rows import (
    AUDIT,
    EVENT,
    IMPRESSION,
    ITEM,
    audit_of,
    audit_row,
    event_of,
    impression_of,
    item_of,
)

__all__ = ["IMPORTED_AT_ONCE", "Database", "SQLStore", "in_chunks"]

T = TypeVar("T")
Row = tuple[Any, ...]

IMPORTED_AT_ONCE = 10_000
"""Events of an import that share a transaction; other writes wait for one of these at most."""


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
        self._group: GroupCommit[_Write] = GroupCommit(f"commit {database.name}", self._commit, self._scrub)

    def add_events(self, events: Sequence[Event]) -> Future[list[bool]]:
        """For each event whether its ``event_id`` is new."""
        return self._group.submit(_AddEvents(events))

    def put_items(self, items: Sequence[Item]) -> Future[int]:
        """The revision that has these items."""
        return self._group.submit(lambda session: sql.put_items(session, items))

    def add_impressions(self, impressions: Sequence[Impression]) -> Future[None]:
        """Keep answers, each ``response_id`` once; those to a deleted user without his id."""
        return self._group.submit(lambda session: sql.add_impressions(session, impressions))

    def add_audit(self, entry: Audit) -> Future[None]:
        """Keep an administrator's action."""

        def write(session: Session) -> None:
            session.execute(f"INSERT INTO audit ({AUDIT}) VALUES (?, ?, ?, ?)", audit_row(entry))

        return self._group.submit(write)

    def delete_user(self, user_id: str) -> Future[int]:
        """How many events and impressions went, from the files too."""

        def write(session: Session) -> int:
            self._to_scrub = True
            return sql.delete_user(session, user_id)

        return self._group.submit(write)

    def import_events(self, source: str, events: Iterator[Sequence[Event]]) -> int:
        """How many were new. Events of deleted users stay out: a history that is read again brings nobody back."""
        known = self._rows("SELECT complete FROM imports WHERE source = ?", (source,))
        if known and known[0][0]:
            return 0
        num_new = 0
        for chunk in in_chunks(chain.from_iterable(events), IMPORTED_AT_ONCE):
            num_new += self._group.submit(partial(sql.import_events, source=source, events=chunk)).result()
        self._group.submit(lambda session: sql.note_import(session, source, complete=True)).result()
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
            return bool(sql.deleted_digests(session, [user_id]))

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
        number = self._group.submit(lambda session: sql.raise_by_one(session, "check")).result()
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
        return results

    def _scrub(self) -> bool:
        if self._to_scrub:
            self._to_scrub = not self._database.scrub()
        return not self._to_scrub

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        with self._database.reading() as session:
            return session.execute(sql, parameters).fetchall()


@dataclass(frozen=True, slots=True)
class _AddEvents:
    """Events to keep; those of writes that follow each other share their statements."""

    events: Sequence[Event]

    def __call__(self, session: Session) -> list[bool]:
        return sql.add_events(session, self.events)


_Write = Callable[[Session], Any]


def in_chunks(things: Iterable[T], size: int) -> Iterator[list[T]]:
    """The same things in lists of ``size``; the last may be shorter."""
    rest = iter(things)
    while chunk := list(islice(rest, size)):
        yield chunk


def _add_together(session: Session, writes: Sequence[Any]) -> list[list[bool]]:
    is_new = iter(sql.add_events(session, [event for write in writes for event in write.events]))
    return [list(islice(is_new, len(write.events))) for write in writes]
