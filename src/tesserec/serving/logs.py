"""Logs as JSON, one object a line: ``time``, ``level``, ``logger``, ``message``, ``request_id`` and fields.

    LOG.info("answered", extra=fields(route="/api/search", status=200))

Users are not named at INFO and above: fields that say who somebody is (``PERSONAL``) are written at DEBUG only, and
uvicorn's access log, which writes whole paths, is off in favour of ``log_request``, which writes their templates.
"""

from __future__ import annotations

import datetime
import json
import logging
from contextvars import ContextVar
from typing import IO, Any

__all__ = ["PERSONAL", "REQUEST_ID", "JsonFormatter", "configure_logs", "fields", "log_request"]

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that is being worked on, in this task or thread."""
PERSONAL = frozenset({"user_id", "history", "session", "client", "path", "query"})
"""Fields that are written at DEBUG only."""
ACCESS = logging.getLogger("tesserec.serving.access")


def fields(**values: Any) -> dict[str, Any]:
    """The ``extra`` of a log call: named values that become keys of the line."""
    return {"fields": values}


def log_request(method: str, route: str, status: int, ms: float) -> None:
    """Log a request that was replied to, at INFO where the client erred; ``route`` is the template of its path."""
    if status >= 500:
        level = logging.WARNING
    elif status < 400 or status == 429:
        level = logging.DEBUG  # metrics count them; a line for each would cost more than many an answer
    else:
        level = logging.INFO
    ACCESS.log(level, "%s %s %d", method, route, status, extra=fields(route=route, status=status, ms=round(ms, 3)))


class JsonFormatter(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, without the newline."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := REQUEST_ID.get()) is not None:
            line["request_id"] = request_id
        named = record.__dict__.get("fields", {})
        line |= {k: v for k, v in named.items() if record.levelno <= logging.DEBUG or k not in PERSONAL}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logs(level: str, stream: IO[str]) -> None:
    """Write all logs of the process to ``stream`` from ``level`` (``"INFO"`` …) on, those of uvicorn too.

    Start uvicorn with ``log_config=None``, or it takes its loggers back.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True
