"""The API of a real service answers as its description says: 20,000 drawn requests, all checks, linked operations."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.serving.bundles import shop_bundle

from benchmarks.reliability.fuzz import fuzz

CASES = 20_000


def ready_at(serving: subprocess.Popen[bytes], log: Path) -> str:
    """The address of the service, when its log says that it is ready."""
    while serving.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("{") and json.loads(line)["message"] == "ready":
                return str(json.loads(line)["url"])
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.mark.prove
@pytest.mark.timeout(7200)
def test_nothing_that_is_drawn_breaks_the_service(tmp_path: Path) -> None:
    first, second = (shop_bundle(tmp_path / f"shop{day}", day) for day in (1, 2))
    tool = [sys.executable, "-m", "tesserec"]
    home = ["--home", str(tmp_path / "home")]
    made = subprocess.run(
        [*tool, "service", "key", "create", "fuzz", *home], capture_output=True, text=True, check=True
    )
    with (tmp_path / "log").open("w") as log:
        serving = subprocess.Popen([*tool, "serve", str(first), *home, "--port", "0"], stderr=log)
    try:
        url = ready_at(serving, tmp_path / "log")
        subprocess.run([*tool, "service", "publish", str(second), *home], check=True)
        found = fuzz(url, made.stdout.strip(), cases=CASES)
        assert serving.poll() is None
    finally:
        serving.kill()
        serving.wait()
    assert (found.failures, found.errors) == (0, 0), found.report
    assert found.cases >= CASES
