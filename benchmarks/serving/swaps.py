"""A thousand swaps between two bundles under load: does a request fail or wait, are versions mixed?

Half of what the service can take is asked of it, first without swaps, then while an administrator rolls back from one
version to the other and back. Each answer must be, item by item, the list of the version that it names. Both versions
stay in memory; what a swap costs that has to read a third bundle from disk first is measured apart. So is what swaps
leave in memory: under load it grows for some minutes, with and without swaps.
"""

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._record import record
from benchmarks.serving import _load
from benchmarks.serving._service import Process, demo_bundle
from benchmarks.serving.load import bodies

FIGURES = (
    "serving.swap.failed",
    "serving.swap.mixed",
    "serving.swap.p99_ratio",
    "serving.swap.rss_bytes_per_swap",
    "serving.swap.cold_p99_ratio",
)

NUM_SWAPS = 1000
NUM_COLD = 30
NUM_REQUESTS = 400
"""Different requests, whose lists by each version are known."""
PAUSE_S = 0.1
"""Between two swaps."""


def main() -> None:
    """Swap, and record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.swaps", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/serving"), help="where the fitted bundles are kept")
    parser.add_argument("--swaps", type=int, default=NUM_SWAPS, help="fewer are printed, not recorded")
    given = parser.parse_args()
    bundles = [demo_bundle(given.work, seed=seed) for seed in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        service = Process(bundles[0], Path(folder) / "home")
        service.start()
        try:
            measure(service, bundles, given.swaps)
        finally:
            service.stop()


def measure(service: Process, bundles: Sequence[Path], num_swaps: int) -> None:
    """All of it, on a service of the first bundle."""
    versions = [live_version(service), *(service.publish(bundle) for bundle in bundles[1:])]
    requests = [_load.post("/api/recommend", body, service.key) for body in bodies(bundles[0], NUM_REQUESTS)]
    expected = {version: lists_of(service, version, requests) for version in versions}
    load = partial(_load.Load, "127.0.0.1", service.port, requests)
    full = _load.run(load(0, 10, 32))
    rate = full.ok / full.seconds / 2
    memory = [service.rss_bytes()]
    steady = _load.run(load(rate, max(num_swaps * PAUSE_S, 10)))
    memory.append(service.rss_bytes())
    publish(service, versions[0])
    publish(service, versions[1])
    memory.append(service.rss_bytes())
    swapped, seconds = under_load(service, partial(load, rate), partial(roll_back, service), num_swaps)
    memory.append(service.rss_bytes())
    in_turn = itertools.cycle(versions)
    cold, _ = under_load(
        service, partial(load, rate), lambda: publish(service, next(in_turn)), min(NUM_COLD, num_swaps)
    )
    idle = []
    for _ in range(num_swaps):
        roll_back(service)
        idle.append(service.rss_bytes())
    failed = swapped.other_than(200) + cold.other_than(200)
    mixed = sum(is_mixed(*answer, expected) for answer in (*swapped.bodies, *cold.bodies))
    slope = float(np.polyfit(range(len(idle)), idle, 1)[0])
    grown = [f"{(after - before) / 2**20:.0f} MiB" for before, after in (memory[:2], memory[2:], (idle[0], idle[-1]))]
    common = (
        f"{num_swaps} swaps of two versions in {seconds:.0f} s, {rate:.0f} requests a second, 50 % of saturation; "
        f"{os.cpu_count()} cores for service and generator, which took "
        f"{swapped.cpu_s / swapped.seconds / (os.cpu_count() or 1):.0%} of them; "
        f"p99 {steady.quantile(0.99):.1f} ms steady, {swapped.quantile(0.99):.1f} ms with swaps; "
        f"memory grew by {grown[0]} in {steady.seconds:.0f} s of load without swaps, by {grown[1]} in {seconds:.0f} s "
        f"with them, and by {grown[2]} with as many swaps and no requests, which is what a swap is charged with; "
        f"answers by status: {swapped.statuses}, and {cold.statuses} while bundles were published"
    )
    ratio = swapped.quantile(0.99) / steady.quantile(0.99)
    cold_ratio = cold.quantile(0.99) / steady.quantile(0.99)
    n = len(swapped.bodies) + len(cold.bodies)
    for figure, value, unit, number in (
        ("serving.swap.failed", failed, "requests", n),
        ("serving.swap.mixed", mixed, "answers", n),
        ("serving.swap.p99_ratio", ratio, "ratio", num_swaps),
        ("serving.swap.rss_bytes_per_swap", slope, "bytes", num_swaps),
        ("serving.swap.cold_p99_ratio", cold_ratio, "ratio", min(NUM_COLD, num_swaps)),
    ):
        print(f"{figure:34} {value:12.4g} {unit}")
        if num_swaps >= NUM_SWAPS:
            record(figure, value, unit, n=number, dataset="online-retail", protocol=common)
    print(common)


def under_load(service: Process, load: Any, swap: Callable[[], None], number: int) -> tuple[_load.Outcome, float]:
    """Swap so often while requests come; the outcome, and seconds."""
    begun = time.perf_counter()
    swap()
    swap()
    each = (time.perf_counter() - begun) / 2
    # Longer than the swaps can take: the generator is told to stop by its own clock, so its length has to be known.
    outcome = _load.start(load(2 + number * (PAUSE_S + 2 * each), keep=True))
    time.sleep(1.0)
    begun = time.perf_counter()
    for _ in range(number):
        swap()
        time.sleep(PAUSE_S)
    seconds = time.perf_counter() - begun
    return outcome(), seconds


def live_version(service: Process) -> str:
    """The version that answers."""
    return str(service.ask("GET", "/api/admin/versions")[1]["live"])


def publish(service: Process, version: str) -> None:
    """Make a version live."""
    status, answer = service.ask("POST", "/api/admin/publish", {"version": version, "force": True}, timeout_s=120)
    assert status == 200, answer


def roll_back(service: Process) -> None:
    """Make the version before live again, and the live one the one before."""
    status, answer = service.ask("POST", "/api/admin/rollback", timeout_s=120)
    assert status == 200, answer


def lists_of(service: Process, version: str, requests: Sequence[bytes]) -> list[tuple[str, list[str]]]:
    """The rung and the list of each request while ``version`` is live: the first rung, where a user has a history."""
    publish(service, version)
    found = _load.run(_load.Load("127.0.0.1", service.port, requests, 0, 600, 1, keep=True, most=len(requests)))
    answers = [json.loads(body) for _, body in sorted(found.bodies)]
    assert len(answers) == len(requests), found.statuses
    assert {answer["model_version"] for answer in answers} == {version}
    assert {answer["rung"] for answer in answers} <= {"generative", "popularity"}
    return [(answer["rung"], items_of(answer)) for answer in answers]


def items_of(answer: dict[str, Any]) -> list[str]:
    """What was shown."""
    return [item["item_id"] for item in answer["items"]]


def is_mixed(number: int, body: bytes, expected: dict[str, list[tuple[str, list[str]]]]) -> bool:
    """Whether an answer of the rung that is known is not the list of the version that it names."""
    answer = json.loads(body)
    rung, items = expected[answer["model_version"]][number]
    return bool(answer["rung"] == rung and items_of(answer) != items)


if __name__ == "__main__":
    main()
