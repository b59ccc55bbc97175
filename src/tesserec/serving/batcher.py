"""Micro-batching: one thread that answers together what waits together.

A network answers eight requests in about twice the time of one, so requests that arrive while a batch is under
way wait for it and share the next; nobody waits for others to come. A request whose client went away, or whose time is
up, is dropped before its batch begins.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import torch

from tesserec.config import Field, component
from tesserec.errors import ServiceError
from tesserec.serving.loaded_model import Answer, LoadedModel
from tesserec.serving.pasts import Question
from tesserec.serving.rungs import Rung
from tesserec.serving.timings import BatchTimes

__all__ = ["Answered", "Batcher", "BatcherConfig", "Fault", "Faulty", "Job", "QueueFull", "TooLate"]

TURN_S = 0.03
"""How long a batch waits for the one of another worker: one that is stuck holds up nobody for longer."""


class QueueFull(ServiceError):
    """As many requests wait as may."""


class TooLate(ServiceError):
    """The time of a request was up before its batch began."""


class Faulty(ServiceError):
    """A failure that was asked for, to see what the service does about it."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong on purpose, for tests of the fall-backs."""

    delay_s: float = 0.0
    """How much longer each batch takes."""
    fails: bool = False
    batches: int | None = None
    """How many batches of a worker it meets, the first ones; None: all."""


@component
class BatcherConfig:
    """How requests are put together."""

    max_batch: Annotated[int, Field(ge=1)] = 8
    """Requests that are answered together at most: who comes next waits for all of them."""
    capacity: Annotated[int, Field(ge=1)] = 256
    """Requests that may wait."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The list of one request, and what its time went on."""

    answer: Answer
    queue_ms: float
    model_ms: float
    """Of the whole batch."""
    batch_size: int


@dataclass(slots=True, eq=False)
class Job:
    """A question on its way."""

    model: LoadedModel
    question: Question
    deadline: float
    submitted: float
    future: asyncio.Future[Answered]
    """It fails with what the model raises, or with ``TooLate``."""
    loop: asyncio.AbstractEventLoop
    begun: float | None = None
    """When its batch began (the same for all of a batch); None while it waits."""

    @property
    def group(self) -> tuple[int, int, bool, int]:
        """Jobs of one group can be answered together, each with what it would get alone."""
        question = self.question
        return id(self.model), id(question.available_N), question.exclude_history, question.k


class Batcher:
    """Answers questions on one rung, in a thread of its own."""

    def __init__(
        self,
        rung: Rung,
        config: BatcherConfig,
        *,
        threads: int = 1,
        faults: Mapping[Rung, Fault] | None = None,
        batched: Callable[[Rung, int], None] = lambda rung, size: None,
        turn: threading.Lock | None = None,
    ) -> None:
        """``threads``: of torch. ``faults`` is read at each batch; ``batched`` is told of each batch in the thread.
        Workers that share a ``turn`` compute one after the other where they can.
        """
        self.rung = rung
        self._config = config
        self._threads = threads
        self._faults = {} if faults is None else faults
        self._batched = batched
        self._turn = turn or threading.Lock()
        self._times = BatchTimes()
        self._waiting: deque[Job] = deque()
        self._running: tuple[float, int] | None = None  # since when, how many
        self._closed = False
        self._met = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"rung-{rung}", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def is_busy(self) -> bool:
        """Whether a batch is under way, or waits."""
        return self._running is not None or bool(self._waiting)

    def estimate_ms(self) -> float:
        """How long a request that comes now will take, from what batches took lately; 0 where nothing is known.

        A batch that takes longer than it should is expected to take as long again.
        """
        with self._changed:
            waiting, running = len(self._waiting), self._running
        seconds = 0.0
        if running is not None:
            since, size = running
            elapsed = time.monotonic() - since
            usual = self._times.expected_s(size)
            seconds += max(usual - elapsed, elapsed if elapsed > usual else 0.0)
        full, rest = divmod(waiting + 1, self._config.max_batch)
        seconds += full * self._times.expected_s(self._config.max_batch)
        return 1e3 * (seconds + (self._times.expected_s(rest) if rest else 0.0))

    def submit(self, model: LoadedModel, question: Question, deadline: float) -> Job:
        """Ask; call it from the event loop that waits for the future. ``deadline`` is of ``time.monotonic``.

        Raises ``QueueFull`` where too many wait, and ``ServiceError`` after ``close``.
        """
        loop = asyncio.get_running_loop()
        job = Job(model, question, deadline, time.monotonic(), loop.create_future(), loop)
        with self._changed:
            if self._closed:
                raise ServiceError(f"the worker of {self.rung} is closed: the service is shutting down")
            if len(self._waiting) >= self._config.capacity:
                raise QueueFull(f"{self._config.capacity} requests wait for {self.rung} already: ask again later")
            self._waiting.append(job)
            self._changed.notify()
        return job

    def drop(self, job: Job) -> None:
        """Nobody waits for ``job`` any more: it makes room for others, unless its batch is under way."""
        if job.future.cancel():
            with self._changed:
                if job in self._waiting:  # asked first: to be told that it is missing costs the text of its tensors
                    self._waiting.remove(job)

    def close(self) -> None:
        """Answer nothing more; a batch that is under way ends by itself."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = list(self._waiting), deque()
            self._changed.notify()
        for job in waiting:
            _tell(job, ServiceError(f"the worker of {self.rung} was closed: the service is shutting down"))

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        while True:
            self._wait()
            mine = self._turn.acquire(timeout=TURN_S)
            try:
                batch = self._take()
                if batch is None:
                    return
                if batch:
                    self._answer(batch)
            finally:
                if mine:
                    self._turn.release()

    def _wait(self) -> None:
        """For a job, or the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)

    def _take(self) -> list[Job] | None:
        """The job that waits longest, and those of its group; None when closed. Those nobody waits for are dropped."""
        with self._changed:
            if self._closed:
                return None
            now = time.monotonic()
            batch: list[Job] = []
            others: list[Job] = []
            for job in self._waiting:
                if job.future.cancelled():
                    continue
                if now >= job.deadline:
                    _tell(job, TooLate(f"the time was up before {self.rung} could begin"))
                elif not batch or (len(batch) < self._config.max_batch and job.group == batch[0].group):
                    batch.append(job)
                else:
                    others.append(job)
            self._waiting = deque(others)
            for job in batch:
                job.begun = now
            self._running = (now, len(batch)) if batch else None
            return batch

    def _answer(self, batch: list[Job]) -> None:
        started = time.monotonic()
        answers: Sequence[Answer] | Exception
        try:
            self._misbehave()
            answers = batch[0].model.answer_all(self.rung, [job.question for job in batch])
        except Exception as error:  # whatever a model does, its worker goes on
            answers = error
        ended = time.monotonic()
        self._times.add(len(batch), ended - started)
        with self._changed:
            self._running = None
        if isinstance(answers, Exception):
            for job in batch:
                _tell(job, answers)
            return
        self._batched(self.rung, len(batch))
        for job, answer in zip(batch, answers, strict=True):
            queue_ms, model_ms = 1e3 * (started - job.submitted), 1e3 * (ended - started)
            _tell(job, Answered(answer, queue_ms, model_ms, len(batch)))

    def _misbehave(self) -> None:
        fault = self._faults.get(self.rung)
        if fault is not None and (fault.batches is None or self._met < fault.batches):
            self._met += 1
            time.sleep(fault.delay_s)
            if fault.fails:
                raise Faulty(f"{self.rung} fails because a fault was asked for")


def _tell(job: Job, result: Answered | Exception) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits
        job.loop.call_soon_threadsafe(_resolve, job.future, result)


def _resolve(future: asyncio.Future[Answered], result: Answered | Exception) -> None:
    if future.done():  # cancelled meanwhile
        return
    if isinstance(result, Answered):
        future.set_result(result)
    else:
        future.set_exception(result)
