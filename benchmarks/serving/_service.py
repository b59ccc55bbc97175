"""A real service in a process of its own, for the harnesses: started, asked, killed, started again."""

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tesserec.recommender import Recommender

__all__ = ["DEMO", "Process", "demo_bundle", "free_port"]

DEMO = Path("recipes/demo.toml")
START_S = 120.0


def demo_bundle(folder: Path, *, seed: int = 0, epochs: int = 6) -> Path:
    """A bundle of Mosaic on the year of purchases that comes with the package; fitted once, then kept in ``folder``."""
    import tomllib

    out = folder / f"bundle_{epochs}_{seed}"
    if not out.is_dir():
        table = tomllib.loads(DEMO.read_text(encoding="utf-8"))
        table["seed"] = seed
        table["retriever"]["training"]["epochs"] = epochs
        table["baselines"] = {"popularity": table["baselines"]["popularity"]}
        Recommender.fit(recipe=table, out=out)
    return out


def free_port() -> int:
    """A port of the loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """``tesserec serve`` of a bundle, with an administrator's key, on a port of the loopback."""

    def __init__(
        self, bundle: Path, home: Path, *, options: Sequence[str] = (), cpus: Sequence[int] | None = None
    ) -> None:
        self.bundle, self.home, self.options, self.cpus = bundle, home, list(options), cpus
        self.port = free_port()
        home.mkdir(parents=True, exist_ok=True)
        self.log = home.with_name(f"{home.name}.log")
        self.key = self._make_key()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, ready: str = "ready") -> float:
        """Start it, and wait until ``/api/health/<ready>`` answers 200; the seconds that took."""
        begun = time.perf_counter()
        command = [sys.executable, "-m", "tesserec", "serve", str(self.bundle), "--home", str(self.home)]
        command += ["--port", str(self.port), *self.options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if self.cpus is not None:
            os.sched_setaffinity(self.process.pid, self.cpus)
        while time.perf_counter() - begun < START_S:
            if self.process.poll() is not None:
                raise RuntimeError(f"the service ended with {self.process.returncode}: {self.log.read_text()[-3000:]}")
            with contextlib.suppress(OSError):
                if self.ask("GET", f"/api/health/{ready}")[0] == 200:
                    return time.perf_counter() - begun
            time.sleep(0.02)
        raise RuntimeError(f"not {ready} after {START_S} s: {self.log.read_text()[-3000:]}")

    def ask(self, method: str, path: str, body: Any = None, timeout_s: float = 30.0) -> tuple[int, Any]:
        """(status, decoded JSON or text)."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, method=method)
        request.add_header("Authorization", f"Bearer {self.key}")
        if data is not None:
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return answer.status, _decoded(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, _decoded(error.read())

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def rss_bytes(self) -> int:
        """Memory of the process now."""
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def cpu_s(self) -> float:
        """CPU seconds of the process so far."""
        assert self.process is not None
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def peak_bytes(self) -> int:
        """Largest memory of the process so far."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    def publish(self, bundle: Path) -> str:
        """Copy a bundle into the home folder and make it live, without the gate; its version."""
        return self._run("publish", str(bundle), "--force").split()[-1]

    def _make_key(self) -> str:
        made = self._run("key", "create", "harness")
        return next(word for word in made.split() if word.startswith("tsk_"))

    def _run(self, *arguments: str) -> str:
        """What a command on the home folder says."""
        command = [sys.executable, "-m", "tesserec", "service", *arguments, "--home", str(self.home)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def remove(home: Path) -> None:
    """Forget a home."""
    shutil.rmtree(home, ignore_errors=True)


def own_cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime for who in (0, -1))


def _decoded(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")
