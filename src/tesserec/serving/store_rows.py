"""How records lie in a store: rows of plain values, and the digest that stands for a deleted user.

The tables are the same in SQLite and PostgreSQL but for the words in braces, and a backup of any store is a SQLite file
with these tables.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from tesserec.serving.records import Audit, Event, Impression, Item, Revised

__all__ = [
    "AUDIT",
    "EVENT",
    "IMPRESSION",
    "ITEM",
    "SCHEMA",
    "SQLITE_WORDS",
    "TABLES",
    "audit_of",
    "audit_row",
    "digest",
    "event_of",
    "event_row",
    "impression_of",
    "impression_row",
    "item_of",
    "item_row",
]

SCHEMA = 1
"""The version of the tables below."""

SQLITE_WORDS = {"number": "INTEGER PRIMARY KEY AUTOINCREMENT", "text": "TEXT"}

TABLES = (
    "CREATE TABLE IF NOT EXISTS meta (name {text} PRIMARY KEY, value {text} NOT NULL)",
    # Numbers are never given again, not even that of the last event when it is deleted.
    """CREATE TABLE IF NOT EXISTS events (
        sequence {number}, event_id {text} NOT NULL UNIQUE, user_id {text} NOT NULL, item_id {text} NOT NULL,
        kind {text} NOT NULL, time DOUBLE PRECISION NOT NULL, value DOUBLE PRECISION, session {text},
        response_id {text})""",
    "CREATE INDEX IF NOT EXISTS events_of_user ON events (user_id, time, sequence)",
    "CREATE TABLE IF NOT EXISTS users (user_id {text} PRIMARY KEY)",
    """CREATE TABLE IF NOT EXISTS items (
        item_id {text} PRIMARY KEY, attributes {text} NOT NULL, available INTEGER NOT NULL, deleted INTEGER NOT NULL,
        revision BIGINT NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS items_by_revision ON items (revision)",
    """CREATE TABLE IF NOT EXISTS impressions (
        number {number}, response_id {text} NOT NULL UNIQUE, time DOUBLE PRECISION NOT NULL, user_id {text},
        content {text} NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS impressions_of_user ON impressions (user_id, time, number)",
    """CREATE TABLE IF NOT EXISTS audit (
        number {number}, time DOUBLE PRECISION NOT NULL, key_id {text} NOT NULL, action {text} NOT NULL,
        detail {text} NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS deleted (digest {text} PRIMARY KEY)",
    "CREATE TABLE IF NOT EXISTS imports (source {text} PRIMARY KEY, complete INTEGER NOT NULL)",
)

EVENT = "event_id, user_id, item_id, kind, time, value, session, response_id"
ITEM = "revision, item_id, attributes, available, deleted"
IMPRESSION = "response_id, time, user_id, content"
AUDIT = "time, key_id, action, detail"

_CONTENT = (
    *("scenario", "items", "scores", "propensities"),
    *("model_version", "codebook_version", "table_revision", "rung", "arm"),
)


def event_row(event: Event) -> tuple[Any, ...]:
    """The columns ``EVENT``."""
    return (
        *(event.event_id, event.user_id, event.item_id, event.kind),
        *(event.time, event.value, event.session, event.response_id),
    )


def event_of(row: tuple[Any, ...]) -> Event:
    """The event of the columns ``EVENT``."""
    return Event(*row)


def item_row(item: Item, revision: int) -> tuple[Any, ...]:
    """The columns ``ITEM``; raises ``ValueError`` for numbers that JSON does not have."""
    attributes = json.dumps(dict(item.attributes), allow_nan=False)
    return revision, item.item_id, attributes, int(item.available), int(item.deleted)


def item_of(row: tuple[Any, ...]) -> Revised:
    """The item of the columns ``ITEM``."""
    revision, item_id, attributes, available, deleted = row
    return Revised(int(revision), Item(item_id, json.loads(attributes), bool(available), bool(deleted)))


def impression_row(impression: Impression) -> tuple[Any, ...]:
    """The columns ``IMPRESSION``; what is never searched for is JSON."""
    content = json.dumps([getattr(impression, name) for name in _CONTENT])
    return impression.response_id, impression.time, impression.user_id, content


def impression_of(row: tuple[Any, ...]) -> Impression:
    """The impression of the columns ``IMPRESSION``."""
    response_id, time, user_id, content = row
    said: Mapping[str, Any] = dict(zip(_CONTENT, json.loads(content), strict=True))
    lists = {name: None if said[name] is None else tuple(said[name]) for name in ("items", "scores", "propensities")}
    return Impression(response_id, time, user_id, **{**said, **lists})


def audit_row(entry: Audit) -> tuple[Any, ...]:
    """The columns ``AUDIT``."""
    return entry.time, entry.key_id, entry.action, json.dumps(dict(entry.detail))


def audit_of(row: tuple[Any, ...]) -> Audit:
    """The entry of the columns ``AUDIT``."""
    time, key_id, action, detail = row
    return Audit(time, key_id, action, json.loads(detail))


def digest(salt: str, user_id: str) -> str:
    """What is remembered of a deleted user; without the store's own ``salt`` no list of ids can be compared with it."""
    return hmac.new(salt.encode(), user_id.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
