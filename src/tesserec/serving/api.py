"""What the routes share: ids in paths, the shop that a request is of, and which statuses an operation can answer."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Request
from pydantic import BeforeValidator, Field

from tesserec.serving.guards import Passed
from tesserec.serving.problems import problems
from tesserec.serving.service import Service
from tesserec.serving.shop import Shop

__all__ = ["CHANGES", "READS", "STATE_CHANGES", "PathId", "linked", "passed_of", "service_of", "shop_of"]


def _with_slashes(value: object) -> object:
    return value.replace("\x1f", "/") if isinstance(value, str) else value


PathId = Annotated[
    str,
    Path(min_length=1, max_length=256, examples=["i1"]),
    BeforeValidator(_with_slashes),
    Field(pattern=r"^[^\x00-\x1f\x7f]+$"),
]
"""An id as a part of a path, where ``/`` is written ``%2F``."""

READS: dict[int | str, dict[str, Any]] = problems(401, 403, 404, 422, 429, 503)
"""What can go wrong with a request that has no body."""
CHANGES: dict[int | str, dict[str, Any]] = problems(400, 401, 403, 404, 408, 413, 415, 422, 429, 503)
"""What can go wrong with a request that has one."""
STATE_CHANGES: dict[int | str, dict[str, Any]] = {**CHANGES, **problems(409)}
"""And with one that may not fit the present state."""


def passed_of(request: Request) -> Passed:
    """What the guards found out of a request."""
    passed = request.scope["tesserec"]
    assert isinstance(passed, Passed)
    return passed


def service_of(request: Request) -> Service:
    """The service that was asked."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def shop_of(request: Request) -> Shop:
    """The shop that a request is of; raises ``Refused`` (404) where there is no namespace of this name."""
    return service_of(request).shop(passed_of(request).namespace)


def linked(**links: tuple[str, dict[str, str]]) -> dict[int | str, dict[str, Any]]:
    """Links of a successful answer: name → operation and its parameters as OpenAPI's runtime expressions."""
    return {200: {"links": {name: {"operationId": to, "parameters": how} for name, (to, how) in links.items()}}}
