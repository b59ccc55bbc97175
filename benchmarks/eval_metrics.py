"""How fast a million lists of a hundred items are judged by all ranking metrics, and in how much memory."""

import argparse
import json
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

from benchmarks.ingest import memory_bytes
from tesserec.evaluation.metrics import METRICS, item_ranks, order_ranks
from tesserec.types import Candidates, Ragged

FIGURES = ("eval.1m_s", "eval.1m_peak_bytes")

NUM_REQUESTS, NUM_CANDIDATES, NUM_ITEMS = 1_000_000, 100, 50_000
KS = (5, 10, 100)
SEED = 0
PROTOCOL = (
    "lists of 100 int64 items with float32 scores and 1 to 3 relevant items each, half of them in the list; ranks of "
    f"the relevant items, then the mean of {', '.join(METRICS)} at k = 5, 10 and 100, without intervals; one "
    "thread; median, fastest and slowest of n rounds in one fresh process"
)


def main() -> None:
    """Measure in a fresh process and record both figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.eval_metrics", description=__doc__)
    parser.add_argument("--requests", type=int, default=NUM_REQUESTS, help="another number is printed, not recorded")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    parser.add_argument("--measure", action="store_true", help="measure in this process and print")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.requests, arguments.rounds)))
        return
    command = [sys.executable, "-m", "benchmarks.eval_metrics", "--measure"]
    command += ["--requests", str(arguments.requests), "--rounds", str(arguments.rounds)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(json.dumps(found))
    if arguments.requests == NUM_REQUESTS:
        save(found)


def save(found: dict[str, list[float]]) -> None:
    """One line for the time and one for the memory."""
    from benchmarks._record import record

    seconds, (total, inputs, growth) = found["seconds"], map(int, found["bytes"])
    dataset = "synthetic: 1M requests, lists of 100, 50,000 items"
    record(
        "eval.1m_s",
        statistics.median(seconds),
        "s",
        low=min(seconds),
        high=max(seconds),
        n=len(seconds),
        dataset=dataset,
        protocol=f"{PROTOCOL}; {statistics.median(found['cpu_seconds']):.2f} CPU seconds a round (median)",
        seeds=(SEED,),
        peak_rss_bytes=total,
    )
    record(
        "eval.1m_peak_bytes",
        total,
        "bytes",
        n=1,
        dataset=dataset,
        protocol=f"VmHWM of the whole process while it judges; {inputs:,} bytes of it are the lists and relevant "
        f"items, and judging them added {growth:,} to what was resident before it",
        seeds=(SEED,),
        peak_rss_bytes=total,
    )


def inputs(num_requests: int) -> tuple[Candidates, Ragged]:
    """Lists of distinct items, best first, and one to three relevant items each, of which half are in the list.

    A list is an arithmetic progression of items round the catalog: distinct, and cheap to make in place.
    """
    rng = np.random.default_rng(SEED)
    first_B, step_B = rng.integers(0, NUM_ITEMS, num_requests), rng.integers(1, 400, num_requests)
    items_BK = first_B[:, None] + step_B[:, None] * np.arange(NUM_CANDIDATES)
    items_BK %= NUM_ITEMS
    scores_BK = np.empty((num_requests, NUM_CANDIDATES), dtype=np.float32)
    scores_BK[:] = np.arange(NUM_CANDIDATES, 0, -1)
    counts_B = rng.integers(1, 4, num_requests)
    rows_M = np.repeat(np.arange(num_requests), counts_B)
    places_M = (np.arange(len(rows_M)) * 37) % (2 * NUM_CANDIDATES)
    values_M = (first_B[rows_M] + step_B[rows_M] * places_M) % NUM_ITEMS
    offsets = np.concatenate([[0], counts_B.cumsum()])
    relevant = Ragged(torch.from_numpy(offsets), torch.from_numpy(values_M))
    return Candidates(torch.from_numpy(items_BK), torch.from_numpy(scores_BK)), relevant


def measure(num_requests: int, rounds: int) -> dict[str, list[float]]:
    """Seconds and CPU seconds of each round, and bytes: the peak of the process, the inputs, and what judging added."""
    torch.set_num_threads(1)
    candidates, relevant = inputs(num_requests)
    tensors = (candidates.items_BK, candidates.scores_BK, relevant.offsets, relevant.values)
    before = memory_bytes("VmRSS")
    # 5 clears VmHWM, so that the peak of making the inputs is not counted as one of judging them.
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    seconds, cpu_seconds = [], []
    for _ in range(rounds):
        start, cpu_start = time.perf_counter(), time.process_time()
        judge(candidates, relevant)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    peak = memory_bytes("VmHWM")
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "bytes": [peak, sum(t.nbytes for t in tensors), peak - before],
    }


def judge(candidates: Candidates, relevant: Ragged) -> dict[str, float]:
    """The mean of every metric at every cut-off."""
    ranks = order_ranks(relevant.offsets, item_ranks(candidates, relevant))
    return {f"{name}{k}": float(metric(ranks, k).nanmean()) for name, metric in METRICS.items() for k in KS}


if __name__ == "__main__":
    main()
