"""How fast, in how much memory and how well residual k-means codes a million vectors, beside scikit-learn and faiss."""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ingest import memory_bytes

FIGURES = (
    "sids.rq_kmeans.1m_s",
    "sids.rq_kmeans.1m_peak_ratio",
    "sids.rq_kmeans.error_vs_sklearn",
    "sids.rq_kmeans.vs_sklearn",
    "sids.rq_kmeans.vs_faiss",
    "sids.rq_kmeans.encode_items_per_s",
)

NUM_ITEMS, NUM_FEATURES = 1_000_000, 256
NUM_LEVELS, CODEBOOK_SIZE = 4, 256
SEED, THREADS = 0, 2
STREAMED_PASSES, BATCH_SIZE = 10, 65_536
BRANCHES = ((40, 1.0), (30, 0.6), (20, 0.4))
"""Children of a node and the length of their offsets, from the root of the hierarchy of the vectors down."""
NOISE = 0.5
PROTOCOL = (
    f"{NUM_LEVELS} levels of {CODEBOOK_SIZE} codes, from float32 vectors in memory to the codes of all of them, fit "
    f"included; {THREADS} threads; every measurement in a fresh process, methods in turn; median, smallest and largest "
    "of n rounds"
)
DATASET = (
    "synthetic: 1M x 256, a tree of 40 x 30 x 20 centres (offsets of length 1, 0.6 and 0.4, leaves of Zipf(0.7) "
    "popularity) and noise of length 0.5"
)


def main() -> None:
    """Make the vectors, measure each method in fresh processes, record the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.semantic_ids.kmeans", description=__doc__)
    parser.add_argument("--items", type=int, default=NUM_ITEMS, help="another number is printed, not recorded")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes a method (default: 3)")
    parser.add_argument("--measure", choices=METHODS, help="measure this method in this process and print")
    parser.add_argument("--vectors", type=Path, metavar="FILE", help="the vectors (.npy) that --measure reads")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.vectors)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.npy"
        np.save(path, vectors(arguments.items))
        rounds: list[dict[str, dict[str, Any]]] = []
        for number in range(arguments.rounds):
            rounds.append({})
            for method in METHODS if number == 0 else [m for m in METHODS if m not in ONLY_SHOWN]:
                rounds[-1][method] = in_fresh_process(method, path)
                print(f"round {number}, {method}: {json.dumps(rounds[-1][method])}", flush=True)
    if arguments.items == NUM_ITEMS:
        save(rounds)


def vectors(num_items: int, num_features: int = NUM_FEATURES) -> np.ndarray[Any, Any]:
    """Vectors [N, D] float32: the path of an item through a tree of centres, of which some are popular, and noise."""
    rng = np.random.default_rng(SEED)
    counts = [children for children, _ in BRANCHES]
    weights = np.arange(1, math.prod(counts) + 1) ** -0.7
    leaf_N = rng.permutation(len(weights))[rng.choice(len(weights), num_items, p=weights / weights.sum())]
    out_ND = rng.standard_normal((num_items, num_features), dtype=np.float32)
    out_ND *= NOISE / math.sqrt(num_features)
    for depth, (_, length) in enumerate(BRANCHES, start=1):
        offsets_ND = rng.standard_normal((math.prod(counts[:depth]), num_features), dtype=np.float32)
        offsets_ND *= length / math.sqrt(num_features)
        node_N = leaf_N // math.prod(counts[depth:])
        for start in range(0, num_items, BATCH_SIZE):
            out_ND[start : start + BATCH_SIZE] += offsets_ND[node_N[start : start + BATCH_SIZE]]
    return out_ND


def in_fresh_process(method: str, path: Path) -> dict[str, Any]:
    """What ``measure`` finds in a new interpreter."""
    command = [sys.executable, "-m", "benchmarks.semantic_ids.kmeans", "--measure", method, "--vectors", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "OPENBLAS_NUM_THREADS": str(THREADS)}
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return dict(json.loads(found.stdout))


def measure(method: str, path: Path) -> dict[str, Any]:
    """Seconds, peak bytes over those after imports, and the mean squared error of each level, of one method."""
    run = METHODS[method]()
    before = memory_bytes("VmRSS")
    features_ND = np.load(path)
    start, cpu_start = time.perf_counter(), time.process_time()
    codes_NL, codebooks, more = run(features_ND)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = memory_bytes("VmHWM")
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_ratio": (peak - before) / features_ND.nbytes,
        "rss_bytes": peak,
        "errors": errors(features_ND, codes_NL, codebooks),
        **more(),
    }


def errors(
    features_ND: np.ndarray[Any, Any], codes_NL: np.ndarray[Any, Any], codebooks: list[np.ndarray[Any, Any]]
) -> list[float]:
    """The mean squared error of the vectors after each level."""
    sums = np.zeros(len(codebooks))
    for start in range(0, len(features_ND), BATCH_SIZE):
        rest_BD = features_ND[start : start + BATCH_SIZE]
        for level, codebook_CD in enumerate(codebooks):
            rest_BD = rest_BD - codebook_CD[codes_NL[start : start + BATCH_SIZE, level]]
            sums[level] += float(np.square(rest_BD).sum(dtype=np.float64))
    return [float(total) / len(features_ND) for total in sums]


Found = tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]], Callable[[], dict[str, float]]]
"""Codes [N, L], codebooks [C, D], and what is measured after the clock has stopped."""
Run = Callable[[np.ndarray[Any, Any]], Found]


def tesserec() -> Run:
    """``ResidualKMeans``; afterwards the vectors are encoded ten times over, in a stream of batches."""
    import sklearn.cluster  # noqa: F401  # what a fit imports when it needs it: no method's imports are timed
    import torch

    from tesserec.semantic_ids import ResidualKMeans
    from tesserec.types import SideInformation

    torch.set_num_threads(THREADS)

    def run(features_ND: np.ndarray[Any, Any]) -> Found:
        quantizer = ResidualKMeans(num_levels=NUM_LEVELS, codebook_size=CODEBOOK_SIZE)
        features = torch.from_numpy(features_ND)
        quantizer.fit(features, SideInformation(seed=SEED))
        codes_NL = quantizer.encode(features).numpy()

        def stream() -> dict[str, float]:
            before, start, num_items = memory_bytes("VmHWM"), time.perf_counter(), 0
            for _ in range(STREAMED_PASSES):
                for batch in torch.split(features, BATCH_SIZE):
                    num_items += len(quantizer.encode(batch))
            seconds = time.perf_counter() - start
            growth = memory_bytes("VmHWM") - before
            return {"encode_items_per_s": num_items / seconds, "streamed": num_items, "stream_growth_bytes": growth}

        return codes_NL, [c.numpy() for c in quantizer.state().tensors.values()], stream

    return run


def sklearn() -> Run:
    """Level by level ``MiniBatchKMeans`` with its defaults on what the levels before left over."""
    from sklearn.cluster import MiniBatchKMeans

    def run(features_ND: np.ndarray[Any, Any]) -> Found:
        rest_ND, codes, codebooks = features_ND, [], []
        for level in range(NUM_LEVELS):
            model = MiniBatchKMeans(CODEBOOK_SIZE, random_state=SEED + level).fit(rest_ND)
            codes.append(model.labels_)
            codebooks.append(model.cluster_centers_)
            if level + 1 < NUM_LEVELS:
                rest_ND = rest_ND - codebooks[-1][codes[-1]]
        return np.stack(codes, 1), codebooks, dict

    return run


def faiss(beam_size: int) -> Run:
    """``faiss.ResidualQuantizer`` with its defaults but for the width of the beam."""
    import faiss as library

    library.omp_set_num_threads(THREADS)
    assert CODEBOOK_SIZE == 256, "one byte a code is read below"

    def run(features_ND: np.ndarray[Any, Any]) -> Found:
        quantizer = library.ResidualQuantizer(NUM_FEATURES, NUM_LEVELS, 8)
        quantizer.max_beam_size = beam_size
        quantizer.train(features_ND)
        codes_NL = quantizer.compute_codes(features_ND)
        codebooks = library.vector_to_array(quantizer.codebooks).reshape(NUM_LEVELS, CODEBOOK_SIZE, NUM_FEATURES)
        return codes_NL, list(codebooks), dict

    return run


METHODS: dict[str, Callable[[], Run]] = {
    "tesserec": tesserec,
    "sklearn": sklearn,
    "faiss_beam_1": lambda: faiss(1),
    "faiss_beam_5": lambda: faiss(5),
}

ONLY_SHOWN = ("faiss_beam_5",)
"""No figure is a ratio to these, which take minutes: one round is enough."""


def save(rounds: list[dict[str, dict[str, Any]]]) -> None:
    """One line a figure."""
    runs = {method: [found[method] for found in rounds if method in found] for method in METHODS}
    own = runs["tesserec"]
    peak = max(run["rss_bytes"] for run in own)
    beside = "; ".join(
        f"{method} {statistics.median(r['seconds'] for r in found):.1f} s, "
        f"peak {max(r['peak_ratio'] for r in found):.2f} times the vectors"
        for method, found in runs.items()
    )
    growth = max(run["stream_growth_bytes"] for run in own)
    streamed = f"{own[0]['streamed']:,} items in batches of {BATCH_SIZE:,}, which add {growth:,} bytes to the peak"
    by_level = [
        [round(statistics.median(r["errors"][level] for r in runs[method]), 5) for level in range(NUM_LEVELS)]
        for method in ("tesserec", "sklearn", "faiss_beam_1")
    ]
    errors_protocol = f"{PROTOCOL}; mean squared errors by level: {by_level} (tesserec, sklearn, faiss_beam_1)"
    figure("1m_s", [r["seconds"] for r in own], "s", peak, protocol=f"{PROTOCOL}; {beside}")
    figure(
        "1m_peak_ratio",
        [r["peak_ratio"] for r in own],
        "ratio",
        peak,
        against="the bytes of the vectors, themselves held",
    )
    worst = [max(a / b for a, b in zip(r["tesserec"]["errors"], r["sklearn"]["errors"], strict=True)) for r in rounds]
    against = "MiniBatchKMeans on residuals; the level that compares worst"
    figure("error_vs_sklearn", worst, "ratio", peak, against=against, protocol=errors_protocol)
    for name, method in (("vs_sklearn", "sklearn"), ("vs_faiss", "faiss_beam_1")):
        faster = [r[method]["seconds"] / r["tesserec"]["seconds"] for r in rounds]
        figure(name, faster, "ratio", peak, against=f"seconds of {method} over ours", protocol=f"{PROTOCOL}; {beside}")
    rates = [run["encode_items_per_s"] for run in own]
    figure("encode_items_per_s", rates, "1/s", peak, protocol=f"{PROTOCOL}; encoding only: {streamed}")


def figure(
    name: str,
    values: list[float],
    unit: str,
    peak_rss_bytes: int,
    *,
    against: str | None = None,
    protocol: str = PROTOCOL,
) -> None:
    """One line for the median of ``values``."""
    from benchmarks._record import record

    record(
        f"sids.rq_kmeans.{name}",
        statistics.median(values),
        unit,
        low=min(values),
        high=max(values),
        n=len(values),
        against=against,
        dataset=DATASET,
        protocol=protocol,
        seeds=(SEED,),
        peak_rss_bytes=peak_rss_bytes,
    )


if __name__ == "__main__":
    main()
