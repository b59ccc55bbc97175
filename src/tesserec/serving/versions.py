"""The bundles of one namespace on disk, and which of them is live.

    <namespace>/versions/<version>/    a bundle, complete and checked; nothing in it changes but by erasure of users
    <namespace>/live.json              which version answers, which did before, and which gets a share as a canary

A version is named by when its bundle was made and a digest of its manifest: the same bundle published twice is the same
version, and names sort by age. A bundle is copied beside its place, synced, checked and renamed, and ``live.json`` is
replaced as a whole: whoever is killed at any point leaves a live version that is complete. Any number of processes may
call this at once. A rollback waits for nothing that takes long: neither for a copy nor for an erasure.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tesserec.bundle import Bundle, Manifest, read_manifest
from tesserec.errors import BundleError, ServiceError
from tesserec.serving.durable import copy_file, locked, sync, try_lock, write_text

__all__ = ["Canary", "Pointer", "VersionInfo", "Versions"]

LOGGER = logging.getLogger(__name__)

_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
_NEW, _NEXT, _OLD = ".new-", ".next-", ".old-"
"""Beginnings of folders in the making, complete but not in place yet, and moved away to be deleted."""


@dataclass(frozen=True)
class Canary:
    """A version that a share of the users get."""

    version: str
    share: float
    """In (0, 1]."""


@dataclass(frozen=True)
class Pointer:
    """What ``live.json`` says."""

    sequence: int
    """One more with each change."""
    live: str
    previous: str | None = None
    """What was live before: where a rollback goes."""
    canary: Canary | None = None


@dataclass(frozen=True)
class VersionInfo:
    """A version as ``tesserec versions`` lists it."""

    version: str
    roles: tuple[str, ...]
    """Of ``live``, ``previous`` and ``canary``; empty for one that is only kept."""
    manifest: Manifest


class Versions:
    """The versions of the namespace in ``folder``, made if need be; what a killed process left is put right."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bundles = folder / "versions"
        self._pointer_file = folder / "live.json"
        self._bundles.mkdir(parents=True, exist_ok=True)
        self._writer_lock = self._bundles / ".writer.lock"
        self._swap_lock = self._bundles / ".swap.lock"
        self._pointer_lock = self._bundles / ".pointer.lock"
        with try_lock(self._writer_lock) as free:
            if free:
                self._recover()

    def ids(self) -> list[str]:
        """All versions, oldest first; those made within one second in no particular order."""
        return sorted(path.name for path in self._bundles.iterdir() if _NAME.fullmatch(path.name))

    def path(self, version: str) -> Path:
        """The folder of a version; raises ``ServiceError`` where there is none of this name."""
        if not _NAME.fullmatch(version) or not (self._bundles / version).is_dir():
            raise ServiceError(f"there is no version {version!r}: there are {', '.join(self.ids()) or 'none'}")
        return self._bundles / version

    def pointer(self) -> Pointer | None:
        """What is live; None where nothing was published yet. Raises ``ServiceError`` for a damaged ``live.json``."""
        try:
            table = json.loads(self._pointer_file.read_bytes())
            if table.pop("sha256") != _digest(table):
                raise ValueError("its SHA-256 is another")
            canary = table.pop("canary")
            return Pointer(**table, canary=None if canary is None else Canary(**canary))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ServiceError(
                f"{self._pointer_file} is damaged ({error}): restore it, or delete it and publish the version that "
                f"shall be live (there are {', '.join(self.ids()) or 'none'})"
            ) from None

    def infos(self) -> list[VersionInfo]:
        """What there is, oldest first; raises ``BundleError`` for a damaged manifest (``check`` reads the rest)."""
        pointer = self.pointer()
        with self.reading():
            return [VersionInfo(v, _roles(v, pointer), read_manifest(self.path(v))) for v in self.ids()]

    def publish(self, bundle: Path) -> str:
        """Make a copy of ``bundle`` the live version; its name. Raises ``BundleError`` that names a damaged file."""
        version = self.add(bundle)
        self.go_live(version)
        return version

    def add(self, bundle: Path) -> str:
        """Keep a copy of ``bundle`` as a version without making it live; its name.

        A version of that name that is there already stays as it is, unless it is damaged: then it is replaced. The
        folder of a version is that version, whoever was erased from it.
        """
        manifest = Bundle.open(bundle).manifest
        if bundle.resolve().parent == self._bundles.resolve():
            return bundle.name
        _check_names(bundle, manifest)
        version = _version_of(bundle, manifest)
        with self.writing():
            if (self._bundles / version).is_dir():
                try:
                    Bundle.open(self._bundles / version)
                except BundleError as error:
                    LOGGER.error("version %s is replaced by a copy of %s: %s", version, bundle, error)
                else:
                    return version

            def copy(fresh: Path) -> None:
                for name in ("manifest.json", *manifest.files):
                    copy_file(bundle / name, fresh / name)

            self.replace(version, copy)
        return version

    def go_live(self, version: str) -> Pointer:
        """Make a version live; the one before becomes the previous one. A canary of this version ends."""
        self.check(version)
        with locked(self._pointer_lock):
            self.path(version)
            now = self.pointer()
            if now is None:
                return self._point(Pointer(0, version))
            canary = None if now.canary is not None and now.canary.version == version else now.canary
            previous = now.previous if now.live == version else now.live
            return self._point(dataclasses.replace(now, live=version, previous=previous, canary=canary))

    def rollback(self) -> Pointer:
        """Make the previous version live again, and the live one the previous; a canary ends.

        Raises ``ServiceError`` where there is no previous version, ``BundleError`` where it is damaged.
        """
        target = self._published().previous
        if target is None:
            raise ServiceError("there is no previous version to roll back to: publish one")
        self.check(target)
        with locked(self._pointer_lock):
            now = self._published()
            if now.previous != target:
                raise ServiceError(
                    f"somebody else changed what is live just now, it is {now.live}: look, and try again"
                )
            return self._point(Pointer(now.sequence, target, now.live))

    def undo(self, before: Pointer, after: Pointer) -> bool:
        """Let be live what was ``before`` the change to ``after``; not where somebody changed it again. Whether so."""
        with locked(self._pointer_lock):
            if self.pointer() != after or after.sequence != before.sequence + 1:
                return False
            self._point(dataclasses.replace(before, sequence=after.sequence))
        return True

    def canary(self, version: str | None, share: float = 0.05) -> Pointer:
        """Give ``version`` to a share of the users, in (0, 1]; None ends the canary."""
        if version is not None:
            if not 0 < share <= 1:
                raise ServiceError(f"share = {share}: give the canary a share in (0, 1], 0.05 for example")
            self.check(version)
        with locked(self._pointer_lock):
            now = self._published()
            if version == now.live:
                raise ServiceError(f"{version} is live already: a canary is another version")
            canary = None if version is None else Canary(version, share)
            return self._point(dataclasses.replace(now, canary=canary))

    def prune(self, keep: int = 3) -> list[str]:
        """Delete versions but the live and previous one, the canary and the newest ``keep``; which were deleted."""
        if keep < 0:
            raise ServiceError(f"keep = {keep}: give the number of versions to keep, 0 or more")
        with self.writing():
            with locked(self._swap_lock), locked(self._pointer_lock):
                pointer = self.pointer()
                ids = self.ids()
                newest = set(ids[len(ids) - keep :] if keep else [])
                doomed = [v for v in ids if v not in newest and not _roles(v, pointer)]
                for version in doomed:
                    (self._bundles / version).rename(self._bundles / f"{_OLD}{version}")
                sync(self._bundles)
            for version in doomed:
                shutil.rmtree(self._bundles / f"{_OLD}{version}")
        return doomed

    def check(self, version: str) -> Bundle:
        """Read a whole version; raises ``BundleError`` that names what is missing or damaged."""
        with self.reading():
            return Bundle.open(self.path(version))

    def reading(self) -> AbstractContextManager[None]:
        """While this is held, no version is replaced or deleted: hold it while one is loaded."""
        return locked(self._swap_lock, shared=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One process at a time copies, erases or prunes; ``replace`` is called within."""
        with locked(self._writer_lock):
            self._recover()
            yield

    def replace(self, version: str, fill: Callable[[Path], None]) -> None:
        """Put the bundle that ``fill`` writes into an empty folder in the place of ``version``, which may be new.

        ``fill`` syncs its files. Raises ``BundleError`` where what it wrote is no whole bundle: nothing changes then.
        """
        fresh = self._bundles / f"{_NEW}{version}"
        fresh.mkdir()
        try:
            fill(fresh)
            Bundle.open(fresh)
            for folder in (*(path for path in fresh.rglob("*") if path.is_dir()), fresh):
                sync(folder)
            fresh.rename(self._bundles / f"{_NEXT}{version}")
            sync(self._bundles)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        with locked(self._swap_lock):
            self._put_in_place(version)

    def _put_in_place(self, version: str) -> None:
        place, old = self._bundles / version, self._bundles / f"{_OLD}{version}"
        if place.exists():
            place.rename(old)
        (self._bundles / f"{_NEXT}{version}").rename(place)
        sync(self._bundles)
        shutil.rmtree(old, ignore_errors=True)

    def _recover(self) -> None:
        """Finish what a killed process was about to put in place, and delete what it left."""
        for path in sorted(self._bundles.glob(f"{_NEXT}*")):
            with locked(self._swap_lock):
                self._put_in_place(path.name.removeprefix(_NEXT))
        for path in (*self._bundles.glob(f"{_NEW}*"), *self._bundles.glob(f"{_OLD}*")):
            shutil.rmtree(path)

    def _published(self) -> Pointer:
        pointer = self.pointer()
        if pointer is None:
            raise ServiceError(f"nothing is published in {self.folder} yet: publish a bundle first")
        return pointer

    def _point(self, pointer: Pointer) -> Pointer:
        """Write ``live.json``, with the next sequence, unless it says so already; the caller holds the lock."""
        if pointer == self.pointer():
            return pointer
        pointer = dataclasses.replace(pointer, sequence=pointer.sequence + 1)
        table = dataclasses.asdict(pointer)
        write_text(self._pointer_file, json.dumps({**table, "sha256": _digest(table)}, indent=1))
        return pointer


def _roles(version: str, pointer: Pointer | None) -> tuple[str, ...]:
    if pointer is None:
        return ()
    canary = None if pointer.canary is None else pointer.canary.version
    named = {"live": pointer.live, "previous": pointer.previous, "canary": canary}
    return tuple(role for role, name in named.items() if name == version)


def _version_of(bundle: Path, manifest: Manifest) -> str:
    made = datetime.datetime.fromisoformat(manifest.created).astimezone(datetime.UTC)
    digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    return f"{made:%Y%m%d-%H%M%S}-{digest[:8]}"


def _check_names(bundle: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or path.parts[0] == "derived":
            raise BundleError(f"{bundle} names a file {name!r} outside itself: this is no bundle that tesserec made")


def _digest(table: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
