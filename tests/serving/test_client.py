"""The client over a real connection: what it sends, when it asks again, and what it makes of a refusal."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tesserec.errors import RequestError, ServiceError
from tesserec.serving.client import Client, RetryConfig
from tesserec.serving.schemas import EventIn, RecommendRequest

AT_ONCE = RetryConfig(first_wait_s=0.0)
VERSIONS = {"model_version": "m", "codebook_version": None, "table_revision": 4}
LIST = {
    **VERSIONS,
    "response_id": "r1",
    "user_id": "ann",
    "items": [{"item_id": "lamp", "score": 1.5, "rank": 1, "title": "Lamp"}],
    "rung": "dense",
    "arm": "live",
    "stages_ms": {"total": 1.0},
}
ITEM = {**VERSIONS, "item_id": "lamp", "attributes": {"price": 2}, "available": True, "codes": [1], "cold": False}
HANG_UP = "hang up"


def problem(status: int, detail: str) -> dict[str, Any]:
    """What the service says when it refuses."""
    return {"title": "Refused", "status": status, "detail": detail, "request_id": "q7"}


class Script(http.server.ThreadingHTTPServer):
    """Answers with what is in ``replies``, in order, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Any] = []
        self.asked: list[tuple[str, str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Script

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, json.loads(body) if body else None))
        self.server.headers.append(dict(self.headers))
        reply = self.server.replies.pop(0)
        if reply is HANG_UP:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        status, headers, content = reply if isinstance(reply, tuple) else (200, {}, reply)
        text = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def script() -> Iterator[Script]:
    with Script() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_what_is_sent_and_what_comes_back(script: Script) -> None:
    script.replies = [LIST, LIST, {**VERSIONS, "item_id": "a/b", "items": []}, {**VERSIONS, "query": "x", "items": []}]
    wishes = RecommendRequest(filter="price < 3", explain=True)
    with Client(script.url, key="tsk_1_2", namespace="shop") as client:
        answer = client.recommend("ann", 3, wishes=wishes)
        client.recommend_for_history(["lamp", "oven"], k=2)
        client.similar("a/b ü?", k=4, filter="price < 3")
        client.search("oak & shelf")
    assert (answer.items[0].title, answer.table_revision) == ("Lamp", 4)
    assert script.asked == [
        ("POST", "/api/recommend", {"user_id": "ann", "k": 3, "filter": "price < 3", "explain": True}),
        ("POST", "/api/recommend", {"user_id": None, "history": ["lamp", "oven"], "k": 2}),
        ("GET", "/api/items/a%2Fb%20%C3%BC%3F/similar?k=4&filter=price+%3C+3", None),
        ("GET", "/api/search?q=oak+%26+shelf&k=10", None),
    ]
    assert all(h["Authorization"] == "Bearer tsk_1_2" and h["X-Namespace"] == "shop" for h in script.headers)
    assert wishes.user_id is None, "what the caller holds is not changed"


def test_ids_that_are_numbers(script: Script) -> None:
    script.replies = [LIST, LIST]
    with Client(script.url) as client:
        client.recommend(17841)
        client.recommend_for_history([1294, "1555"])
    assert [body.get("user_id") for _, _, body in script.asked] == ["17841", None]
    assert script.asked[1][2]["history"] == ["1294", "1555"]


def test_items_events_and_users(script: Script) -> None:
    user = {"user_id": "ann", "num_events": 0, "history": []}
    script.replies = [{"accepted": 1, "duplicates": 0}, ITEM, ITEM, ITEM, ITEM, {"items": 1, "table_revision": 5}]
    script.replies += [{"users": ["ann"]}, user, {"user_id": "ann", "events": [], "impressions": []}]
    script.replies += [{"user_id": "ann", "removed": 3}, {"status": "ready"}]
    with Client(script.url) as client:
        assert client.add_events([EventIn(event_id="e", user_id="ann", item_id="lamp", time=7)]).accepted == 1
        client.item("lamp")
        assert client.put_item("lamp", {"title": "Lamp", "price": 2}).attributes == {"price": 2}
        client.patch_item("lamp", {"price": None})
        client.set_availability("lamp", False)
        assert client.delete_item("lamp").table_revision == 5
        assert client.users("a", 3) == ["ann"]
        assert client.user("ann").num_events == 0
        assert client.export_user("ann").impressions == []
        assert client.delete_user("ann").removed == 3
        assert client.health().status == "ready"
    event = {"event_id": "e", "user_id": "ann", "item_id": "lamp", "time": 7.0}
    assert script.asked == [
        ("POST", "/api/events", {"events": [event]}),
        ("GET", "/api/items/lamp", None),
        ("PUT", "/api/items/lamp", {"attributes": {"title": "Lamp", "price": 2}, "available": True}),
        ("PATCH", "/api/items/lamp", {"attributes": {"price": None}, "available": None}),
        ("PUT", "/api/items/lamp/availability", {"available": False}),
        ("DELETE", "/api/items/lamp", None),
        ("GET", "/api/users?prefix=a&limit=3", None),
        ("GET", "/api/users/ann", None),
        ("GET", "/api/users/ann/export", None),
        ("DELETE", "/api/users/ann", None),
        ("GET", "/api/health/ready", None),
    ]


@pytest.mark.parametrize("failure", [HANG_UP, (429, {"Retry-After": "0"}, {}), (503, {}, "busy")])
def test_events_are_sent_again_until_they_are_kept(script: Script, failure: Any) -> None:
    script.replies = [failure, failure, {"accepted": 0, "duplicates": 1}]
    with Client(script.url, retry=AT_ONCE) as client:
        kept = client.add_events([EventIn(event_id="e", user_id="ann", item_id="lamp")])
    assert kept.duplicates == 1
    assert len(script.asked) == 3
    assert script.asked[0] == script.asked[1] == script.asked[2]


def test_the_time_that_the_service_asks_for_is_waited(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tesserec.serving.client.time.sleep", waits.append)
    script.replies = [(429, {"Retry-After": "3"}, {}), (429, {}, {}), (429, {}, {}), LIST]
    with Client(script.url, retry=RetryConfig(first_wait_s=0.2)) as client:
        client.recommend("ann")
    assert waits[0] == 3.0
    assert 0.2 <= waits[1] <= 0.4
    assert 0.4 <= waits[2] <= 0.8


def test_a_service_that_asks_for_too_long_is_not_asked_again(script: Script) -> None:
    script.replies = [(429, {"Retry-After": "3600", "X-Request-Id": "q7"}, problem(429, "too many requests"))]
    with Client(script.url) as client, pytest.raises(RequestError, match="429, too many requests") as caught:
        client.search("lamp")
    assert (caught.value.status, caught.value.detail, caught.value.request_id) == (429, "too many requests", "q7")
    assert isinstance(caught.value, ServiceError)


def test_what_is_wrong_with_a_request_is_not_sent_again(script: Script) -> None:
    script.replies = [
        (422, {"X-Request-Id": "q8"}, problem(422, "k: at most 200")),
        (500, {"X-Request-Id": "q9"}, "<html>"),
    ]
    with Client(script.url, retry=AT_ONCE) as client:
        with pytest.raises(RequestError, match=r"POST /api/recommend: 422, k: at most 200"):
            client.recommend("ann", 201)
        with pytest.raises(RequestError, match=r"500, <html>") as caught:
            client.user("ann")
    assert caught.value.request_id == "q9"
    assert len(script.asked) == 2


def test_health_is_asked_once(script: Script) -> None:
    script.replies = [(503, {}, problem(503, "draining")), LIST]
    with Client(script.url, retry=AT_ONCE) as client, pytest.raises(RequestError, match="503, draining"):
        client.health()
    assert len(script.asked) == 1


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with Client(url, retry=AT_ONCE) as client, pytest.raises(RequestError, match=f"{url}/? gave no answer") as caught:
        client.search("lamp")
    assert caught.value.status is None


@pytest.mark.parametrize("reply", [{"items": 3}, "no json", "[1]"])
def test_an_answer_of_another_shape_is_an_error(script: Script, reply: Any) -> None:
    script.replies = [reply]
    said = "the answer is no SearchResponse; is the service of this version"
    with Client(script.url) as client, pytest.raises(RequestError, match=said):
        client.search("lamp")
