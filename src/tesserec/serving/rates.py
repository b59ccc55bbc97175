"""Rate limits: how many requests a key and an address may make in a moving window."""

from __future__ import annotations

from typing import Annotated, cast

import limits.aio.strategies as shared
import limits.strategies as local
import pydantic
from limits import RateLimitItem, parse
from limits.aio.storage import Storage as SharedStorage
from limits.errors import ConfigurationError
from limits.storage import MemoryStorage, storage_from_string

from tesserec.config import component
from tesserec.errors import ServiceError

__all__ = ["RateConfig", "RateLimits"]


def _rate(text: str) -> str:
    try:
        parse(text)
    except ValueError:
        raise ValueError(f'{text!r} is not a rate: expected a number and a time, such as "600/minute"') from None
    return text


Rate = Annotated[str, pydantic.AfterValidator(_rate)]
"""Such as ``"600/minute"``."""


@component
class RateConfig:
    """How many requests are taken.

    Counting costs more the more requests fit into a window: of a high rate, give the second rather than the hour.
    """

    per_key: Rate | None = "2000/second"
    """Of one API key; None: any number."""
    per_address: Rate | None = "2000/second"
    """Of one client address; it also holds for whoever shows a wrong key, or none. None: any number."""
    storage: str | None = None
    """``redis://…`` where several services count together; None: each counts for itself, in memory."""


class RateLimits:
    """Counts requests. Used by the event loop only."""

    def __init__(self, config: RateConfig) -> None:
        self._per_key = None if config.per_key is None else parse(config.per_key)
        self._per_address = None if config.per_address is None else parse(config.per_address)
        self._local: local.MovingWindowRateLimiter | None = None
        self._shared: shared.MovingWindowRateLimiter | None = None
        if config.storage is None:
            # The asynchronous storage in memory would hold a lock across a hop to a thread.
            self._local = local.MovingWindowRateLimiter(MemoryStorage())
        else:
            self._shared = shared.MovingWindowRateLimiter(_shared_storage(config.storage))

    async def retry_after_s(self, key_id: str | None, address: str) -> int | None:
        """Count a request; None where it may pass, else after how many seconds the next one may."""
        if self._per_address is not None and not await self._hit(self._per_address, "address", address):
            return self._per_address.get_expiry()
        if key_id is not None and self._per_key is not None and not await self._hit(self._per_key, "key", key_id):
            return self._per_key.get_expiry()
        return None

    async def _hit(self, rate: RateLimitItem, kind: str, name: str) -> bool:
        if self._local is not None:
            return self._local.hit(rate, kind, name)
        assert self._shared is not None
        return await self._shared.hit(rate, kind, name)


def _shared_storage(url: str) -> SharedStorage:
    try:
        return cast(SharedStorage, storage_from_string(f"async+{url}", implementation="redispy"))
    except (ConfigurationError, ValueError) as error:
        raise ServiceError(f"rates.storage = {url!r}: {error}; expected redis://host:port/number") from None
