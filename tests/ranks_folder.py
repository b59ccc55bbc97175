"""A folder of ranks as the accuracy harness leaves it, from retrievers that were really fitted and asked.

Customer ``u`` buys things of room ``u % 4`` in a fixed round, so that co-occurrence beats popularity; every fifth ends
with something nobody bought before, every third buys the last two things at the same time, and some have few events.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import polars as pl

from tesserec.data.interactions import read_events
from tesserec.data.leaks import in_history
from tesserec.data.splits import Split, SplitConfig, split
from tesserec.evaluation.metrics import item_ranks
from tesserec.evaluation.slices import item_slices
from tesserec.retrievers.cooccurrence import Cooccurrence
from tesserec.retrievers.popularity import Popularity
from tesserec.testing.data import catalog_of_size
from tesserec.types import Candidates, FitContext, Interactions, Retriever

DAY_S = 86_400
NUM_USERS = 120
METHODS = {
    "mosaic": lambda seed: Cooccurrence(),
    "mosaic_quick": lambda seed: Cooccurrence(),
    "mosaic_without_luck": lambda seed: Cooccurrence(window=1),
    "popularity": lambda seed: Popularity(),
    "recent": lambda seed: Popularity(window_days=5.0 + 20 * seed),
}


@functools.cache
def log() -> Interactions:
    """The purchases, of which ``last_out`` can be made."""
    rows: list[dict[str, Any]] = []
    for user in range(NUM_USERS):
        length = 4 + user % 7
        for n in range(length):
            room, thing = user % 4, (n + user // 4) % 8
            last = n == length - 1
            item = f"new{user % 3}" if last and user % 5 == 0 else f"r{room}t{thing}"
            day = 10 * n + user % 10 - (10 if last and user % 3 == 0 else 0)
            rows.append({"user_id": user, "item_id": item, "timestamp": 1_600_000_000 + day * DAY_S, "order": n})
    return read_events(pl.DataFrame(rows))


@functools.cache
def parts(protocol: str = "last_out") -> Split:
    """The log, split."""
    return split(log(), SplitConfig(protocol=protocol))  # type: ignore[arg-type]  # checked when built


def fitted(method: str, seed: int = 0, refit: bool = False, protocol: str = "last_out") -> Retriever:
    """A method, fitted on train or on train and validation."""
    retriever = METHODS[method](seed)
    events = parts(protocol).refit if refit else parts(protocol).train
    retriever.fit(events, catalog_of_size(len(events.items)), FitContext(seed=seed))
    return retriever


def lists(method: str, seed: int = 0, refit: bool = False, protocol: str = "last_out") -> Candidates:
    """What a method answers to the test requests."""
    return fitted(method, seed, refit, protocol).retrieve(parts(protocol).test.requests, 50)


def write_targets(folder: Path, dataset: str = "shop", protocol: str = "last_out") -> None:
    """One row a relevant item of the test holdout."""
    made = parts(protocol)
    test, history = made.test, made.test.requests.history
    masks = item_slices(test, made.train.positives().item_counts())
    other_day = [None] * len(test.relevant.values)
    if protocol == "last_out":
        assert test.requests.time_B is not None
        other_day = (test.requests.time_B != history.columns["time"][history.offsets[1:] - 1]).tolist()
    frame = pl.DataFrame(
        {
            "request": pl.Series(test.relevant.rows.numpy(), dtype=pl.Int32),
            "items": [
                next(name for name in ("head", "tail", "cold") if masks[f"items:{name}"][m])
                for m in range(len(test.relevant.values))
            ],
            "history": pl.Series(history.lengths[test.relevant.rows].numpy(), dtype=pl.Int32),
            "repeated": in_history(test).numpy(),
            "other_day": pl.Series(other_day, dtype=pl.Boolean),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(folder / f"{dataset}.{protocol}.targets.parquet", compression="zstd")


def write_run(
    folder: Path,
    method: str,
    *,
    dataset: str = "shop",
    protocol: str = "last_out",
    refit: bool = False,
    seed: int = 0,
    answers: str | None = None,
    **changes: Any,
) -> None:
    """The ranks of one run and its line; keyword arguments replace parts of the line.

    ``answers`` is the method whose lists these are, where ``method`` is none of this module.
    """
    write_targets(folder, dataset, protocol)
    end = ("refit." if refit else "") + f"seed{seed}"
    ranks_M = item_ranks(lists(answers or method, seed, refit, protocol), parts(protocol).test.relevant)
    column = pl.Series("rank", [None if rank == float("inf") else rank for rank in ranks_M.tolist()], dtype=pl.Float32)
    column.to_frame().write_parquet(folder / f"{dataset}.{protocol}.{method}.{end}.parquet", compression="zstd")
    line = {
        **{"run": f"{dataset}.{protocol}.{method}.{end}", "dataset": dataset, "protocol": protocol, "method": method},
        **{"views": [], "refit": refit, "seed": seed, "recipe": {}, "recipe_digest": "0" * 16, "data_hash": "d" * 16},
        **{"split": dataclasses.asdict(parts(protocol).report), "train_cpu_s": 2.0 + seed, "train_s": 1.0},
        **{"peak_rss_bytes": 2**30 + seed, "parameters": 1234, "retrieve_s_per_1000": {method: 0.5}},
        **{"metrics": {}, "slices": {}, "training_log": [], "commit": "abc", "machine": "box", "versions": {"a": "1"}},
        **{"date": f"2026-11-2{seed}T06:00:00+00:00", "command": "tesserec bench suite.toml"},
        **changes,
    }
    with (folder / "runs.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
