"""``Engine``: one shop's recommendations, without HTTP.

    recommend ─► filter ─► history ─► ladder (queue, model) ─► slate ─► response, and an impression for the store

Every stage of a request uses the model and the snapshot that were current when it came, so that an answer never mixes
versions. The event loop only waits: filters and rules are computed in one pool of threads, the store is read in
another, so that a slow store does not hold up filters, and models answer in the workers of the ladder.

The history is waited for until half of the deadline is over; then the answer is what is popular, and a note says so.
Filters, exclusions and availability always hold, whatever else fails.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from tesserec.config import Field, component
from tesserec.errors import ServiceError, StoreError, UnknownIdError
from tesserec.serving.asked import Asked, times_shown
from tesserec.serving.combined import answered_by_top_rungs, with_cold
from tesserec.serving.deployment import LIVE, Deployment
from tesserec.serving.histories import Histories
from tesserec.serving.impression_log import ImpressionLog
from tesserec.serving.ladder import Climbed, Ladder
from tesserec.serving.live_catalog import Live, LiveCatalog
from tesserec.serving.loaded_model import LoadedModel
from tesserec.serving.observer import Observer
from tesserec.serving.pasts import Question
from tesserec.serving.recent import RecentRequests
from tesserec.serving.records import Event, Item, Store, Value
from tesserec.serving.schemas import RecommendRequest, RecommendResponse, SearchResponse, SimilarItem, SimilarResponse
from tesserec.serving.snapshot import CatalogSnapshot
from tesserec.serving.tracing import Tracing

__all__ = ["Engine", "EngineConfig", "Overloaded"]

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")

WEEK_S = 7 * 86_400.0
NUM_ITEM_LOCKS = 64
LATE_HISTORY = "the history could not be read in time: popular items of the moment"
MANY = 256
"""Requests that ``recommend_many`` answers at once."""


class Overloaded(ServiceError):
    """As many requests are worked on as may be."""


@component
class EngineConfig:
    """How one namespace answers."""

    max_in_flight: Annotated[int, Field(ge=1)] = 512
    """Requests that are worked on at once; those beyond are refused."""
    history_limit: Annotated[int, Field(ge=1)] = 1000
    """Events of a user that are read, the last ones; older ones are neither read nor excluded."""
    num_histories: Annotated[int, Field(ge=1)] = 10_000
    """Users whose histories are kept in memory, those asked for last."""
    num_recent: Annotated[int, Field(ge=0)] = 256
    """Requests that a new model is warmed up with."""
    log_impressions: bool = True
    """Whether the lists that were answered are kept in the store."""
    reading_threads: Annotated[int, Field(ge=1)] = 4
    """Reads of the store at once."""


class Engine:
    """Answers for one namespace. Its coroutines are used from one event loop; the rest from any thread."""

    def __init__(
        self,
        store: Store,
        deployment: Deployment[LiveCatalog[LoadedModel]],
        ladder: Ladder,
        *,
        config: EngineConfig | None = None,
        recent: RecentRequests | None = None,
        observer: Observer | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """``recent`` is what ``deployment`` warms up new models with; ``ladder`` may be shared by namespaces."""
        self.config = config or EngineConfig()
        self.ladder = ladder
        self.recent_requests = RecentRequests(self.config.num_recent) if recent is None else recent
        self.histories = Histories(store, self.config.num_histories)
        self._store, self._deployment = store, deployment
        self._observer = observer or Observer()
        self._tracing = tracing or Tracing()
        self._impressions = ImpressionLog(store, self._observer)
        self._reads = ThreadPoolExecutor(self.config.reading_threads, "reads")
        self._rules = ThreadPoolExecutor(2, "rules")
        self._items = ThreadPoolExecutor(1, "items")
        self._revision = 0
        self._in_flight = 0
        self._item_locks = [asyncio.Lock() for _ in range(NUM_ITEM_LOCKS)]

    @property
    def in_flight(self) -> int:
        """Requests for recommendations that are worked on."""
        return self._in_flight

    async def recommend(
        self, request: RecommendRequest, *, key_id: str | None = None, shown: bool = True
    ) -> RecommendResponse:
        """The best items for a request, within its deadline.

        Raises ``Overloaded`` where too many requests are worked on already, ``FilterError`` and ``DataError`` for rules
        that cannot be followed. ``key_id`` names the caller in the debug log. Where not ``shown``, nobody but an
        operator sees the list: it is not kept as an impression.
        """
        if self._in_flight >= self.config.max_in_flight:
            raise Overloaded(f"{self._in_flight} requests are worked on already: ask again later")
        self._in_flight += 1
        try:
            response = await self._recommend(request, shown)
            LOGGER.debug("%s was answered to key %s", response.response_id, key_id)
            return response
        finally:
            self._in_flight -= 1

    def recommend_many(self, requests: Sequence[RecommendRequest]) -> list[RecommendResponse]:
        """The same for many requests at once, each by the highest rung of its model and without a deadline. Blocks."""
        responses = []
        for start in range(0, len(requests), MANY):
            responses += self._answered_together(requests[start : start + MANY])
        return responses

    async def similar(self, item_id: str, k: int = 10, filter: str | None = None) -> SimilarResponse:  # noqa: A002  # as in the API
        """The items most like one, best first; raises ``UnknownIdError`` where it is not known, or ``FilterError``."""
        model, snapshot, _ = await self._live(LIVE)
        index = snapshot.index(item_id)
        if index is None or snapshot.deleted_N[index]:
            raise UnknownIdError(f"there is no item {item_id!r}")
        found = await self._in(self._rules, lambda: model.similar(index, k, snapshot.mask(filter)))
        return SimilarResponse(
            item_id=item_id,
            items=_similar_items(found, snapshot),
            model_version=model.version,
            codebook_version=model.codebook_version,
            table_revision=snapshot.revision,
        )

    async def search(self, query: str, k: int = 10, filter: str | None = None) -> SearchResponse:  # noqa: A002  # as in the API
        """The items that match words, best first; raises ``FilterError``."""
        model, snapshot, live = await self._live(LIVE)
        found = await self._in(self._rules, lambda: live.search(query, k, snapshot.mask(filter)))
        return SearchResponse(
            query=query,
            items=_similar_items(found, snapshot),
            model_version=model.version,
            codebook_version=model.codebook_version,
            table_revision=snapshot.revision,
        )

    async def put_items(self, items: Sequence[Item]) -> int:
        """Keep items; the revision, which is on disk and live. Raises ``DataError`` for attributes of a wrong type."""
        async with AsyncExitStack() as locks:
            for number in sorted({hash(item.item_id) % NUM_ITEM_LOCKS for item in items}):
                await locks.enter_async_context(self._item_locks[number])
            for live in self._catalogs():
                for item in items:
                    if not item.deleted:
                        live.check_item(item.attributes)
            return await self._put(items)

    async def patch_item(self, item_id: str, attributes: Mapping[str, Value], available: bool | None = None) -> int:
        """Change some attributes of an item (null removes one) or its availability; the revision, live.

        Raises ``UnknownIdError`` for an item that is not known or deleted, ``DataError`` for a value of a wrong type.
        """
        async with self._item_locks[hash(item_id) % NUM_ITEM_LOCKS]:
            _, snapshot, live = await self._live(LIVE)
            index = snapshot.index(item_id)
            if index is None or snapshot.deleted_N[index]:
                raise UnknownIdError(f"there is no item {item_id!r}: put it as a whole")
            return await self._put([live.patched(item_id, attributes, available)])

    async def delete_item(self, item_id: str) -> int:
        """Never show an item again, until it is put anew; the revision, live. Raises ``UnknownIdError``."""
        async with self._item_locks[hash(item_id) % NUM_ITEM_LOCKS]:
            _, snapshot, _ = await self._live(LIVE)
            index = snapshot.index(item_id)
            if index is None or snapshot.deleted_N[index]:
                raise UnknownIdError(f"there is no item {item_id!r}")
            return await self._put([Item(item_id, {}, available=False, deleted=True)])

    async def add_events(self, events: Sequence[Event]) -> tuple[int, int]:
        """Keep events; how many are new, and how many were known. They are on disk, and the next answer knows them.

        Raises ``StoreError`` where they could not be kept.
        """
        future = self._store.add_events(events)
        # In the committer's thread, before anybody is told: also when who sent them went away meanwhile.
        future.add_done_callback(lambda _: self.histories.added(events))
        new = await self._stored(future)
        accepted = sum(new)
        self._observer.events(accepted, len(new) - accepted)
        return accepted, len(new) - accepted

    async def delete_user(self, user_id: str) -> int:
        """Remove every event and impression of a user; how many rows went."""
        future = self._store.delete_user(user_id)

        def forget(_: Future[int]) -> None:
            self.histories.forget(user_id)
            self.recent_requests.forget(user_id)

        future.add_done_callback(forget)
        return await self._stored(future)

    def import_events(self, source: str, batches: Iterator[Sequence[Event]]) -> int:
        """Keep a history in bulk under the name ``source``, once; how many events were new. Blocks."""
        users: set[str] = set()

        def noted() -> Iterator[Sequence[Event]]:
            for batch in batches:
                users.update(event.user_id for event in batch)
                yield batch

        try:
            return self._store.import_events(source, noted())
        finally:
            for user_id in users:
                self.histories.forget(user_id)

    def refresh(self) -> int:
        """Take over what the store says of the items; the revision that is live. Blocks."""
        revisions = [live.refresh() for live in self._catalogs()]
        self._revision = max(self._revision, *revisions)
        _, snapshot = self._deployment.serving.live.model.snapshot
        num_cold = len(snapshot) - snapshot.num_fitted
        self._observer.table(snapshot.revision, len(snapshot), num_cold)
        return min(revisions)

    def close(self) -> None:
        """Let go of the threads; what is under way is finished."""
        self._impressions.flush()
        self._reads.shutdown(wait=False, cancel_futures=True)
        self._rules.shutdown(wait=False, cancel_futures=True)
        self._items.shutdown(wait=False, cancel_futures=True)

    async def _recommend(self, request: RecommendRequest, shown: bool) -> RecommendResponse:
        begun = time.monotonic()
        asked = await self._begin(request)
        deadline_ms = self.ladder.config.deadline_ms if request.deadline_ms is None else request.deadline_ms
        total_s = deadline_ms / 1e3
        with _timed(asked, "filter", self._tracing):
            if request.filter is None and request.query is None:
                mask_N = asked.mask()
            else:
                mask_N = await self._in(self._rules, asked.mask)
        with _timed(asked, "history", self._tracing):
            await self._read_history(asked, begun + total_s / 2)
        question = asked.question(mask_N)
        with self._tracing.span("model") as span:
            climbed = await self.ladder.answer(asked.model, question, begun + total_s, total_s)
            span.set_attribute("rung", climbed.rung)
            span.set_attribute("model_version", asked.model.version)
        response = await self._finish(asked, question, climbed, begun + total_s, total_s)
        # After the reply is on its way: nobody waits for it.
        asyncio.get_running_loop().call_soon(self._log, asked, response, deadline_ms, shown)
        return response

    async def _begin(self, request: RecommendRequest) -> Asked:
        serving = self._deployment.serving
        arm = serving.arm_of(request.user_id)
        live = serving.of(arm).model
        model, snapshot = await self._current(live)
        return Asked(request, live, model, snapshot, arm)

    async def _read_history(self, asked: Asked, until: float) -> None:
        user_id = asked.request.user_id
        if user_id is None:
            return
        kept = self.histories.kept(user_id, self.config.history_limit)
        if kept is not None:
            asked.events = kept
            return
        # A plain future, and none that is waited for once it is cancelled: each turn of a busy loop takes its time.
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(self._reads, self.histories.of, user_id, self.config.history_limit)
        await asyncio.wait({reading}, timeout=max(0.0, until - time.monotonic()))
        if not reading.done():
            reading.cancel()
            asked.notes.append(LATE_HISTORY)
            return
        try:
            asked.events = reading.result()
        except StoreError as error:
            LOGGER.error("the history of a user could not be read: %s", error)
            asked.notes.append(LATE_HISTORY)
            self._observer.store_up(False)

    async def _finish(
        self, asked: Asked, question: Question, climbed: Climbed, deadline: float, total_s: float
    ) -> RecommendResponse:
        """The slate of an answer as a response; rules are computed in a thread, and a plain cut here."""
        if not asked.has_rules:
            with _timed(asked, "slate", self._tracing):
                slate = asked.slate(climbed.answered.answer, {})
            return asked.response(climbed, slate)
        with _timed(asked, "slate", self._tracing):
            cold = asked.cold_question(question)
            if cold is not None:
                climbed = with_cold(climbed, await self.ladder.answer(asked.model, cold, deadline, total_s))
            shown = await self._shown(asked)
            answer = climbed.answered.answer
            slate = await self._in(self._rules, lambda: asked.slate(answer, shown))
        if not asked.request.explain:
            return asked.response(climbed, slate)
        with _timed(asked, "explain", self._tracing):
            explained = await self._in(self._rules, lambda: asked.explained(climbed, question, slate))
        return asked.response(climbed, slate, explained)

    async def _shown(self, asked: Asked) -> dict[str, int]:
        """How often the user was shown items lately without doing anything, where it is asked for."""
        user_id = asked.request.user_id
        if not asked.request.rotate or user_id is None:
            return {}
        await self._impressions.settled(user_id)  # what was answered a moment ago counts too
        impressions = await self._in(self._reads, lambda: self._store.impressions_of(user_id, time.time() - WEEK_S))
        return times_shown(impressions, asked.events)

    def _log(self, asked: Asked, response: RecommendResponse, deadline_ms: float | None, shown: bool) -> None:
        """What happens after an answer: nobody waits for it."""
        request = asked.request
        self.recent_requests.add(request.user_id, asked.events, request.history or (), request.k)
        self._observer.answered(response, request.scenario, deadline_ms)
        if self.config.log_impressions and shown:
            self._impressions.add(asked.impression(response))

    def _answered_together(self, requests: Sequence[RecommendRequest]) -> list[RecommendResponse]:
        asked = [self._begin_now(request) for request in requests]
        questions = []
        for one in asked:
            user_id = one.request.user_id
            if user_id is not None:
                one.events = self.histories.of(user_id, self.config.history_limit)
            questions.append(one.question(one.mask()))
        climbed = answered_by_top_rungs([one.model for one in asked], questions)
        responses = []
        for one, question, answer in zip(asked, questions, climbed, strict=True):
            responses.append(self._finish_now(one, question, answer))
        if self.config.log_impressions:
            kept = [one.impression(response) for one, response in zip(asked, responses, strict=True)]
            self._impressions.keep(kept).result()
        return responses

    def _begin_now(self, request: RecommendRequest) -> Asked:
        serving = self._deployment.serving
        arm = serving.arm_of(request.user_id)
        live = serving.of(arm).model
        if live.snapshot.catalog.revision < self._revision:
            live.refresh()
        model, snapshot = live.snapshot
        return Asked(request, live, model, snapshot, arm)

    def _finish_now(self, asked: Asked, question: Question, climbed: Climbed) -> RecommendResponse:
        shown: dict[str, int] = {}
        user_id = asked.request.user_id
        if asked.has_rules:
            cold = asked.cold_question(question)
            if cold is not None:
                climbed = with_cold(climbed, answered_by_top_rungs([asked.model], [cold])[0])
            if asked.request.rotate and user_id is not None:
                impressions = self._store.impressions_of(user_id, time.time() - WEEK_S)
                shown = times_shown(impressions, asked.events)
        slate = asked.slate(climbed.answered.answer, shown)
        explained = asked.explained(climbed, question, slate) if asked.request.explain else None
        return asked.response(climbed, slate, explained)

    async def _put(self, items: Sequence[Item]) -> int:
        revision = await self._stored(self._store.put_items(items))
        await self._in(self._items, self.refresh)
        return revision

    def _catalogs(self) -> list[LiveCatalog[LoadedModel]]:
        serving = self._deployment.serving
        return [one.model for one in (serving.live, serving.canary) if one is not None]

    async def _live(self, arm: str) -> tuple[LoadedModel, CatalogSnapshot, LiveCatalog[LoadedModel]]:
        live = self._deployment.serving.of(arm).model
        model, snapshot = await self._current(live)
        return model, snapshot, live

    async def _current(self, live: LiveCatalog[LoadedModel]) -> Live[LoadedModel]:
        """The model and snapshot of a catalog; one that was not live until now first takes over what it missed."""
        if live.snapshot.catalog.revision < self._revision:
            await self._in(self._items, live.refresh)
        return live.snapshot

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    async def _stored(self, future: Future[T]) -> T:
        """What a write of the store returns; whether it could is told."""
        try:
            result = await asyncio.wrap_future(future)
        except StoreError:
            self._observer.store_up(False)
            raise
        self._observer.store_up(True)
        return result


@dataclass
class _timed:  # noqa: N801  # a context manager
    """Notes the milliseconds of a stage, and traces it."""

    asked: Asked
    stage: str
    tracing: Tracing

    def __enter__(self) -> None:
        self._span = self.tracing.span(self.stage)
        self._span.__enter__()
        self._since = time.perf_counter()

    def __exit__(self, *error: Any) -> None:
        self.asked.stages_ms[self.stage] = 1e3 * (time.perf_counter() - self._since)
        self._span.__exit__(*error)


def _similar_items(found: Sequence[tuple[int, float]], snapshot: CatalogSnapshot) -> list[SimilarItem]:
    return [
        SimilarItem(item_id=snapshot.items.ids[index].as_py(), score=score, rank=rank, title=snapshot.titles[index])
        for rank, (index, score) in enumerate(found, 1)
    ]
