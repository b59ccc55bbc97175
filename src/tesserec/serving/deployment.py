"""The loaded models of a namespace: which answers whom, and how another takes its place while requests go on.

    live.json ─► watcher ─► everything wanted is loaded? ─► one assignment: the next request gets it
                    └─────► else the loader (a thread of low priority) loads it and warms it up, and the watcher swaps

The live model, the one before it and the canary stay in memory, so that a rollback is one assignment; whatever is
neither is dropped. A version that cannot be loaded changes nothing: what answers goes on answering, and ``notes`` and
the log say why. ``live.json`` is read twice a second, so that commands of other processes take effect.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, TypeVar

from tesserec.config import Field, component
from tesserec.errors import ServiceError, TesserecError
from tesserec.serving.versions import Pointer, Versions

__all__ = ["CANARY", "LIVE", "Deployed", "Deployment", "DeploymentConfig", "Serving"]

LOGGER = logging.getLogger(__name__)

T = TypeVar("T")

LIVE, CANARY = "live", "canary"
"""The arms of the experiment that a canary is."""


@component
class DeploymentConfig:
    """How models are loaded and swapped."""

    poll_s: Annotated[float, Field(gt=0, le=10)] = 0.5
    """How often ``live.json`` is read."""
    niceness: Annotated[int, Field(ge=0, le=19)] = 10
    """What is added to the nice value of the thread that loads (Linux)."""


@dataclass(frozen=True, eq=False)
class Deployed(Generic[T]):
    """A version that is loaded."""

    version: str
    model: T


@dataclass(frozen=True, eq=False)
class Serving(Generic[T]):
    """Who answers, at one moment; read it once a request."""

    live: Deployed[T]
    canary: Deployed[T] | None = None
    share: float = 0.0
    """Share of the users that the canary answers, in [0, 1]."""

    @property
    def versions(self) -> tuple[str, str | None]:
        """The live one, and the canary."""
        return self.live.version, None if self.canary is None else self.canary.version

    def arm_of(self, user_id: str | None) -> str:
        """``"canary"`` or ``"live"``: always the same for a user and a canary; who is not known gets the live one."""
        if self.canary is None or user_id is None:
            return LIVE
        digest = hashlib.blake2b(f"{self.canary.version}\0{user_id}".encode(), digest_size=8).digest()
        return CANARY if int.from_bytes(digest, "big") < self.share * 2**64 else LIVE

    def of(self, arm: str) -> Deployed[T]:
        """The model of an arm; the live one's where there is no canary."""
        return self.canary if arm == CANARY and self.canary is not None else self.live


class Deployment(Generic[T]):
    """Loads what ``versions`` points to with ``make(folder, version)``, and keeps it current from ``start`` on.

    ``make`` returns what answers: a model with the catalog of the store's items over it. ``warm`` is given it before it
    goes live, to ask it the requests of late. Both are called in the loader's thread, at the start in the caller's.
    ``changed`` is told, quickly please, when other versions answer, in any thread and one call at a time.
    """

    def __init__(
        self,
        versions: Versions,
        make: Callable[[Path, str], T],
        *,
        warm: Callable[[T], None] = lambda model: None,
        changed: Callable[[Serving[T]], None] = lambda serving: None,
        config: DeploymentConfig | None = None,
    ) -> None:
        self.versions = versions
        self._make = make
        self._warm = warm
        self._told = changed
        self._config = config or DeploymentConfig()
        self._resident: dict[str, T] = {}
        self._failed: dict[str, str] = {}
        self._serving: Serving[T] | None = None
        self._seen: Pointer | None = None
        self._trouble: str | None = None
        self._wake = threading.Event()
        self._stopped = False
        self._changed = threading.Condition()
        self._loading: str | None = None
        self._loader = ThreadPoolExecutor(1, "loader", self._lower_priority)
        self._watcher = threading.Thread(target=self._watch, name="deployment", daemon=True)

    @property
    def serving(self) -> Serving[T]:
        """Who answers now; raises ``ServiceError`` before ``start``."""
        if self._serving is None:
            raise ServiceError("no version is loaded yet: start the deployment first")
        return self._serving

    @property
    def loading(self) -> str | None:
        """The version that is being loaded now."""
        return self._loading

    @property
    def notes(self) -> list[str]:
        """What somebody on call should know: versions that could not be loaded, and what answers in their place."""
        with self._changed:
            notes = [*self._failed.values(), *([] if self._trouble is None else [self._trouble])]
            if self._serving is not None and self._seen is not None and self._seen.live in self._failed:
                notes.append(f"version {self._serving.live.version} answers in place of {self._seen.live}")
            return notes

    def arm_of(self, user_id: str | None) -> str:
        """The arm of a user now."""
        return self.serving.arm_of(user_id)

    def current(self, arm: str = LIVE) -> Deployed[T]:
        """The model of an arm now."""
        return self.serving.of(arm)

    def loaded(self, version: str) -> Deployed[T]:
        """A version that is in memory, whether anybody gets it or not; raises ``ServiceError`` for another."""
        with self._changed:
            found = self._deployed(version)
            if found is None:
                raise ServiceError(
                    f"version {version!r} is not in memory: there are {', '.join(sorted(self._resident))}"
                )
            return found

    def failure(self, version: str) -> str | None:
        """Why a version could not be loaded; None where that was not tried since what is live last changed."""
        with self._changed:
            return self._failed.get(version)

    def resident(self) -> list[str]:
        """The versions in memory."""
        with self._changed:
            return sorted(self._resident)

    def start(self) -> None:
        """Load the live version, or else the previous one, and go on watching.

        Raises ``ServiceError`` where nothing is published or neither can be loaded, naming what is damaged.
        """
        pointer = self.versions.pointer()
        if pointer is None:
            raise ServiceError(f"nothing is published in {self.versions.folder} yet: publish a bundle first")
        for version in filter(None, (pointer.live, pointer.previous)):
            if self._load(version):
                break
        if not self._resident:
            raise ServiceError(f"no version can be loaded: {'; '.join(self._failed.values())}")
        self._swap(pointer)
        self._watcher.start()

    def refresh(self) -> None:
        """Look at ``live.json`` now rather than at the next poll."""
        self._wake.set()

    def wait(self, sequence: int, timeout_s: float) -> bool:
        """Wait until what ``live.json`` said at ``sequence``, or later, is done or has failed; whether it was in time.

        ``failure`` then says what failed.
        """
        self.refresh()
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._settled(sequence):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def close(self) -> None:
        """Stop watching; a load that is going on is finished first. What answers can still be used."""
        self._stopped = True
        self._wake.set()
        if self._watcher.ident is not None:
            self._watcher.join()
        self._loader.shutdown()

    def _settled(self, sequence: int) -> bool:
        pointer, serving = self._seen, self._serving
        if pointer is None or serving is None or pointer.sequence < sequence:
            return False
        # A version may be in memory already, and not yet be swapped in.
        answering = {serving.live.version, serving.canary.version if serving.canary is not None else None}
        late = {v for v in (pointer.live, _canary_version(pointer)) if v in self._resident} - answering
        return not late and self._next_to_load(pointer, spare=False) is None

    def _watch(self) -> None:
        while not self._stopped:
            pointer = self._read_pointer()
            if pointer is not None:
                if pointer != self._seen:
                    self._retry()
                self._swap(pointer)
                wanted = self._next_to_load(pointer)
                if wanted is not None and self._loading is None:
                    self._loading = wanted
                    self._loader.submit(self._load_aside, wanted)
            self._wake.wait(self._config.poll_s)
            self._wake.clear()

    def _read_pointer(self) -> Pointer | None:
        try:
            pointer, trouble = self.versions.pointer(), None
        except (TesserecError, OSError) as error:
            pointer, trouble = None, f"what is live cannot be read, nothing changes: {error}"
        if trouble is not None and trouble != self._trouble:
            LOGGER.error(trouble)
        with self._changed:
            self._trouble = trouble
        return pointer

    def _next_to_load(self, pointer: Pointer, *, spare: bool = True) -> str | None:
        """The most urgent version that is neither in memory nor known not to load; ``spare``: the previous one too."""
        wanted = [pointer.live, _canary_version(pointer), pointer.previous if spare else None]
        return next((v for v in wanted if v is not None and v not in self._resident and v not in self._failed), None)

    def _retry(self) -> None:
        """Somebody changed what is live: what could not be loaded may have been restored."""
        with self._changed:
            self._failed = {}

    def _lower_priority(self) -> None:
        if sys.platform == "linux":  # elsewhere the nice value is the whole process'
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._config.niceness)

    def _load_aside(self, version: str) -> None:
        self._load(version)
        self._loading = None
        self._wake.set()

    def _load(self, version: str) -> bool:
        """Load a version and warm it up; a failure is kept for ``notes``."""
        started = time.monotonic()
        try:
            with self.versions.reading():
                model = self._make(self.versions.path(version), version)
            self._warm(model)
        except Exception as error:  # whatever is wrong with a new version must not touch what answers
            LOGGER.exception("version %s cannot be loaded", version)
            with self._changed:
                self._failed[version] = f"version {version} cannot be loaded, it does not answer: {error}"
            return False
        LOGGER.info("version %s loaded and warmed up in %.1f s", version, time.monotonic() - started)
        with self._changed:
            self._resident[version] = model
        return True

    def _swap(self, pointer: Pointer) -> None:
        """Let those answer whom ``pointer`` names, as far as they are loaded; drop what nobody names."""
        with self._changed:
            before = self._serving
            live = self._deployed(pointer.live) or (before.live if before else None)
            live = live or self._deployed(pointer.previous)
            assert live is not None, "start loads one of the two"
            canary = self._deployed(_canary_version(pointer))
            share = pointer.canary.share if pointer.canary is not None and canary is not None else 0.0
            self._serving = Serving(live, canary, share)
            if before is None or before.live.version != live.version:
                LOGGER.info("version %s answers now", live.version)
            named = {pointer.live, pointer.previous, _canary_version(pointer), live.version}
            self._resident = {v: model for v, model in self._resident.items() if v in named}
            if before is None or before.versions != self._serving.versions:
                self._told(self._serving)
            self._seen = pointer
            self._changed.notify_all()

    def _deployed(self, version: str | None) -> Deployed[T] | None:
        return Deployed(version, self._resident[version]) if version is not None and version in self._resident else None


def _canary_version(pointer: Pointer) -> str | None:
    return None if pointer.canary is None else pointer.canary.version
