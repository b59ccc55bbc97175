"""The nightly run: the live bundle is fitted on from what the store took since, and published if the gate lets it.

A run that was killed goes on where it stopped when it is called again: what it fits on is the store up to one event,
and finished stages of the fit, and then the bundle, are kept in ``<namespace>/nightly`` until it is published.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tesserec.bundle import Contents, publish
from tesserec.config import Field, component
from tesserec.errors import ServiceError
from tesserec.pipeline import Tell, fit, quiet, update
from tesserec.recipe import parse_recipe
from tesserec.serving.durable import try_lock, write_text
from tesserec.serving.erase import unfinished_folder
from tesserec.serving.export import Exported, export, last_sequence
from tesserec.serving.gate import GateConfig, GateReport
from tesserec.serving.open_store import open_store
from tesserec.serving.records import Store
from tesserec.serving.release import release
from tesserec.serving.versions import Versions
from tesserec.types import NO_TIME, Progress, silent

__all__ = ["NightlyConfig", "NightlyReport", "nightly", "run_nightly"]

_AHEAD_S = 86_400
"""Clocks may run ahead by this much; an event that is further away would be the end of all time."""


@component
class NightlyConfig:
    """How a nightly run fits and publishes."""

    gate: GateConfig = dataclasses.field(default_factory=GateConfig)
    full: bool = False
    """Fit everything anew, with new codebooks, instead of going on from the live bundle."""
    keep: Annotated[int, Field(ge=0)] = 3
    """Newest versions that are kept beside those with a role."""
    force: bool = False
    """Publish without asking the gate."""


@dataclass(frozen=True)
class NightlyReport:
    """What a nightly run did."""

    version: str | None
    """What is live now; None where there was nothing new to fit on."""
    notes: tuple[str, ...] = ()
    report: GateReport | None = None
    num_events: int = 0
    num_new_items: int = 0
    pruned: tuple[str, ...] = ()

    def text(self) -> str:
        """For a person to read."""
        lines = ["nothing new: nothing was published"]
        if self.version is not None:
            lines = [f"{self.version} is live, fitted on {self.num_events:,} events"]
            lines += [f"{self.num_new_items:,} items are new"] if self.num_new_items else []
        lines += [] if self.report is None else [self.report.text()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def run_nightly(
    home: Path,
    namespace: str = "default",
    *,
    store_url: str | None = None,
    config: NightlyConfig | None = None,
    progress: Progress = silent,
    tell: Tell = quiet,
) -> NightlyReport:
    """``nightly`` for the service in ``home``, which may be running; the command ``tesserec service nightly``."""
    folder = home / "namespaces" / namespace
    if not (folder / "live.json").is_file():
        raise ServiceError(f"nothing is published in {folder}: give the home of a service and one of its namespaces")
    store = open_store(store_url, home, namespace)
    try:
        return nightly(Versions(folder), store, config=config, progress=progress, tell=tell)
    finally:
        store.close()


def nightly(
    versions: Versions,
    store: Store,
    *,
    config: NightlyConfig | None = None,
    progress: Progress = silent,
    tell: Tell = quiet,
) -> NightlyReport:
    """Fit the live bundle on from the store's events and items, and publish it.

    Raises ``ServiceError`` where nothing is live yet, where another run is under way, and with the gate's report where
    the gate refuses: what answers goes on answering then.
    """
    config = config or NightlyConfig()
    with _alone(versions):
        folder = unfinished_folder(versions)
        run = _Run.begun(folder, versions, store, full=config.full)
        with versions.reading():
            contents = dataclasses.replace(versions.check(run.base).contents(), derived_folder=None)
        exported = export(store, contents, sequence=run.sequence, until_s=run.until_s)
        if not config.full and not _is_later(exported, contents):
            shutil.rmtree(folder)
            return NightlyReport(None, (*exported.notes, "nothing positive happened since the live bundle was fitted"))
        if not (folder / "bundle").is_dir():
            fitted = _fitted(folder, contents, exported, full=config.full, progress=progress, tell=tell)
            publish(folder / "bundle", fitted)
        try:
            released = release(
                folder / "bundle",
                versions,
                store,
                config=config.gate,
                force=config.force,
                keep=config.keep,
                key_id="nightly",
            )
        except ServiceError:  # refused: another attempt would be, too
            shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)
    return NightlyReport(
        released.version,
        exported.notes,
        released.report,
        len(exported.interactions),
        exported.num_new_items,
        released.pruned,
    )


@contextmanager
def _alone(versions: Versions) -> Iterator[None]:
    with try_lock(versions.folder / ".nightly.lock") as free:
        if not free:
            raise ServiceError(f"another nightly run of {versions.folder} is under way: wait for it, or stop it")
        yield


@dataclass(frozen=True)
class _Run:
    """What a run is fitted on; kept, so that a run that goes on fits on the same."""

    base: str
    """The version that was live when it began."""
    sequence: int
    until_s: float
    full: bool

    @classmethod
    def begun(cls, folder: Path, versions: Versions, store: Store, *, full: bool) -> _Run:
        """The run that was begun on the live version and not finished, or a new one."""
        pointer = versions.pointer()
        if pointer is None:
            raise ServiceError(f"nothing is published in {versions.folder} yet: publish a bundle first")
        file = folder / "run.json"
        if file.is_file():
            before = cls(**json.loads(file.read_text(encoding="utf-8")))
            if (before.base, before.full) == (pointer.live, full):
                return before
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        run = cls(pointer.live, last_sequence(store), time.time() + _AHEAD_S, full)
        write_text(file, json.dumps(dataclasses.asdict(run)))
        return run


def _is_later(exported: Exported, contents: Contents) -> bool:
    """Whether something positive happened after all that the bundle was fitted on; true where nothing has a time."""
    last = int(contents.interactions.time_E.max()) if len(contents.interactions) else NO_TIME
    times = exported.interactions.positives().time_E
    return last == NO_TIME or bool((times > last).any())


def _fitted(
    folder: Path, contents: Contents, exported: Exported, *, full: bool, progress: Progress, tell: Tell
) -> Contents:
    """Fitted on from where ``contents`` is; anew where that was asked for, or where nothing has a time."""
    work = folder / "work"
    log, catalog = exported.interactions, exported.catalog
    if not full and bool((log.time_E != NO_TIME).all()) and len(contents.interactions):
        return update(contents, log, catalog, work_folder=work, progress=progress, tell=tell)
    recipe = parse_recipe(contents.recipe)
    recipe = dataclasses.replace(recipe, split=dataclasses.replace(recipe.split, t1=None, t2=None))
    return fit(recipe, log, catalog, work_folder=work, progress=progress, tell=tell)
