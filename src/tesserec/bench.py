"""The runs of a suite: many methods, many data sets, each run fitted and judged in a process of its own.

A run whose line in the results has the same settings and data is done. Fitted states and checkpoints are kept in a work
folder, so that a run that was stopped goes on, and so that a refit starts from the state of its plain run.
"""

import dataclasses
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tesserec.bench_codes import load_measured, measured_content, save_measured
from tesserec.bench_results import Data, Fitted, Places, commit_of, files_of, lines_of, written
from tesserec.bench_suite import DatasetConfig, Run
from tesserec.bundle import Content, data_digest, load_state, save_state
from tesserec.data.interactions import shuffle_ties
from tesserec.data.splits import split
from tesserec.errors import TesserecError
from tesserec.pipeline import fit_context, read_data, stamped, training_block
from tesserec.training.measure import Measured
from tesserec.types import Catalog, FitContext, HasTrainingLog, Interactions
from tesserec.work import Work

__all__ = ["carry_out", "done_runs", "read_dataset", "run_one"]

NOTE_EVERY_S = 10.0
"""Seconds of work that a killed run may forget to count."""
GRACE_S = 10.0
"""What processes get to write their checkpoints at Ctrl-C."""

_OMP = "OMP_NUM_THREADS"

Tell = Callable[[str], None]


def read_dataset(config: DatasetConfig) -> tuple[Interactions, Catalog]:
    """Events and items of a data set, with ties shuffled where it says so."""
    interactions, catalog = read_data(config)
    if config.shuffle_ties is not None:
        interactions = shuffle_ties(interactions, config.shuffle_ties)
    return interactions, catalog


def done_runs(runs: Sequence[Run], results: Path) -> set[str]:
    """Names of the runs whose results are there, for these very settings and data."""
    lines, hashes, done = lines_of(results), dict[str, str](), set[str]()
    for run in runs:
        line = lines.get(run.name)
        if line is None or line["recipe_digest"] != run.digest:
            continue
        if run.dataset not in hashes:
            try:
                hashes[run.dataset] = data_digest(*read_dataset(run.data))
            except TesserecError:  # the run itself will say what is wrong
                hashes[run.dataset] = ""
        if line["data_hash"] == hashes[run.dataset] and all((results / name).is_file() for name in files_of(run)):
            done.add(run.name)
    return done


def carry_out(runs: Sequence[Run], places: Places, jobs: int, tell: Tell) -> dict[str, str]:
    """The runs that are not done, ``jobs`` at once; returns the name of each that failed, and its error.

    The plain run of a refit is run before it, where it is not done.
    """
    wanted = {one.name: one for run in runs for one in (run.plain, run) if one is not None}
    done = done_runs(list(wanted.values()), places.results)
    waiting = {name: run for name, run in wanted.items() if name not in done}
    tell(f"{len(waiting)} runs to do, {len(done)} done already")
    running: dict[str, _Child] = {}
    failed: dict[str, str] = {}
    try:
        while waiting or running:
            for run in list(waiting.values()):
                before = "" if run.plain is None else run.plain.name
                if before in failed:
                    failed[run.name] = f"not tried: it goes on from {before}, which failed"
                    del waiting[run.name]
                elif len(running) < jobs and before not in waiting and before not in running:
                    tell(f"{run.name}: started")
                    running[run.name] = _Child(waiting.pop(run.name), places)
            if running:
                wait([child.process.sentinel for child in running.values()])
            for name in [name for name, child in running.items() if not child.process.is_alive()]:
                error = running.pop(name).error()
                if error is not None:
                    failed[name] = error
                tell(f"{name}: {'done' if error is None else 'failed'}, {len(waiting) + len(running)} to go")
    except KeyboardInterrupt:
        for child in running.values():  # Ctrl-C reaches them too
            child.process.join(GRACE_S)
            child.process.terminate()
        raise
    return failed


class _Child:
    """A run in a process of its own."""

    def __init__(self, run: Run, places: Places) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._answer, answer = spawn.Pipe(duplex=False)
        self.process = spawn.Process(target=_in_process, args=(run, places, answer), name=run.name, daemon=True)
        before = os.environ.get(_OMP)
        os.environ[_OMP] = str(run.recipe["fit"]["num_threads"])  # libraries read it when they are loaded
        try:
            self.process.start()
        finally:
            os.environ.pop(_OMP)
            if before is not None:
                os.environ[_OMP] = before
        answer.close()

    def error(self) -> str | None:
        """Why it failed, once the process has ended; None where it did not."""
        self.process.join()
        if self.process.exitcode == 0:
            return None
        try:
            return str(self._answer.recv())
        except EOFError:
            return f"its process ended with exit code {self.process.exitcode}"


def _in_process(run: Run, places: Places, answer: Connection) -> None:
    """What the process does: the run, or the sending of its error."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        run_one(run, places)
        return
    except TesserecError as error:
        message = str(error)
    except KeyboardInterrupt:
        message = "stopped"
    except Exception as error:  # whatever it is, the other runs go on
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
    with suppress(BrokenPipeError):  # nobody listens any more
        answer.send(message)
    raise SystemExit(1)


def _stop_with_parent() -> None:
    """As with Ctrl-C, where the process that started this one is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGINT)


def run_one(run: Run, places: Places) -> dict[str, Any]:
    """Fit, judge and write one run, in this process; returns its line."""
    commit = commit_of(places)
    with training_block(run.recipe["fit"]["num_threads"]):
        interactions, catalog = read_dataset(run.data)
        data = Data(split(interactions, run.parsed().split), catalog, data_digest(interactions, catalog))
        content, fitted, work = _fitted(run, data, places)
        line = written(run, data, content, fitted, places, commit)
    if run.plain is not None:  # nothing goes on from here
        work.remove()
    return line


def _fitted(run: Run, data: Data, places: Places) -> tuple[Content, Fitted, Work]:
    """The state of a run, from its work folder where it is there; for a refit, that of the plain run first."""
    recipe = run.parsed()
    work = Work(places.work / run.name, f"{run.digest}-{data.digest}")
    if run.plain is None:
        spent = _Spent(work)
        measured = work.stage(
            "content",
            partial(measured_content, recipe, data.catalog, data.parts.train, spent.progress),
            lambda place, made: save_measured(place, made, data.catalog.items),
            lambda place: load_measured(place, data.catalog.items),
        )
        content, tokenizer = measured.content, measured.costs
        context, events = fit_context(recipe, content, spent.progress, data.parts.validation), data.parts.train
    else:
        content, plain, _ = _fitted(run.plain, data, places)
        tokenizer = plain.costs["tokenizer"]
        spent = _Spent(work)
        context, events = fit_context(recipe, content, spent.progress), data.parts.refit
        context = dataclasses.replace(context, warm_start=plain.state)
    context = dataclasses.replace(context, checkpoint_folder=work.checkpoints("fit"))
    fitted = work.stage("fitted", partial(_fit, run, events, data.catalog, context, spent), _save_fitted, _load_fitted)
    assert work.folder is not None
    shutil.rmtree(work.folder / "checkpoints", ignore_errors=True)
    spent.path.unlink(missing_ok=True)
    return content, dataclasses.replace(fitted, costs={**fitted.costs, "tokenizer": tokenizer}), work


def _fit(run: Run, events: Interactions, catalog: Catalog, context: FitContext, spent: "_Spent") -> Fitted:
    retriever = run.parsed().retriever
    try:
        with Measured() as cost:
            retriever.fit(events, catalog, context)
    finally:
        spent.note()
    log = list(retriever.training_log) if isinstance(retriever, HasTrainingLog) else []
    cpu_s, seconds = spent.total()
    costs = {"train_cpu_s": cpu_s, "train_s": seconds, "peak_rss_bytes": cost.peak_rss_bytes, "training_log": log}
    return Fitted(stamped(retriever.state(), catalog), costs)


class _Spent:
    """CPU and wall seconds of a fit, with those of its attempts that were stopped before it was complete."""

    def __init__(self, work: Work) -> None:
        assert work.folder is not None
        self.path = work.folder / "spent.json"
        before = json.loads(self.path.read_text()) if self.path.is_file() else [0.0, 0.0]
        self._since = [start - known for start, known in zip(_clocks(), before, strict=True)]
        self._noted = time.perf_counter()

    def total(self) -> tuple[float, float]:
        """(CPU seconds of the process, seconds)."""
        cpu_s, seconds = (now - since for now, since in zip(_clocks(), self._since, strict=True))
        return cpu_s, seconds

    def progress(self, task: str, done: float, total: float, note: str = "") -> None:
        """A ``Progress`` that notes them on disk now and then."""
        if time.perf_counter() - self._noted > NOTE_EVERY_S:
            self.note()

    def note(self) -> None:
        """Keep them for an attempt after this one."""
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.total()))
        beside.replace(self.path)
        self._noted = time.perf_counter()


def _clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def _save_fitted(place: Path, fitted: Fitted) -> None:
    save_state(place / "state.safetensors", fitted.state)
    (place / "costs.json").write_text(json.dumps(fitted.costs), encoding="utf-8")


def _load_fitted(place: Path) -> Fitted:
    costs = json.loads((place / "costs.json").read_text(encoding="utf-8"))
    return Fitted(load_state(place / "state.safetensors"), costs)
