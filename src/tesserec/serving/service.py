"""``Service``: the home folder of a process, its namespaces, its keys and what it measures, without HTTP.

with Service(home, config) as service:      # holds the home folder's lock
    service.start()                         # opens stores, loads models
    service.shop("default").engine …
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tesserec.errors import ServiceError, TesserecError
from tesserec.serving.batcher import Fault
from tesserec.serving.config import ServiceConfig
from tesserec.serving.durable import try_lock
from tesserec.serving.keys import KeyRing
from tesserec.serving.opening import open_shop
from tesserec.serving.problems import Refused
from tesserec.serving.rungs import Rung
from tesserec.serving.shop import Shop
from tesserec.serving.telemetry import Telemetry
from tesserec.serving.tracing import Tracing

__all__ = ["Service"]

LOG = logging.getLogger(__name__)
_CHECKED_S = 1.0
"""How long a check of the stores counts."""


class Service:
    """One process' service over a home folder; use it in a ``with`` block."""

    def __init__(
        self, home: Path, config: ServiceConfig | None = None, *, faults: Mapping[Rung, Fault] | None = None
    ) -> None:
        """``faults`` go wrong on purpose, for tests of the fall-backs."""
        self.home = home
        self.config = config or ServiceConfig()
        self.keys = KeyRing(home / "keys.json")
        self.telemetry = Telemetry(self.config.telemetry)
        self.tracing = Tracing(self.config.tracing)
        self._faults = faults or {}
        self.draining = False
        """Whether no new traffic should be sent here."""
        self.started = False
        self._shops: dict[str, Shop] = {}
        self._open = ExitStack()
        self._check: asyncio.Task[str | None] | None = None
        self._checked = 0.0

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._open.enter_context(try_lock(self.home / "service.lock")):
            self._open.close()
            raise ServiceError(f"another service has {self.home}: one process a home; stop it, or give another --home")
        return self

    def __exit__(self, *_: object) -> None:
        self.started = False
        self._open.close()
        self.tracing.close()

    def start(self) -> None:
        """Open every namespace of the configuration. Blocks until models are loaded; raises a ``TesserecError``."""
        for name in self.config.namespaces:
            shop = open_shop(
                self.home, name, self.config, self.telemetry.namespace(name), faults=self._faults, tracing=self.tracing
            )
            self._open.callback(shop.close)
            self._shops[name] = shop
        self.started = True

    def shop(self, name: str) -> Shop:
        """An open namespace; raises ``Refused``: 503 before the service is started, 404 where there is none."""
        if not self.started:
            raise Refused(503, "the service is starting: try again in a moment", {"Retry-After": "1"})
        if name not in self._shops:
            raise Refused(404, f"there is no namespace {name!r}")
        return self._shops[name]

    def versions(self) -> dict[str, str]:
        """Namespace → version that answers."""
        return {name: shop.deployment.current().version for name, shop in self._shops.items()}

    async def trouble(self) -> str | None:
        """Why the service should not be sent traffic; None where it may. Asked at once, it looks once."""
        if not self.started:
            return "starting: models are being loaded"
        if self.draining:
            return "draining: no new traffic, please"
        now = time.monotonic()
        if self._check is None or (self._check.done() and now - self._checked > _CHECKED_S):
            self._checked = now
            self._check = asyncio.create_task(asyncio.to_thread(self._store_trouble))
        return await asyncio.shield(self._check)

    def _store_trouble(self) -> str | None:
        for name, shop in self._shops.items():
            try:
                shop.store.check()
            except TesserecError as error:
                LOG.error("the store of %s fails: %s", name, error)
                self.telemetry.namespace(name).store_up(False)
                return f"the store of {name} does not keep or read: see the log"
            self.telemetry.namespace(name).store_up(True)
        return None
