"""How long batches took lately, and how long one of another size would."""

from __future__ import annotations

import threading
import time
from collections import deque

__all__ = ["BatchTimes"]

WINDOW_S = 5.0
"""What is older says nothing any more: a stage that was slow is tried again."""
NUM_KEPT = 64
FRESH_S = 0.1
"""What was computed is used for so long, until another batch is measured."""
QUANTILE = 0.75


class BatchTimes:
    """A moving quantile of the seconds of batches, by size; for any thread."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, int, float]] = deque(maxlen=NUM_KEPT)  # when, size, seconds
        self._lock = threading.Lock()
        self._expected: dict[int, tuple[float, float]] = {}  # of a size: until when, seconds

    def add(self, size: int, seconds: float) -> None:
        """A batch of ``size`` took so long."""
        with self._lock:
            self._kept.append((time.monotonic(), size, seconds))
            self._expected.clear()

    def expected_s(self, size: int) -> float:
        """What three of four batches of ``size`` stay below; 0 where nothing was measured lately.

        A larger batch takes longer, at most in proportion, so each one measured bounds those of other sizes: the
        tightest bound counts.
        """
        now = time.monotonic()
        since = now - WINDOW_S
        with self._lock:
            until, known = self._expected.get(size, (0.0, 0.0))
            if now < until:
                return known
            by_class: dict[int, list[tuple[int, float]]] = {}
            for at, measured, seconds in self._kept:
                if at >= since:
                    by_class.setdefault(measured.bit_length(), []).append((measured, seconds))
        bounds = []
        for measured_all in by_class.values():
            bound = sorted(seconds * max(1.0, size / measured) for measured, seconds in measured_all)
            bounds.append(bound[min(len(bound) - 1, int(QUANTILE * len(bound)))])
        expected = min(bounds, default=0.0)
        with self._lock:
            self._expected[size] = now + FRESH_S, expected
        return expected
