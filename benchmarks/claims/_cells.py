"""What the scripts about claims share: arguments, data, cells that are run once, and figures with intervals.

A cell is one variant with one seed. The values of its requests are kept in a work folder outside the repository, so
that a script that was stopped goes on and that variants can be compared request by request; its mean is a line of
results/claims.jsonl. A figure compares the cells of two variants over all seeds, and is recorded when one of them was
run now.

Dimensions: B requests · S seeds.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks._record import RESULTS, ROOT, commit, record
from tesserec.bench import read_dataset
from tesserec.bench_suite import DatasetConfig, read_suite
from tesserec.bundle import data_digest
from tesserec.data.splits import SplitConfig
from tesserec.evaluation.intervals import estimate, paired
from tesserec.recipe import located
from tesserec.training.measure import Measured
from tesserec.types import Catalog, Interactions

__all__ = ["Cell", "Cells", "Run", "Side", "Values", "cells_of"]

SUITE = ROOT / "benchmarks" / "accuracy" / "suite.toml"

Values = Mapping[str, Tensor]
"""Metric → its value of each request, [B]; NaN where it has none."""
Run = Callable[[int], Values]
"""From a seed to what the cell found."""


@dataclass(frozen=True)
class Cell:
    """What one variant found with one seed."""

    values: Values
    commit: str
    """Of the code that ran it."""
    is_new: bool
    """Whether it was run now, not read."""


Side = Mapping[int, Cell]
"""Seed → the cell of one variant."""


@dataclass(frozen=True)
class Cells:
    """The cells of one claim on one data set."""

    claim: str
    """The script, which is the second part of the names of its cells."""
    dataset: str
    config: DatasetConfig
    interactions: Interactions
    catalog: Catalog
    seeds: tuple[int, ...]
    only: str
    work: Path
    results: Path

    def split_config(self, protocol: str, **more: float) -> SplitConfig:
        """How the suite splits this data set; ``more`` are further settings of the split."""
        return SplitConfig(**{**self.config.split(protocol), **more})

    def run(self, variants: Mapping[str, tuple[object, Run]], metric: str) -> dict[str, Side]:
        """The cells by variant and seed; ``metric`` is the one whose mean is a line.

        A variant is its settings, which tell its cells from those of other settings, and what runs it. Cells that
        ``only`` does not match are read where they are done, and left out where they are not.
        """
        digest = data_digest(self.interactions, self.catalog)
        found: dict[str, dict[int, Cell]] = {name: {} for name in variants}
        for seed in self.seeds:
            for name, (settings, run) in variants.items():
                key = hashlib.sha256(repr((self.claim, name, settings, seed, digest)).encode()).hexdigest()[:16]
                path = self.work / f"{self.claim}.{self.dataset}.{name}.seed{seed}.{key}.safetensors"
                is_new = not path.exists()
                if is_new:
                    if not fnmatchcase(f"{name}.seed{seed}", self.only):
                        continue
                    self._finish(name, seed, path, run, metric)
                found[name][seed] = Cell(load_file(path), _commit_of(path), is_new)
        return dict(found)

    def _finish(self, name: str, seed: int, path: Path, run: Run, metric: str) -> None:
        ran_by = commit()
        with Measured() as cost:
            values = run(seed)
        self.work.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        save_file({key: value.double().contiguous() for key, value in values.items()}, beside, {"commit": ran_by})
        beside.replace(path)
        at = estimate(values[metric])
        record(
            f"claims.{self.claim}.cells.{name}.seed{seed}",
            at.mean,
            "1",
            low=at.low,
            high=at.high,
            n=int((~values[metric].isnan()).sum()),
            dataset=self.dataset,
            protocol=f"{metric} of one cell; 95 % bootstrap interval over requests; {cost.seconds:.0f} s",
            seeds=[seed],
            peak_rss_bytes=cost.peak_rss_bytes,
            command=self.command(f" --only '{name}.seed{seed}'"),
            results=self.results,
        )
        print(f"{name}.seed{seed}: {metric} {at.mean:.4f}, {cost.seconds:.0f} s", flush=True)

    def complete(self, *sides: Side) -> bool:
        """Whether each has all seeds."""
        return all(set(side) == set(self.seeds) for side in sides)

    def difference(
        self,
        figure: str,
        first: Side,
        second: Side,
        metric: str,
        *,
        against: str,
        protocol: str,
        seeds_belong: bool = False,
    ) -> None:
        """A figure of first minus second over requests and seeds; none unless both have the same seeds, all of them.

        ``seeds_belong`` where the first side starts from what the second made with its seed: then seeds are drawn for
        both at once, else for each on its own.
        """
        if not self.complete(first, second):
            return
        sides = [torch.stack([side[seed].values[metric] for seed in self.seeds]) for side in (first, second)]
        found = estimate(sides[0] - sides[1]) if seeds_belong else paired(*sides)
        means = [float(side.nanmean(1).mean()) for side in sides]
        self.figure(
            figure,
            found.mean,
            low=found.low,
            high=found.high,
            n=int((~sides[0][0].isnan()).sum()),
            of=(first, second),
            against=against,
            protocol=(
                f"{protocol}; {means[0]:.4f} less {means[1]:.4f}, paired by request{' and seed' * seeds_belong}; "
                "95 % interval over requests and seeds"
            ),
        )

    def figure(
        self,
        figure: str,
        value: float,
        unit: str = "1",
        *,
        low: float | None = None,
        high: float | None = None,
        n: int = 1,
        of: Sequence[Side],
        against: str | None = None,
        protocol: str,
    ) -> None:
        """One line, of all seeds of the sides ``of``.

        None where no cell of theirs was run now and the latest line has this value: only a script that was stopped
        before its figures leaves cells that no line tells of. Commits of cells other than the line's are named.
        """
        parts = [cell for side in of for cell in side.values()]
        if not any(cell.is_new for cell in parts) and value == self._recorded(f"claims.{figure}"):
            return
        commits = sorted({cell.commit for cell in parts})
        record(
            f"claims.{figure}",
            value,
            unit,
            low=low,
            high=high,
            n=n,
            against=against,
            dataset=self.dataset,
            protocol=protocol + ("" if commits == [commit()] else f"; cells of {', '.join(commits)}"),
            seeds=self.seeds,
            command=self.command(),
            results=self.results,
        )
        interval = "" if low is None else f" ({low:.4f} to {high:.4f})"
        print(f"claims.{figure}: {value:.4f}{interval}", flush=True)

    def _recorded(self, figure: str) -> float | None:
        """The value of the latest line of a figure on this data set; None where there is no line."""
        path = self.results / "claims.jsonl"
        lines = map(json.loads, path.read_text(encoding="utf-8").splitlines()) if path.exists() else ()
        own = [line["value"] for line in lines if (line["figure"], line["dataset"]) == (figure, self.dataset)]
        return float(own[-1]) if own else None

    def command(self, more: str = "") -> str:
        """What measures a line again."""
        dataset = "" if self.dataset == "beauty" else f" --dataset {self.dataset}"
        return f"python -m benchmarks.claims.{self.claim} --data DATA{dataset}{more}"


def _commit_of(path: Path) -> str:
    """The commit that a cell names; the first cells named none."""
    with safe_open(path, "pt") as file:
        return str((file.metadata() or {}).get("commit", "unknown"))


def cells_of(claim: str, description: str | None, arguments: list[str] | None) -> Cells:
    """The cells that the command line of a script names, with the data read."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.claims.{claim}", description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, as the suite names them")
    parser.add_argument("--dataset", default="beauty", help="a data set of the suite (default: beauty)")
    parser.add_argument("--only", default="*", metavar="GLOB", help="cells to run, such as 'dense.seed0'")
    parser.add_argument("--seeds", type=int, default=3, metavar="NUMBER", help="seeds of each variant (default: 3)")
    parser.add_argument("--suite", type=Path, default=SUITE)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "claims", help="folder of finished cells")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the lines")
    given = parser.parse_args(arguments)
    suite = read_suite(given.suite, given.data)
    if given.dataset not in suite.datasets:
        parser.error(f"no data set {given.dataset!r} in {given.suite}: choose one of {', '.join(suite.datasets)}")
    config = located(suite.datasets[given.dataset], suite.data)
    interactions, catalog = read_dataset(config)
    seeds = tuple(range(given.seeds))
    return Cells(claim, given.dataset, config, interactions, catalog, seeds, given.only, given.work, given.results)
