"""The demo's table as figures: accuracy of every method, and what Mosaic's training took."""

import argparse
from pathlib import Path

from benchmarks._record import ROOT, record
from tesserec.bundle import Contents
from tesserec.recommender import Recommender

FIGURES = ("demo.*.ndcg10", "demo.*.recall10", "demo.mosaic.train_s", "demo.mosaic.peak_rss_bytes")

METRICS = ("ndcg10", "recall10")
COSTS = {"train_s": "s", "peak_rss_bytes": "bytes"}


def main() -> None:
    """Fit the demo anew and record its figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "demo.toml", help="another is not recorded")
    arguments = parser.parse_args()
    place = ROOT / "runs" / "bench" / arguments.recipe.stem
    contents = Recommender.fit(recipe=arguments.recipe, out=place, again=True, tell=print).contents
    for name, report in contents.reports.items():
        print(f"{name:20}", *(f"{metric} {report.metrics[metric].mean:.4f}" for metric in METRICS))
    if arguments.recipe.name == "demo.toml":
        save(contents)


def save(contents: Contents) -> None:
    """A line for each figure."""
    for name, report in contents.reports.items():
        protocol = f"{report.protocol['split']}, 95 % bootstrap interval over requests of one seed"
        if contents.records[name].equal_training_time:
            protocol += ", trained for the same seconds as the retriever"
        for metric in METRICS:
            found = report.metrics[metric]
            record(
                f"demo.{name}.{metric}",
                found.mean,
                "1",
                low=found.low,
                high=found.high,
                n=report.num_requests,
                dataset="online_retail",
                protocol=protocol,
                seeds=[contents.recipe["seed"]],
                peak_rss_bytes=int(report.costs["peak_rss_bytes"]),
            )
    for cost, unit in COSTS.items():
        record(f"demo.mosaic.{cost}", contents.reports["mosaic"].costs[cost], unit, dataset="online_retail")


if __name__ == "__main__":
    main()
