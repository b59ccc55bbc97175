import asyncio
import dataclasses
import time

import pytest
import torch
from tests.serving.served_shop import model

from tesserec.serving.batcher import BatcherConfig, Fault
from tesserec.serving.ladder import Breaker, Ladder, LadderConfig
from tesserec.serving.loaded_model import LoadedModel
from tesserec.serving.observer import Observer
from tesserec.serving.pasts import Question
from tesserec.serving.rungs import RUNGS, Rung

ALL = torch.ones(24, dtype=torch.bool)
BROKEN = Fault(fails=True)


def question(*items: str, k: int = 5) -> Question:
    return Question(model().read([], items), k, ALL)


class Seen(Observer):
    """An observer that remembers."""

    def __init__(self) -> None:
        self.failed: list[tuple[str, str]] = []
        self.breakers: list[tuple[str, str]] = []
        self.batches: list[tuple[str, int]] = []

    def rung_failed(self, rung: str, reason: str) -> None:
        self.failed.append((rung, reason))

    def breaker(self, rung: str, state: str) -> None:
        self.breakers.append((rung, state))

    def batch(self, rung: str, num_requests: int) -> None:
        self.batches.append((rung, num_requests))


class Site:
    """A ladder with faults that can be changed."""

    def __init__(self, **config) -> None:
        self.faults: dict[Rung, Fault] = {}
        self.seen = Seen()
        self.ladder = Ladder(LadderConfig(**config), faults=self.faults, observer=self.seen)

    def ask(self, asked: Question, seconds: float = 60.0, served: LoadedModel | None = None):
        return self.ladder.answer(served or model(), asked, time.monotonic() + seconds, seconds)


def run(play, **config) -> None:
    site = Site(**config)
    try:
        asyncio.run(play(site))
    finally:
        site.ladder.close()


@pytest.mark.parametrize("rung", RUNGS)
def test_each_rung_is_reached_by_breaking_those_above(rung: Rung) -> None:
    async def play(site: Site) -> None:
        above = RUNGS[: RUNGS.index(rung)]
        site.faults.update(dict.fromkeys(above, BROKEN))
        found = await site.ask(question("i00", "i01"))
        assert found.rung == rung
        assert found.fallen == tuple((one, "failed") for one in above)
        assert site.seen.failed == list(found.fallen)
        wanted = model().answer_all(rung, [question("i00", "i01")])[0]
        assert found.answered.answer.items == wanted.items
        assert found.answered.answer.scores == pytest.approx(wanted.scores)

    run(play)


@pytest.mark.parametrize("rung", RUNGS)
def test_each_rung_is_reached_by_slowing_those_above(rung: Rung) -> None:
    async def play(site: Site) -> None:
        above = RUNGS[: RUNGS.index(rung)]
        site.faults.update(dict.fromkeys(above, Fault(delay_s=30)))
        started = time.monotonic()
        found = await site.ask(question("i00", "i01"), seconds=2.0)
        assert time.monotonic() - started < 10, "far from the delay"
        assert tuple(one for one, _ in found.fallen[: len(above)]) == above
        assert {reason for _, reason in found.fallen} <= {"late", "slow"}
        assert RUNGS.index(found.rung) >= RUNGS.index(rung)
        assert found.answered.answer.items

    run(play, step_ms=500)


def test_a_stuck_rung_is_left_at_once_by_who_comes_later() -> None:
    async def play(site: Site) -> None:
        site.faults["generative"] = Fault(delay_s=30)
        first = await site.ask(question("i00"), seconds=1.0)
        assert first.fallen[0] == ("generative", "late")
        later = await asyncio.gather(*(site.ask(question("i00"), seconds=1.0) for _ in range(20)))
        assert {one.fallen[0] for one in later} == {("generative", "slow")}, "it is stuck for as long as there is time"
        site.faults["dense"] = BROKEN
        below = await site.ask(question("i00"), seconds=1.0)
        assert below.fallen[:2] == (("generative", "slow"), ("dense", "failed"))

    run(play)


def test_a_long_queue_sends_requests_down_before_any_is_refused() -> None:
    async def play(site: Site) -> None:
        site.faults["generative"] = Fault(delay_s=0.3)
        await site.ask(question("i00"))
        found = await asyncio.gather(*(site.ask(question("i00"), seconds=2.0) for _ in range(60)))
        reasons = [dict(one.fallen).get("generative") for one in found]
        assert reasons.count(None) >= 1, "some are answered at the top"
        assert "slow" in reasons, "for others the queue is too long"
        assert all(one.answered.answer.items for one in found)

    run(play, batch=BatcherConfig(max_batch=2))


def test_a_full_queue_sends_requests_down() -> None:
    async def play(site: Site) -> None:
        site.faults["generative"] = Fault(delay_s=0.2)
        found = await asyncio.gather(*(site.ask(question("i00")) for _ in range(8)))
        reasons = [dict(one.fallen).get("generative") for one in found]
        assert "full" in reasons
        assert None in reasons

    run(play, batch=BatcherConfig(max_batch=1, capacity=2))


def test_the_breaker_opens_and_closes_again() -> None:
    async def play(site: Site) -> None:
        site.faults["generative"] = BROKEN
        reasons = [(await site.ask(question("i00"))).fallen[0] for _ in range(5)]
        assert reasons == [("generative", "failed")] * 3 + [("generative", "open")] * 2
        assert site.ladder.state_of("v1", "generative") == "open"
        assert site.ladder.state_of("v1", "dense") == "closed"
        await asyncio.sleep(0.25)
        assert (await site.ask(question("i00"))).fallen[0] == ("generative", "failed"), "one request tries"
        site.faults.clear()
        assert (await site.ask(question("i00"))).fallen[0] == ("generative", "open")
        await asyncio.sleep(0.25)
        assert (await site.ask(question("i00"))).rung == "generative"
        states = [state for rung, state in site.seen.breakers if rung == "generative"]
        assert states == ["open", "half_open", "open", "half_open", "closed"]

    run(play, failures=3, open_s=0.2)


def test_breakers_of_versions_are_apart() -> None:
    async def play(site: Site) -> None:
        other = dataclasses.replace(model(), version="v2")
        site.faults["generative"] = BROKEN
        await site.ask(question("i00"))
        site.faults.clear()
        assert (await site.ask(question("i00"))).rung == "dense"
        assert (await site.ask(question("i00"), served=other)).rung == "generative"

    run(play, failures=1)


def test_newcomers_wait_for_nobody() -> None:
    async def play(site: Site) -> None:
        site.faults.update(dict.fromkeys(RUNGS, BROKEN))
        found = await site.ask(question())
        assert (found.rung, found.fallen) == ("popularity", ())

    run(play)


def test_who_goes_away_is_dropped_and_the_probe_is_free_again() -> None:
    async def play(site: Site) -> None:
        site.faults["generative"] = BROKEN
        await site.ask(question("i00"))
        await asyncio.sleep(0.05)
        site.faults["generative"] = Fault(delay_s=0.2)
        asking = asyncio.create_task(site.ask(question("i00")))
        await asyncio.sleep(0.02)
        assert site.ladder.state_of("v1", "generative") == "half_open"
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert site.ladder.depth == 0
        assert site.ladder.state_of("v1", "generative") == "open"
        site.faults.clear()
        assert (await site.ask(question("i00"))).rung == "generative"

    run(play, failures=1, open_s=0.01)


def test_one_failure_after_a_success_is_not_the_last_of_many() -> None:
    breaker = Breaker(failures=2, open_s=1)
    for batch in range(3):
        breaker.failed(0, batch)
        breaker.succeeded()
    assert breaker.allows(0)
    for _ in range(5):
        breaker.failed(0, 7.0)
    assert breaker.allows(0), "those of one batch count once"
    breaker.failed(0, 8.0)
    assert not breaker.allows(0.9)
    assert breaker.allows(1.0)
    assert breaker.state == "half_open"
    assert not breaker.allows(1.0), "one tries"
    breaker.failed(1.0, 9.0)
    assert breaker.state == "open"
    assert not breaker.allows(1.9)


def test_who_waited_in_vain_says_nothing_of_the_rung() -> None:
    async def play(site: Site) -> None:
        site.faults["generative"] = Fault(delay_s=0.5)
        asking = [asyncio.create_task(site.ask(question("i00"), seconds=0.4)) for _ in range(6)]
        found = await asyncio.gather(*asking)
        assert {one.fallen[0] for one in found} == {("generative", "late")}
        assert site.ladder.state_of("v1", "generative") == "closed", "one batch was late, whatever waited behind it"

    run(play, failures=2, batch=BatcherConfig(max_batch=1))


def test_who_waited_for_most_of_the_time_and_was_late_says_nothing_either() -> None:
    async def play(site: Site) -> None:
        site.faults["generative"] = Fault(delay_s=0.6)
        first, second = await asyncio.gather(*(site.ask(question("i00"), seconds=1.0) for _ in range(2)))
        assert first.fallen == ()
        assert second.fallen[0] == ("generative", "late")
        assert site.ladder.state_of("v1", "generative") == "closed"

    run(play, failures=1, batch=BatcherConfig(max_batch=1))


def test_a_rung_that_was_too_slow_is_tried_once_a_second() -> None:
    async def play(site: Site) -> None:
        site.faults["generative"] = Fault(delay_s=0.5)
        await site.ask(question("i00"))
        site.faults.clear()
        found = [await site.ask(question("i00"), seconds=0.4) for _ in range(2)]
        assert found[0].fallen == (), "it tries, and there is time"
        assert dict(found[1].fallen) == {"generative": "slow"}

    run(play)


def test_a_request_without_time_gets_what_cannot_be_late() -> None:
    async def play(site: Site) -> None:
        site.faults["generative"] = Fault(delay_s=0.1)
        await site.ask(question("i00"))
        found = await site.ask(question("i00"), seconds=0.0)
        assert found.rung == "popularity"

    run(play)
