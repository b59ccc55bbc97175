import asyncio
import dataclasses
import threading
import time
from contextlib import suppress

import pytest
import torch
from tests.serving.served_shop import model

from tesserec.errors import DataError, ServiceError
from tesserec.serving import batcher
from tesserec.serving.batcher import Batcher, BatcherConfig, Fault, Faulty, QueueFull, TooLate
from tesserec.serving.pasts import Question
from tesserec.serving.rungs import Rung

ALL = torch.ones(24, dtype=torch.bool)
HOUR_S = 3600.0


def question(*items: str, k: int = 5, mask: torch.Tensor = ALL) -> Question:
    return Question(model("counted").read([], items), k, mask)


class Bench:
    """A batcher of counted answers whose batches can be held up, and what it did."""

    def __init__(self, rung: Rung = "cooccurrence", **config: int) -> None:
        self.faults: dict[Rung, Fault] = {}
        self.sizes: list[int] = []
        self.batcher = Batcher(
            rung, BatcherConfig(**config), faults=self.faults, batched=lambda _, size: self.sizes.append(size)
        )

    def submit(self, asked: Question, seconds: float = HOUR_S):
        return self.batcher.submit(model("counted"), asked, time.monotonic() + seconds).future

    async def hold(self):
        """Keep the worker busy for a moment, so that what is asked next waits together."""
        self.faults["cooccurrence"] = Fault(delay_s=0.2)
        future = self.submit(question("i00"))
        while self.batcher.depth:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)  # it reads the fault when it begins
        self.faults.clear()
        return future


def run(play) -> None:
    """``play`` with a bench, which is closed."""
    bench = Bench(max_batch=4, capacity=6)
    try:
        asyncio.run(play(bench))
    finally:
        bench.batcher.close()


def test_what_waits_is_answered_together_as_alone() -> None:
    async def play(bench: Bench) -> None:
        held = await bench.hold()
        asked = [question(f"i{n:02}") for n in (3, 9, 15)]
        found = await asyncio.gather(held, *(bench.submit(one) for one in asked))
        assert bench.sizes == [1, 3]
        assert [one.batch_size for one in found] == [1, 3, 3, 3]
        for one, answered in zip(asked, found[1:], strict=True):
            alone = model("counted").answer_all("cooccurrence", [one])[0]
            assert answered.answer.items == alone.items
            assert answered.answer.scores == pytest.approx(alone.scores)
            assert answered.queue_ms > 0
            assert answered.model_ms > 0

    run(play)


def test_batches_are_bounded() -> None:
    async def play(bench: Bench) -> None:
        held = await bench.hold()
        await asyncio.gather(held, *(bench.submit(question("i03")) for _ in range(6)))
        assert bench.sizes == [1, 4, 2]

    run(play)


def test_only_like_questions_share_a_batch() -> None:
    async def play(bench: Bench) -> None:
        held = await bench.hold()
        few = torch.arange(24) < 4
        asked = [question("i03"), question("i03", mask=few), question("i04"), question("i03", k=2)]
        asked.append(dataclasses.replace(asked[0], exclude_history=True))
        found = await asyncio.gather(*(bench.submit(one) for one in asked), held)
        assert bench.sizes == [1, 2, 1, 1, 1]
        assert set(found[1].answer.items) == {0, 1, 2, 3}
        assert len(found[3].answer.items) == 2
        assert 3 not in found[4].answer.items

    run(play)


def test_nothing_is_done_for_who_went_away_or_is_late() -> None:
    async def play(bench: Bench) -> None:
        held = await bench.hold()
        gone, late, there = (
            bench.submit(question("i03")),
            bench.submit(question("i04"), 0.0),
            bench.submit(question("i05")),
        )
        gone.cancel()
        await asyncio.gather(held, there)
        assert bench.sizes == [1, 1]
        with pytest.raises(TooLate, match="the time was up before cooccurrence could begin"):
            await late

    run(play)


def test_who_is_dropped_makes_room() -> None:
    async def play(bench: Bench) -> None:
        held = await bench.hold()
        soon = time.monotonic() + HOUR_S
        jobs = [bench.batcher.submit(model("counted"), question("i03"), soon) for _ in range(6)]
        for job in jobs[:5]:
            bench.batcher.drop(job)
        assert bench.batcher.depth == 1
        assert jobs[0].future.cancelled()
        await asyncio.gather(held, jobs[5].future, bench.submit(question("i04")))
        bench.batcher.drop(jobs[5])
        assert jobs[5].future.result().answer.items, "what is done stays done"

    run(play)


def test_the_queue_is_bounded() -> None:
    async def play(bench: Bench) -> None:
        held = await bench.hold()
        waiting = [bench.submit(question("i03")) for _ in range(6)]
        assert bench.batcher.depth == 6
        with pytest.raises(QueueFull, match="6 requests wait for cooccurrence already: ask again later"):
            bench.submit(question("i03"))
        await asyncio.gather(held, *waiting)
        await bench.submit(question("i03"))

    run(play)


def test_a_failure_is_told_and_the_worker_goes_on() -> None:
    async def play(bench: Bench) -> None:
        bench.faults["cooccurrence"] = Fault(fails=True, batches=1)
        with pytest.raises(Faulty, match="cooccurrence fails because a fault was asked for"):
            await bench.submit(question("i03"))
        with pytest.raises(DataError, match="available_N has shape"):
            await bench.submit(question("i03", mask=torch.ones(3, dtype=torch.bool)))
        assert (await bench.submit(question("i03"))).answer.items

    run(play)


def test_the_estimate_knows_what_is_before_a_request() -> None:
    async def play(bench: Bench) -> None:
        assert bench.batcher.estimate_ms() == 0
        bench.faults["cooccurrence"] = Fault(delay_s=0.05)
        await bench.submit(question("i03"))
        assert bench.batcher.estimate_ms() >= 50
        futures = [bench.submit(question("i03")) for _ in range(6)]
        assert bench.batcher.estimate_ms() >= 100, "those that wait come first"
        await asyncio.gather(*futures)

    run(play)


def test_a_batch_that_takes_too_long_is_expected_to_take_as_long_again() -> None:
    async def play(bench: Bench) -> None:
        bench.faults["cooccurrence"] = Fault(delay_s=0.5)
        future = bench.submit(question("i03"))
        await asyncio.sleep(0.2)
        assert bench.batcher.estimate_ms() >= 100
        await future

    run(play)


def test_after_closing() -> None:
    async def play(bench: Bench) -> None:
        held = await bench.hold()
        waiting = bench.submit(question("i03"))
        bench.batcher.close()
        with pytest.raises(ServiceError, match="the worker of cooccurrence was closed"):
            await waiting
        with pytest.raises(ServiceError, match="the worker of cooccurrence is closed"):
            bench.submit(question("i03"))
        assert (await held).answer.items, "what was begun is finished"

    run(play)


@pytest.mark.parametrize("patience_s", [60.0, 0.01])
def test_those_that_share_a_turn_compute_one_after_the_other_unless_one_is_stuck(monkeypatch, patience_s) -> None:
    monkeypatch.setattr(batcher, "TURN_S", patience_s)
    turn = threading.Lock()
    stuck = Batcher("generative", BatcherConfig(), faults={"generative": Fault(delay_s=1.0)}, turn=turn)
    other = Batcher("dense", BatcherConfig(), turn=turn)

    async def play() -> bool:
        until = time.monotonic() + HOUR_S
        first = stuck.submit(model("counted"), question("i00"), until).future
        while not turn.locked():
            await asyncio.sleep(0.001)
        with suppress(DataError):  # this model has no such rung, which takes a worker no less
            await other.submit(model("counted"), question("i00"), until).future
        was_done = first.done()
        with suppress(DataError):
            await first
        return was_done

    try:
        assert asyncio.run(play()) == (patience_s > 1)
    finally:
        stuck.close()
        other.close()
