"""How long ``import tesserec`` takes in a fresh process."""

import argparse
import statistics
import subprocess
import sys

from benchmarks._record import record

FIGURES = ("house.import_s",)

TIMED = "import time; start = time.perf_counter(); import tesserec; print(time.perf_counter() - start)"


def main() -> None:
    """Measure and record; the first process only warms the file cache."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.house", description=__doc__)
    parser.add_argument("--processes", type=int, default=11, help="fresh processes to time (default: 11)")
    count = parser.parse_args().processes
    seconds = [import_seconds() for _ in range(count + 1)][1:]
    middle = statistics.median(seconds)
    record(
        "house.import_s",
        middle,
        "s",
        low=min(seconds),
        high=max(seconds),
        n=count,
        protocol="median, fastest and slowest of n fresh processes, file cache warm",
    )
    print(f"import tesserec: {middle:.4f} s (median of {count} processes)")


def import_seconds() -> float:
    """Seconds that the import statement takes in a new interpreter."""
    run = subprocess.run([sys.executable, "-c", TIMED], check=True, capture_output=True, text=True)
    return float(run.stdout)


if __name__ == "__main__":
    main()
