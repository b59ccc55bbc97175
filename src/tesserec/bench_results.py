"""What a run of a suite leaves in the results folder.

    runs.jsonl                                            a line: settings, data, costs, metrics, where and when
    <dataset>.<protocol>.targets.parquet                  a row a relevant item of the test, the same for all methods
    <dataset>.<protocol>.<method>[.refit].seed<S>.parquet the rank of each, and so on for each view of the method

Dimensions: B requests · M relevant items of all requests.
"""

import dataclasses
import datetime
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from tesserec.bench_codes import code_figures
from tesserec.bench_suite import Run
from tesserec.bundle import Content
from tesserec.data.splits import Split
from tesserec.errors import DataError
from tesserec.evaluation.evaluate import ask, judge_lists
from tesserec.evaluation.intervals import Estimate
from tesserec.evaluation.metrics import item_ranks
from tesserec.evaluation.slices import item_slices
from tesserec.pipeline import fit_context, restored
from tesserec.training.measure import machine, versions
from tesserec.types import NO_TIME, Catalog, ComponentState, Holdout, as_numpy, silent

__all__ = ["Data", "Fitted", "Places", "commit_of", "files_of", "lines_of", "written"]

NUM_ANSWERS = 50
"""Items asked for a request: ranks beyond are not known."""
BATCH = 256
KEPT = ("recall5", "recall10", "ndcg5", "ndcg10")

_ITEM_KINDS = ("head", "tail", "cold")


@dataclass(frozen=True)
class Places:
    """Where a suite lies, and where its runs write."""

    suite: Path
    results: Path
    work: Path


@dataclass(frozen=True)
class Data:
    """A data set as one protocol splits it."""

    parts: Split
    catalog: Catalog
    digest: str
    """``data_digest`` of it."""


@dataclass(frozen=True)
class Fitted:
    """What a fit made, and what it took."""

    state: ComponentState
    costs: Mapping[str, Any]
    """``train_cpu_s``, ``train_s``, ``peak_rss_bytes``, ``training_log`` and, in ``tokenizer``, those of the codes."""


def lines_of(results: Path) -> dict[str, dict[str, Any]]:
    """Run name → its latest line in a results folder; raises ``DataError`` for a line that is damaged."""
    path = results / "runs.jsonl"
    if not path.is_file():
        return {}
    found: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number} is not JSON ({error}): delete the line, its run is done again"
            ) from None
        found[line["run"]] = line
    return found


def files_of(run: Run) -> list[str]:
    """Names of the Parquet files that a run writes."""
    names = [f"{run.dataset}.{run.protocol}.targets", *(run.named(name) for name in (run.method, *run.views))]
    return [f"{name}.parquet" for name in names]


def written(  # noqa: PLR0917  # all there is to know of a run
    run: Run, data: Data, content: Content, fitted: Fitted, places: Places, commit: str | None
) -> dict[str, Any]:
    """Judge what was fitted, and write targets, ranks and the line, which is returned."""
    line = _judged(run, data, content, fitted, places.results) | {
        "commit": commit,
        "machine": machine(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": f"tesserec bench {_suite_name(places.suite)} --data DATA --only {run.name}",
    }
    with (places.results / "runs.jsonl").open("ab", buffering=0) as file:
        file.write((json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return line


def _judged(run: Run, data: Data, content: Content, fitted: Fitted, results: Path) -> dict[str, Any]:
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
        "codes": code_figures(run.parsed(), content, parts.train),
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


def commit_of(places: Places) -> str | None:
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
