"""The demo's table as figures: what `make demo` left in its bundle, and Mosaic against each baseline."""

import argparse
import sys
from functools import partial
from pathlib import Path

from benchmarks._record import RESULTS, ROOT, record
from tesserec.bundle import Bundle
from tesserec.evaluation import compare
from tesserec.recipe import read_recipe

FIGURES = (
    "demo.*.ndcg10",
    "demo.*.recall10",
    "demo.mosaic.ndcg10_over_*",
    "demo.mosaic.train_s",
    "demo.mosaic.peak_rss_bytes",
)

RECIPE = ROOT / "recipes" / "demo.toml"
COMMAND = "make demo && .venv/bin/python -m benchmarks.demo"
METRICS = ("ndcg10", "recall10")
COSTS = {"train_s": "s", "peak_rss_bytes": "bytes"}


def main(arguments: list[str] | None = None) -> int:
    """Record the figures of the bundle; 2 where there is none, or one of another recipe."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=ROOT / "runs" / "demo" / "bundle")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the lines")
    given = parser.parse_args(arguments)
    if not (given.bundle / "manifest.json").exists():
        print(f"there is no bundle at {given.bundle}: `make demo` makes it", file=sys.stderr)
        return 2
    bundle = Bundle.open(given.bundle)
    if bundle.manifest.recipe_digest != read_recipe(given.recipe).digest():
        print(f"{given.bundle} is not of {given.recipe} as it is now: `make demo` fits it again", file=sys.stderr)
        return 2
    save(bundle, given.results)
    return 0


def save(bundle: Bundle, results: Path) -> None:
    """A line for each figure."""
    ours = bundle.reports[bundle.manifest.method]
    protocol = f"{ours.protocol['split']}, 95 % bootstrap interval over requests of one seed"
    line = partial(
        record,
        n=ours.num_requests,
        dataset=bundle.manifest.recipe["data"]["source"],
        seeds=[bundle.manifest.recipe["seed"]],
        command=COMMAND,
        results=results,
    )
    for name, report in bundle.reports.items():
        same = bundle.records[name].equal_training_time
        note = f"{protocol}, trained for the same seconds as Mosaic" if same else protocol
        for metric in METRICS:
            found = report.metrics[metric]
            line(f"demo.{name}.{metric}", found.mean, "1", low=found.low, high=found.high, protocol=note)
        if name != bundle.manifest.method:
            test = compare(ours, report)
            figure = f"demo.{bundle.manifest.method}.ndcg10_over_{name}"
            paired = f"{note}, paired; p = {test.p_value:.4f}"
            line(figure, test.difference, "1", low=test.low, high=test.high, against=test.second, protocol=paired)
    for cost, unit in COSTS.items():
        line(f"demo.{bundle.manifest.method}.{cost}", ours.costs[cost], unit, protocol=protocol)


if __name__ == "__main__":
    raise SystemExit(main())
