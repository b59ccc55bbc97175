"""Routes of events: what users did. What was acknowledged is on disk, and the user's next request sees it."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Request
from pydantic import Discriminator, Tag

from tesserec.serving.api import CHANGES, shop_of
from tesserec.serving.bodies import Imported
from tesserec.serving.imports import import_lines
from tesserec.serving.schemas import Accepted, EventBatch, EventIn
from tesserec.serving.shop import event_of

__all__ = ["router"]

router = APIRouter(prefix="/api", tags=["events"])

_ONE = {"event_id": "e1", "user_id": "u1", "item_id": "i1", "kind": "purchase", "time": 1764219600}
_EXAMPLES: dict[str, Any] = {
    "one": {"summary": "One event", "value": _ONE},
    "batch": {"summary": "Several", "value": {"events": [_ONE, {**_ONE, "event_id": "e2", "kind": "view"}]}},
    "session": {
        "summary": "Of somebody who is not known",
        "value": {"event_id": "e3", "user_id": "session:s1", "item_id": "i1", "kind": "view"},
    },
}
_LINES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-ndjson": {
                "schema": {
                    "type": "string",
                    "format": "tesserec-json-lines",
                    "minLength": 1,
                    "description": "One JSON object a line, each an event.",
                },
                "example": '{"user_id": "u1", "item_id": "i1", "time": 1764219600}\n{"user_id": "u2", "item_id": "i1"}',
            }
        },
    }
}


def _form(body: Any) -> str:
    """Whether a body is one event or several."""
    many = isinstance(body, EventBatch) if not isinstance(body, dict) else "events" in body
    return "batch" if many else "event"


Events = Annotated[Annotated[EventIn, Tag("event")] | Annotated[EventBatch, Tag("batch")], Discriminator(_form)]


@router.post("/events", operation_id="add_events", responses={**CHANGES})
async def add_events(request: Request, body: Annotated[Events, Body(openapi_examples=_EXAMPLES)]) -> Accepted:
    """Keep an event, or up to 1,000; an event that was sent before changes nothing and counts as a duplicate."""
    now = time.time()
    given = body.events if isinstance(body, EventBatch) else [body]
    accepted, duplicates = await shop_of(request).engine.add_events([event_of(one, now) for one in given])
    return Accepted(accepted=accepted, duplicates=duplicates)


@router.post("/import/{name}", operation_id="import_events", responses={**CHANGES}, openapi_extra=_LINES)
async def import_events(
    request: Request, name: Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,64}$", examples=["history-2026"])]
) -> Imported:
    """Import a history as JSON lines, once: an import that was cut off goes on when it is sent again.

    The body is read as a stream and may be as large as the service allows; a name that was imported as a whole is
    not imported again.
    """
    return await import_lines(shop_of(request), name, request.stream())
