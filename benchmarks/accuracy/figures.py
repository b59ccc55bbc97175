"""Accuracy figures from the ranks that the runs left: ``python -m benchmarks.accuracy.figures``.

Dimensions: B requests · M relevant items of all requests · R resamples · S seeds · C columns.

Reads ``benchmarks/results/ranks`` and writes ``benchmarks/results/accuracy.jsonl``, one figure a line as
``benchmarks/_record.py`` lays it out. The file is a function of the folder alone (and of
``published.toml``, which says what TIGER's time is measured to): commit, machine, versions, date and
command of a figure are those of the newest run in it. ``last_out_other_day`` is never run: it is ``last_out`` over the
requests whose target's time differs from that of the event before.

Intervals draw requests and seeds together. The request weights of a data set and protocol are drawn once, for all
methods and columns, so that differences are paired. Values are multiples of 2⁻³⁰: their sums are exact in whatever
order a processor takes them, and the file has the same bytes on every machine.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from benchmarks._record import RESULTS
from tesserec.errors import DataError
from tesserec.evaluation.intervals import Estimate, draw_seeds, of_resamples, resample_means
from tesserec.evaluation.metrics import METRICS, Ranks, order_ranks

__all__ = [
    "METRIC_NAMES",
    "OURS",
    "SEED",
    "SHORT_HISTORY",
    "SLICES",
    "Columns",
    "Drawn",
    "Key",
    "Run",
    "Targets",
    "figures",
    "line",
    "main",
    "metrics",
    "read_cells",
    "read_runs",
    "text",
    "words",
]

OURS = "mosaic"
"""The method whose lead over each other one is a figure of its own."""

QUICK = "mosaic_quick"
"""The method whose time to TIGER's published accuracy is a figure."""
PUBLISHED = Path(__file__).parent / "published.toml"

METRIC_NAMES = ("recall5", "recall10", "ndcg5", "ndcg10")
SLICE_METRICS = ("recall10", "ndcg10")
SLICES = ("cold", "tail", "head", "new", "repeated", "history_short", "history_long")
SHORT_HISTORY = 4
"""Events of the longest history that is short."""

NUM_RESAMPLES = 1000
SEED = 0

Run = Mapping[str, Any]

PROTOCOLS = {
    "last_out": "last_out.test: the last event of each user, the one before it in the history",
    "last_out_other_day": "last_out.test, where the target's time differs from that of the event before it",
    "global_time": "global_time.test: each user's first basket from T2 on, one point in time for all",
}
SLICE_WORDS = {
    "cold": "over targets unseen in training",
    "tail": "over targets of the half of the items with the fewest training events",
    "head": "over targets of the half of the items with the most training events",
    "new": "over targets that the user never had",
    "repeated": "over targets that the user had before",
    "history_short": f"over requests with at most {SHORT_HISTORY} events before",
    "history_long": f"over requests with more than {SHORT_HISTORY} events before",
}


def main(arguments: list[str] | None = None) -> int:
    """Write the figures of a folder of ranks; nothing to write where it has no runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.figures", description="Figures from ranks.")
    parser.add_argument("--ranks", type=Path, default=RESULTS / "ranks", help="what `tesserec bench` wrote")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where accuracy.jsonl is written")
    chosen = parser.parse_args(arguments)
    lines = figures(chosen.ranks)
    if lines:
        (chosen.results / "accuracy.jsonl").write_text(text(lines), encoding="utf-8")
    print(f"{len(lines)} figures from {len(read_runs(chosen.ranks))} runs in {chosen.ranks}")
    return 0


def text(lines: Sequence[Mapping[str, Any]]) -> str:
    """The figures as the file holds them."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def read_runs(folder: Path) -> list[Run]:
    """The latest line of each run, by name; none where there is no ``runs.jsonl``."""
    path = folder / "runs.jsonl"
    if not path.exists():
        return []
    latest: dict[str, Run] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            run = json.loads(line)
            latest[run["run"]] = run
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: not a run as `tesserec bench` writes it: {error!r}") from None
    return [latest[name] for name in sorted(latest)]


def figures(folder: Path) -> list[dict[str, Any]]:
    """Every figure of a folder of ranks, by name; raises ``DataError`` where its files do not fit together."""
    runs = read_runs(folder)
    lines: list[dict[str, Any]] = []
    for dataset, protocol in sorted({(run["dataset"], run["protocol"]) for run in runs}):
        own = [run for run in runs if (run["dataset"], run["protocol"]) == (dataset, protocol)]
        for cell in read_cells(folder, dataset, protocol, own):
            judged = list(accuracy_lines(cell))
            lines += [*judged, *quick_lines(cell, judged)]
        lines += cost_lines(f"accuracy.{dataset}.{protocol}", own)
    return sorted(lines, key=lambda line: str(line["figure"]))


# What is in the folder


@dataclass(frozen=True, eq=False)
class Targets:
    """The relevant items of a test holdout, a row each."""

    frame: pl.DataFrame

    @cached_property
    def offsets(self) -> Tensor:
        """Where each request's items start, [B + 1] int64."""
        lengths = np.bincount(self.frame["request"].rle_id().to_numpy())
        return torch.from_numpy(np.concatenate([[0], lengths.cumsum()]))

    @cached_property
    def item_slices(self) -> dict[str, Tensor]:
        """Masks [M] over items; ``new`` and ``repeated`` only where both exist."""
        masks = {name: self._mask(pl.col("items") == name) for name in ("cold", "tail", "head")}
        repeated_M = self._mask(pl.col("repeated"))
        if bool(repeated_M.any()) and not bool(repeated_M.all()):
            masks |= {"new": ~repeated_M, "repeated": repeated_M}
        return masks

    @cached_property
    def request_slices(self) -> dict[str, Tensor]:
        """Masks [B] over requests."""
        short_B = self._mask(pl.col("history") <= SHORT_HISTORY)[self.offsets[:-1]]
        return {"history_short": short_B, "history_long": ~short_B}

    def _mask(self, condition: pl.Expr) -> Tensor:
        return torch.from_numpy(self.frame.select(condition.alias("mask"))["mask"].to_numpy(writable=True))


@dataclass(frozen=True, eq=False)
class Judged:
    """The ranks of one reported method in one run."""

    run: Run
    ranks_M: Tensor
    """float64, infinity where not returned."""


@dataclass(frozen=True, eq=False)
class Cell:
    """A data set and protocol: its targets and, of each method with and without refit, one entry a seed."""

    dataset: str
    protocol: str
    targets: Targets
    judged: Mapping[tuple[str, bool], Sequence[Judged]]


def read_cells(folder: Path, dataset: str, protocol: str, runs: Sequence[Run]) -> Iterator[Cell]:
    """The cell of these runs and, of ``last_out`` with known times, the one restricted to another day."""
    if len({run["data_hash"] for run in runs}) > 1:
        names = ", ".join(sorted({f"{run['data_hash']} ({run['run']})" for run in runs}))
        raise DataError(f"{dataset}.{protocol} was run on different data, {names}: run the older ones again")
    path = folder / f"{dataset}.{protocol}.targets.parquet"
    frame = pl.read_parquet(_existing(path))
    judged: dict[tuple[str, bool], list[Judged]] = {}
    for run in sorted(runs, key=lambda run: int(run["seed"])):
        for name in (run["method"], *run["views"]):
            ranks_M = read_ranks(folder / rank_file(run, name), len(frame))
            judged.setdefault((name, run["refit"]), []).append(Judged(run, ranks_M))
    yield Cell(dataset, protocol, Targets(frame), judged)
    other_day = frame["other_day"].fill_null(False)
    if protocol == "last_out" and other_day.any():
        keep_M = torch.from_numpy(other_day.to_numpy(writable=True))
        kept = {key: [Judged(j.run, j.ranks_M[keep_M]) for j in found] for key, found in judged.items()}
        yield Cell(dataset, "last_out_other_day", Targets(frame.filter(other_day)), kept)


def rank_file(run: Run, name: str) -> str:
    """The name of the file with the ranks of a method or view of ``run``."""
    refit = ".refit" if run["refit"] else ""
    return f"{run['dataset']}.{run['protocol']}.{name}{refit}.seed{run['seed']}.parquet"


def read_ranks(path: Path, num_targets: int) -> Tensor:
    """The rank of each target, [M] float64, infinity where not returned."""
    column = pl.read_parquet(_existing(path))["rank"]
    if len(column) != num_targets:
        raise DataError(f"{path} has {len(column)} ranks for {num_targets} targets: run it again on the same data")
    return torch.from_numpy(column.cast(pl.Float64).fill_null(np.inf).to_numpy(writable=True))


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"{path} does not exist though runs.jsonl has its run: run it again, or drop the line")
    return path


# Figures


def columns(targets: Targets, ranks_M: Tensor) -> dict[str, Tensor]:
    """Per-request values [B] float64 of every metric and slice that any request has a value in; NaN where undefined."""
    found = metrics(order_ranks(targets.offsets, ranks_M), METRIC_NAMES)
    whole = {name: found[name] for name in SLICE_METRICS}
    for part, keep_M in targets.item_slices.items():
        values = metrics(order_ranks(targets.offsets, ranks_M, keep_M), SLICE_METRICS)
        found |= {f"{name}.{part}": column for name, column in values.items()}
    for part, keep_B in targets.request_slices.items():
        found |= {f"{name}.{part}": torch.where(keep_B, column, torch.nan) for name, column in whole.items()}
    return {name: column for name, column in found.items() if not bool(column.isnan().all())}


def metrics(ranks: Ranks, names: Sequence[str]) -> dict[str, Tensor]:
    """Per-request values [B] float64 of metrics by name, such as ``ndcg10``."""
    found = {}
    for name in names:
        metric = name.rstrip("0123456789")
        values_B = METRICS[metric](ranks, int(name.removeprefix(metric)))
        found[name] = torch.round(values_B * 2**30) / 2**30
    return found


Key = tuple[str, bool]
"""A method or view, and whether it was refitted."""
Columns = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Drawn:
    """The values of all methods of a cell, and what they are on average over the same resampled requests."""

    cell: Cell
    values: Mapping[Key, Sequence[Columns]]
    """Per-request values [B] by name, an entry a seed."""
    means: Mapping[Key, Sequence[Columns]]
    """Means over resampled requests [R] by name, an entry a seed."""

    @classmethod
    def of(cls, cell: Cell, judge: Callable[[Targets, Tensor], Columns] | None = None) -> Drawn:
        """Of the columns that ``judge`` makes of ranks, all of them unless one is given."""
        judge = judge or columns
        values = {key: [judge(cell.targets, j.ranks_M) for j in found] for key, found in cell.judged.items()}
        everything = [column for by_seed in values.values() for found in by_seed for column in found.values()]
        drawn = iter(resample_means(everything, num_resamples=NUM_RESAMPLES, seed=SEED).T)
        means = {key: [{name: next(drawn) for name in found} for found in by_seed] for key, by_seed in values.items()}
        return cls(cell, values, means)

    def mean(self, key: Key, name: str) -> float:
        """Over requests and seeds."""
        return float(_stack(self.values[key], name).nanmean(0).mean())

    def resampled(self, key: Key, name: str, seed: int = SEED) -> Tensor:
        """Means [R] over resampled requests and seeds."""
        return draw_seeds(_stack(self.means[key], name), seed)

    def estimate(self, key: Key, name: str) -> Estimate:
        """The mean with its interval."""
        return of_resamples(self.mean(key, name), self.resampled(key, name))

    def difference(self, first: Key, second: Key, name: str) -> Estimate:
        """How much more the first has, paired over requests."""
        value = self.mean(first, name) - self.mean(second, name)
        return of_resamples(value, self.resampled(first, name) - self.resampled(second, name, SEED + 1))

    def runs(self, *keys: Key) -> list[Run]:
        """The runs of some methods."""
        return [j.run for key in keys for j in self.cell.judged[key]]


def accuracy_lines(cell: Cell) -> Iterator[dict[str, Any]]:
    """The metrics of every method of a cell, and the differences to ours."""
    drawn = Drawn.of(cell)
    prefix = f"accuracy.{cell.dataset}.{cell.protocol}"
    for (method, refit), by_seed in drawn.values.items():
        key, ours = (method, refit), (OURS, refit)
        for name in by_seed[0]:
            metric, _, part = name.partition(".")
            yield line(
                ".".join(filter(None, (prefix, method, metric, "refit" if refit else "", part))),
                drawn.estimate(key, name),
                n=int((~by_seed[0][name].isnan()).sum()),
                protocol=words(cell.protocol, refit, part),
                runs=drawn.runs(key),
            )
        if method != OURS and ours in drawn.values:
            yield line(
                f"{prefix}.{OURS}.ndcg10_over_{method}" + (".refit" if refit else ""),
                drawn.difference(ours, key, "ndcg10"),
                n=len(by_seed[0]["ndcg10"]),
                protocol=words(cell.protocol, refit) + ", paired",
                runs=drawn.runs(ours, key),
                against=method,
            )


def quick_lines(cell: Cell, judged: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Minutes of training after which generation alone was past TIGER's published accuracy; none where it was not.

    It is past where the interval of its own figure, one of ``judged``, is.
    """
    runs = [j.run for j in cell.judged.get((QUICK, False), [])]
    accuracy = next((one for one in judged if one["figure"] == f"accuracy.beauty.last_out.{QUICK}.ndcg10"), None)
    if accuracy is None or not runs:
        return
    published = tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))["method"]
    tiger = next(method["beauty"]["ndcg10"] for method in published if method["name"] == "TIGER, paper")
    if accuracy["low"] > tiger:
        minutes = [float(run["train_s"]) / 60 for run in runs]
        yield line(
            "accuracy.beauty.minutes_to_tiger",
            Estimate(sum(minutes) / len(minutes), min(minutes), max(minutes)),
            unit="min",
            n=len(minutes),
            protocol=f"{PROTOCOLS[cell.protocol]}; minutes that {QUICK} was trained, embeddings and codes included, on "
            f"{runs[0]['recipe']['fit']['num_threads']} threads, where the interval of its N@10 lies above {tiger}; "
            "mean and range of n seeds",
            runs=runs,
            against="TIGER as published",
        )


def cost_lines(prefix: str, runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """The CPU seconds of every method's fits; a view has those of its run."""
    by_method: dict[tuple[str, bool], list[Run]] = {}
    for run in runs:
        for name in (run["method"], *run["views"]):
            by_method.setdefault((name, run["refit"]), []).append(run)
    for (method, refit), own in by_method.items():
        seconds = [float(run["train_cpu_s"]) for run in own]
        yield line(
            f"{prefix}.{method}.train_cpu_s" + (".refit" if refit else ""),
            Estimate(sum(seconds) / len(seconds), min(seconds), max(seconds)),
            unit="s",
            n=len(own),
            protocol="CPU seconds of the fit, all threads, "
            + ("after the plain fit it goes on from" if refit else "embeddings and codes included")
            + "; mean and range of n seeds",
            runs=own,
        )


def line(
    figure: str,
    found: Estimate,
    *,
    n: int,
    protocol: str,
    runs: Sequence[Run],
    unit: str = "1",
    against: str | None = None,
) -> dict[str, Any]:
    """One figure, with the origin of the newest of its runs."""
    newest = sorted(runs, key=lambda run: str(run["date"]))[-1]
    return {
        "figure": figure,
        "value": round(found.mean, 6),
        "unit": unit,
        "low": round(min(found.low, found.mean), 6),
        "high": round(max(found.high, found.mean), 6),
        "n": n,
        "against": against,
        "dataset": newest["dataset"],
        "protocol": protocol,
        "seeds": sorted({int(run["seed"]) for run in runs}),
        "peak_rss_bytes": max(int(run["peak_rss_bytes"]) for run in runs),
        **{key: newest[key] for key in ("command", "commit", "machine", "versions", "date")},
    }


def words(protocol: str, refit: bool, part: str = "") -> str:
    """The protocol of a figure in words."""
    trained = "trained again on train and validation" if refit else "trained on train"
    return ", ".join(
        filter(
            None,
            (
                PROTOCOLS.get(protocol, f"{protocol}.test"),
                trained,
                SLICE_WORDS.get(part, ""),
                "95 % bootstrap interval over requests and seeds",
            ),
        )
    )


def _stack(by_seed: Sequence[Columns], name: str) -> Tensor:
    return torch.stack([found[name] for found in by_seed], dim=1)


if __name__ == "__main__":
    raise SystemExit(main())
