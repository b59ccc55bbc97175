"""Rate limits: how many requests a key and an address may make."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import Annotated, Any, cast

import limits.aio.strategies as shared
import pydantic
from limits import RateLimitItem, parse
from limits.aio.storage import Storage as SharedStorage
from limits.errors import ConfigurationError, StorageError
from limits.storage import storage_from_string

from tesserec.config import component
from tesserec.errors import ServiceError

__all__ = ["RateConfig", "RateLimits"]


def _rate(text: str) -> str:
    try:
        parse(text)
    except ValueError:
        raise ValueError(f'{text!r} is not a rate: expected a number and a time, such as "600/minute"') from None
    return text


LOGGER = logging.getLogger(__name__)

STORAGE_S = 0.25
"""How long a shared storage is waited for."""
ALONE_S = 5.0
"""How long it is not asked after it did not answer."""
ROUNDING_S = 1e-6
MAX_NAMES = 100_000
"""Keys or addresses that are remembered; those whose requests have all come back are forgotten first."""

Rate = Annotated[str, pydantic.AfterValidator(_rate)]
"""Such as ``"600/minute"``."""


@component
class RateConfig:
    """How many requests are taken: so many at once, and from then on as many as the rate brings back."""

    per_key: Rate | None = "2000/second"
    """Of one API key; None: any number."""
    per_address: Rate | None = "2000/second"
    """Of one client address; it also holds for whoever shows a wrong key, or none. None: any number."""
    storage: str | None = None
    """``redis://…`` where several services count together; None: each counts for itself, in memory, as it also does
    while the storage does not answer."""


class _Bucket:
    """A generic cell rate algorithm for each name, in memory: one number a name, and no thread.

    The storage in memory of ``limits`` starts a thread at nearly every request, which cost a sixth of one.
    """

    def __init__(self, rate: RateLimitItem) -> None:
        self._window_s = float(rate.get_expiry())
        self._each_s = self._window_s / rate.amount
        self._full_at: dict[str, float] = {}
        """Name → when all of its requests will have come back."""

    def wait_s(self, name: str) -> float:
        """Count a request; 0 where it may pass, else after how many seconds the next one may."""
        now = time.monotonic()
        full_at = max(self._full_at.get(name, now), now) + self._each_s
        if full_at - now > self._window_s + ROUNDING_S:
            return full_at - now - self._window_s
        if len(self._full_at) >= MAX_NAMES and name not in self._full_at:
            self._full_at = {known: at for known, at in self._full_at.items() if at > now}
        self._full_at[name] = full_at
        return 0.0


class RateLimits:
    """Counts requests. Used by the event loop only."""

    def __init__(self, config: RateConfig) -> None:
        self._per_key = None if config.per_key is None else parse(config.per_key)
        self._per_address = None if config.per_address is None else parse(config.per_address)
        rates = {"key": self._per_key, "address": self._per_address}
        self._buckets = {kind: _Bucket(rate) for kind, rate in rates.items() if rate is not None}
        self._alone_until = 0.0
        self._connections: Any = None
        self._shared: shared.MovingWindowRateLimiter | None = None
        if config.storage is not None:
            storage, self._connections = _shared_storage(config.storage)
            self._shared = shared.MovingWindowRateLimiter(storage)

    async def retry_after_s(self, key_id: str | None, address: str) -> int | None:
        """Count a request; None where it may pass, else after how many seconds the next one may."""
        for rate, kind, name in ((self._per_address, "address", address), (self._per_key, "key", key_id)):
            wait_s = 0.0 if rate is None or name is None else await self._wait_s(rate, kind, name)
            if wait_s:
                return math.ceil(wait_s)
        return None

    async def close(self) -> None:
        """Let go of the shared storage."""
        if self._connections is not None:
            await self._connections.aclose()

    async def _wait_s(self, rate: RateLimitItem, kind: str, name: str) -> float:
        if self._shared is None or time.monotonic() < self._alone_until:
            return self._buckets[kind].wait_s(name)
        try:
            async with asyncio.timeout(STORAGE_S):
                return 0.0 if await self._shared.hit(rate, kind, name) else float(rate.get_expiry())
        except (StorageError, TimeoutError) as error:
            LOGGER.error("the storage of rates does not answer, this service counts for itself: %r", error)
            self._alone_until = time.monotonic() + ALONE_S
            return self._buckets[kind].wait_s(name)


def _shared_storage(url: str) -> tuple[SharedStorage, Any]:
    """The storage at an address, and its connections."""
    try:
        import redis.asyncio  # an extra

        pool = redis.asyncio.ConnectionPool.from_url(url)
        found = storage_from_string(
            "async+redis://", implementation="redispy", wrap_exceptions=True, connection_pool=pool
        )
    except (ImportError, ConfigurationError, ValueError) as error:
        raise ServiceError(f"rates.storage = {url!r}: {error}; expected redis://host:port/number") from None
    return cast(SharedStorage, found), pool
