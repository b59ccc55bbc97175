"""Group commit: one thread that puts every write that waits into one durable transaction.

A disk makes some hundreds of writes durable a second, however small they are. Writes that arrive while one is under way
wait for it together and share the next.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from tesserec.errors import StoreError

__all__ = ["GroupCommit", "Unavailable"]

LOGGER = logging.getLogger(__name__)
TIDY_S = 0.5
"""How long ``tidy`` has before it is asked again, where it could not finish."""

W = TypeVar("W")


class Unavailable(StoreError):
    """What keeps the state cannot be reached, so that no write can succeed now."""


class GroupCommit(Generic[W]):
    """Takes writes from any thread, and hands lists of them to ``commit`` in one thread, in the order of arrival.

    ``commit`` makes a list of writes durable as a whole and returns a result for each, or raises and leaves nothing of
    them. Where it raises, each write of the list is tried once more alone, so that one that cannot be kept does not
    take the others with it; ``Unavailable`` then fails everything that waits.

    ``tidy`` is asked after each transaction, before its writes are answered, and returns whether nothing is left to do;
    where something is, it is asked again soon, whether or not a write comes. No write fails with it.
    """

    def __init__(
        self,
        name: str,
        commit: Callable[[Sequence[W]], Sequence[Any]],
        tidy: Callable[[], bool] = lambda: True,
        capacity: int = 20_000,
        most: int = 500,
    ) -> None:
        """``capacity`` writes can wait, ``most`` of them share a transaction; ``name`` is that of the thread."""
        self._commit, self._tidy, self._capacity, self._most = commit, tidy, capacity, most
        self._is_tidy = True
        self._waiting: deque[tuple[W, Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._committed: Callable[[int, float], None] = lambda num_writes, seconds: None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, write: W) -> Future[Any]:
        """Put a write into the next transaction; the future is done when that is durable.

        It fails with ``StoreError`` where the write could not be kept, where too many wait, and after ``close``.
        A future that is cancelled before its transaction begins is not written.
        """
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                refusal = "the store is closed: nothing was kept"
            elif len(self._waiting) >= self._capacity:
                refusal = f"{self._capacity:,} writes wait for the disk already: nothing was kept, send it again later"
            else:
                self._waiting.append((write, future))
                self._changed.notify()
                return future
        future.set_exception(StoreError(refusal))
        return future

    def watch(self, committed: Callable[[int, float], None]) -> None:
        """Tell ``committed`` the number of writes and the seconds of each transaction that is durable, from now on."""
        self._committed = committed

    @property
    def depth(self) -> int:
        """How many writes wait."""
        return len(self._waiting)

    def close(self) -> None:
        """Write what waits, then end; safe to call again."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while group := self._next():
            started = time.perf_counter()
            try:
                results = self._commit([write for write, _ in group])
            except Exception:
                self._one_by_one(group)
            else:
                self._committed(len(group), time.perf_counter() - started)
                self._tidy_up()
                for (_, future), result in zip(group, results, strict=True):
                    future.set_result(result)
            del group  # else a write that is done lives on until the next one comes

    def _next(self) -> list[tuple[W, Future[Any]]]:
        """The writes of the next transaction; none at the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed, None if self._is_tidy else TIDY_S)
                taken = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
                ended = self._closed and not taken
            group = [pair for pair in taken if pair[1].set_running_or_notify_cancel()]
            if group or ended:
                return group
            if not self._is_tidy:
                self._tidy_up()

    def _tidy_up(self) -> None:
        try:
            self._is_tidy = self._tidy()
        except StoreError as error:
            LOGGER.warning("tried again soon: %s", error)
            self._is_tidy = False

    def _one_by_one(self, group: list[tuple[W, Future[Any]]]) -> None:
        for position, (write, future) in enumerate(group):
            try:
                [result] = self._commit([write])
            except Unavailable as error:
                self._fail(group[position:], error)
                return
            except StoreError as error:
                future.set_exception(error)
            except Exception as error:  # whatever it is, its caller learns of it and the thread goes on
                future.set_exception(_as_store_error(error))
            else:
                self._tidy_up()
                future.set_result(result)

    def _fail(self, group: list[tuple[W, Future[Any]]], error: Unavailable) -> None:
        """Those that came meanwhile fail too: each would wait as long again for the same answer."""
        with self._changed:
            late = list(self._waiting)
            self._waiting.clear()
        for _, future in group:
            future.set_exception(error)
        for _, future in late:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)


def _as_store_error(error: Exception) -> StoreError:
    refusal = StoreError(f"this cannot be kept, and nothing of it was: {type(error).__name__}: {error}")
    refusal.__cause__ = error
    return refusal
