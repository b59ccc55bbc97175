"""LETTER: both losses by hand, clusters against all assignments, a factor that only collaborative vectors tell."""

import dataclasses
import itertools
import statistics

import pytest
import torch
import torch.nn.functional as F
from tests.semantic_ids import two_factors
from tests.semantic_ids.two_factors import randn

from tesserec.config import build_component, component, described
from tesserec.embedders import CooccurrenceSVD
from tesserec.errors import DataError, RecipeError
from tesserec.semantic_ids import (
    DRQ,
    RQVAE,
    CollaborativeAlignment,
    Diversity,
    Nearest,
    RQVAEParts,
    RQVAETraining,
    Sinkhorn,
)
from tesserec.semantic_ids.composition import LossSetup, QuantizerLoss
from tesserec.semantic_ids.letter import collaborative_vectors, even_clusters
from tesserec.semantic_ids.rq_network import Network
from tesserec.testing.data import catalog_of_size
from tesserec.types import ItemEmbeddings, SideInformation

TRAINING = RQVAETraining(num_steps=200, batch_size=128, learning_rate=1e-2, revive_every=20)


@component
class Fixed:
    """The same vectors for any catalog."""

    rows: tuple[tuple[float, ...], ...]

    def embed(self, catalog, train=None):
        return ItemEmbeddings(torch.tensor(self.rows), "Fixed")

    def embed_new(self, catalog):
        raise NotImplementedError

    def state(self):
        raise NotImplementedError

    def restore(self, state):
        raise NotImplementedError


def quantizer(*losses, training=TRAINING, **parts):
    return RQVAE(
        num_levels=2,
        codebook_size=8,
        hidden_sizes=(32,),
        num_latents=8,
        training=training,
        losses=losses,
        parts=RQVAEParts(**parts),
    )


def setup(features, num_latents=2, sizes=(4,), **side):
    return LossSetup(
        features,
        num_latents,
        sizes,
        SideInformation(**side),
        torch.Generator().manual_seed(0),
    )


def recorded(sizes, *codebooks, rows=(0, 1, 2)):
    network = Network(2, (), 2, sizes)
    with torch.no_grad():
        network.encoder[0].weight.copy_(torch.eye(2)), network.encoder[0].bias.zero_()
        for codebook, values in zip(network.codebooks, codebooks, strict=True):
            codebook.copy_(torch.tensor(values))
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.1, 0.0]])
    return network.loss(features[list(rows)], 0.25, torch.tensor(rows))[1], features


def test_finds_the_quiet_factor_that_collaborative_vectors_tell():
    features, found = two_factors.features(), []
    aligned = CollaborativeAlignment(source=CooccurrenceSVD(num_features=8), weight=1.0, temperature=0.2)
    for losses in ((), (aligned,)):
        for seed in range(7):  # starts differ, and with them what one of them finds
            one = quantizer(*losses)
            one.fit(features, dataclasses.replace(two_factors.side(), seed=seed))
            found.append(two_factors.purity(one.encode(features)[:, 0], two_factors.quiet()))
    assert max(found[:7]) < 0.6
    assert min(found[7:]) > max(found[:7])
    assert statistics.median(found[7:]) > 0.75  # the starts decide how much more, and rounding decides the starts


def test_strengths_of_zero_are_plain_bit_for_bit_and_state_is_that_of_an_rq_vae():
    features, states = two_factors.features(), []
    training = RQVAETraining(num_steps=30, batch_size=64)
    source = CooccurrenceSVD(num_features=4)
    for losses in ((), (CollaborativeAlignment(source=source, weight=0.0), Diversity(weight=0.0))):
        one = quantizer(*losses, training=training)
        one.fit(features, two_factors.side())
        states.append(one.state().tensors)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    letter = (CollaborativeAlignment(source=source), Diversity(num_clusters=4))
    one = quantizer(*letter, training=training, assigners=(Nearest(), Sinkhorn()))
    one.fit(features, two_factors.side())
    other = quantizer(*letter, training=training, assigners=(Nearest(), Sinkhorn()))
    other.restore(one.state())
    assert torch.equal(other.encode(features), one.encode(features))
    again = quantizer(*letter, training=training, assigners=(Nearest(), Sinkhorn()))
    again.fit(features, two_factors.side())
    assert all(torch.equal(again.state().tensors[name], tensor) for name, tensor in one.state().tensors.items())


def test_the_alignment_by_hand():
    record, features = recorded((2,), [[1.0, 0.0], [0.0, 1.0]])
    rows = ((2.0, 0.0), (1.0, 1.0), (0.0, 0.0))  # item 2 has no vector
    loss = CollaborativeAlignment(source=Fixed(rows=rows), temperature=0.5)
    made = setup(features, catalog=catalog_of_size(3))
    vectors, known = collaborative_vectors(loss.source, made)
    assert known.tolist() == [True, True, False]
    expected = torch.tensor(rows) @ torch.tensor(rows).T
    assert torch.allclose(vectors @ vectors.T, expected, atol=1e-5)  # a rotation
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    logits = z @ F.normalize(vectors[:2], dim=1).T / 0.5
    by_hand = -(logits[0].log_softmax(0)[0] + logits[1].log_softmax(0)[1]) / 2
    assert loss.module(made)(record).item() == pytest.approx(by_hand.item(), abs=1e-5)
    alone, _ = recorded((2,), [[1.0, 0.0], [0.0, 1.0]], rows=(2,))
    assert loss.module(made)(alone).item() == 0
    twice, _ = recorded((2,), [[1.0, 0.0], [0.0, 1.0]], rows=(0, 0))
    assert loss.module(made)(twice).item() == 0  # an item is no negative of itself


def test_clusters_of_codes_are_found_again_as_codes_move():
    module = Diversity(num_clusters=2, cluster_every=3).module(setup(torch.ones(3, 2)))
    places = [[0.0, 0], [0.1, 0], [9, 0], [9.1, 0]], [[0.0, 0], [9, 0], [0.1, 0], [9.1, 0]]
    records = [recorded((4,), values)[0] for values in places]
    module._drawn = lambda codes_B, cluster_C: (torch.zeros(len(codes_B), dtype=torch.bool), codes_B[:0])
    together = []
    for step, record in ((1, records[0]), (2, records[1]), (3, records[1])):
        module(dataclasses.replace(record, step=step))
        (cluster,) = module._cluster
        together.append((cluster[0] == cluster[1]).item())
    assert together == [True, True, False]


def test_of_long_collaborative_vectors_the_directions_that_vary_most_are_kept():
    rows = ((0.1, 3.0), (0.0, -3.0), (-0.1, 2.0))
    made = setup(torch.ones(3, 2), catalog=catalog_of_size(3), num_latents=1)
    vectors, _ = collaborative_vectors(Fixed(rows=rows), made)
    assert abs(torch.corrcoef(torch.stack([vectors[:, 0], torch.tensor(rows)[:, 1]]))[0, 1]) > 0.99


def test_diversity_needs_codebooks_in_training():
    with pytest.raises(RecipeError, match="Diversity spreads codebooks in training, as RQVAE has them: leave it out"):
        DRQ(num_levels=1, codebook_size=4, losses=(Diversity(),)).fit(randn(20, 4), SideInformation())


def test_vectors_are_of_the_rows_items_and_filled_up_with_zeros():
    rows = ((1.0,), (2.0,), (3.0,))
    made = setup(randn(2, 3), catalog=catalog_of_size(3), item_N=torch.tensor([0, 2]))
    vectors, known = collaborative_vectors(Fixed(rows=rows), made)
    assert vectors.abs().tolist() == [[1.0, 0.0], [3.0, 0.0]]
    assert known.all()


def test_the_diversity_by_hand():
    record, features = recorded((4,), [[1.0, 0.0], [1.0, 0.5], [-1.0, 0.0], [-1.0, 0.5]], rows=(0,))
    module = Diversity(num_clusters=2).module(setup(features))
    # clusters {0, 1} and {2, 3}; the item has code 0, so its mate is 1: e0·e = (itself), 1, −1, −1
    expected = -torch.tensor([1.0, -1.0, -1.0]).log_softmax(0)[0]
    loss = module(record)
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()


def test_codes_alone_in_their_cluster_take_no_part():
    record, features = recorded((3,), [[1.0, 0.0], [5.0, 5.0], [-9.0, 0.0]], rows=(0,))
    assert Diversity(num_clusters=3).module(setup(features))(record).item() == 0
    record, features = recorded((1,), [[1.0, 0.0]])
    with pytest.warns(UserWarning, match=r"in 4 clusters does nothing to codebooks of \[4\] codes: lower num_clusters"):
        module = Diversity(num_clusters=4).module(setup(features))
    assert module(record).item() == 0


def test_clusters_are_the_best_of_their_capacity():
    points = torch.tensor([[0.0], [0.1], [0.2], [0.3], [5.0]])
    clusters = even_clusters(points, 2)
    assert clusters.bincount().max() == 3

    def cost(labels):
        return sum(float((points[labels == c] - points[labels == c].mean()).square().sum()) for c in (0, 1))

    every = [torch.tensor(c) for c in itertools.product((0, 1), repeat=5) if sum(c) in (2, 3)]
    assert cost(clusters) == pytest.approx(min(cost(labels) for labels in every))
    assert even_clusters(randn(23, 2), 5).bincount().max() <= 5


def test_a_fit_with_diversity_spreads_the_clusters():
    features, found = two_factors.features(), []
    for losses in ((), (Diversity(weight=5.0, num_clusters=4, cluster_every=20),)):
        one = quantizer(*losses)
        one.fit(features, SideInformation())
        _, record = one._fitted().loss(features, 0.25, torch.arange(len(features)))
        found.append(float(Diversity(num_clusters=4).module(setup(features, sizes=(8, 8)))(record)))
    assert found[1] < found[0] / 2


def test_a_recipe_names_it():
    source = {"class": "tesserec.embedders.cooccurrence_svd:CooccurrenceSVD", "num_features": 32}
    table = {
        "class": "tesserec.semantic_ids.rq_vae:RQVAE",
        "losses": [
            {"class": "tesserec.semantic_ids.letter:CollaborativeAlignment", "source": source, "weight": 0.02},
            {"class": "tesserec.semantic_ids.letter:Diversity"},
        ],
    }
    built = build_component(table, "quantizer")
    assert built.losses[0].source == CooccurrenceSVD(num_features=32)
    assert build_component(described(built), "quantizer") == built
    assert all(isinstance(loss, QuantizerLoss) for loss in built.losses)


def test_refuses_what_has_no_collaborative_vectors():
    with pytest.raises(DataError, match="collaborative vectors are made of the catalog"):
        collaborative_vectors(Fixed(rows=((1.0,),)), setup(randn(1, 2)))
    with pytest.raises(DataError, match="no item has a vector of Fixed"):
        collaborative_vectors(Fixed(rows=((0.0,),)), setup(randn(1, 2), catalog=catalog_of_size(1)))
