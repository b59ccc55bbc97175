"""Routes for whoever runs the service: whether it lives, whether it may be sent traffic, and what it measures."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from tesserec.serving.api import READS, service_of
from tesserec.serving.bodies import Health
from tesserec.serving.problems import Refused, problems
from tesserec.serving.telemetry import CONTENT_TYPE

__all__ = ["router"]

router = APIRouter(tags=["operation"])

_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_METRICS: dict[int | str, dict[str, Any]] = {200: {"description": "Prometheus' text format.", "content": _TEXT}}


@router.get("/api/health/live", operation_id="health_live", openapi_extra={"security": []})
async def health_live() -> Health:
    """Whether the process runs: restart it where this does not answer."""
    return Health(status="live")


@router.get(
    "/api/health/ready", operation_id="health_ready", responses={**problems(503)}, openapi_extra={"security": []}
)
async def health_ready(request: Request) -> Health:
    """Whether the service may be sent traffic: models are loaded, the store keeps and reads, and it is not drained."""
    reason = await service_of(request).trouble()
    if reason is not None:
        raise Refused(503, reason, {"Retry-After": "1"})
    return Health(status="ready")


@router.get("/metrics", operation_id="metrics", response_class=Response, responses={**READS, **_METRICS})
async def metrics(request: Request) -> Response:
    """Read what the service measures of itself, in Prometheus' text format."""
    return Response(service_of(request).telemetry.render(), media_type=CONTENT_TYPE)
