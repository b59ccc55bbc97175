"""What the service measures of itself, in a Prometheus registry of its own.

    telemetry = Telemetry(TelemetryConfig(scenarios=("cart",)))
    telemetry.requested("GET", "/api/recommend/{user_id}", 200, 0.012)      the HTTP layer
    shop = telemetry.namespace("default")                                   an engine, its store and its models
    shop.answered(response, scenario="cart", deadline_ms=100)
    telemetry.render()                                                      the page at /metrics

Nothing is kept in the process outside of a ``Telemetry``: two services in one process do not see each other. Every
label has a bounded number of values: a route is the template of a path and never the path, a scenario that the
configuration does not name counts as ``other``.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from tesserec.config import Field, component
from tesserec.serving.observer import Observer
from tesserec.serving.schemas import RecommendResponse

__all__ = [
    "ARMS",
    "BREAKER_STATES",
    "CONTENT_TYPE",
    "RUNGS",
    "NamespaceTelemetry",
    "Recent",
    "Telemetry",
    "TelemetryConfig",
]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""Of what ``Telemetry.render`` returns."""
RUNGS: tuple[str, ...] = get_args(RecommendResponse.model_fields["rung"].annotation)
ARMS = ("live", "canary")
BREAKER_STATES = {"closed": 0.0, "half_open": 0.5, "open": 1.0}
"""How the state of a circuit breaker is written as a number."""
REASONS = ("open", "slow", "full", "late", "failed")
"""Why a rung was left for a lower one."""
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
OTHER = "other"
"""The label in the place of a value that is not known beforehand."""
LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STAGES_S = (0.0001, 0.00025, 0.0005, *LATENCIES_S)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
NUM_RECENT = 4096

Version = tuple[str, str | None]
"""Of a model, and of its codebook."""


@component
class TelemetryConfig:
    """What the metrics tell apart."""

    scenarios: Annotated[tuple[str, ...], Field(max_length=50)] = ()
    """Scenarios with a label of their own, beside ``default``; requests of any other count as ``other``."""


@dataclass(frozen=True)
class Recent:
    """Recommendations of the last moments, for the page."""

    num_answers: int
    per_s: float
    p50_ms: float | None
    """None where there was no answer."""
    p99_ms: float | None
    rungs: Mapping[str, int]
    """How many each rung answered, from the top."""


class Telemetry:
    """The metrics of a service process; may be called from any thread."""

    def __init__(self, config: TelemetryConfig | None = None) -> None:
        self.scenarios = ("default", *(config or TelemetryConfig()).scenarios)
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        self._families = _Families(self.registry)
        self._lock = threading.Lock()
        self._namespaces: dict[str, NamespaceTelemetry] = {}
        self.in_flight = Gauge("tesserec_in_flight", "Requests being worked on", registry=self.registry)
        """What it is asked for is set by whoever counts them (``set_function``)."""
        self._requests = Counter(
            "tesserec_requests", "HTTP requests", ("method", "route", "status"), registry=self.registry
        )
        self._request_s = Histogram(
            "tesserec_request_seconds", "HTTP requests, until the reply", ("route",), buckets=LATENCIES_S,
            registry=self.registry,
        )  # fmt: skip
        self._refused = Counter("tesserec_refused", "Requests refused with 429", ("reason",), registry=self.registry)

    def requested(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was replied to; ``route`` is the template of its path, or ``other`` where none fits."""
        self._requests.labels(method if method in METHODS else OTHER, route, str(status)).inc()
        self._request_s.labels(route).observe(seconds)

    def refused(self, reason: str) -> None:
        """Count a request refused with 429; ``reason`` is a word: ``rate``, ``in_flight``, ``lag``, ``queue`` …"""
        self._refused.labels(reason).inc()

    def namespace(self, name: str) -> NamespaceTelemetry:
        """The metrics of a namespace; the same object for the same name."""
        with self._lock:
            if name not in self._namespaces:
                self._namespaces[name] = NamespaceTelemetry(self._families, name, self.scenarios)
            return self._namespaces[name]

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Families:
    """The metrics that have a namespace."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"tesserec_{name}", text, ("namespace", *labels), registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"tesserec_{name}", text, ("namespace", *labels), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"tesserec_{name}", text, ("namespace", *labels), buckets=buckets, registry=registry)

        self.answers = counter("answers", "Recommendations", "scenario", "rung", "arm")
        self.answer_s = histogram("answer_seconds", "Recommendations, without HTTP", LATENCIES_S)
        self.stage_s = histogram("stage_seconds", "Stages of recommendations", STAGES_S, "stage")
        self.deadline_misses = counter("deadline_misses", "Recommendations later than their deadline")
        self.rung_failures = counter("rung_failures", "Rungs abandoned for a lower one", "rung", "reason")
        self.breaker = gauge("breaker", "Circuit breaker of a rung: 0 closed, 0.5 half open, 1 open", "rung")
        self.queue_depth = gauge("queue_depth", "Requests that wait for the model")
        self.batch_requests = histogram("batch_requests", "Requests in a batch", SIZES, "rung")
        self.events = counter("events", "Events that were sent", "outcome")
        self.impressions = counter("impressions", "Items shown and logged")
        self.commit_writes = histogram("commit_writes", "Writes in a durable transaction", SIZES)
        self.commit_s = histogram("commit_seconds", "Durable transactions", STAGES_S)
        self.store_up = gauge("store_up", "Whether the store keeps and reads: 1 yes, 0 no")
        self.erasing_users = gauge("erasing_users", "Deleted users who are still in versions on disk")
        self.table_revision = gauge("table_revision", "Revision of the items that answers show")
        self.items = gauge("items", "Items that can be shown")
        self.cold_items = gauge("cold_items", "Those of them added since the model was fitted")
        self.model_info = gauge(
            "model_info", "1 for the versions that answer", "arm", "model_version", "codebook_version"
        )
        self.swaps = counter("swaps", "Changes of the version that answers", "kind")


class NamespaceTelemetry(Observer):
    """The metrics of one namespace; may be called from any thread. Made by ``Telemetry.namespace``."""

    def __init__(self, families: _Families, name: str, scenarios: tuple[str, ...]) -> None:
        self.name = name
        self._families = families
        self._scenarios = scenarios
        self._serving: dict[str, Version] = {}
        self._previous: Version | None = None
        self._recent: deque[tuple[float, float, str]] = deque(maxlen=NUM_RECENT)
        self._start()

    def _start(self) -> None:
        """Every series whose labels are known begins at 0, so that its first increase is one."""
        families, name = self._families, self.name
        for scenario, rung, arm in itertools.product((*self._scenarios, OTHER), RUNGS, ARMS):
            families.answers.labels(name, scenario, rung, arm)
        for rung in RUNGS:
            families.breaker.labels(name, rung)
            families.batch_requests.labels(name, rung)
            for reason in REASONS:
                families.rung_failures.labels(name, rung, reason)
        for outcome in ("accepted", "duplicate"):
            families.events.labels(name, outcome)
        for kind in ("publish", "rollback", "canary"):
            families.swaps.labels(name, kind)
        for counter in (families.deadline_misses, families.impressions):
            counter.labels(name)
        for histogram in (families.answer_s, families.commit_writes, families.commit_s):
            histogram.labels(name)
        for gauge in (
            families.queue_depth,
            families.store_up,
            families.erasing_users,
            families.table_revision,
            families.items,
            families.cold_items,
        ):
            gauge.labels(name)

    def answered(self, response: RecommendResponse, scenario: str, deadline_ms: float | None = None) -> None:
        """Count a recommendation with its stages; ``total`` of ``stages_ms`` is the time of the whole."""
        families, name = self._families, self.name
        known = scenario if scenario in self._scenarios else OTHER
        families.answers.labels(name, known, response.rung, response.arm).inc()
        for stage, ms in response.stages_ms.items():
            (families.answer_s.labels(name) if stage == "total" else families.stage_s.labels(name, stage)).observe(
                ms / 1e3
            )
        total_ms = response.stages_ms.get("total", 0.0)
        if deadline_ms is not None and total_ms > deadline_ms:
            families.deadline_misses.labels(name).inc()
        self._recent.append((time.monotonic(), total_ms, response.rung))

    def rung_failed(self, rung: str, reason: str) -> None:
        """Count a rung that was abandoned for a lower one, for one of ``REASONS``."""
        self._families.rung_failures.labels(self.name, rung, reason).inc()

    def breaker(self, rung: str, state: str) -> None:
        """Note that a rung's circuit breaker is now ``closed``, ``half_open`` or ``open``."""
        self._families.breaker.labels(self.name, rung).set(BREAKER_STATES[state])

    def batch(self, rung: str, num_requests: int) -> None:
        """Count a batch that a worker ran."""
        self._families.batch_requests.labels(self.name, rung).observe(num_requests)

    def watch_queue(self, depth: Callable[[], float]) -> None:
        """Ask ``depth`` at each scrape for the number of requests that wait."""
        self._families.queue_depth.labels(self.name).set_function(depth)

    def watch_erasing(self, waiting: Callable[[], float]) -> None:
        """Ask ``waiting`` at each scrape for the number of deleted users who are still in versions on disk."""
        self._families.erasing_users.labels(self.name).set_function(waiting)

    def events(self, accepted: int, duplicates: int) -> None:
        """Count events that were acknowledged."""
        self._families.events.labels(self.name, "accepted").inc(accepted)
        self._families.events.labels(self.name, "duplicate").inc(duplicates)

    def impressions(self, num_items: int) -> None:
        """Count items of a list that was logged."""
        self._families.impressions.labels(self.name).inc(num_items)

    def commit(self, num_writes: int, seconds: float) -> None:
        """Count a durable transaction of the store."""
        self._families.commit_writes.labels(self.name).observe(num_writes)
        self._families.commit_s.labels(self.name).observe(seconds)

    def store_up(self, up: bool) -> None:
        """Note whether the store last kept and read what it was asked to."""
        self._families.store_up.labels(self.name).set(float(up))

    def table(self, revision: int, num_items: int, num_cold: int) -> None:
        """Note the revision that answers show, its items, and how many of them the model was not fitted on."""
        self._families.table_revision.labels(self.name).set(revision)
        self._families.items.labels(self.name).set(num_items)
        self._families.cold_items.labels(self.name).set(num_cold)

    def serving(self, live: Version, canary: Version | None = None) -> None:
        """Note which versions answer, and count the change; one call at a time. Those of before are forgotten."""
        now = {arm: version for arm, version in zip(ARMS, (live, canary), strict=True) if version is not None}
        for arm, (model, codebook) in now.items():
            self._families.model_info.labels(self.name, arm, model, codebook or "").set(1)
        for arm, (model, codebook) in self._serving.items() - now.items():
            self._families.model_info.remove(self.name, arm, model, codebook or "")
        before = self._serving
        if before and before["live"] != live:
            self._count_swap("rollback" if live == self._previous else "publish")
            self._previous = before["live"]
        if before and before.get("canary") != canary:
            self._count_swap("canary")
        self._serving = now

    def _count_swap(self, kind: str) -> None:
        self._families.swaps.labels(self.name, kind).inc()

    def recent(self, seconds: float = 60.0) -> Recent:
        """Recommendations of the last ``seconds``, as far as the last 4,096 answers reach."""
        now = time.monotonic()
        rows = [row for row in list(self._recent) if now - row[0] <= seconds]
        # Where the memory is full, it reaches less far back than was asked for.
        span = now - rows[0][0] if len(rows) == NUM_RECENT else seconds
        times = sorted(ms for _, ms, _ in rows)
        counts = Tally(rung for _, _, rung in rows)
        rungs = {rung: counts[rung] for rung in RUNGS if rung in counts}
        return Recent(len(rows), len(rows) / max(span, 1e-3), _quantile(times, 0.5), _quantile(times, 0.99), rungs)


def _quantile(ascending: list[float], share: float) -> float | None:
    """The nearest-rank quantile."""
    return ascending[max(math.ceil(share * len(ascending)) - 1, 0)] if ascending else None
