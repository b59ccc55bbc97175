"""How fast 20 million synthetic events are read from Parquet, and in how much memory beside what comes out."""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FIGURES = ("data.ingest_20m.peak_ratio", "data.ingest_20m.events_per_s")

NUM_EVENTS, NUM_USERS, NUM_ITEMS = 20_000_000, 1_000_000, 500_000
SEED = 0
TWO_YEARS_S = 2 * 365 * 24 * 3600
PROTOCOL = (
    "Zipf(1) items, users of power-law activity (exponent 0.5), uniform times over two years in random order; "
    "user_id, item_id, timestamp as int64 in Parquet (Snappy, row groups of 2^20, file cache warm); "
    "median, smallest and largest of n fresh processes; peak is VmHWM over the resident size after imports"
)


def main() -> None:
    """Generate the events, read them in fresh processes, record both figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__)
    parser.add_argument("--events", type=int, default=NUM_EVENTS, help="another size is printed, not recorded")
    parser.add_argument("--processes", type=int, default=3, help="fresh processes (default: 3)")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="read FILE in this process and print the figures")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.parquet"
        arrow_bytes = generate(path, arguments.events)
        runs = [in_fresh_process(path) for _ in range(arguments.processes)]
    ratios = sorted(run["peak_bytes"] / arrow_bytes for run in runs)
    rates = sorted(arguments.events / run["seconds"] for run in runs)
    print(f"peak / Arrow size: {ratios}\nevents a second: {rates}")
    if arguments.events == NUM_EVENTS:
        peak = int(max(run["rss_bytes"] for run in runs))
        save("data.ingest_20m.peak_ratio", ratios, "ratio", peak, "the Arrow size of the three columns")
        save("data.ingest_20m.events_per_s", rates, "1/s", peak, None)


def save(figure: str, values: list[float], unit: str, peak_rss_bytes: int, against: str | None) -> None:
    """One line for the median of ``values``, which are sorted."""
    from benchmarks._record import record

    record(
        figure,
        values[len(values) // 2],
        unit,
        low=values[0],
        high=values[-1],
        n=len(values),
        against=against,
        dataset="synthetic: 20M events, 1M users, 500k items",
        protocol=PROTOCOL,
        seeds=(SEED,),
        peak_rss_bytes=peak_rss_bytes,
    )


def generate(path: Path, num_events: int, num_users: int = NUM_USERS) -> int:
    """Write the events; every user and item occurs where there are enough events. Returns the Arrow size in bytes."""
    rng = np.random.default_rng(SEED)
    columns = {}
    for name, count, exponent in (("user_id", num_users, 0.5), ("item_id", NUM_ITEMS, 1.0)):
        weights = np.arange(1, count + 1) ** -exponent
        ranks = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(num_events)).clip(max=count - 1)
        ranks[:count] = np.arange(count)[:num_events]
        columns[name] = rng.permutation(rng.permutation(count)[ranks] + 1)
    columns["timestamp"] = 1_600_000_000 + rng.integers(0, TWO_YEARS_S, num_events)
    table = pa.table(columns)
    pq.write_table(table, path, row_group_size=1 << 20)
    return int(table.nbytes)


def in_fresh_process(path: Path) -> dict[str, float]:
    """What ``measure`` finds in a new interpreter."""
    command = [sys.executable, "-m", "benchmarks.ingest", "--measure", str(path)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def measure(path: Path) -> dict[str, float]:
    """Seconds, peak resident bytes, and these less the resident bytes after imports."""
    from tesserec.data import read_events

    before = memory_bytes("VmRSS")
    start = time.perf_counter()
    events = read_events(path)
    seconds = time.perf_counter() - start
    assert len(events) == pq.ParquetFile(path).metadata.num_rows
    return {"seconds": seconds, "peak_bytes": memory_bytes("VmHWM") - before, "rss_bytes": memory_bytes("VmHWM")}


def memory_bytes(name: str) -> int:
    """A size from /proc/self/status, which starts anew with each process."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, f"/proc/self/status has no {name}: measure on Linux"
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
