"""Random search over the [search] table of a method: fitted on train, judged on validation; the test is never read.

Every trial is a line of results/tuning/<dataset>.<protocol>.<method>.jsonl. The first has the settings of the method
file as they are, and each is drawn from the seed and its number, so that the same search tries the same settings. It
stops at the first trial that ends with the budget of CPU seconds spent, or after so many trials, for methods that
fit in no time; trials of the same search that an earlier call recorded count, so that a search that was stopped goes
on.
"""

import argparse
import datetime
import hashlib
import json
import math
import random
import sys
import time
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from benchmarks._record import RESULTS, commit
from tesserec.bench import read_dataset
from tesserec.bench_suite import Run, Suite, merged, read_suite
from tesserec.bundle import Content, data_digest
from tesserec.data.splits import Split, split
from tesserec.errors import RecipeError, TesserecError
from tesserec.evaluation.evaluate import ask
from tesserec.evaluation.metrics import ndcg, rank_relevant, recall
from tesserec.pipeline import fit_context, make_content, training_block
from tesserec.recipe import parse_recipe
from tesserec.types import Catalog, silent

SUITE = Path(__file__).parent / "suite.toml"
NUM_ANSWERS = 20
"""Items asked for a request: a tie beyond ten is seen."""

Settings = dict[str, Any]
"""Dotted path → value."""


def main(arguments: list[str] | None = None) -> int:
    """Search until the budget is spent; prints the best settings."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.tune", description=__doc__)
    parser.add_argument("method", help="name of a method file")
    parser.add_argument("--dataset", required=True, help="a data set of the suite")
    parser.add_argument("--protocol", default="last_out")
    parser.add_argument("--cpu-seconds", type=float, required=True, help="of all trials together")
    parser.add_argument("--trials", type=int, default=60, help="of them, at most")
    parser.add_argument("--data", type=Path, help="what the suite's paths are seen from, instead of itself")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--suite", type=Path, default=SUITE)
    parser.add_argument("--results", type=Path, default=RESULTS / "tuning", help="folder of the lines")
    given = parser.parse_args(arguments)
    try:
        suite = read_suite(given.suite, given.data)
        run = suite.run(given.dataset, given.protocol, given.method, seed=given.seed)
        search = Search(suite, run, given.results / f"{run.dataset}.{run.protocol}.{run.method}.jsonl")
        trials = search.go_on(given.cpu_seconds, given.trials)
    except TesserecError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(trials)} trials, {sum(trial['cpu_s'] for trial in trials):,.0f} CPU seconds")
    print(as_toml(run, max(trials, key=lambda trial: trial["ndcg10"])))
    return 0


class Search:
    """The trials of one method on one data set by one protocol."""

    def __init__(self, suite: Suite, run: Run, path: Path) -> None:
        self.run, self.path = run, path
        self.space: Mapping[str, Any] = suite.method(run.method).get("search", {})
        if not self.space:
            raise RecipeError(f"{run.method} has no [search] table: say which settings may vary")
        interactions, self.catalog = read_dataset(run.data)
        self.parts = split(interactions, run.parsed().split)
        facts = [run.tables, self.space, data_digest(interactions, self.catalog)]
        self.digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        """What tells this search from others."""
        self._contents: dict[str, Content] = {}

    def go_on(self, cpu_seconds: float, most: int) -> list[dict[str, Any]]:
        """Trials until ``cpu_seconds`` are spent or there are ``most``, one at least; all of this search."""
        trials = self.recorded()
        while not trials or (len(trials) < most and sum(trial["cpu_s"] for trial in trials) < cpu_seconds):
            trials.append(self.trial(len(trials)))
            found = trials[-1]
            print(f"{found['trial']}: NDCG@10 {found['ndcg10']:.4f} with {found['settings']}", flush=True)
        return trials

    def recorded(self) -> list[dict[str, Any]]:
        """The trials that are on disk."""
        if not self.path.is_file():
            return []
        lines = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line["search"] == self.digest]

    def trial(self, number: int) -> dict[str, Any]:
        """Draw settings, fit, judge on validation, and record."""
        settings = drawn(self.space, random.Random(f"{self.run.seed}.{number}")) if number else {}
        start = time.process_time()
        metrics = judged(self.run, settings, self.parts, self.catalog, self._contents)
        line = {
            "search": self.digest,
            "trial": number,
            "settings": settings,
            **metrics,
            "cpu_s": time.process_time() - start,
            "seed": self.run.seed,
            "commit": commit(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return line


def drawn(space: Mapping[str, Any], generator: random.Random) -> Settings:
    """A value for each setting of the space."""
    return {path: _drawn(path, choices, generator) for path, choices in space.items()}


def _drawn(path: str, choices: Any, generator: random.Random) -> Any:
    if isinstance(choices, list) and choices:
        return generator.choice(choices)
    if not isinstance(choices, Mapping) or not {"low", "high"} <= set(choices) <= {"low", "high", "log", "int"}:
        raise RecipeError(f'search."{path}" = {choices!r}: expected a list, or {{ low, high, log = true, int = true }}')
    low, high = choices["low"], choices["high"]
    if choices.get("log"):
        value = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
        value = generator.uniform(low, high)
    return round(value) if choices.get("int") else float(f"{value:.3g}")


def nested(settings: Settings) -> dict[str, Any]:
    """Dotted paths as tables."""
    tables: dict[str, Any] = {}
    for path, value in settings.items():
        *above, last = path.split(".")
        tables = merged(tables, reduce(lambda inner, key: {key: inner}, reversed(above), {last: value}))
    return tables


def judged(
    run: Run, settings: Settings, parts: Split, catalog: Catalog, contents: dict[str, Content]
) -> dict[str, float]:
    """The metrics on validation of the run's recipe with other settings; ``contents`` keeps vectors and codes."""
    recipe = parse_recipe(merged(run.recipe, nested(settings)))
    with training_block(recipe.fit.num_threads):
        key = json.dumps([recipe.table().get(name) for name in ("embedder", "semantic_ids")], sort_keys=True)
        if key not in contents:
            contents[key] = make_content(recipe, catalog, parts.train, silent)
        recipe.retriever.fit(parts.train, catalog, fit_context(recipe, contents[key], silent, parts.validation))
        candidates, _ = ask(recipe.retriever, parts.validation, NUM_ANSWERS)
    ranks = rank_relevant(candidates, parts.validation.relevant)
    return {"ndcg10": float(ndcg(ranks, 10).mean()), "recall10": float(recall(ranks, 10).mean())}


def as_toml(run: Run, trial: Mapping[str, Any]) -> str:
    """The settings of a trial as lines of the method file; a comment where they are the method's own."""
    if not trial["settings"]:
        return f"# the method's own settings are the best: validation NDCG@10 {trial['ndcg10']:.4f}"
    lines = [f'[tuned."{run.dataset}.{run.protocol}"]  # validation NDCG@10 {trial["ndcg10"]:.4f}']
    return "\n".join([*lines, *(f"{path} = {json.dumps(value)}" for path, value in trial["settings"].items())])


if __name__ == "__main__":
    raise SystemExit(main())
