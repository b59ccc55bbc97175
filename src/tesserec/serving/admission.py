"""Admission: how many requests of each kind are worked on at once; the rest is told to come back.

Refusing costs next to nothing, so that a service that is asked three times what it can do still does what it can.
"""

from __future__ import annotations

from enum import Enum
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
    retry_after_s: Limit = 1
    """What a request that is refused is told."""


class Admission:
    """Counts the requests that are worked on. Used by the event loop only."""

    def __init__(self, config: AdmissionConfig) -> None:
        self.retry_after_s = config.retry_after_s
        self.in_flight = dict.fromkeys(Kind, 0)
        self._limits = {
            Kind.RECOMMEND: config.recommend,
            Kind.READ: config.read,
            Kind.WRITE: config.write,
            Kind.IMPORT: config.imports,
            Kind.ADMIN: config.admin,
        }

    def enter(self, kind: Kind) -> bool:
        """Whether one more of this kind may be worked on; each that may has to ``leave``."""
        limit = self._limits.get(kind)
        if limit is not None and self.in_flight[kind] >= limit:
            return False
        self.in_flight[kind] += 1
        return True

    def leave(self, kind: Kind) -> None:
        """A request is done."""
        self.in_flight[kind] -= 1


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
