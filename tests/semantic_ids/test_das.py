"""DAS: views by hand, and a quiet factor by which items are bought that each of them finds."""

import pytest
import torch
import torch.nn.functional as F
from tests.semantic_ids import two_factors
from tests.semantic_ids.two_factors import randn

from tesserec.config import build_component
from tesserec.errors import DataError
from tesserec.semantic_ids import RQVAE, DualAlignment, RQVAETraining
from tesserec.semantic_ids.composition import LossSetup, QuantizerLoss
from tesserec.semantic_ids.das import same
from tesserec.semantic_ids.rq_network import Network
from tesserec.testing.data import interactions_of
from tesserec.types import SideInformation

TRAINING = RQVAETraining(num_steps=200, batch_size=128, learning_rate=1e-2, revive_every=20)
QUICK = RQVAETraining(num_steps=20, batch_size=64)


def quick(*losses, training=QUICK):
    return RQVAE(num_levels=2, codebook_size=8, hidden_sizes=(32,), num_latents=8, training=training, losses=losses)


def separation(quantizer, features):
    network = quantizer._fitted()
    vectors = F.normalize(network.quantize(network.latents(features)).total(), dim=1)
    alike = two_factors.quiet()[:, None] == two_factors.quiet()
    cosines = vectors @ vectors.T
    return float(cosines[alike].mean() - cosines[~alike].mean())


def test_finds_the_quiet_factor_by_which_items_are_bought():
    features, found = two_factors.features(), []
    for losses in ((), (DualAlignment(weight=5.0, temperature=0.3),)):
        quantizer = quick(*losses, training=TRAINING)
        quantizer.fit(features, two_factors.side())
        found.append(separation(quantizer, features))
    assert found[0] < 0.2
    assert found[1] > 0.7


@pytest.mark.parametrize("view", ["item", "user", "follower"])
def test_each_view_finds_it_too(view):
    features = two_factors.features()
    quantizer = quick(DualAlignment(weight=10.0, temperature=0.3, views=(view,)), training=TRAINING)
    quantizer.fit(features, two_factors.side())
    assert separation(quantizer, features) > 0.3


def setup(train, features, **side):
    side = SideInformation(train=train, **side)
    return LossSetup(features, 4, (4,), side, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("view", ["item", "user", "follower"])
def test_views_by_hand(view):
    features = randn(4, 3)
    train = interactions_of([[[0], [1]], [[2], [3]]], 4)
    network = Network(3, (), 4, (4,))
    with torch.no_grad():
        network.codebooks[0].copy_(randn(4, 4, seed=1))
    module = DualAlignment(temperature=0.5, views=(view,), batch_size=6).module(setup(train, features))
    _, record = network.loss(features, 0.25, torch.arange(4))
    draws = torch.Generator().manual_seed(0)
    events = torch.randint(4, (6,), generator=draws)  # event e is of item e and user e // 2
    q = F.normalize(network.quantize(network.latents(features)).total(), dim=1)
    items, users = F.normalize(module.items.weight, dim=1), F.normalize(module.users.weight, dim=1)

    def mean(a, b, *groups):
        total = 0.0
        for i in range(len(a)):
            kept = [j for j in range(len(a)) if j == i or all(g[i] != g[j] for g in groups)]
            scores = torch.stack([a[i] @ b[j] / 0.5 for j in kept])
            total -= scores.log_softmax(0)[kept.index(i)]
        return total / len(a)

    owners = events // 2
    expected = mean(users[owners], items[events], events, owners)
    if view == "item":
        expected += mean(q[events], items[events], events)
    elif view == "user":
        expected += mean(q[events], users[owners], events, owners)
    else:
        pairs = torch.tensor([[0, 1], [2, 3]])[torch.randint(2, (6,), generator=draws)]
        expected += mean(q[pairs[:, 0]], items[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
    assert module(record).item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_same_by_hand():
    assert same(torch.tensor([3, 1, 3])).int().tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_weight_zero_is_plain_bit_for_bit_and_the_state_that_of_an_rq_vae():
    features, states = two_factors.features(), []
    for losses in ((), (DualAlignment(weight=0.0),), (DualAlignment(),), (DualAlignment(),)):
        quantizer = quick(*losses)
        quantizer.fit(features, two_factors.side())
        states.append(quantizer.state())
    plain, zero, first, second = (state.tensors for state in states)
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert set(first) == set(plain)
    other = quick()
    other.restore(states[3])
    assert torch.equal(other.encode(features), quantizer.encode(features))


def test_a_recipe_names_it():
    loss = {"class": "tesserec.semantic_ids.das:DualAlignment", "views": ["item"]}
    built = build_component({"class": "tesserec.semantic_ids.rq_vae:RQVAE", "losses": [loss]}, "quantizer")
    assert built.losses == (DualAlignment(views=("item",)),)
    assert isinstance(built.losses[0], QuantizerLoss)


def test_refuses_logs_that_say_nothing():
    with pytest.raises(DataError, match="DualAlignment reads training events"):
        DualAlignment().module(setup(None, randn(3, 3)))
    apart = interactions_of([[[0]], [[1]]], 3)
    with pytest.raises(DataError, match="no items follow each other in the training events"):
        DualAlignment().module(setup(apart, randn(3, 3)))
    DualAlignment(views=("user",)).module(setup(apart, randn(3, 3)))
    with pytest.raises(ValueError, match="at least 1 item"):
        DualAlignment(views=())
