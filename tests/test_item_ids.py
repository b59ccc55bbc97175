"""Item ids and the order of the catalog carry nothing: with others, the figures are the same but for chance."""

import numpy as np
import polars as pl
import pytest

from tesserec.data.catalog import read_catalog
from tesserec.data.interactions import read_events
from tesserec.data.sources import load
from tesserec.data.splits import SplitConfig, split
from tesserec.evaluation import evaluate
from tesserec.pipeline import fit_context, make_content
from tesserec.recipe import parse_recipe
from tesserec.types import silent

NUM_CUSTOMERS = 1500
SEEDS = range(5)
RECIPE = {
    "embedder": {"class": "tesserec.embedders.tfidf_svd:TfidfSVD", "num_features": 64},
    "semantic_ids": {"class": "tesserec.semantic_ids.rq_kmeans:ResidualKMeans", "codebook_size": 32},
    "retriever": {
        "class": "tesserec.retrievers.mosaic:Mosaic",
        "model": {"width": 32, "num_layers": 1},
        "max_length": 50,
        "training": {"epochs": 4, "batch_size": 64, "learning_rate": 4e-3},
    },
}


@pytest.fixture(scope="module")
def frames():
    """Purchases of some customers of the bundled shop, and what they bought."""
    log, catalog = load("online_retail")
    events = pl.DataFrame(
        {
            "user_id": log.user_E.numpy(),
            "item": log.item_E.numpy(),
            "timestamp": log.time_E.numpy(),
            "session": log.step_E.numpy(),
            "positive": log.is_positive_E.numpy(),
        }
    ).filter(pl.col("user_id") < NUM_CUSTOMERS, pl.col("positive"))
    items = pl.DataFrame({"item": np.arange(len(catalog)), "text": list(catalog.texts)})
    return events, items.join(events.select("item").unique(), on="item", how="semi")


def ndcg10(frames, seed, names):
    """Mean of validation and test, where the items are called ``names``, which also is their order in the catalog."""
    events, items = (frame.with_columns(item_id=pl.col("item").replace_strict(names)) for frame in frames)
    catalog = read_catalog(items.sort("item_id").select("item_id", "text"))
    log = read_events(events.select("user_id", "item_id", "timestamp", "session"), items=catalog.items)
    parts = split(log, SplitConfig(protocol="global_time"))
    recipe = parse_recipe({**RECIPE, "seed": seed})
    content = make_content(recipe, catalog, parts.train, silent)
    recipe.retriever.fit(parts.train, catalog, fit_context(recipe, content, silent))
    found = [evaluate(recipe.retriever, holdout, train=parts.train) for holdout in (parts.validation, parts.test)]
    return np.mean([report.metrics["ndcg10"].mean for report in found])


@pytest.mark.prove
def test_other_item_ids_change_figures_by_no_more_than_another_seed(frames):
    numbers = frames[1]["item"].to_list()
    plain = {number: f"{number:05}" for number in numbers}
    shuffled = [np.random.default_rng(seed).permutation(numbers) for seed in SEEDS]
    others = [dict(zip(numbers, (f"{number:05}" for number in order), strict=True)) for order in shuffled]
    before = np.array([ndcg10(frames, seed, plain) for seed in SEEDS])
    after = np.array([ndcg10(frames, seed, names) for seed, names in zip(SEEDS, others, strict=True)])
    noise = np.sqrt((before.var(ddof=1) + after.var(ddof=1)) / len(SEEDS))
    print(before, after)
    assert abs(after.mean() - before.mean()) < 3 * noise, (before, after)
    assert before.mean() > 0.2, "the model has learnt something that could be lost"
