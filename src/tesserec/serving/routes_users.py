"""Routes of users, and of sessions: histories of people who are not known yet."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request

from tesserec.serving.api import CHANGES, READS, PathId, linked, shop_of
from tesserec.serving.bodies import Merge, Merged, SessionOut, UserDeleted, UserExport, UsersOut
from tesserec.serving.schemas import UserOut

__all__ = ["router"]

router = APIRouter(prefix="/api", tags=["users"])

SessionId = Annotated[PathId, Path(examples=["s1"])]
Limit = Annotated[int, Query(ge=1, le=1000)]
_ID = {"user_id": "$request.path.user_id"}
_LINKS = linked(export=("export_user", _ID), recommend=("recommend_to_user", _ID), delete=("delete_user", _ID))


@router.get(
    "/users",
    operation_id="list_users",
    responses={**READS, **linked(first=("get_user", {"user_id": "$response.body#/users/0"}))},
)
async def list_users(
    request: Request, prefix: Annotated[str, Query(max_length=256)] = "", limit: Limit = 100
) -> UsersOut:
    """List ids of users that begin with something."""
    return UsersOut(users=await shop_of(request).users(prefix, limit))


@router.get("/users/{user_id}", operation_id="get_user", responses={**READS, **_LINKS})
async def get_user(request: Request, user_id: PathId, limit: Limit = 100) -> UserOut:
    """Read the latest events of a user."""
    return await shop_of(request).user(user_id, limit)


@router.get("/users/{user_id}/export", operation_id="export_user", responses={**READS})
async def export_user(request: Request, user_id: PathId) -> UserExport:
    """Export everything that is kept of a user: events, and lists that were shown."""
    return await shop_of(request).export_user(user_id)


@router.delete("/users/{user_id}", operation_id="delete_user", responses={**READS})
async def delete_user(request: Request, user_id: PathId) -> UserDeleted:
    """Remove everything of a user: from the store now, and from all bundles on disk within a minute."""
    return UserDeleted(user_id=user_id, removed=await shop_of(request).delete_user(user_id))


@router.get("/sessions/{session_id}", operation_id="get_session", responses={**READS})
async def get_session(request: Request, session_id: SessionId, limit: Limit = 100) -> SessionOut:
    """Read what somebody did who is not known: events whose user is ``session:`` and the session's id."""
    user = await shop_of(request).user(session_user(session_id), limit)
    return SessionOut(session_id=session_id, user_id=user.user_id, history=user.history)


@router.post("/sessions/{session_id}/merge", operation_id="merge_session", responses={**CHANGES})
async def merge_session(request: Request, session_id: SessionId, body: Merge) -> Merged:
    """Make a session a part of a user's history, as when somebody logs in; the session is gone afterwards."""
    moved = await shop_of(request).move_events(session_user(session_id), body.user_id)
    return Merged(user_id=body.user_id, moved=moved)


def session_user(session_id: str) -> str:
    """The user id under which a session's events are kept."""
    return f"session:{session_id}"
