"""What the benchmarks of decoding share: a catalogue the size of Amazon Beauty, histories, and networks of its codes.

Dimensions: N items · L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks._record import ROOT
from tesserec.bench import read_dataset
from tesserec.bench_suite import read_suite
from tesserec.embedders.tfidf_svd import TfidfSVD
from tesserec.nn.transformer import TransformerConfig
from tesserec.recipe import located
from tesserec.retrievers.mosaic import Mosaic, RowsConfig
from tesserec.retrievers.tiger import TIGER
from tesserec.semantic_ids.build import fit_semantic_ids
from tesserec.semantic_ids.rq_kmeans import ResidualKMeans
from tesserec.testing.data import catalog_of_size, interactions_of
from tesserec.training.loop import TrainingConfig
from tesserec.types import (
    Catalog,
    FitContext,
    History,
    Interactions,
    ItemEmbeddings,
    Requests,
    SideInformation,
)

__all__ = [
    "LENGTH",
    "MOSAIC_SHAPE",
    "SEED",
    "TIGER_SHAPE",
    "Setting",
    "mosaic_of",
    "network_of",
    "num_parameters",
    "read_setting",
    "tiger_of",
]

SEED = 0
LENGTH = 20
"""Items of a history."""
NUM_ITEMS, NUM_USERS = 12_101, 2_000
NUM_FEATURES, NUM_CENTRES = 64, 500
SUITE = ROOT / "benchmarks" / "accuracy" / "suite.toml"
UNTRAINED = TrainingConfig(epochs=0)
TIGER_SHAPE = TransformerConfig(128, 4, 6, head_width=64, feedforward=8)
"""The paper's."""
MOSAIC_SHAPE = TransformerConfig(384, 2, 6)
"""With as many parameters as TIGER's, embeddings left out."""


@dataclass(frozen=True, eq=False)
class Setting:
    """A catalogue with Semantic IDs, events, and histories of ``LENGTH`` items to answer."""

    dataset: str
    train: Interactions
    catalog: Catalog
    context: FitContext
    requests: Requests

    def take(self, start: int, number: int) -> Requests:
        """``number`` of the requests from ``start`` on, from the first again after the last."""
        return self.requests.take((start + torch.arange(number)) % len(self.requests))


def read_setting(data: Path | None) -> Setting:
    """Beauty of the folder ``data``, or a catalogue of its size around random centres."""
    if data is None:
        dataset = f"synthetic: {NUM_ITEMS:,} items around {NUM_CENTRES} centres"
        train, catalog, embeddings = _synthetic()
    else:
        dataset = "beauty"
        suite = read_suite(SUITE, data)
        train, catalog = read_dataset(located(suite.datasets["beauty"], suite.data))
        embeddings = TfidfSVD().embed(catalog)
    side = SideInformation(seed=SEED)
    codes = fit_semantic_ids(ResidualKMeans(), catalog, embeddings, side, popularity_N=train.item_counts())
    sizes = " x ".join(str(size) for size in codes.codebook_sizes)
    context = FitContext(embeddings=embeddings, semantic_ids=codes, seed=SEED)
    return Setting(f"{dataset}; codes {sizes}", train, catalog, context, _requests(train))


def _synthetic() -> tuple[Interactions, Catalog, ItemEmbeddings]:
    generator = torch.Generator().manual_seed(SEED)
    centres = torch.randn(NUM_CENTRES, NUM_FEATURES, generator=generator)
    vectors_ND = centres[torch.randint(NUM_CENTRES, (NUM_ITEMS,), generator=generator)]
    vectors_ND = vectors_ND + torch.randn(NUM_ITEMS, NUM_FEATURES, generator=generator)
    items = torch.randint(NUM_ITEMS, (NUM_USERS, LENGTH), generator=generator)
    train = interactions_of([[[item] for item in row] for row in items.tolist()], NUM_ITEMS)
    return train, catalog_of_size(NUM_ITEMS), ItemEmbeddings(F.normalize(vectors_ND, dim=1), "synthetic")


def _requests(train: Interactions) -> Requests:
    """The last ``LENGTH`` items of the users who have as many, as unknown users."""
    ends = train.user_offsets[1:][train.user_offsets.diff() >= LENGTH]
    items = train.item_E.long()[(ends[:, None] - LENGTH + torch.arange(LENGTH)).flatten()]
    return Requests(History(torch.arange(len(ends) + 1) * LENGTH, items))


def tiger_of(setting: Setting, model: TransformerConfig, num_beams: int) -> TIGER:
    """An untrained TIGER."""
    tiger = TIGER(model=model, max_length=LENGTH, num_beams=num_beams, training=UNTRAINED)
    tiger.fit(setting.train, setting.catalog, setting.context)
    return tiger


def mosaic_of(setting: Setting, model: TransformerConfig) -> Mosaic:
    """An untrained Mosaic that answers with its generative head alone."""
    mosaic = Mosaic(model=model, rows=RowsConfig(min_events=1), answer="generative", training=UNTRAINED)
    mosaic.fit(setting.train, setting.catalog, setting.context)
    return mosaic


def network_of(retriever: TIGER | Mosaic) -> Any:
    """The network of a fitted retriever."""
    assert retriever._network is not None
    return retriever._network


def num_parameters(network: nn.Module) -> tuple[int, int]:
    """Parameters: all of them, and those that are not rows of embedding tables."""
    tables = {id(part.weight) for part in network.modules() if isinstance(part, nn.Embedding)}
    sizes = [(parameter.numel(), id(parameter) in tables) for parameter in network.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, is_table in sizes if not is_table)
