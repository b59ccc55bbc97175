"""The API against schemathesis: every check that it has, on a real service, with links between operations.

    python -m benchmarks.reliability.fuzz URL KEY --cases 100000

Requests are drawn from the service's own description, valid ones and broken ones; every answer must have a status, a
media type, headers and a body that the description declares, and what was deleted must be gone. ``drain`` is left out:
it makes ``ready`` answer 503, as it should, which counts as a failure here.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Fuzzed", "fuzz"]

HOOKS = "benchmarks.reliability.fuzz_hooks"
EXAMPLES = 80
"""Of each operation in one round: each round has another seed, and is some thousand cases."""


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


def _round(url: str, key: str, seed: int) -> Fuzzed:
    """One run of schemathesis with all its phases."""
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
        command += ["--header", f"Authorization: Bearer {key}", "--checks", "all", "--max-examples", str(EXAMPLES)]
        command += ["--exclude-path", "/api/admin/drain", "--seed", str(seed), "--continue-on-failure"]
        command += ["--rate-limit", "auto", "--no-color", "--report", "json", "--report-json-path", str(report)]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": HOOKS, "PYTHONPATH": os.pathsep.join(sys.path)}
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
        if not report.is_file():
            raise RuntimeError(f"schemathesis ended with {ran.returncode}: {ran.stdout[-3000:]}{ran.stderr[-3000:]}")
        counts = json.loads(report.read_text())["test_cases"]
    found = ran.stdout if ran.returncode else ""
    return Fuzzed(counts["generated"], counts["unique_failures"], counts["errored"], (seed,), found)


def main() -> None:
    """Fuzz a service that runs already."""
    parser = argparse.ArgumentParser(description="Fuzz a service that runs already.")
    parser.add_argument("url", help="such as http://127.0.0.1:8000")
    parser.add_argument("key", help="an administrator's key")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    found = fuzz(given.url, given.key, cases=given.cases, seed=given.seed)
    print(found.report)
    print(json.dumps({name: value for name, value in dataclasses.asdict(found).items() if name != "report"}))
    sys.exit(bool(found.failures or found.errors))


if __name__ == "__main__":
    main()
