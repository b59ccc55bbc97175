"""What the service keeps, and the interface of the stores that keep it.

A store holds the state of one namespace (one shop). Its writes are durable when they return: they are on disk, and
survive the death of the process and of the machine. All methods may be called from any thread, and block.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

__all__ = [
    "Audit",
    "Event",
    "Impression",
    "Item",
    "Revised",
    "Store",
    "StoredEvent",
    "UserData",
    "Value",
    "new_id",
]

_RANDOM = random.Random(secrets.randbits(256))


def new_id(bits: int) -> str:
    """A random name in hex digits: unique, no secret. The system is not asked: that would give up the thread's turn."""
    return f"{_RANDOM.getrandbits(bits):0{bits // 4}x}"


Value = str | int | float | bool | None | list[str]
"""An attribute of an item."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a user did with an item."""

    event_id: str
    """The caller's own id: an event that is sent twice is kept once."""
    user_id: str
    item_id: str
    kind: str
    """``"purchase"``, ``"view"``, ``"click"``, ``"return"``, ``"rating"`` …; the bundle says which are positive."""
    time: float
    """When it happened, seconds since 1970 UTC, by the caller's clock."""
    value: float | None = None
    """Quantity, rating or weight."""
    session: str | None = None
    """The basket or visit it belongs to."""
    response_id: str | None = None
    """The recommendation that it followed."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event with its place in the order in which the store took events."""

    sequence: int
    """From 1, ascending, the order of arrival; clocks play no part in it."""
    event: Event


@dataclass(frozen=True, slots=True)
class Item:
    """What the store says of an item: it takes the place of what a bundle's catalog says."""

    item_id: str
    attributes: Mapping[str, Value]
    """All attributes but the id: ``title``, ``text``, ``price`` and whatever the shop has."""
    available: bool = True
    """Whether it may be shown now."""
    deleted: bool = False
    """Deleted items are never shown, searched or described."""


@dataclass(frozen=True, slots=True)
class Revised:
    """An item with the table revision at which it became what it is."""

    revision: int
    item: Item


@dataclass(frozen=True, slots=True)
class Impression:
    """A list that was answered."""

    response_id: str
    time: float
    user_id: str | None
    scenario: str
    items: tuple[str, ...]
    scores: tuple[float, ...]
    propensities: tuple[float, ...] | None
    """Exact probability of each item to be in the slate, where it was sampled; else None."""
    model_version: str
    codebook_version: str | None
    table_revision: int
    rung: str
    arm: str


@dataclass(frozen=True, slots=True)
class Audit:
    """An action of an administrator."""

    time: float
    key_id: str
    action: str
    detail: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UserData:
    """Everything that is kept of a user."""

    user_id: str
    events: tuple[Event, ...]
    impressions: tuple[Impression, ...]


@runtime_checkable
class Store(Protocol):
    """The state of one namespace.

    Methods that return a ``Future`` put their write into the next group commit: it is done when the write is durable,
    and fails with ``StoreError`` when it is not. Everything else blocks. Reads see every write that is done.
    """

    def add_events(self, events: Sequence[Event]) -> Future[list[bool]]:
        """Keep events; for each, whether its ``event_id`` is new (else nothing was changed)."""

    def put_items(self, items: Sequence[Item]) -> Future[int]:
        """Keep items, each in the place of what was known of it; the table revision that has them all.

        Each call gets one revision, one more than the last.
        """

    def add_impressions(self, impressions: Sequence[Impression]) -> Future[None]:
        """Keep lists that were answered."""

    def add_audit(self, entry: Audit) -> Future[None]:
        """Keep an administrator's action."""

    def delete_user(self, user_id: str) -> Future[int]:
        """Remove every event and impression of a user; how many rows went. Its id is remembered as a digest only."""

    def import_events(self, source: str, events: Iterator[Sequence[Event]]) -> int:
        """Keep a history in bulk under the name ``source``, once: a second import of that name changes nothing.

        Returns the number of new events. An import that was cut off goes on when it is called again.
        """

    def history(self, user_id: str, limit: int) -> list[Event]:
        """The last ``limit`` events of a user by (time, sequence), oldest first."""

    def events_after(self, sequence: int, limit: int) -> list[StoredEvent]:
        """Events that arrived after ``sequence``, in order of arrival, ``limit`` at most."""

    def items_after(self, revision: int) -> list[Revised]:
        """Items whose latest change came after ``revision``, by revision; deleted ones included."""

    def revision(self) -> int:
        """The table revision: 0 until an item was put."""

    def user(self, user_id: str) -> UserData | None:
        """Everything of a user; None where there is nothing."""

    def users(self, prefix: str, limit: int) -> list[str]:
        """User ids that begin with ``prefix``, ascending."""

    def impressions_of(self, user_id: str, since: float) -> list[Impression]:
        """Lists a user was answered with since then, oldest first."""

    def is_deleted(self, user_id: str) -> bool:
        """Whether this user asked to be deleted (and sent no event since)."""

    def audit(self, limit: int) -> list[Audit]:
        """The last entries, latest first."""

    def counts(self) -> dict[str, int]:
        """``events``, ``users``, ``items``, ``impressions``."""

    def check(self) -> None:
        """Write and read something durable; raises ``StoreError`` where that fails."""

    def watch_commits(self, committed: Callable[[int, float], None]) -> None:
        """Tell ``committed`` the number of writes and the seconds of each durable transaction, from now on."""

    def backup(self, destination: Path) -> None:
        """A consistent copy of everything, taken while writes go on."""

    def close(self) -> None:
        """Finish what was accepted, then let go of files and connections."""
