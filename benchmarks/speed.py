"""Users trained a second: Mosaic against TIGER at equal width and depth, on all of Online Retail's training part."""

import argparse
import statistics
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from benchmarks._record import ROOT, record
from tesserec.config import fresh
from tesserec.data.splits import split
from tesserec.nn.transformer import TransformerConfig
from tesserec.pipeline import read_data
from tesserec.recipe import read_recipe
from tesserec.retrievers.mosaic import HeadsConfig, Mosaic
from tesserec.retrievers.tiger import TIGER
from tesserec.semantic_ids.build import fit_semantic_ids
from tesserec.training.loop import Job, TrainingConfig, step_seconds
from tesserec.training.measure import Measured
from tesserec.types import Catalog, FitContext, Interactions, SideInformation

FIGURES = ("demo.mosaic_vs_tiger.train_speed",)

ALL = 2**30
"""Pairs a step of the generative head: every target, where by default it draws some of them."""
SHAPE = TransformerConfig(width=64, num_layers=2, num_heads=2)
PROTOCOL = (
    "users whose every target was trained once, a second: steps/s / steps an epoch * users; width 64, 2 layers "
    "(TIGER: 2 to read, 2 to write), 2 heads, same codes; Mosaic reads up to {} events and trains both heads on all "
    "targets in batches of {} windows, TIGER reads 20 items in batches of {} prefixes; alternating rounds in one "
    "process, {} threads; median, smallest and largest ratio of the rounds"
)


@dataclass(frozen=True)
class Timed:
    """A retriever's job and how it is stepped."""

    job: Job[Any]
    config: TrainingConfig
    context: FitContext
    num_users: int

    def users_per_s(self, round_number: int, num_steps: int) -> float:
        """Users a second over ``num_steps`` random batches of an epoch, after one to warm up."""
        generator = torch.Generator().manual_seed(round_number)
        batches = islice(self.job.batches(generator), num_steps + 1)
        seconds = step_seconds(self.job, self.config, self.context, batches)[1:]
        return self.num_users / self.job.num_batches / statistics.mean(seconds)


def main() -> None:
    """Time both in alternating rounds and record the ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="fewer than 5 are printed, not recorded (default: 7)")
    parser.add_argument("--steps", type=int, default=25, help="steps of each in a round (default: 25)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train, catalog, context = demo_data()
    mosaic, tiger = Mosaic(model=SHAPE, heads=HeadsConfig(max_pairs=ALL)), TIGER(model=SHAPE)
    rates = []
    with Measured() as cost:
        mosaic.cooccurrence.fit(train, catalog, context)
        users = len(train.user_offsets.diff().nonzero())
        first = Timed(mosaic.job(train, catalog, context), mosaic.training, context, users)
        second = Timed(tiger.job(train, catalog, context), tiger.training, context, users)
        for number in range(arguments.rounds):
            rates.append([timed.users_per_s(number, arguments.steps) for timed in (first, second)])
            print(
                f"round {number + 1}: Mosaic {rates[-1][0]:.1f} users/s, TIGER {rates[-1][1]:.2f} users/s", flush=True
            )
    ratios = sorted(mine / theirs for mine, theirs in rates)
    middle = [statistics.median(column) for column in zip(*rates, strict=True)]
    print(f"Mosaic {middle[0]:.1f}, TIGER {middle[1]:.2f} users/s; ratio {statistics.median(ratios):.1f} of {ratios}")
    if arguments.rounds < 5:
        return
    sizes = mosaic.max_length, mosaic.training.batch_size, tiger.training.batch_size
    record(
        "demo.mosaic_vs_tiger.train_speed",
        statistics.median(ratios),
        "ratio",
        low=ratios[0],
        high=ratios[-1],
        n=len(ratios),
        against=f"TIGER at {middle[1]:.2f} users/s; Mosaic at {middle[0]:.1f}",
        dataset="online_retail",
        protocol=PROTOCOL.format(*sizes, torch.get_num_threads()),
        seeds=(0,),
        peak_rss_bytes=cost.peak_rss_bytes,
    )


def demo_data() -> tuple[Interactions, Catalog, FitContext]:
    """The demo's training events, its items, and the Semantic IDs of its recipe."""
    recipe = read_recipe(ROOT / "recipes" / "demo.toml")
    interactions, catalog = read_data(recipe.data)
    train = split(interactions, recipe.split).train
    assert recipe.embedder is not None
    assert recipe.quantizer is not None
    embeddings = fresh(recipe.embedder).embed(catalog, train)
    counts_N = train.positives().item_counts()
    quantizer = fresh(recipe.quantizer)
    semantic_ids = fit_semantic_ids(quantizer, catalog, embeddings, SideInformation(), popularity_N=counts_N)
    return train, catalog, FitContext(embeddings=embeddings, semantic_ids=semantic_ids)


if __name__ == "__main__":
    main()
