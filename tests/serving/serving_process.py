"""A real ``tesserec serve`` in a process of its own, and clients that keep it busy."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

from tests.serving.served_shop import bundle

START_S = 180


@dataclass(frozen=True)
class Reply:
    """What came back, and after how long."""

    status: int
    body: object
    headers: http.client.HTTPMessage
    seconds: float


class ServingProcess:
    """``tesserec serve`` with some settings (TOML) and options; started and stopped as often as need be."""

    def __init__(self, folder, home=None, *, settings="", options=(), store=None, environment=None):
        self.home = home or folder / "home"
        self.log = folder / "log"
        self._settings = folder / "service.toml"
        self._settings.write_text(f"[server]\nport = 0\n{settings}\n")
        if store is not None:
            self._settings.write_text(f'store = "{store}"\n' + self._settings.read_text())
        self._options = list(options)
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        self.process = None
        self.port = 0

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def start(self):
        """Start it, and wait until it says that it is ready."""
        command = [sys.executable, "-m", "tesserec", "serve", str(bundle("mosaic")), "--home", str(self.home)]
        command += ["--config", str(self._settings), *self._options]
        self.log.write_text("")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)
        until = time.monotonic() + START_S
        while (found := re.search(r'"message": "ready".*?"url": "http://[^:]*:(\d+)"', self.log.read_text())) is None:
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()[-3000:]  # noqa: PT018
            time.sleep(0.05)
        self.port = int(found[1])

    def stop(self):
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def connect(self):
        """A connection to it."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method, path, body=None, connection=None):
        """One request, on a connection of its own where none is given."""
        if connection is None:
            with contextlib.closing(self.connect()) as own:
                return self.ask(method, path, body, own)
        began = time.monotonic()
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {} if data is None else {"Content-Type": "application/json"})
        reply = connection.getresponse()
        text = reply.read()
        seconds = time.monotonic() - began
        is_json = "json" in reply.headers.get("Content-Type", "")
        return Reply(reply.status, json.loads(text) if is_json else text.decode(), reply.headers, seconds)

    def good(self, method, path, body=None):
        """The body of a request that succeeds."""
        reply = self.ask(method, path, body)
        assert reply.status == 200, reply
        return reply.body

    def metric(self, name, **labels):
        """The sum of a metric's series that have these labels; 0 where there is none."""
        total = 0.0
        for line in self.good("GET", "/metrics").splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(f'{k}="{v}"' in series for k, v in labels.items()):
                total += float(value)
        return total


@dataclass
class Load:
    """Threads that each do something again and again while the block runs; what came back is in ``replies``."""

    serving: ServingProcess
    make: object
    """number → (method, path, body) of the next request."""
    threads: int = 6
    replies: list = field(default_factory=list)
    broken: list = field(default_factory=list)
    """Connections that failed: (the moment, the error)."""

    def __enter__(self):
        self._done = threading.Event()
        self._running = [threading.Thread(target=self._ask, args=(n,)) for n in range(self.threads)]
        for thread in self._running:
            thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        for thread in self._running:
            thread.join()

    def _ask(self, number):
        with contextlib.closing(self.serving.connect()) as connection:
            while not self._done.is_set():
                try:
                    self.replies.append(self.serving.ask(*self.make(number), connection=connection))
                except (OSError, http.client.HTTPException) as error:
                    self.broken.append((time.monotonic(), error))
                    return
                number += self.threads

    def statuses(self):
        """The different ones."""
        return {reply.status for reply in self.replies}

    def p99_s(self):
        """The time that one of a hundred replies took longer than."""
        times = sorted(reply.seconds for reply in self.replies)
        return times[int(0.99 * (len(times) - 1))]


def until(holds, seconds=30.0):
    """Wait until something holds; whether it did in time."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        with contextlib.suppress(OSError):
            if holds():
                return True
        time.sleep(0.05)
    return False


def event(number, user="ann", **more):
    """An event as the API takes it."""
    return {"event_id": f"e{number}", "user_id": user, "item_id": f"i{number % 24:02}", **more}
