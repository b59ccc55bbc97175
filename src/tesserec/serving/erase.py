"""Users who asked to be deleted, taken out of every version on disk.

What a bundle has of a user is an id in ``users.parquet`` and rows in ``events.parquet``. The rows go, and the id
becomes a random one that leads back to nobody; the place in the list of users stays, so that everything that was fitted
counts users as before and answers the others as before. The version keeps its name, and the ``data_digest`` of what it
was fitted on. Files that do not change are linked, not copied.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import secrets
import shutil
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tesserec.bundle import Bundle, save_interactions, save_manifest, sha256
from tesserec.config import Field, component
from tesserec.errors import BundleError, TesserecError
from tesserec.serving.durable import copy_file, sync, try_lock, write_text
from tesserec.serving.records import Store
from tesserec.serving.versions import Versions
from tesserec.types import Vocabulary

__all__ = ["Eraser", "EraserConfig", "deleted_users", "erase", "unfinished_folder"]

LOGGER = logging.getLogger(__name__)


def unfinished_folder(versions: Versions) -> Path:
    """Where a nightly run of the namespace keeps what is unfinished; ``.nightly.lock`` beside it is its lock."""
    return versions.folder / "nightly"


def erase(versions: Versions, users: Collection[str], only: str | None = None) -> list[str]:
    """Take ``users`` out of every version (or of ``only`` one), and drop a nightly run that was left unfinished.

    Returns the versions that had any of them. Raises ``BundleError`` at the end for versions that are damaged: nothing
    was taken out of those.
    """
    changed, broken = [], []
    with versions.writing():
        for version in versions.ids() if only is None else [only]:
            try:
                if _erased(versions, version, users):
                    changed.append(version)
            except BundleError as error:
                broken.append(str(error))
    with try_lock(versions.folder / ".nightly.lock") as free:
        if free:
            shutil.rmtree(unfinished_folder(versions) / "bundle", ignore_errors=True)
    if broken:
        raise BundleError(f"{'; '.join(broken)}. Users could not be taken out: publish it again, or prune it")
    return changed


def deleted_users(bundle: Bundle, store: Store) -> list[str]:
    """Users of a bundle who asked to be deleted."""
    return [user for user in map(str, _users(bundle).ids.to_pylist()) if store.is_deleted(user)]


def _users(bundle: Bundle) -> Vocabulary:
    return Vocabulary(pq.read_table(bundle.folder / "users.parquet")["user_id"].combine_chunks())


def _erased(versions: Versions, version: str, users: Collection[str]) -> bool:
    """Whether the version had any of ``users``, and has none now."""
    bundle = Bundle.open(versions.path(version))
    found = _users(bundle).find(list(users))
    rows = torch.unique(found[found >= 0])
    if len(rows):
        versions.replace(version, lambda fresh: _write_without(bundle, rows, fresh))
    return bool(len(rows))


def _write_without(bundle: Bundle, rows: torch.Tensor, fresh: Path) -> None:
    log = bundle.interactions
    kept = log.select(~torch.isin(log.user_E, rows.to(log.user_E.dtype)))
    ids: list[Any] = log.users.ids.to_pylist()
    for row in rows.tolist():
        ids[row] = _nobody(text=log.users.is_text)
    users = Vocabulary(pa.array(ids, log.users.ids.type))
    changed = ("users.parquet", "events.parquet")
    for path in sorted(path for path in bundle.folder.rglob("*") if path.is_file()):
        name = path.relative_to(bundle.folder)
        if str(name) not in (*changed, "manifest.json"):
            _link(path, fresh / name)
    pq.write_table(pa.table({"user_id": users.ids}), fresh / "users.parquet", compression="zstd")
    save_interactions(fresh / "events.parquet", dataclasses.replace(kept, users=users))
    files = dict(bundle.manifest.files)
    for changed_name in changed:
        path = fresh / changed_name
        files[changed_name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    save_manifest(fresh, dataclasses.replace(bundle.manifest, num_events=len(kept), files=files))
    for changed_name in (*changed, "manifest.json"):
        sync(fresh / changed_name)


def _nobody(*, text: bool) -> str | int:
    return f"erased-{secrets.token_hex(16)}" if text else -1 - secrets.randbits(62)


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        copy_file(source, target)


@component
class EraserConfig:
    """When users are taken out of the versions."""

    gather_s: Annotated[float, Field(ge=0, le=30)] = 5.0
    """How long the first waits for others, so that a version is written once for all of them."""
    retry_s: Annotated[float, Field(gt=0, le=30)] = 10.0
    """Between attempts, where one failed."""


class Eraser:
    """A thread that takes deleted users out of the versions; who is waiting for it survives a restart.

    Tell it of a user with ``add`` after the store deleted them. When it starts it looks through all versions for users
    whom the store knows as deleted.
    """

    def __init__(self, versions: Versions, store: Store, config: EraserConfig | None = None) -> None:
        self._versions, self._store = versions, store
        self._config = config or EraserConfig()
        self._file = versions.folder / "erasing.json"
        self._waiting: set[str] = set(json.loads(self._file.read_text())) if self._file.exists() else set()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._swept = False
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="eraser", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def add(self, user_id: str) -> None:
        """Take a user out soon; on disk when this returns."""
        with self._changed:
            self._waiting.add(user_id)
            self._keep()
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Users that are still to be taken out."""
        with self._changed:
            return len(self._waiting)

    @property
    def failure(self) -> str | None:
        """Why the last attempt failed; None where it did not. It is tried again."""
        return self._failure

    def wait(self, timeout_s: float) -> bool:
        """Wait until nobody is waiting; whether that was in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._swept and not self._waiting, timeout_s)

    def close(self) -> None:
        """Finish what was begun, and stop."""
        with self._changed:
            self._stop.set()
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or not self._swept or self._stop.is_set())
            if self._swept:
                self._stop.wait(self._config.gather_s)
            if not self._stop.is_set() and not self._attempt():
                self._stop.wait(self._config.retry_s)

    def _attempt(self) -> bool:
        with self._changed:
            users = set(self._waiting)
        try:
            if not self._swept:
                users |= self._deleted_before()
            if users:
                versions = erase(self._versions, users)
                LOGGER.info("%d users were taken out of %d versions", len(users), len(versions))
        except (TesserecError, OSError) as error:
            LOGGER.error("users are still to be taken out of the versions: %s", error)
            self._failure = str(error)
            return False
        with self._changed:
            self._failure, self._swept = None, True
            self._waiting -= users
            self._keep()
            self._changed.notify_all()
        return True

    def _deleted_before(self) -> set[str]:
        """Users whom the store deleted and a version still has."""
        found: set[str] = set()
        for version in self._versions.ids():
            try:
                found.update(deleted_users(self._versions.check(version), self._store))
            except BundleError as error:
                LOGGER.error("nobody can be taken out of version %s: %s", version, error)
        return found

    def _keep(self) -> None:
        """Write down who is waiting; the caller holds the lock."""
        if self._waiting:
            write_text(self._file, json.dumps(sorted(self._waiting)))
        elif self._file.exists():
            self._file.unlink()
            sync(self._file.parent)
