"""Vectors of a trained retriever: they are its own, know a planted pattern, and are kept apart from later items."""

import pytest
import torch

from tesserec.embedders import RetrieverVectors
from tesserec.errors import DataError, NotFittedError
from tesserec.nn.sid_features import SIDKeys
from tesserec.nn.transformer import TransformerConfig
from tesserec.recipe import parse_recipe
from tesserec.retrievers.hstu import HSTU, HSTUConfig
from tesserec.retrievers.popularity import Popularity
from tesserec.retrievers.sasrec import SASRec
from tesserec.semantic_ids import ResidualKMeans
from tesserec.testing.data import catalog_of_size, interactions_of, two_groups
from tesserec.training.loop import TrainingConfig
from tesserec.types import Embedder, FitContext, HasItemVectors, SideInformation

TRAINING = TrainingConfig(epochs=15, batch_size=8, learning_rate=0.02)


def sasrec():
    return SASRec(TransformerConfig(width=16, num_layers=1, dropout=0.0), max_length=4, training=TRAINING)


def hstu():
    return HSTU(HSTUConfig(width=16, num_layers=1, dropout=0.0), max_length=4, training=TRAINING)


@pytest.mark.parametrize("make", [sasrec, hstu])
def test_the_vectors_are_those_of_the_retriever(make):
    train, catalog = two_groups()
    embedder = RetrieverVectors(make(), seed=4)
    assert isinstance(embedder, Embedder)
    made = embedder.embed(catalog, train)
    retriever = make()
    retriever.fit(train, catalog, FitContext(seed=4))
    assert isinstance(retriever, HasItemVectors)
    vectors_ND = retriever.item_vectors()
    assert torch.allclose(made.vectors_ND, vectors_ND / vectors_ND.norm(dim=1, keepdim=True), atol=1e-6)
    assert made.source == f"RetrieverVectors({type(retriever).__name__})"
    vectors_ND.zero_()
    assert retriever.item_vectors().any()  # a copy was given


def test_items_that_are_bought_together_get_codes_in_common():
    """Two worlds of items, which only events tell apart: every title is the same."""
    generator = torch.Generator().manual_seed(0)
    orders = [(torch.randperm(6, generator=generator) + user % 2 * 6).tolist() for user in range(60)]
    train = interactions_of([[[item] for item in order] for order in orders], 12)
    features_ND = RetrieverVectors(sasrec()).embed(catalog_of_size(12), train).vectors_ND
    quantizer = ResidualKMeans(num_levels=1, codebook_size=2)
    quantizer.fit(features_ND, SideInformation(seed=0))
    first_N = quantizer.encode(features_ND)[:, 0].tolist()
    assert first_N in ([0] * 6 + [1] * 6, [1] * 6 + [0] * 6)


def test_items_without_events_and_later_ones_are_missing():
    train = interactions_of([[[0], [1], [2]], [[2], [1], [0]]], 4)
    embedder = RetrieverVectors(sasrec())
    made = embedder.embed(catalog_of_size(4), train)
    assert made.missing_N.tolist() == [False, False, False, True]
    assert not made.vectors_ND[3].any()
    other = RetrieverVectors(sasrec())
    with pytest.raises(NotFittedError, match="has trained nothing yet: call embed or restore first"):
        other.embed_new(catalog_of_size(2))
    other.restore(embedder.state())
    later = other.embed_new(catalog_of_size(2))
    assert later.vectors_ND.shape == (2, 16)
    assert not later.vectors_ND.any()
    assert bool(later.missing_N.all())


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="Popularity has no item vectors to give: name a retriever that learns them"):
        RetrieverVectors(Popularity())
    with pytest.raises(ValueError, match="so the retriever cannot read codes: leave out its keys"):
        RetrieverVectors(SASRec(keys=SIDKeys()))
    with pytest.raises(DataError, match="trains on events and has none: pass them, or use an embedder of text"):
        RetrieverVectors(sasrec()).embed(catalog_of_size(4))
    with pytest.raises(DataError, match="trains on events and has none"):
        RetrieverVectors(sasrec()).embed(catalog_of_size(4), interactions_of([[[0]]], 4).select(torch.zeros(0).long()))


def test_a_recipe_names_it():
    recipe = parse_recipe(
        {
            "embedder": {
                "class": "tesserec.embedders.retriever_vectors:RetrieverVectors",
                "retriever": {"class": "tesserec.retrievers.sasrec:SASRec", "max_length": 7},
            },
            "retriever": {"class": "tesserec.retrievers.popularity:Popularity"},
        }
    )
    assert recipe.embedder == RetrieverVectors(SASRec(max_length=7))
