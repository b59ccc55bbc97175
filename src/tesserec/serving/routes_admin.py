"""Routes of administrators: versions, keys, draining, backups, and the log of all that.

Nothing that comes from a request is ever a path or the name of a class: versions are named, and only those that are in
the home folder already can be made live.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from tesserec.serving.admin import Admin
from tesserec.serving.api import CHANGES, READS, STATE_CHANGES, passed_of, service_of, shop_of
from tesserec.serving.bodies import (
    AuditOut,
    BackupOut,
    CanaryIn,
    DrainOut,
    KeyIn,
    KeyMade,
    KeyOut,
    KeysOut,
    PublishIn,
    VersionsOut,
)
from tesserec.serving.problems import problems

__all__ = ["router"]

router = APIRouter(prefix="/api/admin", tags=["administration"])

ACTIONS = {**READS, **problems(409)}


def _admin(request: Request) -> Admin:
    passed = passed_of(request)
    return Admin(service_of(request), shop_of(request), passed.caller)


@router.get("/versions", operation_id="list_versions", responses={**READS})
async def list_versions(request: Request) -> VersionsOut:
    """List the versions on disk, and which of them answers."""
    return await _admin(request).versions()


@router.post("/publish", operation_id="publish", responses={**STATE_CHANGES})
async def publish(request: Request, body: PublishIn) -> VersionsOut:
    """Make a version of the home folder live, if the gate lets it pass; the reply comes when it answers."""
    return await _admin(request).publish(body.version, force=body.force)


@router.post("/rollback", operation_id="rollback", responses={**ACTIONS})
async def rollback(request: Request) -> VersionsOut:
    """Make the version live that was before; a canary ends."""
    return await _admin(request).rollback()


@router.put("/canary", operation_id="set_canary", responses={**STATE_CHANGES})
async def set_canary(request: Request, body: CanaryIn) -> VersionsOut:
    """Let a version answer a share of the users."""
    return await _admin(request).canary(body.version, body.share)


@router.delete("/canary", operation_id="end_canary", responses={**ACTIONS})
async def end_canary(request: Request) -> VersionsOut:
    """Let the live version answer everybody again."""
    return await _admin(request).canary(None)


@router.post("/drain", operation_id="drain", responses={**READS})
async def drain(request: Request) -> DrainOut:
    """Say no at `/api/health/ready`, so that no new traffic is sent here; requests are still answered."""
    return await _admin(request).drain(True)


@router.post("/undrain", operation_id="undrain", responses={**READS})
async def undrain(request: Request) -> DrainOut:
    """Take traffic again."""
    return await _admin(request).drain(False)


@router.get("/keys", operation_id="list_keys", responses={**READS})
async def list_keys(request: Request) -> KeysOut:
    """List the keys that were ever made, without what makes them open anything."""
    return _admin(request).keys()


@router.post("/keys", operation_id="make_key", responses={**CHANGES})
async def make_key(request: Request, body: KeyIn) -> KeyMade:
    """Make a key. Its text is in this reply and nowhere else."""
    return await _admin(request).make_key(body)


@router.delete("/keys/{key_id}", operation_id="revoke_key", responses={**ACTIONS})
async def revoke_key(request: Request, key_id: str) -> KeyOut:
    """Revoke a key: it opens nothing from now on."""
    return await _admin(request).revoke_key(key_id)


@router.post("/backup", operation_id="backup", responses={**ACTIONS})
async def backup(request: Request) -> BackupOut:
    """Copy the namespace's events, items and lists to the home folder, while everything goes on."""
    return await _admin(request).backup()


@router.get("/audit", operation_id="list_audit", responses={**READS})
async def list_audit(request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> AuditOut:
    """List what administrators did, the latest first."""
    return await _admin(request).audit(limit)
