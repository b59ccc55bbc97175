"""The guards around a small application: what they let through, what they refuse and what it costs the application."""

import asyncio
import json
import logging
import re
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.serving.live import listening
from tests.serving.serving_process import until

from tesserec.serving import guards
from tesserec.serving.access import Access, AccessConfig
from tesserec.serving.admission import Admission, AdmissionConfig
from tesserec.serving.guards import BodyConfig, Guards
from tesserec.serving.keys import KeyRing
from tesserec.serving.rates import RateConfig, RateLimits


class Seen:
    """What was counted."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, int]] = []
        self.refusals: list[str] = []

    def requested(self, method: str, route: str, status: int, seconds: float) -> None:
        assert seconds > 0
        self.requests.append((method, route, status))

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)


async def echo(request: Request) -> Response:
    body = await request.body()
    passed = request.scope["tesserec"]
    about = {"bytes": len(body), "namespace": passed.namespace, "key": passed.caller.key_id, **request.path_params}
    return JSONResponse({**about, "request_id": passed.request_id})


ROUTES = [
    Route("/api/items/{item_id}", echo, methods=["GET", "PUT"]),
    Route("/api/recommend", echo, methods=["POST"]),
    Route("/api/import/{name}", echo, methods=["POST"]),
    Route("/api/health/live", echo),
]


def guarded(home: Path, routes: list[Route] = ROUTES, seen: Seen | None = None, **settings: Any) -> Guards:
    return Guards(
        Starlette(routes=routes),
        access=Access(settings.get("access", AccessConfig()), KeyRing(home / "keys.json"), "127.0.0.1"),
        rates=RateLimits(settings.get("rates", RateConfig())),
        admission=Admission(settings.get("admission", AdmissionConfig())),
        body=settings.get("body", BodyConfig()),
        observer=seen or Seen(),
    )


def ask(app: Guards, method: str, path: str, **arguments: Any) -> httpx2.Response:
    async def one() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=True)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **arguments)

    return asyncio.run(one())


def check_problem(response: httpx2.Response, status: int, detail: str) -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem.keys() == {"title", "status", "detail", "request_id"}
    assert (problem["status"], problem["request_id"]) == (status, response.headers["x-request-id"])
    assert re.search(detail, problem["detail"])


def test_a_request_passes_with_an_id(tmp_path: Path) -> None:
    seen = Seen()
    app = guarded(tmp_path, seen=seen)
    first = ask(app, "GET", "/api/items/i1")
    assert first.json() == {"bytes": 0, "namespace": "default", "key": "local", "item_id": "i1"} | {
        "request_id": first.headers["x-request-id"]
    }
    assert re.fullmatch("[0-9a-f]{16}", first.headers["x-request-id"])
    assert first.headers["x-request-id"] != ask(app, "GET", "/api/items/i1").headers["x-request-id"]
    assert ask(app, "GET", "/api/items/i1", headers={"X-Request-ID": "a-1.b_2"}).headers["x-request-id"] == "a-1.b_2"
    for strange in ("a b", "x" * 65, "a\u00e4".encode()):
        given = ask(app, "GET", "/api/items/i1", headers={"X-Request-ID": strange})
        assert re.fullmatch("[0-9a-f]{16}", given.headers["x-request-id"])
    assert set(seen.requests) == {("GET", "/api/items/{item_id}", 200)}


def test_a_slash_can_be_part_of_an_id(tmp_path: Path) -> None:
    app = guarded(tmp_path)
    assert ask(app, "GET", "/api/items/a%2Fb%252F%20c").json()["item_id"] == "a\x1fb%2F c"
    assert ask(app, "GET", "/api/items/a/b").status_code == 404
    check_problem(ask(app, "GET", "/api/items/a%1Fb"), 404, "control characters")
    check_problem(ask(app, "GET", "/api/items/a%0a"), 404, "control characters")


def test_who_has_no_key_is_refused_and_counted(tmp_path: Path) -> None:
    _, text = KeyRing(tmp_path / "keys.json").create("shop", ["read"], ["toys"])
    seen = Seen()
    app = guarded(tmp_path, seen=seen, rates=RateConfig(per_address="3/hour", per_key="1/hour"))
    refused = ask(app, "GET", "/api/items/i1")
    check_problem(refused, 401, "no API key")
    assert "Bearer" in refused.headers["www-authenticate"]
    bearer = {"Authorization": f"Bearer {text}"}
    assert ask(app, "GET", "/api/items/i1", headers=bearer).json()["namespace"] == "toys"
    check_problem(ask(app, "GET", "/api/items/i1", headers=bearer), 429, "try again in 3600 s")
    late = ask(app, "GET", "/api/items/i1")
    check_problem(late, 429, "try again in 1200 s")
    assert late.headers["retry-after"] == "1200", "one of the three requests an hour is back"
    assert ask(app, "GET", "/api/health/live").status_code == 200
    assert seen.refusals == ["rate", "rate"]
    assert [status for _, _, status in seen.requests] == [401, 200, 429, 429, 200]


def test_media_types(tmp_path: Path) -> None:
    app = guarded(tmp_path)
    for good in ("application/json", "Application/JSON; charset=utf-8", 'application/json; charset="UTF-8"'):
        assert ask(app, "PUT", "/api/items/i", content=b"{}", headers={"Content-Type": good}).json()["bytes"] == 2
    for bad in ("text/plain", "application/json; charset=latin-1", "application/jsonx", "application/x-ndjson"):
        check_problem(ask(app, "PUT", "/api/items/i", content=b"{}", headers={"Content-Type": bad}), 415, "expected")
    check_problem(ask(app, "PUT", "/api/items/i", content=b"{}"), 415, "expected application/json, in UTF-8")
    lines = {"Content-Type": "application/x-ndjson"}
    assert ask(app, "POST", "/api/import/a", content=b"{}\n", headers=lines).json()["bytes"] == 3
    check_problem(ask(app, "POST", "/api/import/a", json={}), 415, "expected application/x-ndjson or application/jsonl")
    assert ask(app, "PUT", "/api/items/i").status_code == 200


def test_a_body_that_is_too_large(tmp_path: Path) -> None:
    app = guarded(tmp_path, body=BodyConfig(max_bytes=2000, max_import_bytes=5000))

    async def pieces(number: int) -> AsyncIterator[bytes]:
        for _ in range(number):
            yield b"x" * 1000

    kind = {"Content-Type": "application/json"}
    assert ask(app, "PUT", "/api/items/i", content=b"x" * 2000, headers=kind).json()["bytes"] == 2000
    check_problem(ask(app, "PUT", "/api/items/i", content=b"x" * 2001, headers=kind), 413, "more than 2,000 bytes")
    assert ask(app, "PUT", "/api/items/i", content=pieces(2), headers=kind).json()["bytes"] == 2000
    assert ask(app, "PUT", "/api/items/i", content=pieces(3), headers=kind).status_code == 413
    lines = {"Content-Type": "application/jsonl"}
    assert ask(app, "POST", "/api/import/a", content=pieces(5), headers=lines).json()["bytes"] == 5000
    assert ask(app, "POST", "/api/import/a", content=pieces(6), headers=lines).status_code == 413


def test_a_length_that_is_no_number(tmp_path: Path) -> None:
    headers = {"Content-Length": "many", "Content-Type": "application/json"}
    check_problem(ask(guarded(tmp_path), "PUT", "/api/items/i", headers=headers), 400, "content-length")


def test_a_mistake_of_ours_tells_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("secret of the inside")

    app = guarded(tmp_path, seen=seen)
    app.app = raw
    with caplog.at_level(logging.ERROR):
        response = ask(app, "GET", "/api/items/i")
    check_problem(response, 500, "a mistake of the service")
    assert "secret" not in response.text
    assert "secret of the inside" in caplog.text
    assert seen.requests == [("GET", "other", 500)]


def test_a_request_is_logged_by_its_template(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        ask(guarded(tmp_path), "GET", "/api/items/secret-user")
    assert [record.getMessage() for record in caplog.records if "serving" in record.name] == [
        "GET /api/items/{item_id} 200"
    ]


def test_what_is_no_http(tmp_path: Path) -> None:
    sent: list[Any] = []
    started: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        started.append(await receive())

    app = guarded(tmp_path)
    app.app = inner
    asyncio.run(app({"type": "websocket"}, receive, send))
    asyncio.run(app({"type": "lifespan"}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1000}]
    assert started == [{"type": "lifespan.startup"}]


class Gate:
    """A route that answers when it is told to, and knows what became of its requests."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.cancelled = threading.Event()

    async def __call__(self, request: Request) -> Response:
        await request.body()
        self.entered.release()
        try:
            while not self.open.is_set():
                await asyncio.sleep(0.002)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Response("done")


def gated(gate: Gate) -> list[Route]:
    async def endpoint(request: Request) -> Response:
        return await gate(request)

    return [
        Route("/api/recommend", endpoint, methods=["POST"]),
        Route("/api/events", endpoint, methods=["POST"]),
        Route("/api/health/live", echo),
    ]


def test_more_than_can_be_worked_on_is_told_to_come_back(tmp_path: Path) -> None:
    gate, seen = Gate(), Seen()
    app = guarded(tmp_path, gated(gate), seen, admission=AdmissionConfig(recommend=2, retry_after_s=3))
    codes: list[int] = []
    with listening(app) as port, httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
        work = [
            threading.Thread(target=lambda: codes.append(client.post("/api/recommend", json={}).status_code))
            for _ in range(2)
        ]
        for one in work:
            one.start()
        assert all(gate.entered.acquire(timeout=10) for _ in work)
        refused = client.post("/api/recommend", json={})
        check_problem(refused, 429, "as many requests as it can")
        assert refused.headers["retry-after"] == "3"
        assert client.get("/api/health/live").status_code == 200
        gate.open.set()
        for one in work:
            one.join()
        assert client.post("/api/recommend", json={}).status_code == 200
    assert codes == [200, 200]
    assert seen.refusals == ["in_flight"]
    assert not any(app.admission.in_flight.values())


def request_line(port: int, path: str, body: bytes = b"{}", length: int = 2) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def test_work_is_given_up_when_the_client_goes_away(tmp_path: Path) -> None:
    gate, seen = Gate(), Seen()
    app = guarded(tmp_path, gated(gate), seen)
    with listening(app) as port:
        connection = request_line(port, "/api/recommend")
        assert gate.entered.acquire(timeout=10)
        connection.close()
        assert gate.cancelled.wait(10)
        assert until(lambda: seen.requests == [("POST", "/api/recommend", guards.CLIENT_GONE)])
        assert not any(app.admission.in_flight.values())


def test_a_change_goes_through_to_its_end(tmp_path: Path) -> None:
    gate, seen = Gate(), Seen()
    with listening(guarded(tmp_path, gated(gate), seen)) as port:
        connection = request_line(port, "/api/events")
        assert gate.entered.acquire(timeout=10)
        connection.close()
        assert not gate.cancelled.wait(0.2)
        gate.open.set()
        assert until(lambda: seen.requests == [("POST", "/api/events", 200)])


def test_a_body_that_does_not_come(tmp_path: Path) -> None:
    app = guarded(tmp_path, body=BodyConfig(timeout_s=0.05))
    with listening(app) as port, request_line(port, "/api/recommend", b"{", 2) as connection:
        text = connection.makefile("rb").read().decode()
    assert "408" in text.splitlines()[0]
    assert not any(app.admission.in_flight.values())


def test_one_who_waits_long_gets_the_answer(tmp_path: Path) -> None:
    gate = Gate()
    with listening(guarded(tmp_path, gated(gate))) as port, request_line(port, "/api/recommend") as connection:
        assert gate.entered.acquire(timeout=10)
        assert not gate.cancelled.wait(0.1)
        gate.open.set()
        assert b"200 OK" in connection.recv(1000)


def test_problems_are_json_whatever_is_in_them(tmp_path: Path) -> None:
    response = ask(guarded(tmp_path), "GET", "/api/items/i", headers={"Host": 'evil"\\host'})
    check_problem(response, 403, "is not this machine")
    assert json.loads(response.content)["title"] == "Forbidden"
