"""What clients are told when something goes wrong: ``application/problem+json`` with the request's id, and no more.

Every reply that is not a success has this shape, whichever layer wrote it; ``problems`` declares them for OpenAPI.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Request
from starlette.responses import Response
from starlette.types import Send

from tesserec.serving.schemas import Problem

__all__ = ["MEDIA_TYPE", "Refused", "explained", "problem_response", "problems", "request_id_of", "send_problem"]

MEDIA_TYPE = "application/problem+json"
_MAX_ERRORS = 5
"""Of a request that are told at once."""
_ABOUT = {
    400: "The request is not HTTP or JSON that can be read.",
    401: "An API key is needed, and none was sent, or one that opens nothing.",
    403: "The key does not reach this far.",
    404: "There is nothing of this name.",
    405: "This path takes other methods.",
    408: "The body did not arrive in time.",
    409: "It cannot be done in the present state.",
    413: "The body is too large.",
    415: "The body is not of a media type that is taken here.",
    422: "Something in the request is not valid; `detail` says what.",
    429: "Too many requests; try again after `Retry-After` seconds.",
    500: "A mistake of the service; its log has the request id.",
    503: "The service cannot answer now; try again later.",
}


class Refused(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None, reason: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.reason = reason
        """Of a 429, for the metrics."""


def problem_response(status: int, detail: str, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
    """A problem, as a response of a route or an exception handler."""
    return Response(_body(status, detail, request_id), status, headers, MEDIA_TYPE)


async def send_problem(send: Send, refused: Refused, request_id: str) -> None:
    """A problem, for layers outside of FastAPI."""
    body = _body(refused.status, refused.detail, request_id)
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        *((name.lower().encode(), value.encode()) for name, value in refused.headers.items()),
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What an operation can answer beside success, for the ``responses`` of FastAPI."""
    return {status: _declared(status) for status in sorted(statuses)}


def explained(errors: Sequence[Any]) -> str:
    """What is wrong with a request, in one line, from the errors of pydantic."""
    parts = [_part(one) for one in errors]
    more = [] if len(parts) <= _MAX_ERRORS else [f"and {len(parts) - _MAX_ERRORS} more"]
    return "; ".join([*parts[:_MAX_ERRORS], *more])


def _part(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] != "json_invalid":
        return f"{where}: {error['msg']}".removeprefix(": ")
    # FastAPI says where in the path of the field, pydantic in the message.
    why = str(error["ctx"]["error"])
    at = f", at character {error['loc'][-1]}" if error["loc"] else ""
    return f"not JSON: {why}{at}".replace(" at line 1 column ", ", at character ")


def request_id_of(request: Request) -> str:
    """The id of a request that came through the guards."""
    return str(request.scope["tesserec"].request_id)


def _declared(status: int) -> dict[str, Any]:
    example = {"title": HTTPStatus(status).phrase, "status": status, "detail": _ABOUT[status], "request_id": "5f0c…"}
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}}
    headers = (
        {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}} if status in (429, 503) else {}
    )
    return {"description": _ABOUT[status], "content": content, "headers": headers}


def _body(status: int, detail: str, request_id: str) -> bytes:
    problem = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail, "request_id": request_id}
    assert problem.keys() == Problem.model_fields.keys()
    return json.dumps(problem).encode()
