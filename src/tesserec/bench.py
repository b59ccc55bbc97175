"""The runs of a suite: many methods, many data sets, each run fitted and judged in a process of its own.

What a run leaves in the results folder:

    runs.jsonl                                            a line: settings, data, costs, metrics, where and when
    <dataset>.<protocol>.targets.parquet                  a row a relevant item of the test, the same for all methods
    <dataset>.<protocol>.<method>[.refit].seed<S>.parquet the rank of each, and so on for each view of the method

A run whose line has the same settings and data is done. Fitted states and checkpoints are kept in a work folder, so
that a run that was stopped goes on, and so that a refit starts from the state of its plain run.

Dimensions: B requests · M relevant items of all requests.
"""

import dataclasses
import datetime
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from tesserec.bench_suite import DatasetConfig, Run
from tesserec.bundle import Content, data_digest, load_content, load_state, save_content, save_state
from tesserec.data.interactions import shuffle_ties
from tesserec.data.splits import Split, split
from tesserec.errors import TesserecError
from tesserec.evaluation.evaluate import ask, judge_lists
from tesserec.evaluation.intervals import Estimate
from tesserec.evaluation.metrics import item_ranks
from tesserec.evaluation.slices import item_slices
from tesserec.pipeline import fit_context, make_content, read_data, restored, stamped, threads
from tesserec.training.measure import Measured, machine, versions
from tesserec.types import (
    NO_TIME,
    Catalog,
    ComponentState,
    FitContext,
    HasTrainingLog,
    Holdout,
    Interactions,
    as_numpy,
    silent,
)
from tesserec.work import Work

__all__ = ["Places", "carry_out", "done_runs", "lines_of", "read_dataset", "run_one"]

NUM_ANSWERS = 50
"""Items asked for a request: ranks beyond are not known."""
BATCH = 256
KEPT = ("recall5", "recall10", "ndcg5", "ndcg10")
NOTE_EVERY_S = 10.0
"""Seconds of work that a killed run may forget to count."""
GRACE_S = 10.0
"""What processes get to write their checkpoints at Ctrl-C."""

_OMP = "OMP_NUM_THREADS"
_ITEM_KINDS = ("head", "tail", "cold")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Places:
    """Where a suite lies, and where its runs write."""

    suite: Path
    results: Path
    work: Path


def read_dataset(config: DatasetConfig) -> tuple[Interactions, Catalog]:
    """Events and items of a data set, with ties shuffled where it says so."""
    interactions, catalog = read_data(config)
    if config.shuffle_ties is not None:
        interactions = shuffle_ties(interactions, config.shuffle_ties)
    return interactions, catalog


def lines_of(results: Path) -> dict[str, dict[str, Any]]:
    """Run name → its latest line in a results folder."""
    path = results / "runs.jsonl"
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["run"]: line for line in lines}


def done_runs(runs: Sequence[Run], results: Path) -> set[str]:
    """Names of the runs whose results are there, for these very settings and data."""
    lines, hashes, done = lines_of(results), dict[str, str](), set[str]()
    for run in runs:
        line = lines.get(run.name)
        if line is None or line["recipe_digest"] != run.digest:
            continue
        if run.dataset not in hashes:
            hashes[run.dataset] = data_digest(*read_dataset(run.data))
        files = [f"{run.dataset}.{run.protocol}.targets", *(run.named(name) for name in (run.method, *run.views))]
        if line["data_hash"] == hashes[run.dataset] and all((results / f"{file}.parquet").is_file() for file in files):
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


@dataclass(frozen=True)
class _Fitted:
    """What a fit made, and what it took."""

    state: ComponentState
    costs: Mapping[str, Any]
    """``train_cpu_s``, ``train_s``, ``peak_rss_bytes`` and ``training_log``."""


def run_one(run: Run, places: Places) -> dict[str, Any]:
    """Fit, judge and write one run, in this process; returns its line."""
    commit = _commit(places)
    with threads(run.recipe["fit"]["num_threads"]):
        interactions, catalog = read_dataset(run.data)
        data = _Data(split(interactions, run.parsed().split), catalog, data_digest(interactions, catalog))
        content, fitted, work = _fitted(run, data, places)
        line = _judged(run, data, content, fitted, places.results)
    line |= {
        "commit": commit,
        "machine": machine(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": f"tesserec bench {_suite_name(places.suite)} --data DATA --only {run.name}",
    }
    with (places.results / "runs.jsonl").open("ab", buffering=0) as file:
        file.write((json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode())
    if run.plain is not None:  # nothing goes on from here
        work.remove()
    return line


@dataclass(frozen=True)
class _Data:
    parts: Split
    catalog: Catalog
    digest: str


def _fitted(run: Run, data: _Data, places: Places) -> tuple[Content, _Fitted, Work]:
    """The state of a run, from its work folder where it is there; for a refit, that of the plain run first."""
    recipe = run.parsed()
    work = Work(places.work / run.name, f"{run.digest}-{data.digest}")
    if run.plain is None:
        spent = _Spent(work)
        content = work.stage(
            "content",
            partial(make_content, recipe, data.catalog, data.parts.train, spent.progress),
            lambda place, made: save_content(place, made, data.catalog.items),
            lambda place: load_content(place, data.catalog.items),
        )
        context, events = fit_context(recipe, content, spent.progress, data.parts.validation), data.parts.train
    else:
        content, plain, _ = _fitted(run.plain, data, places)
        spent = _Spent(work)
        context, events = fit_context(recipe, content, spent.progress), data.parts.refit
        context = dataclasses.replace(context, warm_start=plain.state)
    context = dataclasses.replace(context, checkpoint_folder=work.checkpoints("fit"))
    fitted = work.stage("fitted", partial(_fit, run, events, data.catalog, context, spent), _save_fitted, _load_fitted)
    assert work.folder is not None
    shutil.rmtree(work.folder / "checkpoints", ignore_errors=True)
    spent.path.unlink(missing_ok=True)
    return content, fitted, work


def _fit(run: Run, events: Interactions, catalog: Catalog, context: FitContext, spent: "_Spent") -> _Fitted:
    retriever = run.parsed().retriever
    try:
        with Measured() as cost:
            retriever.fit(events, catalog, context)
    finally:
        spent.note()
    log = list(retriever.training_log) if isinstance(retriever, HasTrainingLog) else []
    cpu_s, seconds = spent.total()
    costs = {"train_cpu_s": cpu_s, "train_s": seconds, "peak_rss_bytes": cost.peak_rss_bytes, "training_log": log}
    return _Fitted(stamped(retriever.state(), catalog), costs)


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


def _save_fitted(place: Path, fitted: _Fitted) -> None:
    save_state(place / "state.safetensors", fitted.state)
    (place / "costs.json").write_text(json.dumps(fitted.costs), encoding="utf-8")


def _load_fitted(place: Path) -> _Fitted:
    costs = json.loads((place / "costs.json").read_text(encoding="utf-8"))
    return _Fitted(load_state(place / "state.safetensors"), costs)


def _judged(run: Run, data: _Data, content: Content, fitted: _Fitted, results: Path) -> dict[str, Any]:
    """The line of a run but for where and when; writes targets and ranks."""
    parts, catalog = data.parts, data.catalog
    targets = _targets(parts)
    results.mkdir(parents=True, exist_ok=True)
    _write(targets, results / f"{run.dataset}.{run.protocol}.targets.parquet")
    context = fit_context(run.parsed(), content, silent)
    reports = {}
    for name in (run.method, *run.views):
        prototype = run.parsed(None if name == run.method else name).retriever
        candidates, seconds = ask(
            restored(prototype, fitted.state, catalog, context), parts.test, NUM_ANSWERS, batch_size=BATCH
        )
        _write(_ranks(item_ranks(candidates, parts.test.relevant)), results / f"{run.named(name)}.parquet")
        reports[name] = judge_lists(
            candidates,
            parts.test,
            train=parts.train,  # after a refit too: items are as cold as they were
            catalog=catalog,
            label=name,
            split=f"{parts.name}.test",
            refit=run.plain is not None,
            seed=run.seed,
            costs={"retrieve_s_per_1000": seconds},
        )
    return {
        "run": run.name,
        "dataset": run.dataset,
        "protocol": run.protocol,
        "method": run.method,
        "views": list(run.views),
        "refit": run.plain is not None,
        "seed": run.seed,
        "recipe": run.tables,
        "recipe_digest": run.digest,
        "data_hash": data.digest,
        "split": dataclasses.asdict(parts.report),
        **fitted.costs,
        "parameters": sum(tensor.numel() for tensor in fitted.state.tensors.values()),
        "retrieve_s_per_1000": {name: one.costs["retrieve_s_per_1000"] for name, one in reports.items()},
        "metrics": {name: _means(one.metrics) for name, one in reports.items()},
        "slices": {
            name: {part: {"requests": s.num_requests, **_means(s.metrics)} for part, s in one.slices.items()}
            for name, one in reports.items()
        },
    }


def _means(metrics: Mapping[str, Estimate]) -> dict[str, float]:
    return {name: metrics[name].mean for name in KEPT}


def _targets(parts: Split) -> pl.DataFrame:
    """What is known of each relevant item of the test, in its order."""
    test = parts.test
    masks = item_slices(test, parts.train.positives().item_counts())
    rows_M, lengths_B = test.relevant.rows, test.requests.history.lengths
    kinds = torch.stack([masks[f"items:{kind}"] for kind in _ITEM_KINDS]).int().argmax(0)
    other_day_B = _other_day(test) if parts.name == "last_out" else None
    return pl.DataFrame(
        {
            "request": pl.Series(as_numpy(rows_M.int())),
            "items": [_ITEM_KINDS[kind] for kind in kinds.tolist()],
            "history": pl.Series(as_numpy(lengths_B[rows_M].int())),
            "repeated": pl.Series(as_numpy(masks["targets:repeated"])),
            "other_day": None if other_day_B is None else pl.Series(as_numpy(other_day_B[rows_M])),
        },
        schema_overrides={"other_day": pl.Boolean},
    )


def _other_day(test: Holdout) -> Tensor:
    """Whether each request is asked at another time than that of the event before it, [B] bool."""
    history, time_B = test.requests.history, test.requests.time_B
    assert time_B is not None
    before_B = history.columns["time"][history.offsets[1:] - 1]  # last_out asks nobody without a history
    return (time_B != before_B) & (time_B != NO_TIME) & (before_B != NO_TIME)


def _ranks(ranks_M: Tensor) -> pl.DataFrame:
    rank = pl.Series("rank", as_numpy(ranks_M.float()))
    return pl.DataFrame(rank.set(rank.is_infinite(), None))


def _write(frame: pl.DataFrame, path: Path) -> None:
    """A Parquet file that is there as a whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    frame.write_parquet(beside, compression="zstd")
    beside.replace(path)


def _commit(places: Places) -> str | None:
    """What the suite's checkout is at, "-dirty" where files differ that no run writes; None where there is no git."""
    root = _git(places.suite, "rev-parse", "--show-toplevel")
    if root is None:
        return None
    own = [place.resolve() for place in (places.results, places.work)]
    written = [f":(top,exclude){one.relative_to(root).as_posix()}" for one in own if one.is_relative_to(root)]
    changed = _git(places.suite, "status", "--porcelain", "--", ":/", *written)
    head = _git(places.suite, "rev-parse", "--short=12", "HEAD")
    return None if head is None else head + ("-dirty" if changed else "")


def _suite_name(suite: Path) -> str:
    """The suite's path as seen from the root of its checkout."""
    root = _git(suite, "rev-parse", "--show-toplevel")
    return suite.name if root is None else suite.resolve().relative_to(root).as_posix()


def _git(suite: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=suite.parent, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
