"""The histories that were asked about lately: what a new model is warmed up with before it answers anybody."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from tesserec.serving.live_catalog import LiveCatalog
from tesserec.serving.loaded_model import LoadedModel
from tesserec.serving.pasts import Question
from tesserec.serving.records import Event

__all__ = ["RecentRequests"]


@dataclass(frozen=True, slots=True)
class _Recent:
    user_id: str | None
    events: Sequence[Event]
    history: Sequence[str]
    k: int


class RecentRequests:
    """The last ``size`` requests that were answered; for any thread."""

    def __init__(self, size: int = 256) -> None:
        self._kept: deque[_Recent] = deque(maxlen=size)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, user_id: str | None, events: Sequence[Event], history: Sequence[str], k: int) -> None:
        """A request was answered."""
        with self._lock:
            self._kept.append(_Recent(user_id, events, history, k))

    def forget(self, user_id: str) -> None:
        """This user was deleted."""
        with self._lock:
            self._kept = deque((one for one in self._kept if one.user_id != user_id), self._kept.maxlen)

    def replay(self, live: LiveCatalog[LoadedModel]) -> None:
        """Ask a model all of them, on each of its rungs, one at a time."""
        model, snapshot = live.snapshot
        with self._lock:
            kept = list(self._kept)
        for one in kept:
            past = model.read(one.events, one.history, one.user_id)
            for rung in model.rungs:
                model.answer_all(rung, [Question(past, one.k, snapshot.mask(None))])
