"""The API against schemathesis: every check that it has, on a real service, with links between operations.

Requests are drawn from the service's own description, valid ones and broken ones; every answer must have a status, a
media type, headers and a body that the description declares, and what was deleted must be gone. ``drain`` is left out:
it makes ``ready`` answer 503, as it should, which counts as a failure here. There is a second version, so that what is
about versions has something to do. Rounds go on from where an earlier run of this script was stopped; a run of another
commit begins anew.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import httpx2

from benchmarks._record import record
from benchmarks._resume import keep, kept
from benchmarks.serving._service import Process, demo_bundle

__all__ = ["Fuzzed", "fuzz"]

FIGURES = ("serving.fuzz.cases", "serving.fuzz.failures")
NUM_CASES = 100_000

HOOKS = "benchmarks.reliability.fuzz_hooks"
EXAMPLES = 80
"""Of each operation in one round: each round has another seed, and is some thousand cases."""
LONGEST_S = 60
"""Of an answer: publishing asks the gate first, which takes a quarter of a minute on a busy machine."""


@dataclass(frozen=True)
class Fuzzed:
    """What came of it."""

    cases: int
    failures: int
    """Different ways in which a check failed."""
    errors: int
    seeds: tuple[int, ...]
    report: str
    """Of schemathesis, of the round that found something."""


def fuzz(url: str, key: str, *, cases: int, seed: int = 1) -> Fuzzed:
    """Ask a running service until there were ``cases`` at least; a round that finds something is the last one."""
    total = Fuzzed(0, 0, 0, (), "")
    while total.cases < cases and not (total.failures or total.errors):
        one = _round(url, key, seed + len(total.seeds))
        total = Fuzzed(
            total.cases + one.cases,
            total.failures + one.failures,
            total.errors + one.errors,
            total.seeds + one.seeds,
            total.report + one.report,
        )
    return total


def _fill(url: str, key: str) -> None:
    """Make what the description's examples name, so that they find something."""
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as client:
        put = client.put("/api/items/i1", json={"attributes": {"title": "Red lamp", "price": 5.0}})
        assert put.status_code in (200, 409), "kept; 409 where drawn items have taken all places of its codes"
        events = [{"event_id": user, "user_id": user, "item_id": "i1"} for user in ("u1", "session:s1")]
        client.post("/api/events", json={"events": events}).raise_for_status()


def _round(url: str, key: str, seed: int) -> Fuzzed:
    """One run of schemathesis with all its phases."""
    _fill(url, key)
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
        command += ["--header", f"Authorization: Bearer {key}", "--checks", "all", "--max-examples", str(EXAMPLES)]
        command += ["--exclude-path", "/api/admin/drain", "--seed", str(seed), "--continue-on-failure"]
        command += ["--rate-limit", "auto", "--request-timeout", str(LONGEST_S), "--max-response-time", str(LONGEST_S)]
        command += ["--no-color", "--report", "json", "--report-json-path", str(report)]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": HOOKS, "PYTHONPATH": os.pathsep.join(sys.path)}
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
        if not report.is_file():
            raise RuntimeError(f"schemathesis ended with {ran.returncode}: {ran.stdout[-3000:]}{ran.stderr[-3000:]}")
        counts = json.loads(report.read_text())["test_cases"]
    found = ran.stdout if ran.returncode else ""
    return Fuzzed(counts["generated"], counts["unique_failures"], counts["errored"], (seed,), found)


def main() -> None:
    """Fuzz until there were enough cases, and record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.fuzz", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/serving"), help="where bundle and counts are kept")
    parser.add_argument("--cases", type=int, default=NUM_CASES, help="fewer are printed, not recorded")
    given = parser.parse_args()
    path = given.work / "fuzz.json"
    counts = {"rounds": 0, "cases": 0, "failures": 0, **kept(path)}
    bundles = [demo_bundle(given.work, seed=seed) for seed in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        service = Process(bundles[0], Path(folder) / "home")
        service.start()
        try:
            service.publish(bundles[1])
            while counts["cases"] < given.cases:
                found = _round(service.url, service.key, seed=1 + counts["rounds"])
                print(found.report, end="")
                counts["rounds"] += 1
                counts["cases"] += found.cases
                counts["failures"] += found.failures + found.errors
                print(counts, flush=True)
                keep(path, counts)
        finally:
            service.stop()
    if given.cases >= NUM_CASES:
        protocol = f"all checks of schemathesis in all its phases, {counts['rounds']} rounds with other seeds"
        record("serving.fuzz.cases", counts["cases"], "cases", n=counts["rounds"], protocol=protocol)
        record("serving.fuzz.failures", counts["failures"], "failures", n=counts["cases"], protocol=protocol)


if __name__ == "__main__":
    main()
