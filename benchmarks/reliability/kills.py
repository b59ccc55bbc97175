"""The service killed at random moments while it takes events: is anything lost that it said was kept, or kept twice?

A round: writers send events over HTTP, single and in batches, some of them twice, and after a random time the service
gets SIGKILL. When it is there again, every event that was acknowledged must be there, once.
Rounds go on from where an earlier run of this script was stopped; a run with another store or commit begins anew.
"""

import argparse
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._record import record
from benchmarks._resume import keep, kept
from benchmarks.serving._service import Process, demo_bundle

FIGURES = (
    "serving.kills",
    "serving.kills_postgres",
    "serving.events_lost",
    "serving.events_twice",
    "serving.restart_s",
)

NUM_WRITERS = 8
LONGEST_S = 1.5
"""A round is killed at most this long after its first write."""


@dataclass
class Writer:
    """One user who sends events as fast as they are acknowledged, until the service is gone."""

    user_id: str
    items: list[str]
    seed: int
    acknowledged: set[str] = field(default_factory=set)
    sent: int = 0

    def run(self, service: Process) -> None:
        """Send until a request fails."""
        choose = random.Random(self.seed)
        earlier: list[dict[str, Any]] = []
        while True:
            events = [self._event(choose) for _ in range(choose.choice((1, 1, 5, 50)))]
            events += choose.sample(earlier, min(len(earlier), 2))  # sent twice
            self.sent += len(events)
            try:
                status, answer = service.ask("POST", "/api/events", {"events": events}, timeout_s=10)
            except OSError:
                return
            if status == 200:
                assert answer["accepted"] + answer["duplicates"] == len(events), answer
                self.acknowledged |= {event["event_id"] for event in events}
                earlier = events
            elif status not in (429, 503):
                raise RuntimeError(f"{status} {answer}")

    def _event(self, choose: random.Random) -> dict[str, Any]:
        number = choose.getrandbits(64)
        return {"event_id": f"{self.user_id}-{number:x}", "user_id": self.user_id, "item_id": choose.choice(self.items)}


def main() -> None:
    """Kill, count, and record when all rounds are done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.kills", description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("runs/serving"), help="where bundle, home and counts are kept"
    )
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--store", help="postgresql://… or redis://…; SQLite without it")
    parser.add_argument("--services", type=int, default=1, help="SQLite: as many at once, each with a home of its own")
    parser.add_argument("--no-record", action="store_true", help="only print")
    given = parser.parse_args()
    if given.store is not None and given.services > 1:
        parser.error("--services: several services cannot share one store: leave one of the two out")
    name = "sqlite" if given.store is None else given.store.partition(":")[0]
    counts = Counts.read(given.work / f"kills_{name}.json", name)
    bundle = demo_bundle(given.work)
    options = [] if given.store is None else ["--store", given.store]
    turn, numbers = threading.Lock(), iter(range(counts.kills, given.kills))

    def rounds(home: Path) -> None:
        service = Process(bundle, home, options=options)
        service.start()
        for number in numbers:
            found = one_round(service, number)
            with turn:
                counts.add(*found)
                print(counts, flush=True)
        service.kill()

    homes = [given.work / f"kills_home_{name}_{number}" for number in range(given.services)]
    with ThreadPoolExecutor(given.services) as pool:
        list(pool.map(rounds, homes))
    if not given.no_record:
        counts.record()


def one_round(service: Process, number: int) -> tuple[list[Writer], float, int, int]:
    """Write, kill, start, check: the writers, seconds until ready, events that are lost and that came twice."""
    choose = random.Random(number)
    items = [str(number) for number in range(50)]
    writers = [Writer(f"round{number}-{w}", items, choose.getrandbits(32)) for w in range(NUM_WRITERS)]
    threads = [threading.Thread(target=writer.run, args=(service,)) for writer in writers]
    for thread in threads:
        thread.start()
    time.sleep(choose.uniform(0.02, LONGEST_S))
    service.kill()
    for thread in threads:
        thread.join()
    seconds = service.start()
    lost = twice = 0
    for writer in writers:
        status, kept = service.ask("GET", f"/api/users/{writer.user_id}/export")
        assert status in (200, 404), kept
        ids = [] if status == 404 else [event["event_id"] for event in kept["events"]]
        lost += len(writer.acknowledged - set(ids))
        twice += len(ids) - len(set(ids))
    return writers, seconds, lost, twice


@dataclass
class Counts:
    """What the rounds found so far, kept in a file."""

    path: Path
    store: str
    kills: int = 0
    sent: int = 0
    acknowledged: int = 0
    lost: int = 0
    twice: int = 0
    restart_s: list[float] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, store: str) -> "Counts":
        """Those of an earlier run of this commit, else none."""
        return cls(path, **{"store": store, **kept(path)})

    def add(self, writers: list[Writer], seconds: float, lost: int, twice: int) -> None:
        """One more round."""
        self.kills += 1
        self.sent += sum(writer.sent for writer in writers)
        self.acknowledged += sum(len(writer.acknowledged) for writer in writers)
        self.lost, self.twice = self.lost + lost, self.twice + twice
        self.restart_s.append(seconds)
        keep(self.path, {name: value for name, value in vars(self).items() if name != "path"})

    def __str__(self) -> str:
        slowest = max(self.restart_s, default=0.0)
        return (
            f"{self.store}: {self.kills} kills, {self.acknowledged:,} of {self.sent:,} events acknowledged, "
            f"{self.lost} lost, {self.twice} twice; slowest restart {slowest:.2f} s"
        )

    def record(self) -> None:
        """Write the figures."""
        own = "" if self.store == "sqlite" else f"_{self.store.removesuffix('ql')}"
        protocol = f"{self}; {NUM_WRITERS} writers over HTTP"
        record(f"serving.kills{own}", self.kills, "kills", n=self.kills, protocol=protocol)
        record(f"serving.events_lost{own}", self.lost, "events", n=self.acknowledged, protocol=protocol)
        record(f"serving.events_twice{own}", self.twice, "events", n=self.acknowledged, protocol=protocol)
        times = sorted(self.restart_s)
        middle, most = times[len(times) // 2], times[-1]
        protocol += "; bounds are the fastest and the slowest"
        record(f"serving.restart_s{own}", middle, "s", low=times[0], high=most, n=len(times), protocol=protocol)


if __name__ == "__main__":
    main()
