"""The histories of users who were here lately, in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from tesserec.serving.records import Event, Store

__all__ = ["Histories"]


class Histories:
    """What ``store.history`` answers, kept for the last ``size`` users who were asked for; for any thread.

    It has to be told of every event that the store took, and of every user that it deleted. An answer that begins after
    it was told is never older than that.
    """

    def __init__(self, store: Store, size: int) -> None:
        self._store, self._size = store, size
        self._kept: OrderedDict[str, tuple[int, list[Event]]] = OrderedDict()  # limit it was read with, events
        self._changes: dict[str, int] = {}
        self._reading: dict[str, int] = {}
        self._lock = threading.Lock()

    def kept(self, user_id: str, limit: int) -> list[Event] | None:
        """What ``of`` answers where that is in memory; None where the store has to be read. Never blocks for long."""
        with self._lock:
            return self._found(user_id, limit)

    def of(self, user_id: str, limit: int) -> list[Event]:
        """The last ``limit`` events of a user by (time, arrival), oldest first."""
        with self._lock:
            found = self._found(user_id, limit)
            if found is not None:
                return found
            self._reading[user_id] = self._reading.get(user_id, 0) + 1
            change = self._changes.get(user_id, 0)
        try:
            events = self._store.history(user_id, limit)
        except BaseException:
            with self._lock:
                self._end_reading(user_id)
            raise
        with self._lock:
            # What was read while a change came in may be from before it: good for this answer, not for later ones.
            if self._changes.get(user_id, 0) == change:
                self._keep(user_id, limit, events)
            self._end_reading(user_id)
        return list(events)

    def added(self, events: Iterable[Event]) -> None:
        """The store took these events: the next answer for their users has them."""
        with self._lock:
            for user_id in {event.user_id for event in events}:
                self._drop(user_id)

    def forget(self, user_id: str) -> None:
        """The store deleted this user."""
        with self._lock:
            self._drop(user_id)

    def __len__(self) -> int:
        return len(self._kept)

    def _found(self, user_id: str, limit: int) -> list[Event] | None:
        kept = self._kept.get(user_id)
        if kept is None or (limit > kept[0] and len(kept[1]) >= kept[0]):
            return None
        self._kept.move_to_end(user_id)
        return kept[1][max(0, len(kept[1]) - limit) :]

    def _keep(self, user_id: str, limit: int, events: list[Event]) -> None:
        self._kept[user_id] = (limit, events)
        self._kept.move_to_end(user_id)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def _drop(self, user_id: str) -> None:
        # Read again rather than added to: only the store knows the order of two events of the same second.
        self._kept.pop(user_id, None)
        if user_id in self._reading:
            self._changes[user_id] = self._changes.get(user_id, 0) + 1

    def _end_reading(self, user_id: str) -> None:
        self._reading[user_id] -= 1
        if not self._reading[user_id]:
            del self._reading[user_id]
            self._changes.pop(user_id, None)
