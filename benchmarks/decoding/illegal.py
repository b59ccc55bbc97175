"""Ten million generated results: how many of them are illegal, repeated or filtered."""

import argparse

import torch

from benchmarks._record import record
from tesserec.testing.decoding import MISTAKES, count_mistakes
from tesserec.training.measure import Measured

FIGURES = ("decoding.illegal",)

NUM_RESULTS = 10_000_000
PROTOCOL = (
    "{results:,} results of {runs:,} batches of 64 requests: random tries of up to 400 items and 4 levels, random "
    "models, a quarter of them with ties, random filters of every kind, 1 to 40 beams; {mistakes}"
)


def main() -> None:
    """Generate, count, and record at full size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding.illegal", description=__doc__)
    parser.add_argument("--results", type=int, default=NUM_RESULTS, help="fewer are printed, not recorded")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with Measured() as cost:
        counts = count_mistakes(given.results)
    mistakes = ", ".join(f"{counts[name]} {name}" for name in MISTAKES)
    protocol = PROTOCOL.format(results=counts["results"], runs=counts["runs"], mistakes=mistakes)
    print(protocol)
    if given.results == NUM_RESULTS:
        record(
            "decoding.illegal",
            sum(counts[name] for name in MISTAKES),
            "results",
            n=counts["results"],
            protocol=protocol,
            peak_rss_bytes=cost.peak_rss_bytes,
        )


if __name__ == "__main__":
    main()
