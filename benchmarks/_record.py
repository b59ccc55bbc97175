"""One JSON line a figure: what was measured, where, with what, and how to measure it again.

Every benchmark script calls ``record``; ``make docs`` turns the lines into docs/results.md. The latest line of a figure
counts, so a new measurement is appended and an old one is never edited.
"""

import datetime
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tesserec.training.measure import machine, versions

__all__ = ["RESULTS", "ROOT", "commit", "record"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

WRITTEN_BY_RUNS = ("benchmarks/results", "docs", "README.md")
"""What measuring changes itself; it does not make a commit "dirty"."""


def record(
    figure: str,
    value: float,
    unit: str,
    *,
    low: float | None = None,
    high: float | None = None,
    n: int = 1,
    against: str | None = None,
    dataset: str | None = None,
    protocol: str | None = None,
    seeds: Sequence[int] = (),
    peak_rss_bytes: int | None = None,
    command: str | None = None,
    results: Path = RESULTS,
) -> dict[str, Any]:
    """Append one line to ``results/<area>.jsonl`` and return it; the area is the first part of the figure's name.

    ``low`` and ``high`` bound ``value`` (a 95 % interval unless ``protocol`` says otherwise), ``n`` counts what was
    averaged, ``against`` names the other side of a ratio or difference. ``command`` measures the figure again; by
    default it is the command line of this process. Raises ``ValueError`` for a name without an area, a value that is
    not finite and an interval that does not hold the value.
    """
    if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", figure):
        raise ValueError(f"figure {figure!r} must be lower-case parts joined by dots, such as house.import_s")
    if not math.isfinite(value):
        raise ValueError(f"{figure} is {value}: only a finite value is a result")
    if not (value if low is None else low) <= value <= (value if high is None else high):
        raise ValueError(f"{figure} is {value}, outside its own interval [{low}, {high}]")
    line = {
        "figure": figure,
        "value": value,
        "unit": unit,
        "low": low,
        "high": high,
        "n": n,
        "against": against,
        "dataset": dataset,
        "protocol": protocol,
        "seeds": list(seeds),
        "peak_rss_bytes": peak_rss_bytes,
        "command": command or own_command(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    results.mkdir(parents=True, exist_ok=True)
    with (results / f"{figure.partition('.')[0]}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return line


def own_command() -> str:
    """The command line of this process, without the path of its interpreter."""
    return shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])


def commit() -> str:
    """The commit that is checked out, with "-dirty" where tracked or new files differ from it."""
    changed = _git("status", "--porcelain", "--", ".", *(f":!{path}" for path in WRITTEN_BY_RUNS))
    return _git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
