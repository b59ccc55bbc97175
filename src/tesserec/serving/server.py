"""The process: a listening socket, an event loop, and an end in order.

SIGTERM or Ctrl-C: ``/api/health/ready`` says no; after ``drain_s`` no connections are taken any more, requests at hand
are finished (for ``shutdown_s`` at most), and stores are closed. A second signal cuts ``drain_s`` short. Whatever was
acknowledged is on disk anyway.
"""

from __future__ import annotations

import gc
import logging
import socket
import sys
import threading
from types import FrameType

import uvicorn

from tesserec.errors import ServiceError
from tesserec.serving.app import create_app
from tesserec.serving.config import ServerConfig
from tesserec.serving.guards import Guards
from tesserec.serving.logs import configure_logs, fields
from tesserec.serving.service import Service
from tesserec.terminal import say

__all__ = ["run"]

LOG = logging.getLogger(__name__)
_BACKLOG = 2048
_ACCEPTORS = 16
"""Handles on the listening socket. The event loop takes one new connection a turn from each; with one handle, clients
who connect while many others are served would wait for seconds."""


def run(service: Service) -> None:
    """Serve until a signal comes; ``service`` is open, and not started.

    Raises ``ServiceError`` where the service cannot listen or start. It listens while models are loaded, and says that
    it is not ready yet.
    """
    config = service.config.server
    configure_logs(config.log_level, sys.stderr)
    app = create_app(service)
    with _listening(config) as listener:
        server = _Server(service, app)
        starter = _Starter(service, server, _url(listener))
        starter.start()
        server.run([listener, *(listener.dup() for _ in range(_ACCEPTORS - 1))])
        starter.join()
    if starter.error is not None:
        raise starter.error


class _Starter(threading.Thread):
    """Loads stores and models while the server says that it is not ready; ends it where that fails."""

    def __init__(self, service: Service, server: _Server, url: str) -> None:
        super().__init__(name="start")
        self._service = service
        self._server = server
        self._url = url
        self.error: Exception | None = None

    def run(self) -> None:
        """Start the service."""
        try:
            self._service.start()
        except Exception as error:  # the main thread raises it
            self.error = error
            self._server.should_exit = True
            return
        # What was loaded stays: looking through it at each collection would only cost time.
        gc.collect()
        gc.freeze()
        LOG.info("ready", extra=fields(url=self._url, versions=self._service.versions()))
        if sys.stderr.isatty():
            say(f"ready: {self._url}")


class _Server(uvicorn.Server):
    """uvicorn, with a pause before it stops to listen."""

    def __init__(self, service: Service, app: Guards) -> None:
        config = service.config.server
        self._app = app
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_graceful_shutdown=max(1, round(config.shutdown_s)),
            )
        )
        self._service = service
        self._drain_s = config.drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain, then end; without the signal being raised again, so that stores are closed and the exit code is 0."""
        if self._service.draining or not self._drain_s or not self._service.started:
            self.should_exit = True
            return
        self._service.draining = True
        LOG.info("draining", extra=fields(seconds=self._drain_s))
        timer = threading.Timer(self._drain_s, self._end)
        timer.daemon = True
        timer.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and what was shared with other services is let go of."""
        await super().shutdown(sockets)
        await self._app.rates.close()

    def _end(self) -> None:
        self.should_exit = True


def _listening(config: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        why = error.strerror or error
        raise ServiceError(f"cannot listen at {config.host}, port {config.port} ({why}): give another --port") from None


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
