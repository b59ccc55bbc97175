"""A FastAPI endpoint that answers a constant: what the framework and the loopback cost, and nothing else."""

import subprocess
import sys
import time
import urllib.request

from fastapi import FastAPI

from benchmarks.serving._service import free_port

app = FastAPI()


@app.post("/api/recommend")
async def recommend() -> dict[str, str]:
    """The constant."""
    return {"answer": "always this"}


class Constant:
    """The endpoint in a process of its own, with the same server as the service."""

    def __init__(self) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "uvicorn", "benchmarks.serving._constant:app", "--port", str(self.port)]
        command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        self._process = subprocess.Popen(command)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/openapi.json", timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("the constant endpoint does not answer")

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()
