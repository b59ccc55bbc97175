"""A bundle on its way to be the live version: gate, copy, erasure of deleted users, pointer, audit, prune."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tesserec.errors import ServiceError
from tesserec.serving.erase import deleted_users, erase
from tesserec.serving.gate import GateConfig, GateReport, gate
from tesserec.serving.records import Audit, Store
from tesserec.serving.versions import Versions

__all__ = ["Released", "release"]


@dataclass(frozen=True)
class Released:
    """A bundle that is live now."""

    version: str
    report: GateReport | None
    """None where the gate was not asked."""
    pruned: tuple[str, ...]
    """Versions that were deleted."""


def release(
    bundle: Path,
    versions: Versions,
    store: Store,
    *,
    config: GateConfig | None = None,
    force: bool = False,
    keep: int = 3,
    key_id: str = "command line",
) -> Released:
    """Make ``bundle`` the live version if the gate lets it pass; with ``force`` the gate is not asked.

    Who is in a hurry does not wait for it, and it could not answer where the live version is damaged. Nor is it asked
    about the live version itself. All is in the audit log. Users whom the store deleted are taken out before it
    answers. Versions but the newest ``keep`` and those with a role are deleted. Raises ``ServiceError`` with the gate's
    report where it is refused, ``BundleError`` that names a damaged file.
    """
    pointer = versions.pointer()
    live = None if pointer is None else versions.path(pointer.live)
    is_live = live is not None and bundle.resolve() == live.resolve()
    report = None if force or is_live else gate(bundle, live, store, config, reading=versions.reading())
    if report is not None and not report.accepted:
        _audit(store, key_id, "publish refused", bundle, reasons=report.reasons)
        reasons = "; ".join(report.reasons)
        raise ServiceError(f"{bundle.name} is not published: {reasons}. Publish it with force if it must be.")
    version = versions.add(bundle)
    deleted = deleted_users(versions.check(version), store)
    if deleted:
        erase(versions, deleted, only=version)
    versions.go_live(version)
    _audit(store, key_id, "publish by force" if force else "publish", bundle, version=version)
    return Released(version, report, tuple(versions.prune(keep)))


def _audit(
    store: Store, key_id: str, action: str, bundle: Path, *, version: str | None = None, reasons: Sequence[str] = ()
) -> None:
    detail = {"bundle": str(bundle), "version": version, "reasons": list(reasons)}
    store.add_audit(Audit(time.time(), key_id, action, detail)).result()
