"""Admission: how many requests of each kind are worked on at once; the rest is told to come back.

Refusing costs next to nothing, so that a service that is asked three times what it can do still does what it can.
What waits before the event loop itself is counted by nobody, so how late the loop is decides too.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from time import monotonic
from typing import Annotated

from tesserec.config import Field, component

__all__ = ["Admission", "AdmissionConfig", "Kind", "kind_of"]

Limit = Annotated[int, Field(ge=1)]


class Kind(Enum):
    """What a request asks for."""

    HEALTH = "health"
    """Never refused."""
    RECOMMEND = "recommend"
    """Work for a model: recommendations, similar items, search."""
    READ = "read"
    WRITE = "write"
    IMPORT = "import"
    ADMIN = "admin"


@component
class AdmissionConfig:
    """How many requests are worked on at once."""

    recommend: Limit = 128
    """Each waits for the model: with more of them, all would be late."""
    read: Limit = 64
    write: Limit = 256
    """They wait for the disk together, so many at once are as quick as one."""
    imports: Limit = 2
    admin: Limit = 8
    max_lag_ms: Annotated[float, Field(gt=0)] = 50.0
    """How late the event loop may be, twice in a row, before lists and reads are refused until it has caught up."""
    retry_after_s: Limit = 1
    """What a request that is refused is told."""


class Admission:
    """Counts the requests that are worked on. Used by the event loop only."""

    def __init__(self, config: AdmissionConfig) -> None:
        self._lag = _Lag(config.max_lag_ms / 1e3)
        self.retry_after_s = config.retry_after_s
        self.in_flight = dict.fromkeys(Kind, 0)
        self._limits = {
            Kind.RECOMMEND: config.recommend,
            Kind.READ: config.read,
            Kind.WRITE: config.write,
            Kind.IMPORT: config.imports,
            Kind.ADMIN: config.admin,
        }

    def refusal(self, kind: Kind) -> str | None:
        """Why one more of this kind cannot be worked on now: ``in_flight`` or ``lag``; None where it can."""
        limit = self._limits.get(kind)
        if limit is not None and self.in_flight[kind] >= limit:
            return "in_flight"
        # Changes are few and dear: they are not refused for a loop that is late with lists.
        if kind in (Kind.RECOMMEND, Kind.READ) and self._lag.is_late():
            return "lag"
        return None

    def enter(self, kind: Kind) -> None:
        """One more is worked on; it has to ``leave``."""
        self.in_flight[kind] += 1

    def leave(self, kind: Kind) -> None:
        """A request is done."""
        self.in_flight[kind] -= 1


TICK_S = 0.01


class _Lag:
    """Whether the event loop cannot keep up: a timer that it should have called long ago, twice in a row.

    Whatever is ready at once is worked off before any timer, so a timer that is late by so much says that a request
    that begins now has waited about as long. Once may be a pause of something else; twice is a queue.
    """

    def __init__(self, max_s: float) -> None:
        self._max_s = max_s
        self._due: float | None = None  # of the timer that runs, which it does only while requests come
        self._was_late = False

    def is_late(self) -> bool:
        """As of now."""
        now = monotonic()  # the loop's own clock stands still while it works
        if self._due is None:
            self._due = now + TICK_S
            asyncio.get_running_loop().call_later(TICK_S, self._tick)
        return self._was_late and now - self._due > self._max_s

    def _tick(self) -> None:
        assert self._due is not None
        self._was_late = monotonic() - self._due > self._max_s
        self._due = None


def kind_of(method: str, path: str) -> Kind:
    """What a request asks for; what is not known to be harmless counts as a change."""
    parts = path.split("/", 3)
    area = parts[2] if len(parts) > 2 and parts[1] == "api" else ""
    if area == "admin":
        return Kind.ADMIN
    if area == "import":
        return Kind.IMPORT
    reads = method in ("GET", "HEAD", "OPTIONS")
    if area == "health" and reads:
        return Kind.HEALTH
    if area == "recommend" or (reads and (area == "search" or path.endswith("/similar"))):
        return Kind.RECOMMEND
    return Kind.READ if reads else Kind.WRITE
