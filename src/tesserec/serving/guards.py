"""The guards: what a request has to pass before any other code sees it, as one ASGI layer.

    request id → who is it → which namespace → rate → admission → media type → size and speed of the body

Each step may refuse, with a problem document; a refusal costs some microseconds, which is what an overloaded service
lives on. The layer also gives up the work for a client that went away, and turns whatever escapes the routes into a
plain 500 whose cause is in the log only.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from dataclasses import dataclass
from typing import Annotated, Any, Protocol
from urllib.parse import unquote_to_bytes

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tesserec.config import Field, component
from tesserec.serving.access import Access, Caller
from tesserec.serving.admission import Admission, Kind, kind_of
from tesserec.serving.logs import REQUEST_ID, log_request
from tesserec.serving.problems import Refused, send_problem
from tesserec.serving.rates import RateLimits
from tesserec.serving.records import new_id
from tesserec.serving.tracing import Span, Tracing

__all__ = ["CLIENT_GONE", "BodyConfig", "Guards", "Observer", "Passed"]

LOG = logging.getLogger(__name__)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_CONTROL = re.compile(rb"%[01][0-9a-fA-F]|%7[fF]")
_SLASH = re.compile(rb"%2[fF]")
_PATIENCE_S = 0.02
"""A request that takes longer than this is worth looking whether anybody still waits for it."""
CLIENT_GONE = 499
"""What counts as the status of a request whose client did not wait for the answer."""


@component
class BodyConfig:
    """Bodies of requests."""

    max_bytes: Annotated[int, Field(ge=1024)] = 4 << 20
    max_import_bytes: Annotated[int, Field(ge=1024)] = 8 << 30
    """Of an import, which is read as a stream."""
    timeout_s: Annotated[float, Field(gt=0)] = 20.0
    """How long the service waits for the next piece of a body."""


class Observer(Protocol):
    """Counts what the guards see."""

    def requested(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was replied to."""

    def refused(self, reason: str) -> None:
        """A request was refused with 429."""


@dataclass(frozen=True, slots=True)
class Passed:
    """What the guards found out of a request; routes find it as ``request.scope["tesserec"]``."""

    request_id: str
    caller: Caller
    namespace: str


class Guards:
    """The ASGI layer around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        rates: RateLimits,
        admission: Admission,
        body: BodyConfig,
        observer: Observer,
        tracing: Tracing | None = None,
    ) -> None:
        self.app = app
        self.access = access
        self.rates = rates
        self.admission = admission
        self.body = body
        self.observer = observer
        self.tracing = tracing or Tracing()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of any kind that ASGI knows."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else new_id(64)
        reply = _Reply(send, request_id)
        REQUEST_ID.set(request_id)
        admitted: Kind | None = None
        try:
            _keep_slashes(scope)
            kind = kind_of(scope["method"], scope["path"])
            await self._pass(scope, headers, kind, request_id)
            reason = self.admission.refusal(kind)
            if reason is not None:
                raise _overloaded(reason, self.admission.retry_after_s)
            self.admission.enter(kind)
            admitted = kind
            incoming = _Incoming(receive, headers, kind, self.body, scope["method"])
            # A change goes through to its end: half of one, as a row on disk that no list knows of, helps nobody.
            work = self._work if kind is Kind.RECOMMEND else self.app
            with self.tracing.request(scope["method"], headers.get(b"traceparent")) as span:
                await work(scope, incoming, reply)
                if self.tracing.on:
                    _describe(span, scope, reply)
        except ClientDisconnect:
            reply.status = reply.status or CLIENT_GONE
        except Refused as refused:
            if refused.status == 429:
                self.observer.refused(refused.reason)
            await send_problem(reply, refused, request_id)
        except Exception:
            LOG.exception("a request failed")
            if not reply.status:
                await send_problem(reply, Refused(500, "a mistake of the service"), request_id)
        finally:
            if admitted is not None:
                self.admission.leave(admitted)
            seconds = time.perf_counter() - started
            self.observer.requested(scope["method"], _route(scope), reply.status, seconds)
            # A line for each would be most of what a refusal costs; probes of health come every few seconds.
            if reply.status != 429 and admitted is not Kind.HEALTH:
                log_request(scope["method"], _route(scope), reply.status, 1e3 * seconds)

    async def _pass(self, scope: Scope, headers: dict[bytes, bytes], kind: Kind, request_id: str) -> None:
        """Raise ``Refused``, or leave what was found in the scope."""
        address = scope["client"][0] if scope.get("client") else ""
        if kind is Kind.HEALTH:
            scope["tesserec"] = Passed(request_id, Caller("", (), None), "")
            return
        try:
            caller = self.access.caller(scope["method"], kind, headers)
        except Refused:
            await self._count(None, address)
            raise
        await self._count(caller.key_id, address)
        scope["tesserec"] = Passed(request_id, caller, self.access.namespace(caller, headers))

    async def _count(self, key_id: str | None, address: str) -> None:
        wait_s = await self.rates.retry_after_s(key_id, address)
        if wait_s is not None:
            raise Refused(429, f"too many requests: try again in {wait_s} s", {"Retry-After": str(wait_s)}, "rate")

    async def _work(self, scope: Scope, incoming: _Incoming, reply: _Reply) -> None:
        """The application's answer, for as long as somebody waits for it."""
        task = asyncio.current_task()
        assert task is not None
        watch = _Watch(incoming, task)
        try:
            await self.app(scope, incoming, reply)
        except asyncio.CancelledError:
            if not watch.gone:
                raise
            task.uncancel()
            reply.status = reply.status or CLIENT_GONE
        finally:
            watch.end()


class _Reply:
    """``send`` with the request's id, and the status for the metrics."""

    __slots__ = ("_id", "_send", "request_id", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self._id = (b"x-request-id", request_id.encode())
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), self._id]
        await self._send(message)


class _Incoming:
    """``receive`` that takes no more than it may, and waits no longer than it may."""

    def __init__(
        self, receive: Receive, headers: dict[bytes, bytes], kind: Kind, config: BodyConfig, method: str
    ) -> None:
        self._receive = receive
        self._timeout_s = config.timeout_s
        self._limit = config.max_import_bytes if kind is Kind.IMPORT else config.max_bytes
        self._taken = 0
        self.complete = False
        declared = headers.get(b"content-length")
        if declared is not None and not declared.isdigit():
            raise Refused(400, "content-length is not a number", {"Connection": "close"})
        if declared is not None and int(declared) > self._limit:
            raise Refused(413, self._too_large(), {"Connection": "close"})
        if method in ("POST", "PUT", "PATCH") and (declared not in (None, b"0") or b"transfer-encoding" in headers):
            _check_media_type(headers.get(b"content-type", b""), kind)

    async def __call__(self) -> Message:
        if self.complete:
            return await self._receive()
        try:
            async with asyncio.timeout(self._timeout_s):
                message = await self._receive()
        except TimeoutError:
            detail = f"nothing of the body came for {self._timeout_s:g} s: send it faster, or in parts"
            raise HTTPException(408, detail, {"Connection": "close"}) from None
        if message["type"] == "http.request":
            self.complete = not message.get("more_body", False)
            self._taken += len(message.get("body", b""))
            if self._taken > self._limit:
                raise HTTPException(413, self._too_large(), {"Connection": "close"})
        return message

    def _too_large(self) -> str:
        return f"the body has more than {self._limit:,} bytes: send fewer things at once"


class _Watch:
    """Cancels the task of a request whose client is gone."""

    __slots__ = ("_incoming", "_loop", "_task", "_timer", "_waiting", "gone")

    def __init__(self, incoming: _Incoming, task: asyncio.Task[Any]) -> None:
        self._incoming = incoming
        self._task = task
        self._waiting: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_PATIENCE_S, self._begin)
        self.gone = False

    def end(self) -> None:
        self._timer.cancel()
        if self._waiting is not None:
            self._waiting.cancel()

    def _begin(self) -> None:
        """Look out from now on; while the body is still being read, whoever reads it notices."""
        if self._incoming.complete:
            self._waiting = self._loop.create_task(self._wait())
        else:
            self._timer = self._loop.call_later(_PATIENCE_S, self._begin)

    async def _wait(self) -> None:
        message = await self._incoming()
        if message["type"] == "http.disconnect":
            self.gone = True
            self._task.cancel("the client went away")


def _describe(span: Span, scope: Scope, reply: _Reply) -> None:
    """Say what a span was about, by the route and not by the path: that names people."""
    span.update_name(f"{scope['method']} {_route(scope)}")
    span.set_attribute("http.route", _route(scope))
    span.set_attribute("http.response.status_code", reply.status)
    span.set_attribute("request_id", reply.request_id)


def _route(scope: Scope) -> str:
    """The template of the path; ``other`` where no route took the request."""
    return str(getattr(scope.get("route"), "path", "other"))


def _keep_slashes(scope: Scope) -> None:
    """Let a slash that is written as ``%2F`` be part of an id: routes see it as U+001F, which no id has.

    ``PathId`` turns it back.
    """
    raw: bytes = scope.get("raw_path") or b""
    if b"%" not in raw:
        return
    if _CONTROL.search(raw):
        raise Refused(404, "the path has control characters: no id has any")
    try:
        scope["path"] = unquote_to_bytes(_SLASH.sub(b"%1F", raw.partition(b"?")[0])).decode()
    except UnicodeDecodeError:
        raise Refused(404, "the path is not UTF-8: no id is anything else") from None


def _check_media_type(given: bytes, kind: Kind) -> None:
    wanted = (b"application/x-ndjson", b"application/jsonl") if kind is Kind.IMPORT else (b"application/json",)
    name, _, parameters = given.lower().partition(b";")
    charset = parameters.strip().replace(b'"', b"")
    if name.strip() not in wanted or charset not in (b"", b"charset=utf-8"):
        expected = " or ".join(one.decode() for one in wanted)
        raise Refused(415, f"content-type {given.decode('latin-1')!r}: expected {expected}, in UTF-8")


def _overloaded(reason: str, retry_after_s: int) -> Refused:
    headers = {"Retry-After": str(retry_after_s)}
    return Refused(429, "the service is working on as many requests as it can", headers, reason)
