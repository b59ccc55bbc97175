"""PLUM: pairs and loss by hand, and a factor of behaviour that reconstruction does not find."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from tests.semantic_ids import two_factors
from tests.semantic_ids.two_factors import randn

from tesserec.config import build_component
from tesserec.errors import DataError
from tesserec.semantic_ids import RQVAE, CoOccurrence, RQVAETraining
from tesserec.semantic_ids.composition import LossRecord, LossSetup, QuantizerLoss
from tesserec.semantic_ids.plum import following_pairs, same_items
from tesserec.semantic_ids.rq_network import Network
from tesserec.testing.data import interactions_of
from tesserec.types import SideInformation

TRAINING = RQVAETraining(num_steps=200, batch_size=128, learning_rate=1e-2, revive_every=20)


def quantizer(*losses):
    return RQVAE(num_levels=2, codebook_size=8, hidden_sizes=(32,), num_latents=8, training=TRAINING, losses=losses)


def setup(train, features, **side):
    side = SideInformation(train=train, **side)
    return LossSetup(features, 4, (4,), side, torch.Generator().manual_seed(0))


def test_finds_the_quiet_factor_by_which_items_are_bought():
    features, found = two_factors.features(), []
    quantized = CoOccurrence(weight=10.0, temperature=0.2)
    for losses in ((), (quantized,), (dataclasses.replace(quantized, compared="latents"),)):
        one = quantizer(*losses)
        one.fit(features, two_factors.side())
        found.append(two_factors.purity(one.encode(features)[:, 0], two_factors.quiet()))
    assert found[0] < 0.6  # a quarter by chance
    assert min(found[1:]) > 0.9


def test_weight_zero_is_plain_bit_for_bit():
    states = []
    for losses in ((), (CoOccurrence(weight=0.0),)):
        one = quantizer(*losses)
        one.fit(two_factors.features(), SideInformation())  # does not ask for events either
        states.append(one.state().tensors)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_pairs_are_neighbours_of_one_user_and_session():
    train = interactions_of([[[0], [1], [1], [2]], [[3, 0]]], 4)
    assert [p.tolist() for p in following_pairs(train)] == [[0, 1, 3], [1, 2, 0]]
    train = dataclasses.replace(train, session_E=torch.tensor([0, 0, 1, 1, 2, 3]))
    assert [p.tolist() for p in following_pairs(train)] == [[0, 1], [1, 2]]


def test_same_items_are_no_negatives():
    rows, partners = torch.tensor([0, 1, 0, 5]), torch.tensor([1, 2, 3, 2])
    assert same_items(rows, partners).int().tolist() == [[0, 0, 1, 0], [1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]


def test_the_loss_by_hand():
    network, features = Network(3, (), 4, (4,)), randn(3, 3)
    with torch.no_grad():
        network.codebooks[0].copy_(randn(4, 4, seed=1))
    # item 1 has only partner 0, item 2 only partner 3; row 1 is item 1, row 2 is item 3, row 0 is item 0
    module = CoOccurrence(temperature=0.5).module(
        setup(interactions_of([[[0], [1]], [[2], [3]]], 4), features, item_N=torch.tensor([0, 1, 3]))
    )
    rows = torch.tensor([0, 1, 2])  # item 3's only partner has no row: it takes no part
    _, record = network.loss(features, 0.25, rows)
    z = F.normalize(record.quantized.total(), dim=1)
    # rows 0 and 1 are each other's partner, so neither has a negative
    assert module(record).item() == 0
    module = CoOccurrence(temperature=0.5).module(setup(interactions_of([[[0], [1]], [[2], [1]]], 3), features))
    _, record = network.loss(features[[0, 2]], 0.25, torch.tensor([0, 2]))
    assert module(record).item() == 0  # both have partner 1
    module = CoOccurrence(temperature=0.5).module(setup(interactions_of([[[0], [1]], [[2], [3]]], 4), randn(4, 3)))
    _, record = network.loss(randn(4, 3)[[0, 2]], 0.25, torch.tensor([0, 2]))
    z = F.normalize(network.quantize(network.latents(randn(4, 3))).total(), dim=1)
    logits = z[[0, 2]] @ z[[1, 3]].T / 0.5
    expected = -(logits[0].log_softmax(0)[0] + logits[1].log_softmax(0)[1]) / 2
    assert module(record).item() == pytest.approx(expected.item(), abs=1e-5)
    assert isinstance(record, LossRecord)


def test_a_batch_without_partners_costs_nothing():
    network, features = Network(3, (), 4, (4,)), randn(3, 3)
    module = CoOccurrence().module(setup(interactions_of([[[0], [1]]], 3), features))
    _, record = network.loss(features[2:], 0.25, torch.tensor([2]))
    assert module(record).item() == 0


def test_partners_are_drawn_as_often_as_they_occur():
    train = interactions_of([[[0], [1]], [[0], [1]], [[2], [0]], [[0], [1]]], 3)
    module = CoOccurrence().module(setup(train, randn(3, 3)))
    drawn = module.drawn(torch.zeros(4000, dtype=torch.int64)).bincount(minlength=3) / 4000
    assert drawn.tolist() == pytest.approx([0, 0.75, 0.25], abs=0.03)


def test_a_recipe_names_it():
    table = {
        "class": "tesserec.semantic_ids.rq_vae:RQVAE",
        "losses": [{"class": "tesserec.semantic_ids.plum:CoOccurrence", "weight": 0.3}],
    }
    assert build_component(table, "quantizer").losses == (CoOccurrence(weight=0.3),)
    assert isinstance(CoOccurrence(), QuantizerLoss)


def test_restores_and_is_the_same_for_the_same_seed():
    features, states = two_factors.features(), []
    training = RQVAETraining(num_steps=20, batch_size=64)
    for _ in range(2):
        one = RQVAE(
            num_levels=1, codebook_size=4, hidden_sizes=(), num_latents=4, training=training, losses=(CoOccurrence(),)
        )
        one.fit(features, two_factors.side())
        states.append(one.state())
    assert all(torch.equal(states[0].tensors[name], states[1].tensors[name]) for name in states[0].tensors)
    other = RQVAE(num_levels=1, codebook_size=4, hidden_sizes=(), num_latents=4)
    other.restore(states[0])
    assert torch.equal(other.encode(features), one.encode(features))


def test_refuses_logs_that_say_nothing():
    with pytest.raises(DataError, match="CoOccurrence reads training events"):
        CoOccurrence().module(setup(None, randn(3, 3)))
    with pytest.raises(DataError, match="no two items follow each other in the training events"):
        CoOccurrence().module(setup(interactions_of([[[0]], [[1]]], 3), randn(3, 3)))
