"""Rate limits: so many at once, and what comes back, per key and per address."""

import asyncio
import dataclasses
import socket
import time

import pydantic
import pytest
from tests.serving.servers import RedisServer

from tesserec.errors import ServiceError
from tesserec.serving.rates import RateConfig, RateLimits


def answers(limits: RateLimits, *requests: tuple[str | None, str]) -> list[int | None]:
    async def ask() -> list[int | None]:
        try:
            return [await limits.retry_after_s(*request) for request in requests]
        finally:
            await limits.close()

    return asyncio.run(ask())


def test_each_key_has_its_own_window() -> None:
    limits = RateLimits(RateConfig(per_key="2/minute", per_address=None))
    requests = [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), (None, "1")]
    assert answers(limits, *requests) == [None, None, 30, None, None]


def test_an_address_counts_whoever_comes_from_it() -> None:
    limits = RateLimits(RateConfig(per_key=None, per_address="2/hour"))
    requests = [("a", "1"), (None, "1"), ("b", "1"), ("b", "2")]
    assert answers(limits, *requests) == [None, None, 1800, None]


def test_requests_come_back_one_by_one() -> None:
    limits = RateLimits(RateConfig(per_key="3/second", per_address=None))
    assert answers(limits, *[("a", "1")] * 4) == [None, None, None, 1]
    time.sleep(0.4)
    assert answers(limits, *[("a", "1")] * 2) == [None, 1]


def test_names_whose_requests_have_come_back_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tesserec.serving.rates.MAX_NAMES", 10)
    limits = RateLimits(RateConfig(per_key=None, per_address="1000/second"))
    for number in range(30):
        assert answers(limits, (None, str(number))) == [None]
        time.sleep(0.002)
    assert len(limits._buckets["address"]._full_at) <= 10


def test_services_count_together_in_redis(shared_redis: RedisServer) -> None:
    async def ask() -> list[int | None]:
        config = RateConfig(per_key="3/hour", per_address=None, storage=shared_redis.url)
        services = [RateLimits(config) for _ in range(2)]
        try:
            return [await services[number % 2].retry_after_s("together", "1") for number in range(5)]
        finally:
            for service in services:
                await service.close()

    assert asyncio.run(ask()) == [None, None, None, 3600, 3600]


def test_a_storage_that_is_down_or_hangs_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    config = RateConfig(per_key="2/minute", per_address=None, storage="redis://127.0.0.1:1")
    assert answers(RateLimits(config), *[("a", "1")] * 3) == [None, None, 30]
    assert [record.message[:42] for record in caplog.records] == ["the storage of rates does not answer, this"]
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        config = dataclasses.replace(config, storage=f"redis://127.0.0.1:{deaf.getsockname()[1]}")
        assert answers(RateLimits(config), *[("a", "1")] * 3) == [None, None, 30]
    assert len(caplog.records) == 2, "it is waited for once"


def test_no_limits_at_all() -> None:
    assert answers(RateLimits(RateConfig(per_key=None, per_address=None)), *[("a", "1")] * 50) == [None] * 50


def test_a_rate_that_is_none_and_a_storage_that_is_none() -> None:
    with pytest.raises(pydantic.ValidationError, match="'fast' is not a rate: expected a number and a time"):
        RateConfig(per_key="fast")
    with pytest.raises(ServiceError, match=r"rates.storage = 'carrier://pigeon'.*expected redis://"):
        RateLimits(RateConfig(storage="carrier://pigeon"))
