"""How long one request takes: TIGER and Mosaic with five million parameters each, 50 beams, 50 answers, two threads."""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks._record import record
from benchmarks.decoding._setting import (
    MOSAIC_SHAPE,
    SEED,
    Setting,
    mosaic_of,
    network_of,
    num_parameters,
    read_setting,
    tiger_of,
)
from tesserec.nn.transformer import TransformerConfig
from tesserec.retrievers.mosaic import Mosaic
from tesserec.retrievers.tiger import TIGER
from tesserec.training.measure import Measured

FIGURES = ("decoding.request_ms.p50", "decoding.request_ms.p99")

TIGER_SHAPE = TransformerConfig(128, 5, 6, head_width=64, feedforward=8)
"""The paper's, with a layer more on either side."""
NUM_BEAMS = K = 50
NUM_WARM = 20
PERCENTILES = {"p50": 50.0, "p99": 99.0}
PROTOCOL = (
    "one request at a time, from its history of 20 items to 50 items with scores; untrained networks of {parameters} "
    "parameters without embeddings (T5: {layers} + {layers} layers of width {width}; Mosaic: {mosaic_layers} layers of "
    "width {mosaic_width}, its generative head), 50 beams, float32, {threads} threads; {requests} requests a round "
    "after {warm}, shapes in turn; median, smallest and largest of the rounds, of the slower shape: {told}"
)


def main() -> None:
    """Time both shapes in turns, and record the slower one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding.request", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder of the data sets: the catalogue of Beauty")
    parser.add_argument("--rounds", type=int, default=5, help="fewer than 5 are printed, not recorded (default: 5)")
    parser.add_argument("--requests", type=int, default=300, help="requests of a round (default: 300)")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads; recorded with 2 (default: 2)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    setting = read_setting(given.data)
    shapes: dict[str, TIGER | Mosaic] = {
        "T5": tiger_of(setting, TIGER_SHAPE, NUM_BEAMS),
        "Mosaic": mosaic_of(setting, MOSAIC_SHAPE),
    }
    found: dict[str, dict[str, list[float]]] = {name: {at: [] for at in PERCENTILES} for name in shapes}
    peak = 0
    for number in range(given.rounds):
        for name, retriever in shapes.items():
            with Measured() as cost:
                times_ms = request_times_ms(retriever, setting, number * given.requests, given.requests)
            peak = max(peak, cost.peak_rss_bytes)
            for at, percent in PERCENTILES.items():
                found[name][at].append(float(np.percentile(times_ms, percent)))
        print(f"round {number + 1}:", {n: {at: round(v[-1], 1) for at, v in f.items()} for n, f in found.items()})
    parameters = [num_parameters(network_of(retriever))[1] for retriever in shapes.values()]
    assert min(parameters) >= 5_000_000, f"{parameters} parameters: the figure is of five millions"
    protocol = PROTOCOL.format(
        parameters=" and ".join(f"{number:,}" for number in parameters),
        layers=TIGER_SHAPE.num_layers,
        width=TIGER_SHAPE.width,
        mosaic_layers=MOSAIC_SHAPE.num_layers,
        mosaic_width=MOSAIC_SHAPE.width,
        threads=given.threads,
        requests=given.requests,
        warm=NUM_WARM,
        told="; ".join(
            f"{name} " + ", ".join(f"{at} {statistics.median(v):.1f} ms" for at, v in f.items())
            for name, f in found.items()
        ),
    )
    print(protocol)
    if given.rounds >= 5 and given.threads == 2:
        save(found, setting.dataset, protocol, peak)


def request_times_ms(retriever: TIGER | Mosaic, setting: Setting, start: int, number: int) -> list[float]:
    """Milliseconds of each of ``number`` requests from ``start`` on, those to warm up left out."""
    times = []
    for place in range(start, start + NUM_WARM + number):
        request = setting.take(place, 1)
        before = time.perf_counter()
        answer = retriever.retrieve(request, K)
        times.append(1e3 * (time.perf_counter() - before))
        assert answer.items_BK.shape == (1, K)
    return times[NUM_WARM:]


def save(found: dict[str, dict[str, list[float]]], dataset: str, protocol: str, peak_rss_bytes: int) -> None:
    """A line a percentile: that of the slower shape."""
    for at in PERCENTILES:
        slower = max(found.values(), key=lambda shape: statistics.median(shape[at]))[at]
        record(
            f"decoding.request_ms.{at}",
            statistics.median(slower),
            "ms",
            low=min(slower),
            high=max(slower),
            n=len(slower),
            dataset=dataset,
            protocol=protocol,
            seeds=(SEED,),
            peak_rss_bytes=peak_rss_bytes,
        )


if __name__ == "__main__":
    main()
