"""Database servers that tests start for themselves, in a folder of their own, and may stop, kill and start again."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from shared import made_once


def program(name, folders=()):
    """The path of a program, which is skipped for with a reason where it is missing."""
    for folder in [*os.environ["PATH"].split(os.pathsep), *map(str, folders)]:
        if os.access(Path(folder) / name, os.X_OK):
            return str(Path(folder) / name)
    return pytest.skip(f"no {name} on this machine")


class PostgresServer:
    """PostgreSQL on a Unix socket, run as ``postgres`` where we are root, since it refuses to run as that."""

    def __init__(self):
        places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        self._postgres, self._initdb = program("postgres", places), program("initdb", places)
        self._user = "postgres" if os.geteuid() == 0 else None
        # Short: the path of a socket has at most 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
        self._give(self._folder)
        self.data = self._folder / "data"
        subprocess.run(["cp", "-a", made_once("postgres", self._make_data), self.data], check=True)
        self.url = f"postgresql://shop@/postgres?host={self._folder}"
        self._process = None

    def _give(self, folder):
        if self._user:
            shutil.chown(folder, self._user)

    def _make_data(self, folder):
        """An empty database, which takes a second of a processor; each server gets a copy."""
        part = folder.with_name(f"{folder.name}.part")
        part.mkdir()
        self._give(part)
        folder.parent.chmod(0o711)  # so that its owner gets there
        command = [self._initdb, "-D", part, "-U", "shop", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, user=self._user, cwd="/")
        part.rename(folder)

    def start(self, *options):
        """Start, with settings such as ``fsync=off``, and wait until it answers."""
        settings = ["listen_addresses=", f"unix_socket_directories={self._folder}", "max_connections=40", *options]
        command = [self._postgres, "-D", self.data, *(word for setting in settings for word in ("-c", setting))]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, user=self._user, cwd="/")
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.05)

    def processes(self):
        """The numbers of the server and of the processes that it started."""
        return [self._process.pid, *(child.pid for child in psutil.Process(self._process.pid).children())]

    def signal(self, number):
        """Send a signal to all of its processes."""
        for process in self.processes():
            try:
                os.kill(process, number)
            except ProcessLookupError:  # went in the meantime
                continue
        if number == signal.SIGKILL:
            self._process.wait(30)

    def start_if_down(self):
        """Start it where it does not run."""
        if self._process.poll() is not None:
            self.start()

    def stop(self):
        """End it in order."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)

    def remove(self):
        """End it and take its files away."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)  # without a last checkpoint
            self._process.wait(60)
        shutil.rmtree(self._folder)


class RedisServer:
    """Redis on a Unix socket, every write on disk before it answers."""

    def __init__(self):
        self._program = program("redis-server")
        self._folder = Path(tempfile.mkdtemp(prefix="redis", dir="/tmp"))
        self.url = f"unix://{self._folder}/socket"
        self._process = None

    def start(self, **settings):
        """Start, with settings such as ``appendfsync="no"`` (``_`` for ``-``), and wait until it answers."""
        wanted = {"appendonly": "yes", "appendfsync": "always", "save": "", **settings}
        options = [word for name, value in wanted.items() for word in (f"--{name.replace('_', '-')}", value)]
        command = [self._program, "--port", "0", "--unixsocket", self._folder / "socket", "--dir", self._folder]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*command, *options], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                with redis.Redis.from_url(self.url) as client:
                    client.ping()
                return
            except redis.ConnectionError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.02)

    def signal(self, number):
        """Send a signal to it."""
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait(30)

    def files(self):
        """The bytes of all files that it keeps, but not of what it says in its log."""
        files = [file for file in self._folder.rglob("*") if file.is_file() and file.name != "log"]
        return b"".join(file.read_bytes() for file in files)

    def remove(self):
        """End it and take its files away."""
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGKILL)
        shutil.rmtree(self._folder)
