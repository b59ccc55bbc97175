"""The ladder of fall-backs: the best answer that there is time for, from a rung that works.

    generative ─► dense ─► cooccurrence ─► segment_popularity ─► popularity
      worker      worker      worker            worker            no worker: it cannot be late

A request starts at the highest rung whose expected time fits what is left of its deadline, so that a long queue sends
it down at once instead of refusing it; once a second one tries a rung that was too slow for the others, to see whether
it still is. A rung that fails or is late is left for the next one below; it has a worker of
its own, so what is stuck above does not hold it up. After some failures in a row a rung is not asked at all for a
while, then by one request, and by everybody again once that one was answered.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from tesserec.config import Field, component
from tesserec.serving.batcher import Answered, Batcher, BatcherConfig, Fault, Job, QueueFull, TooLate
from tesserec.serving.loaded_model import LoadedModel
from tesserec.serving.observer import Observer
from tesserec.serving.pasts import Question
from tesserec.serving.rungs import RUNGS, Rung

__all__ = ["Breaker", "Climbed", "Ladder", "LadderConfig"]

LOGGER = logging.getLogger(__name__)

Reason = Literal["open", "slow", "full", "late", "failed"]
State = Literal["closed", "open", "half_open"]
TRY_S = 1.0
"""How often a rung whose batches took too long lately is tried all the same."""
NETWORKS: frozenset[Rung] = frozenset({"generative", "dense"})
MAX_BREAKERS = 64
"""Of rungs of versions; the ones that were asked longest ago are forgotten."""


@component
class LadderConfig:
    """Deadlines, and when a rung is left alone."""

    deadline_ms: Annotated[float, Field(ge=1, le=10_000)] = 150.0
    """Within this time a request is answered unless it says otherwise."""
    step_ms: Annotated[float, Field(ge=0)] = 8.0
    """What a rung has to leave to each one below it, at most a tenth of the deadline."""
    failures: Annotated[int, Field(ge=1)] = 5
    """Failures and late answers in a row after which a rung is not asked any more. A late one counts where its batch
    had half of the deadline to itself."""
    open_s: Annotated[float, Field(gt=0)] = 5.0
    """How long it is not asked then."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Of torch in each worker; one leaves the other cores to HTTP."""
    batch: BatcherConfig = field(default_factory=BatcherConfig)


@dataclass(frozen=True, slots=True)
class Climbed:
    """An answer, the rung that gave it, and why those above did not."""

    rung: Rung
    answered: Answered
    fallen: tuple[tuple[Rung, Reason], ...] = ()


class Breaker:
    """Whether one rung of one version may be asked; used by one thread."""

    def __init__(self, failures: int, open_s: float) -> None:
        self._limit, self._open_s = failures, open_s
        self._failed = 0
        self._last: float | None = None
        self._until: float | None = None
        self._probing = False

    @property
    def state(self) -> State:
        """``half_open``: one request is asking."""
        if self._until is None:
            return "closed"
        return "half_open" if self._probing else "open"

    def allows(self, now: float) -> bool:
        """Whether to ask now; when it was open for long enough, the one who asks first may, and must report back."""
        if self._until is None:
            return True
        if self._probing or now < self._until:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """An answer came in time."""
        self._failed, self._until, self._probing = 0, None, False

    def failed(self, now: float, batch: float) -> None:
        """It failed or was late; requests that shared ``batch`` (when it began) count once."""
        self._failed += batch != self._last
        self._last = batch
        if self._probing or self._failed >= self._limit:
            self._until, self._probing = now + self._open_s, False

    def gave_up(self) -> None:
        """Who asked went away before an answer: nothing was learnt."""
        self._probing = False


class Ladder:
    """Answers questions by a deadline. Used from one event loop; models and their versions may change all the time."""

    def __init__(
        self,
        config: LadderConfig | None = None,
        *,
        faults: Mapping[Rung, Fault] | None = None,
        observer: Observer | None = None,
    ) -> None:
        """``faults`` is read at each batch, so that tests can change it while requests go on."""
        self.config = config or LadderConfig()
        self._observer = observer or Observer()
        turn = threading.Lock()  # of the networks: two at once take longer than one after the other
        self._batchers: dict[Rung, Batcher] = {
            rung: Batcher(
                rung,
                self.config.batch,
                threads=self.config.threads,
                faults=faults,
                batched=self._observer.batch,
                turn=turn if rung in NETWORKS else None,
            )
            for rung in RUNGS
            if rung != "popularity"
        }
        self._breakers: OrderedDict[tuple[str, Rung], Breaker] = OrderedDict()
        self._next_try: dict[Rung, float] = {}

    @property
    def depth(self) -> int:
        """Requests that wait for a worker."""
        return sum(batcher.depth for batcher in self._batchers.values())

    def state_of(self, version: str, rung: Rung) -> State:
        """Of the breaker of a rung."""
        return self._breaker(version, rung).state

    async def answer(self, model: LoadedModel, question: Question, deadline: float, total_s: float) -> Climbed:
        """The best answer by ``deadline`` (of ``time.monotonic``), which is ``total_s`` after the request came.

        Somebody without a positive event gets what is popular at once.
        """
        fallen: list[tuple[Rung, Reason]] = []
        workers = [] if question.past.is_empty else [rung for rung in model.rungs if rung in self._batchers]
        step_s = min(self.config.step_ms / 1e3, total_s / 10)
        for below, rung in zip(range(len(workers), 0, -1), workers, strict=True):
            reason = await self._try(rung, model, question, deadline - below * step_s, total_s)
            if isinstance(reason, Answered):
                return Climbed(rung, reason, tuple(fallen))
            fallen.append((rung, reason))
            self._observer.rung_failed(rung, reason)
        started = time.monotonic()
        answer = model.popular(question)
        return Climbed("popularity", Answered(answer, 0.0, 1e3 * (time.monotonic() - started), 1), tuple(fallen))

    def close(self) -> None:
        """Stop the workers."""
        for batcher in self._batchers.values():
            batcher.close()

    async def _try(
        self, rung: Rung, model: LoadedModel, question: Question, until: float, total_s: float
    ) -> Answered | Reason:
        """The answer of one rung by ``until``, or why there is none."""
        batcher, breaker = self._batchers[rung], self._breaker(model.version, rung)
        now = time.monotonic()
        if not self._fits(batcher, now, until):
            return "slow"
        if not breaker.allows(now):
            return "open"
        if breaker.state == "half_open":
            self._observer.breaker(rung, "half_open")
        try:
            job = batcher.submit(model, question, until)
        except QueueFull:
            breaker.gave_up()
            return "full"
        try:
            await asyncio.wait({job.future}, timeout=max(0.0, until - time.monotonic()))
        except asyncio.CancelledError:
            breaker.gave_up()
            raise
        finally:
            batcher.drop(job)
        result = _result(job)
        self._report(rung, model.version, job, result, fair_until=until - total_s / 2)
        return result

    def _fits(self, batcher: Batcher, now: float, until: float) -> bool:
        """Whether a request that comes now is expected to be answered by ``until``, or is the one that tries."""
        if now + batcher.estimate_ms() / 1e3 < until:
            return True
        if batcher.is_busy or now >= until or now < self._next_try.get(batcher.rung, 0.0):
            return False
        self._next_try[batcher.rung] = now + TRY_S
        return True

    def _report(self, rung: Rung, version: str, job: Job, result: Answered | Reason, fair_until: float) -> None:
        """Tell the breaker. Who waited for others for most of the time, and was late, says nothing of the rung."""
        breaker = self._breaker(version, rung)
        before = breaker.state
        if isinstance(result, Answered):
            breaker.succeeded()
        elif job.begun is None or (result == "late" and job.begun > fair_until):
            breaker.gave_up()
        else:
            breaker.failed(time.monotonic(), job.begun)
        if breaker.state != before:
            self._observer.breaker(rung, breaker.state)
            LOGGER.warning("the breaker of %s of version %s is %s", rung, version, breaker.state)

    def _breaker(self, version: str, rung: Rung) -> Breaker:
        key = (version, rung)
        if key not in self._breakers:
            self._breakers[key] = Breaker(self.config.failures, self.config.open_s)
            while len(self._breakers) > MAX_BREAKERS:
                self._breakers.popitem(last=False)
        self._breakers.move_to_end(key)
        return self._breakers[key]


def _result(job: Job) -> Answered | Literal["late", "failed"]:
    """What became of a job that nobody waits for any longer."""
    if job.future.cancelled():
        return "late"
    error = job.future.exception()
    if error is None:
        return job.future.result()
    if isinstance(error, TooLate):
        return "late"
    # A rung that breaks is what lower ones are for.
    LOGGER.error("a request failed on a rung of version %s", job.model.version, exc_info=error)
    return "failed"
