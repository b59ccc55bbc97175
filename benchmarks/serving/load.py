"""Load on the service: how much it takes, how long an answer lasts, and what happens when too much is asked.

The service and the generator share the machine's cores; the share that the generator took is in the protocol.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks._record import record
from benchmarks.serving import _load
from benchmarks.serving._constant import Constant
from benchmarks.serving._service import Process, demo_bundle

FIGURES = (
    "serving.saturation_per_s",
    "serving.p50_ms.*",
    "serving.p99_ms.*",
    "serving.goodput_3x",
    "serving.refused_3x",
    "serving.generative_share.*",
    "serving.http_ms.*",
    "serving.engine_ms.*",
)

K = 20
PAUSE_S = 10.0
"""Before each round: a rung that was too slow in the last one is left alone for some seconds."""
HISTORY = (1, 20)
"""Length of the histories of anonymous requests, from … to."""


def bodies(bundle: Path, number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Requests: half of known users, half with a history of items."""
    random = np.random.default_rng(seed)
    users = pl.read_parquet(bundle / "users.parquet")["user_id"].cast(pl.String).to_list()
    items = pl.read_parquet(bundle / "items.parquet")["item_id"].cast(pl.String).to_list()
    out: list[dict[str, Any]] = []
    for i in range(number):
        if i % 2:
            out.append({"user_id": users[random.integers(len(users))], "k": K})
        else:
            length = int(random.integers(HISTORY[0], HISTORY[1] + 1))
            out.append({"history": [items[j] for j in random.integers(len(items), size=length)], "k": K})
    return out


def main() -> None:
    """Measure, and record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.load", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/serving"), help="where the fitted bundle is kept")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=3, help="of all loads; fewer are printed, not recorded")
    given = parser.parse_args()
    bundle = demo_bundle(given.work)
    with tempfile.TemporaryDirectory() as folder:
        service = Process(bundle, Path(folder) / "home")
        service.start()
        try:
            rounds = [measure(service, bundle, given.seconds, seed) for seed in range(given.rounds)]
            peak = service.peak_bytes()
        finally:
            service.stop()
    report(rounds, peak, given.seconds, recorded=given.rounds >= 3)


def measure(service: Process, bundle: Path, seconds: float, seed: int) -> dict[str, float]:
    """One round of all loads; what it found, by name."""
    requests = [_load.post("/api/recommend", body, service.key) for body in bodies(bundle, 2000, seed)]
    load = partial(_load.Load, "127.0.0.1", service.port, requests, seed=seed)
    time.sleep(PAUSE_S)
    _load.run(load(0, 3, 8))  # warm
    found = layer(service, bundle, seed)
    full = _load.run(load(0, seconds, 32, keep=True))
    saturation = full.ok / full.seconds
    found |= {"generative_100": generative_share(full), "saturation": saturation}
    found["client_share"] = full.cpu_s / full.seconds / (os.cpu_count() or 1)
    found["failed"] = full.other_than(200, 429)
    for percent in (50, 80):
        some = _load.run(load(saturation * percent / 100, seconds, keep=True))
        found |= {f"p50_{percent}": some.quantile(0.5), f"p99_{percent}": some.quantile(0.99)}
        found[f"generative_{percent}"] = generative_share(some)
        found["failed"] += some.other_than(200)
    many = _load.run(load(saturation * 3, seconds, 512))
    found |= {"goodput": many.ok / many.seconds / saturation, "p99_3x": many.quantile(0.99)}
    found["refused"] = many.statuses.get(429, 0) / max(sum(many.statuses.values()), 1)
    found["failed"] += many.other_than(200, 429)
    return found


def generative_share(outcome: _load.Outcome) -> float:
    """Of the answers, those of the highest rung; the others are of what could answer in time."""
    return float(np.mean([json.loads(body)["rung"] == "generative" for _, body in outcome.bodies]))


def layer(service: Process, bundle: Path, seed: int) -> dict[str, float]:
    """What HTTP adds to the engine's own time, one request at a time, beside an endpoint that answers a constant."""
    requests = [_load.post("/api/recommend", body, service.key) for body in bodies(bundle, 400, seed + 1)]
    answers = _load.run(_load.Load("127.0.0.1", service.port, requests, 0, 5.0, 1, keep=True))
    stages = [json.loads(body)["stages_ms"] for _, body in answers.bodies]
    own_ms = np.array([stage["total"] for stage in stages])
    over_ms = answers.latencies_ms - own_ms
    constant = Constant()
    try:
        plain = _load.run(_load.Load("127.0.0.1", constant.port, requests, 0, 5.0, 1))
    finally:
        constant.stop()
    return {
        "generative_1": generative_share(answers),
        "http_p50": float(np.median(over_ms)),
        "http_p99": float(np.quantile(over_ms, 0.99)),
        "own_p50": float(np.median(own_ms)),
        "own_p99": float(np.quantile(own_ms, 0.99)),
        "constant_p50": plain.quantile(0.5),
    }


def report(rounds: Sequence[dict[str, float]], peak_bytes: int, seconds: float, recorded: bool) -> None:
    """Print the medians over rounds, and record them."""
    failed = sum(int(one["failed"]) for one in rounds)
    common = (
        f"{os.cpu_count()} cores for service and generator, which took {median(rounds, 'client_share'):.0%} of them at "
        f"saturation; loads of {seconds:g} s, k = {K}, key, validation and impressions on; "
        f"{failed} answers with another status than 200 or 429"
    )
    figures = {
        "serving.saturation_per_s": ("saturation", "1/s", "closed loop of 32 connections"),
        "serving.p50_ms.at_50": ("p50_50", "ms", "open loop at 50 % of saturation"),
        "serving.p99_ms.at_50": ("p99_50", "ms", "open loop at 50 % of saturation"),
        "serving.p50_ms.at_80": ("p50_80", "ms", "open loop at 80 % of saturation"),
        "serving.p99_ms.at_80": ("p99_80", "ms", "open loop at 80 % of saturation"),
        "serving.generative_share.alone": (
            "generative_1",
            "share",
            "answers of the highest rung, one request at a time",
        ),
        "serving.generative_share.at_50": ("generative_50", "share", "answers of the highest rung, 50 % of saturation"),
        "serving.generative_share.at_80": ("generative_80", "share", "answers of the highest rung, 80 % of saturation"),
        "serving.generative_share.at_100": ("generative_100", "share", "answers of the highest rung, closed loop"),
        "serving.goodput_3x": ("goodput", "ratio", "open loop at 3 times saturation; the rest is refused with 429"),
        "serving.refused_3x": ("refused", "share", "open loop at 3 times saturation"),
        "serving.p99_ms.at_300": ("p99_3x", "ms", "of what was answered at 3 times saturation"),
        "serving.http_ms.p50": ("http_p50", "ms", "latency less the engine's own time, one request at a time"),
        "serving.http_ms.p99": ("http_p99", "ms", "latency less the engine's own time, one request at a time"),
        "serving.engine_ms.p50": ("own_p50", "ms", "the engine's own time, one request at a time"),
        "serving.engine_ms.p99": ("own_p99", "ms", "the engine's own time, one request at a time"),
        "serving.http_ms.constant_p50": (
            "constant_p50",
            "ms",
            "the whole of a FastAPI endpoint that answers a constant",
        ),
    }
    for figure, (name, unit, what) in figures.items():
        values = [one[name] for one in rounds]
        print(f"{figure:32} {median(rounds, name):10.3f} {unit:6} [{min(values):.3f}, {max(values):.3f}]  {what}")
        if recorded:
            record(
                figure,
                median(rounds, name),
                unit,
                low=min(values),
                high=max(values),
                n=len(rounds),
                dataset="online-retail",
                protocol=f"{what}; {common}; bounds are the least and the most of the rounds",
                seeds=range(len(rounds)),
                peak_rss_bytes=peak_bytes,
            )
    print(common)


def median(rounds: Sequence[dict[str, float]], name: str) -> float:
    """Of one number over the rounds."""
    return float(np.median([one[name] for one in rounds]))


if __name__ == "__main__":
    main()
