"""What administrators do. Each action is kept in the audit log of the namespace it was asked in before it is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tesserec.errors import ServiceError
from tesserec.serving.access import Caller
from tesserec.serving.bodies import (
    AuditEntry,
    AuditOut,
    BackupOut,
    DrainOut,
    KeyIn,
    KeyMade,
    KeyOut,
    KeysOut,
    VersionOut,
    VersionsOut,
)
from tesserec.serving.keys import Key
from tesserec.serving.problems import Refused
from tesserec.serving.records import Audit, Value
from tesserec.serving.release import release
from tesserec.serving.service import Service
from tesserec.serving.shop import Shop
from tesserec.serving.versions import Pointer, VersionInfo

__all__ = ["Admin"]

T = TypeVar("T")
_SWAP_S = 120.0
"""How long an administrator waits for a version to be loaded."""


@dataclass(frozen=True)
class Admin:
    """One administrator in one namespace."""

    service: Service
    shop: Shop
    caller: Caller

    async def versions(self) -> VersionsOut:
        """What is on disk, and what answers."""
        infos = await asyncio.to_thread(self.shop.versions.infos)
        pointer = _pointer(self.shop)
        canary, failure = pointer.canary, self.shop.eraser.failure
        return VersionsOut(
            versions=[_version(info) for info in infos],
            live=self.shop.deployment.current().version,
            previous=pointer.previous,
            canary=None if canary is None else canary.version,
            share=0.0 if canary is None else canary.share,
            notes=[*self.shop.deployment.notes, *([] if failure is None else [f"deleted users: {failure}"])],
        )

    async def publish(self, version: str, *, force: bool) -> VersionsOut:
        """Make a version live that is in the home folder; raises ``ServiceError`` where the gate refuses it."""
        self._check_version(version)
        shop, key_id = self.shop, self.caller.key_id
        keep = len(shop.versions.ids())  # who publishes here names one of those: none of them goes

        def act() -> Pointer:
            release(shop.versions.path(version), shop.versions, shop.store, force=force, keep=keep, key_id=key_id)
            return _pointer(shop)

        return await self._changed(act)

    async def rollback(self) -> VersionsOut:
        """Make the version before live again."""
        return await self._change("rollback", self.shop.versions.rollback)

    async def canary(self, version: str | None, share: float = 0.0) -> VersionsOut:
        """Begin a canary, or end it."""
        if version is not None:
            self._check_version(version)
        act = "end canary" if version is None else "canary"
        return await self._change(
            act, lambda: self.shop.versions.canary(version, share or 1.0), version=version, share=share
        )

    async def drain(self, draining: bool) -> DrainOut:
        """Refuse or take new traffic; it is the whole service that is drained."""
        if self.caller.namespaces is not None:
            raise Refused(403, "the key is of some namespaces only, and draining is of the whole service")
        await self._note("drain" if draining else "undrain")
        self.service.draining = draining
        return DrainOut(draining=draining)

    def keys(self) -> KeysOut:
        """The keys that open nothing but what the caller's own opens."""
        return KeysOut(keys=[_key(key) for key in self.service.keys.all() if self._reaches(key.namespaces)])

    async def make_key(self, given: KeyIn) -> KeyMade:
        """A key that opens no more than the caller's own."""
        own = self.caller.namespaces
        wanted = own if given.namespaces is None else tuple(given.namespaces)
        if not self._reaches(wanted):
            raise Refused(403, "the key would open namespaces that yours does not")
        await self._note("make key", name=given.name, scopes=list(given.scopes))
        key, text = await asyncio.to_thread(self.service.keys.create, given.name, given.scopes, wanted)
        return KeyMade(**_key(key).model_dump(), key=text)

    async def revoke_key(self, key_id: str) -> KeyOut:
        """Close a key that opens no more than the caller's own."""
        known = {key.key_id: key for key in self.service.keys.all()}
        if key_id not in known or not self._reaches(known[key_id].namespaces):
            raise Refused(404, f"there is no key {key_id!r}")
        if key_id == self.caller.key_id:
            raise Refused(409, "a key does not revoke itself: use another, or `tesserec service key revoke`")
        await self._note("revoke key", key_id=key_id)
        return _key(await asyncio.to_thread(self.service.keys.revoke, key_id))

    async def backup(self) -> BackupOut:
        """A copy of the store."""
        await self._note("backup")
        path = await asyncio.to_thread(self.shop.backup)
        return BackupOut(name=path.name, size_bytes=path.stat().st_size)

    async def audit(self, limit: int) -> AuditOut:
        """The last actions."""
        entries = await asyncio.to_thread(self.shop.store.audit, limit)
        return AuditOut(
            entries=[
                AuditEntry(time=one.time, key_id=one.key_id, action=one.action, detail=dict(one.detail))
                for one in entries
            ]
        )

    async def _change(self, action: str, act: Callable[[], Pointer], **detail: Value) -> VersionsOut:
        await self._note(action, **detail)
        return await self._changed(act)

    async def _changed(self, act: Callable[[], Pointer]) -> VersionsOut:
        """Change what is live, and wait until it answers; what cannot be loaded does not stay live."""
        shop = self.shop
        before = _pointer(shop)
        after = await asyncio.to_thread(act)
        if not await asyncio.to_thread(shop.deployment.wait, after.sequence, _SWAP_S):
            raise ServiceError(f"{after.live} is not loaded after {_SWAP_S:g} s: see the log; it goes on")
        named = [after.live] if after.canary is None else [after.live, after.canary.version]
        failures = [why for version in named if (why := shop.deployment.failure(version)) is not None]
        if failures:
            undone = await asyncio.to_thread(shop.versions.undo, before, after)
            rest = "what was live before stays live" if undone else f"{shop.deployment.current().version} answers"
            raise ServiceError(f"{'; '.join(failures)}: {rest}")
        return await self.versions()

    async def _note(self, action: str, **detail: Value) -> None:
        entry = Audit(time.time(), self.caller.key_id, action, detail)
        await asyncio.wrap_future(self.shop.store.add_audit(entry))

    def _check_version(self, version: str) -> None:
        if version not in self.shop.versions.ids():
            raise Refused(404, f"there is no version {version!r} in the home folder")

    def _reaches(self, namespaces: tuple[str, ...] | None) -> bool:
        own = self.caller.namespaces
        return own is None or (namespaces is not None and set(namespaces) <= set(own))


def _pointer(shop: Shop) -> Pointer:
    pointer = shop.versions.pointer()
    assert pointer is not None, "a shop that is open has a live version"
    return pointer


def _version(info: VersionInfo) -> VersionOut:
    manifest = info.manifest
    published = manifest.metrics.get(manifest.method, {})
    metrics = {name: float(value["mean"]) for name, value in published.items() if "mean" in value}
    return VersionOut(
        version=info.version,
        roles=list(info.roles),  # type: ignore[arg-type]  # the three there are
        created=manifest.created,
        method=manifest.method,
        metrics=metrics,
    )


def _key(key: Key) -> KeyOut:
    return KeyOut(
        key_id=key.key_id,
        name=key.name,
        scopes=list(key.scopes),
        namespaces=None if key.namespaces is None else list(key.namespaces),
        created=key.created,
        revoked=key.revoked,
    )
