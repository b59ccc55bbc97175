"""Open-loop load over HTTP/1.1: requests start when they are due, whether or not earlier ones were answered.

A latency counts from the moment a request was due, so that a service that stalls cannot hide it. The generator runs in
a process of its own and says how much of the cores it took.
"""

import asyncio
import dataclasses
import json
import multiprocessing
import random
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import cast

import httptools
import numpy as np
import uvloop

__all__ = ["Load", "Outcome", "post", "run"]

TIMEOUT_S = 30.0
"""After this a request counts as failed: status 0."""


@dataclass(frozen=True)
class Load:
    """What to send: ``requests`` in turn, ``rate`` a second at random moments, for ``seconds``."""

    host: str
    port: int
    requests: Sequence[bytes]
    rate: float
    """Requests a second (Poisson); 0: as fast as ``connections`` are answered (closed loop)."""
    seconds: float
    connections: int = 64
    """At most this many requests are under way; one that finds none free waits, and its latency counts."""
    seed: int = 0
    keep: bool = False
    """Whether to keep the bodies of the answers."""
    most: int | None = None
    """Stop after so many requests."""


@dataclass(frozen=True)
class Outcome:
    """What came back."""

    statuses: dict[int, int]
    """Status → number; 0 where the connection failed or nothing came in time."""
    latencies_ms: np.ndarray
    """Of the answers with status 200, in ms from when they were due, in the order in which they came."""
    done_s: np.ndarray
    """When each of those came, seconds since the start."""
    seconds: float
    cpu_s: float
    """CPU seconds of the generator itself."""
    bodies: list[tuple[int, bytes]] = dataclasses.field(default_factory=list)
    """Of answers with status 200, where they are kept: the number of the request, from 0, and the body."""

    @property
    def ok(self) -> int:
        """Answers with status 200."""
        return self.statuses.get(200, 0)

    def other_than(self, *statuses: int) -> int:
        """Answers with none of these statuses."""
        return sum(number for status, number in self.statuses.items() if status not in statuses)

    def quantile(self, share: float) -> float:
        """Latency in ms below which ``share`` of the answers were."""
        return float(np.quantile(self.latencies_ms, share)) if len(self.latencies_ms) else float("nan")


def post(path: str, body: object, key: str | None = None, method: str = "POST") -> bytes:
    """The bytes of a request with a JSON body (none where it is None)."""
    data = b"" if body is None else json.dumps(body).encode()
    head = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(data)}"]
    if data:
        head.append("Content-Type: application/json")
    if key is not None:
        head.append(f"Authorization: Bearer {key}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + data


def run(load: Load) -> Outcome:
    """Send the load from a process of its own, and wait for the end."""
    return start(load)()


class start:  # noqa: N801  # reads as a verb: start(load)() waits
    """The load under way; call it to wait for the outcome."""

    def __init__(self, load: Load) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._answer, answer = spawn.Pipe(duplex=False)
        self.process = spawn.Process(target=_in_process, args=(load, answer), daemon=True)
        self.process.start()
        answer.close()

    def __call__(self) -> Outcome:
        outcome: Outcome = self._answer.recv()
        self.process.join()
        return outcome


def _in_process(load: Load, answer: Connection) -> None:
    answer.send(uvloop.run(_Generator(load).run()))


class _Generator:
    def __init__(self, load: Load) -> None:
        self.load = load
        self.statuses: Counter[int] = Counter()
        self.latencies: list[float] = []
        self.done: list[float] = []
        self.bodies: list[tuple[int, bytes]] = []
        self.random = random.Random(load.seed)
        self.sent = 0

    async def run(self) -> Outcome:
        self.begun, cpu = time.perf_counter(), time.process_time()
        waiting: asyncio.Queue[float | None] = asyncio.Queue()
        workers = [asyncio.create_task(self._work(waiting)) for _ in range(self.load.connections)]
        if self.load.rate:
            await self._schedule(waiting)
            for _ in workers:
                waiting.put_nowait(None)
        await asyncio.gather(*workers)
        seconds = time.perf_counter() - self.begun
        return Outcome(
            dict(self.statuses),
            np.array(self.latencies),
            np.array(self.done),
            seconds,
            time.process_time() - cpu,
            self.bodies,
        )

    async def _schedule(self, waiting: "asyncio.Queue[float | None]") -> None:
        due = 0.0
        while due < self.load.seconds:
            ahead = due - (time.perf_counter() - self.begun)
            if ahead > 0:
                await asyncio.sleep(ahead)
            waiting.put_nowait(due)
            due += self.random.expovariate(self.load.rate)

    async def _work(self, waiting: "asyncio.Queue[float | None]") -> None:
        connection: _Connection | None = None
        while True:
            due = await waiting.get() if self.load.rate else time.perf_counter() - self.begun
            if due is None or self.sent == self.load.most or (not self.load.rate and due > self.load.seconds):
                break
            number = self.sent % len(self.load.requests)
            self.sent += 1
            try:
                if connection is None or connection.closed:
                    loop = asyncio.get_running_loop()
                    _, connection = await loop.create_connection(_Connection, self.load.host, self.load.port)
                status, body = await asyncio.wait_for(connection.ask(self.load.requests[number]), TIMEOUT_S)
            except (OSError, TimeoutError):
                status, body = 0, b""
                if connection is not None:
                    connection.close()
                connection = None
            self._note(status, number, body, due)
        if connection is not None:
            connection.close()

    def _note(self, status: int, number: int, body: bytes, due: float) -> None:
        now = time.perf_counter() - self.begun
        self.statuses[status] += 1
        if status == 200:
            self.latencies.append((now - due) * 1000)
            self.done.append(now)
            if self.load.keep:
                self.bodies.append((number, body))


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.closed = False
        self._parts: deque[bytes] = deque()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is not registered as one

    def ask(self, request: bytes) -> "asyncio.Future[tuple[int, bytes]]":
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._parts.clear()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        self.closed = True
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), b"".join(self._parts)))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the service closed the connection"))
