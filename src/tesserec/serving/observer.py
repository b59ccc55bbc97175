"""Who is told what the engine and the ladder of a namespace did; ``NamespaceTelemetry`` counts it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tesserec.serving.schemas import RecommendResponse

__all__ = ["Observer"]


class Observer:
    """Ignores everything; any thread may call."""

    def answered(self, response: RecommendResponse, scenario: str, deadline_ms: float | None = None) -> None:
        """A list was answered; ``total`` of its ``stages_ms`` is the time of the whole."""

    def rung_failed(self, rung: str, reason: str) -> None:
        """A request left ``rung`` for a lower one."""

    def breaker(self, rung: str, state: str) -> None:
        """A breaker changed to ``closed``, ``open`` or ``half_open``."""

    def batch(self, rung: str, num_requests: int) -> None:
        """So many requests were answered together."""

    def events(self, accepted: int, duplicates: int) -> None:
        """Events are on disk."""

    def impressions(self, num_items: int) -> None:
        """A list is on disk."""

    def store_up(self, up: bool) -> None:
        """Whether the store last did what it was asked."""

    def table(self, revision: int, num_items: int, num_cold: int) -> None:
        """The items changed: the revision that answers show, and how many of them the model was not fitted on."""
