"""``ImpressionLog``: the lists that were answered, on their way to the store.

An answer does not wait for its list to be kept. Lists wait ``KEEP_S`` for each other and go into one transaction, as
each transaction takes the interpreter from requests under way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Future

from tesserec.serving.observer import Observer
from tesserec.serving.records import Impression, Store

__all__ = ["KEEP_S", "ImpressionLog"]

LOGGER = logging.getLogger(__name__)

KEEP_S = 0.05
"""How long a list waits for others."""


class ImpressionLog:
    """The lists of one namespace. All but ``keep`` is used from one event loop."""

    def __init__(self, store: Store, observer: Observer) -> None:
        self._store, self._observer = store, observer
        self._waiting: list[Impression] = []
        self._under_way: dict[str, Future[None]] = {}
        """User → the last transaction with a list of theirs."""

    def add(self, shown: Impression) -> None:
        """Keep a list soon."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(KEEP_S, self.flush)
        self._waiting.append(shown)

    def flush(self) -> None:
        """Send what waits to the store."""
        shown, self._waiting = self._waiting, []
        if shown:
            self.keep(shown)

    def keep(self, shown: Sequence[Impression]) -> Future[None]:
        """Keep lists; done when they are on disk. What went wrong is logged and observed too."""
        future = self._store.add_impressions(shown)
        users = {one.user_id for one in shown if one.user_id is not None}
        self._under_way.update(dict.fromkeys(users, future))

        def kept(done: Future[None]) -> None:
            for user_id in users:
                if self._under_way.get(user_id) is done:
                    self._under_way.pop(user_id, None)
            error = None if done.cancelled() else done.exception()
            if error is not None:
                LOGGER.error("%d lists could not be logged: %s", len(shown), error)
            self._observer.store_up(error is None)
            if error is None:
                for one in shown:
                    self._observer.impressions(len(one.items))

        future.add_done_callback(kept)
        return future

    async def settled(self, user_id: str) -> None:
        """Wait until the lists that a user was answered with are in the store, or could not be kept."""
        if any(one.user_id == user_id for one in self._waiting):
            self.flush()
        pending = self._under_way.get(user_id)
        if pending is not None:
            await asyncio.wait({asyncio.wrap_future(pending)})
