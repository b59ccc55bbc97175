"""Logs as JSON lines."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest
import uvicorn

from tesserec.serving.logs import REQUEST_ID, configure_logs, fields, log_request


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What was logged from INFO on; the process's logging is as before afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    access = logging.getLogger("uvicorn.access").disabled
    out = io.StringIO()
    configure_logs("INFO", out)
    yield out
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("uvicorn.access").disabled = access


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_time_level_logger_message_and_fields(stream: io.StringIO) -> None:
    logging.getLogger("shop").info("kept %d\nevents", 3, extra=fields(namespace="default", ms=1.5))
    (line,) = lines(stream)
    assert str(line.pop("time")).endswith("Z")
    assert line == {"level": "INFO", "logger": "shop", "message": "kept 3\nevents", "namespace": "default", "ms": 1.5}


def test_users_are_not_named_at_info(stream: io.StringIO) -> None:
    log = logging.getLogger("shop")
    log.info("recommended", extra=fields(user_id="ann", history=["i1"], k=3))
    log.debug("not even written", extra=fields(user_id="ann"))
    assert "ann" not in stream.getvalue()
    assert lines(stream)[0]["k"] == 3
    logging.getLogger().setLevel("DEBUG")
    log.debug("recommended", extra=fields(user_id="ann"))
    assert lines(stream)[-1]["user_id"] == "ann"


def test_each_task_has_its_own_request_id(stream: io.StringIO) -> None:
    async def work(name: str) -> None:
        REQUEST_ID.set(name)
        await asyncio.sleep(0)
        logging.getLogger("shop").info(name)

    async def both() -> None:
        await asyncio.gather(work("one"), work("two"))

    asyncio.run(both())
    logging.getLogger("shop").info("outside")
    assert [(line["message"], line.get("request_id")) for line in lines(stream)] == [
        ("one", "one"),
        ("two", "two"),
        ("outside", None),
    ]


def test_an_exception_is_one_line(stream: io.StringIO) -> None:
    try:
        raise ValueError("no\nway")
    except ValueError:
        logging.getLogger("shop").exception("failed")
    (line,) = lines(stream)
    assert "ValueError: no" in str(line["exception"])
    assert line["level"] == "ERROR"


def test_requests_that_fail_are_logged_by_route(stream: io.StringIO) -> None:
    for status in (200, 429, 404, 500):
        log_request("GET", "/api/users/{user_id}", status, 1.23456)
    first, second = lines(stream)
    assert (first["route"], first["status"], first["ms"]) == ("/api/users/{user_id}", 404, 1.235)
    assert (first["level"], second["level"], second["status"]) == ("INFO", "WARNING", 500)
    logging.getLogger().setLevel("DEBUG")
    log_request("GET", "/api/users/{user_id}", 200, 1.0)
    assert lines(stream)[-1]["message"] == "GET /api/users/{user_id} 200"


def test_uvicorn_writes_through_it_and_its_access_log_is_off(stream: io.StringIO) -> None:
    async def application(scope: dict[str, object], receive: object, send: object) -> None: ...

    uvicorn.Config(application, log_config=None).configure_logging()  # type: ignore[arg-type]  # what a server does first
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 1)
    logging.getLogger("uvicorn.access").info(
        '%s - "%s %s HTTP/%s" %d', "127.0.0.1", "GET", "/api/recommend/ann", "1.1", 200
    )
    (line,) = lines(stream)
    assert line["message"] == "Started server process [1]"
