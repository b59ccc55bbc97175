"""Requests with random filters while items change: is anything ever shown that may not be at the revision it names?

One thread puts, patches, hides and deletes items, one after the other, and notes what each item is from each revision
on. Meanwhile requests come with filters, exclusions and histories, in this process or over HTTP. Afterwards each item
of each answer is held against what was noted for the revision that the answer names: it has to be there, available and
not deleted, to pass the filter (a predicate in Python, not the service's), and not to be excluded, had or shown twice.
It goes in parts, each with a fresh home, and on from where an earlier run of this script was stopped; a run of another
commit begins anew.
"""

import argparse
import asyncio
import bisect
import itertools
import json
import random
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from benchmarks._record import record
from benchmarks._resume import keep, kept
from benchmarks.serving import _load
from benchmarks.serving._service import Process, demo_bundle
from tesserec.serving.schemas import ItemIn, RecommendRequest

FIGURES = ("serving.illegal",)

NUM_IN_PROCESS = 1_000_000
NUM_HTTP = 100_000
PART = {"in_process": 50_000, "http": 10_000}
"""Requests after which counts are kept."""
K = 20
BATCH = 512
NUM_FILTERS = 8
"""New ones for each batch."""
PAUSE_S = 0.02
"""Between two changes."""

Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class State:
    """What an item is from a revision on."""

    attributes: Attributes
    available: bool = True
    deleted: bool = False


@dataclass
class Truth:
    """What each item was at each revision."""

    revisions: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    states: dict[str, list[State]] = field(default_factory=lambda: defaultdict(list))

    def note(self, revision: int, item_id: str, state: State) -> None:
        """From this revision on the item is so."""
        self.revisions[item_id].append(revision)
        self.states[item_id].append(state)

    def at(self, revision: int, item_id: str) -> State | None:
        """What an item was; None where it was not there yet."""
        position = bisect.bisect_right(self.revisions.get(item_id, []), revision)
        return self.states[item_id][position - 1] if position else None

    def now(self, item_id: str) -> State:
        """The latest."""
        return self.states[item_id][-1]


class Shop(Protocol):
    """Where items are changed; each method returns the revision that has the change."""

    def put(self, item_id: str, attributes: Attributes, available: bool) -> int:
        """Keep an item."""

    def patch(self, item_id: str, attributes: Attributes, available: bool | None) -> int:
        """Change it."""

    def delete(self, item_id: str) -> int:
        """Take it away."""


class Changes(threading.Thread):
    """Changes items at random until it is stopped."""

    def __init__(self, shop: Shop, truth: Truth, seed: int) -> None:
        super().__init__(name="changes")
        self.shop, self.truth, self.random = shop, truth, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.stopped = threading.Event()
        self.turn = threading.Lock()
        """Who holds it knows that every change that was begun is noted."""
        self.error: Exception | None = None

    def run(self) -> None:
        """One change after the other."""
        try:
            while not self.stopped.wait(PAUSE_S):
                with self.turn:
                    self.change()
        except Exception as error:  # the main thread raises it
            self.error = error

    def change(self) -> None:
        """One of them."""
        kind = self.random.choices(("hide", "show", "price", "delete", "new"), (4, 3, 4, 1, 0.3))[0]
        known = [item for item in self.random.sample(sorted(self.truth.states), 50) if not self.truth.now(item).deleted]
        item_id = known[0]
        before = self.truth.now(item_id)
        if kind == "new":
            item_id = f"new{sum(self.counts.values())}"
            state = State({"title": f"{before.attributes['title']} MARK II", "price": self.random.uniform(0.1, 20)})
            revision = self.shop.put(item_id, state.attributes, True)
        elif kind == "delete":
            state, revision = State({}, False, True), self.shop.delete(item_id)
        elif kind == "price":
            price = round(self.random.uniform(0.1, 20), 2)
            state = State({**before.attributes, "price": price}, before.available)
            revision = self.shop.patch(item_id, {"price": price}, None)
        else:
            state = State(before.attributes, kind == "show")
            revision = self.shop.patch(item_id, {}, kind == "show")
        self.truth.note(revision, item_id, state)
        self.counts[kind] += 1

    def stop(self) -> None:
        """Stop, and raise what went wrong."""
        self.stopped.set()
        self.join()
        if self.error is not None:
            raise self.error


@dataclass(frozen=True)
class Ask:
    """A request, and what its filter means."""

    request: RecommendRequest
    holds: Callable[[Attributes], bool]


def asks(users: Sequence[str], items: Sequence[str], seed: int) -> Iterator[Ask]:
    """Requests at random, without end."""
    choose = random.Random(seed)
    for number in itertools.count():
        if number % BATCH == 0:  # requests of one filter are answered together, which is many times as fast
            filters = [some_filter(choose) for _ in range(NUM_FILTERS)]
        text, holds = choose.choice(filters)
        given: dict[str, Any] = {"k": K, "filter": text, "exclude_history": choose.random() < 0.5}
        if choose.random() < 0.5:
            given["user_id"] = choose.choice(users)
            given["exclude_history"] = False  # what a user had is checked where the request says it
        else:
            given["history"] = choose.choices(items, k=choose.randint(1, 20))
        if choose.random() < 0.3:
            given["exclude"] = choose.choices(items, k=choose.randint(1, 50))
        yield Ask(RecommendRequest(**given), holds)


def some_filter(choose: random.Random) -> tuple[str | None, Callable[[Attributes], bool]]:
    """A filter, and the same in Python. A missing value holds for nothing."""
    low = round(choose.uniform(0.3, 12), 2)
    word = choose.choice(("red", "bag", "heart", "set of", "christmas", "metal", "pink", "box", "t"))
    return choose.choice(
        [
            (None, lambda _: True),
            (f"price < {low}", lambda a: a["price"] is not None and a["price"] < low),
            (f"{low} <= price < {2 * low}", lambda a: a["price"] is not None and low <= a["price"] < 2 * low),
            (f'contains(title, "{word}")', lambda a: word in (a["title"] or "").lower()),
            (
                f'not contains(title, "{word}") and price >= {low}',
                lambda a: (
                    a["title"] is not None
                    and word not in a["title"].lower()
                    and a["price"] is not None
                    and a["price"] >= low
                ),
            ),
            (
                f'price > {3 * low} or starts_with(title, "{word}")',
                lambda a: (
                    (a["price"] is not None and a["price"] > 3 * low) or (a["title"] or "").lower().startswith(word)
                ),
            ),
        ]
    )


def faults(ask: Ask, answer: Mapping[str, Any], truth: Truth) -> Iterator[str]:
    """What is wrong with an answer."""
    request, revision = ask.request, answer["table_revision"]
    shown = [item["item_id"] for item in answer["items"]]
    if len(set(shown)) < len(shown):
        yield "twice"
    for item_id in shown:
        state = truth.at(revision, item_id)
        if state is None or state.deleted:
            yield "not there"
        elif not state.available:
            yield "unavailable"
        elif not ask.holds(state.attributes):
            yield "filtered"
        if item_id in request.exclude:
            yield "excluded"
        if request.exclude_history and item_id in (request.history or ()):
            yield "had"


def first_truth(bundle: Path) -> tuple[Truth, list[str], list[str]]:
    """The bundle's catalog, its users and its items."""
    frame = pl.read_parquet(bundle / "catalog.parquet").with_columns(pl.col("item_id").cast(pl.String))
    truth = Truth()
    for row in frame.iter_rows(named=True):
        truth.note(0, row.pop("item_id"), State(row))
    users = pl.read_parquet(bundle / "users.parquet")["user_id"].cast(pl.String).to_list()
    return truth, users, frame["item_id"].to_list()


def in_process(bundle: Path, home: Path, number: int, seed: int) -> tuple[Counter[str], Counter[str]]:
    """So many requests to an engine of this process; what was found, and what was changed."""
    from tesserec.serving.opening import begin
    from tesserec.serving.service import Service

    truth, users, items = first_truth(bundle)
    with Service(home) as service, _loop() as loop:
        begin(home, "default", bundle)
        service.start()
        engine = service.shop("default").engine

        class Own:
            def put(self, item_id: str, attributes: Attributes, available: bool) -> int:
                from tesserec.serving.records import Item

                return wait(engine.put_items([Item(item_id, dict(attributes), available)]))

            def patch(self, item_id: str, attributes: Attributes, available: bool | None) -> int:
                return wait(engine.patch_item(item_id, dict(attributes), available))

            def delete(self, item_id: str) -> int:
                return wait(engine.delete_item(item_id))

        def wait(coroutine: Any) -> int:
            return int(asyncio.run_coroutine_threadsafe(coroutine, loop).result())

        changes, found = Changes(Own(), truth, seed), Counter[str]()
        changes.start()
        source = asks(users, items, seed)
        while found["requests"] < number:
            batch = [next(source) for _ in range(min(BATCH, number - found["requests"]))]
            answers = engine.recommend_many([ask.request for ask in batch])
            tally(found, [(ask, answer.model_dump()) for ask, answer in zip(batch, answers, strict=True)], changes)
        changes.stop()
    return found, changes.counts


def over_http(bundle: Path, home: Path, number: int, seed: int) -> tuple[Counter[str], Counter[str]]:
    """So many requests over HTTP; what was found, and what was changed."""
    truth, users, items = first_truth(bundle)
    service = Process(bundle, home)
    service.start()

    class Remote:
        def put(self, item_id: str, attributes: Attributes, available: bool) -> int:
            body = ItemIn(attributes=dict(attributes), available=available).model_dump()
            return self._revision(service.ask("PUT", f"/api/items/{item_id}", body))

        def patch(self, item_id: str, attributes: Attributes, available: bool | None) -> int:
            body = {"attributes": attributes, "available": available}
            return self._revision(service.ask("PATCH", f"/api/items/{item_id}", body))

        def delete(self, item_id: str) -> int:
            return self._revision(service.ask("DELETE", f"/api/items/{item_id}"))

        def _revision(self, reply: tuple[int, Any]) -> int:
            assert reply[0] == 200, reply
            return int(reply[1]["table_revision"])

    changes, found = Changes(Remote(), truth, seed), Counter[str]()
    changes.start()
    source = asks(users, items, seed)
    try:
        while found["requests"] < number:
            batch = [next(source) for _ in range(min(10_000, number - found["requests"]))]
            requests = [
                _load.post("/api/recommend", ask.request.model_dump(exclude_defaults=True), service.key)
                for ask in batch
            ]
            load = _load.Load("127.0.0.1", service.port, requests, 0, 3600, 16, keep=True, most=len(requests))
            outcome = _load.run(load)
            found["failed"] += outcome.other_than(200)
            tally(found, [(batch[number_], json.loads(body)) for number_, body in outcome.bodies], changes)
    finally:
        changes.stop()
        service.stop()
    return found, changes.counts


def tally(found: Counter[str], answers: Sequence[tuple[Ask, Mapping[str, Any]]], changes: Changes) -> None:
    """Count answers, items, rungs and faults, while nothing changes: what an answer can name is noted."""
    with changes.turn:
        for ask, answer in answers:
            found["requests"] += 1
            found["items"] += len(answer["items"])
            found[f"rung {answer['rung']}"] += 1
            for fault in faults(ask, answer, changes.truth):
                found[fault] += 1
                found["illegal"] += 1


def _loop() -> Any:
    from contextlib import contextmanager

    @contextmanager
    def running() -> Iterator[asyncio.AbstractEventLoop]:
        loop = asyncio.new_event_loop()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(loop.run_forever)
            try:
                yield loop
            finally:
                loop.call_soon_threadsafe(loop.stop)

    return running()


def in_parts(
    path: Path, bundle: Path, ask: Callable[..., tuple[Counter[str], Counter[str]]], number: int, part: int
) -> tuple[Counter[str], Counter[str]]:
    """So many requests, counts kept at ``path`` after each part."""
    table = kept(path)
    found, changes = Counter[str](table.get("found", {})), Counter[str](table.get("changes", {}))
    while found["requests"] < number:
        with tempfile.TemporaryDirectory() as folder:
            some = ask(bundle, Path(folder) / "home", min(part, number - found["requests"]), found["requests"])
        found, changes = found + some[0], changes + some[1]
        keep(path, {"found": found, "changes": changes})
        print(f"{path.stem}: {dict(found)}", flush=True)
    return found, changes


def main() -> None:
    """Ask, check, and record at full size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.illegal", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/serving"), help="where the fitted bundle is kept")
    parser.add_argument("--in-process", type=int, default=NUM_IN_PROCESS)
    parser.add_argument("--http", type=int, default=NUM_HTTP, help="fewer of either are printed, not recorded")
    given = parser.parse_args()
    bundle = demo_bundle(given.work)
    found, changes = {}, Counter[str]()
    for way, ask, number in (("in_process", in_process, given.in_process), ("http", over_http, given.http)):
        found[way], changed = in_parts(given.work / f"illegal_{way}.json", bundle, ask, number, PART[way])
        changes += changed
    both = found["in_process"] + found["http"]
    protocol = (
        f"{found['in_process']['requests']:,} requests in process and {found['http']['requests']:,} over HTTP during "
        f"{sum(changes.values()):,} changes of items ({dict(changes)}); {both['items']:,} items shown; "
        f"{both['failed']} requests failed"
    )
    print(protocol)
    if given.in_process >= NUM_IN_PROCESS and given.http >= NUM_HTTP:
        record("serving.illegal", both["illegal"], "items", n=both["requests"], protocol=protocol)


if __name__ == "__main__":
    main()
