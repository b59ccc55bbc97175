"""DAS: views by hand, and quiet factors by which items are bought and users buy that each of them finds."""

import dataclasses
from functools import partial
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from tests.semantic_ids import two_factors
from tests.semantic_ids.two_factors import randn

from tesserec.config import build_component
from tesserec.errors import DataError
from tesserec.semantic_ids import DRQ, RQVAE, DualAlignment, RQVAETraining
from tesserec.semantic_ids.composition import LossSetup, QuantizerLoss
from tesserec.semantic_ids.das import Fellows, View, same, user_vectors
from tesserec.semantic_ids.rq_network import Network, loss_modules, train
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
    for losses in ((), (DualAlignment(weight=0.5, temperature=0.3),)):
        quantizer = quick(*losses, training=TRAINING)
        quantizer.fit(features, two_factors.side())
        found.append(separation(quantizer, features))
    assert found[0] < 0.2
    assert found[1] > 0.7


@pytest.mark.parametrize("view", ["item_item", "item_user", "item_follower"])
def test_each_view_of_items_finds_it_too(view):
    features = two_factors.features()
    quantizer = quick(DualAlignment(weight=1.0, temperature=0.3, views=(view,)), training=TRAINING)
    quantizer.fit(features, two_factors.side())
    assert separation(quantizer, features) > 0.3


NUM_USERS = 480


def buyers():
    """Each user takes four items of one quiet group: their means differ more in the loud factor, by chance."""
    return two_factors.side(num_users=NUM_USERS, length=4)


def user_separation(vectors):
    vectors = F.normalize(vectors, dim=1)
    group = torch.arange(NUM_USERS) % two_factors.NUM_QUIET
    alike = (group[:, None] == group).fill_diagonal_(False)
    cosines = vectors @ vectors.T
    return float(cosines[alike].mean() - cosines[group[:, None] != group].mean())


def test_an_rq_vae_of_users_does_not_find_the_quiet_factor_by_which_they_buy():
    train = buyers().train
    users = user_vectors(two_factors.features(), torch.stack([train.item_E, train.user_E], 1).long(), NUM_USERS)
    quantizer = quick(training=TRAINING)
    quantizer.fit(users, SideInformation())
    network = quantizer._fitted()
    assert user_separation(network.quantize(network.latents(users)).total()) < 0.1


@pytest.mark.parametrize(("view", "least"), [("user_user", 0.2), ("user_item", 0.6), ("user_fellow", 0.6)])
def test_each_view_of_users_finds_it(view, least):
    features, side = two_factors.features(), buyers()
    torch.manual_seed(0)
    network = Network(8, (32,), 8, (8, 8))
    network.start(features, (8, 8), 0, torch.Generator().manual_seed(0))
    losses = loss_modules(
        [DualAlignment(weight=3.0, temperature=0.3, views=("item_item", view))], network, features, side
    )
    step = partial(step_of, network, features)
    train(network, step, losses, len(features), TRAINING, torch.Generator().manual_seed(0), side)
    with torch.no_grad():
        _, vectors = losses[0][1].user_side.loss(torch.arange(NUM_USERS), 1)
        assert user_separation(vectors) > least


def step_of(network, features, rows, step):
    return network.loss(features[rows], 0.25, rows, None, step)


def setup(train, features, **side):
    side = SideInformation(train=train, **side)
    return LossSetup(features, 4, (4,), side, torch.Generator().manual_seed(0))


def mean_loss(a, b, *groups):
    """InfoNCE, pair by pair: places of the same group of any kind are no negatives."""
    total = 0.0
    for i in range(len(a)):
        kept = [j for j in range(len(a)) if j == i or all(g[i] != g[j] for g in groups)]
        scores = torch.stack([a[i] @ b[j] / 0.5 for j in kept])
        total -= scores.log_softmax(0)[kept.index(i)]
    return total / len(a)


def quantized(network, features):
    return F.normalize(network.quantize(network.latents(features)).total(), dim=1)


def made(users, *views, num_items=4):
    """(module, record, quantized vectors of items, what the module will draw from)."""
    features = randn(num_items, 3)
    network = Network(3, (), 4, (4,))
    with torch.no_grad():
        network.codebooks[0].copy_(randn(4, 4, seed=1))
    given = setup(interactions_of(users, num_items), features)
    module = DualAlignment(temperature=0.5, views=views, batch_size=6).module(given)
    _, record = network.loss(features, 0.25, torch.arange(num_items))
    return module, record, quantized(network, features), given.generator.clone_state()


@pytest.mark.parametrize("view", ["item_item", "item_user", "item_follower"])
def test_views_of_items_by_hand(view):
    module, record, q, draws = made([[[0], [1]], [[2], [3]]], view)
    events = torch.randint(4, (6,), generator=draws)  # event e is of item e and user e // 2
    items, users = F.normalize(module.items.weight, dim=1), F.normalize(module.users.weight, dim=1)
    owners = events // 2
    expected = mean_loss(users[owners], items[events], events, owners)
    if view == "item_item":
        expected += mean_loss(q[events], items[events], events)
    elif view == "item_user":
        expected += mean_loss(q[events], users[owners], events, owners)
    else:
        pairs = torch.tensor([[0, 1], [2, 3]])[torch.randint(2, (6,), generator=draws)]
        expected += mean_loss(q[pairs[:, 0]], items[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
    assert module.user_side is None
    assert module(record).item() == pytest.approx(expected.item(), abs=1e-5)


LOG = [[[0], [1]], [[1], [2]], [[1], [4]], [[3], [4]]]
EVENTS = torch.tensor([[0, 0], [1, 0], [1, 1], [2, 1], [1, 2], [4, 2], [3, 3], [4, 3]])


@pytest.mark.parametrize("view", ["user_user", "user_item", "user_fellow"])
def test_views_of_users_by_hand(view):
    module, record, q, draws = made(LOG, "item_item", view, num_items=5)
    content = torch.stack([randn(5, 3)[[a, b]].mean(0) for ((a,), (b,)) in LOG])
    network = module.user_side.network
    assert torch.allclose(network.mean, content.mean(0))
    assert [len(c) for c in network.codebooks] == [4]
    with torch.no_grad():
        network.codebooks[0].copy_(randn(4, 4, seed=2))  # k-means starts at the four users themselves
    u = quantized(network, content)
    items, users = F.normalize(module.items.weight, dim=1), F.normalize(module.users.weight, dim=1)
    events = torch.randint(8, (6,), generator=draws)
    taken, owners = EVENTS[events].unbind(1)
    expected = mean_loss(users[owners], items[taken], taken, owners) + mean_loss(q[taken], items[taken], taken)
    if view == "user_user":
        expected += mean_loss(u[owners], users[owners], owners)
    elif view == "user_item":
        expected += mean_loss(u[owners], items[taken], taken, owners)
    else:
        fellows = Fellows(EVENTS).drawn(events, draws)
        has = fellows != owners
        assert 1 < int(has.sum()) < 6
        expected += mean_loss(u[owners[has]], users[fellows[has]], owners[has], fellows[has])
    own, _ = network.loss(content[owners], 0.25, owners)
    assert module(record).item() == pytest.approx((expected + own / (0.1 * content.shape[1])).item(), rel=1e-5)


def test_vectors_of_users_by_hand():
    features = torch.tensor([[1.0, 0.0], [0.0, 4.0], [5.0, 5.0]])
    found = user_vectors(features, torch.tensor([[0, 0], [1, 0], [1, 0], [0, 2]]), 3)
    assert torch.allclose(found, torch.tensor([[1 / 3, 8 / 3], [0, 0], [1, 0]]))


def test_fellows_are_other_users_of_an_item_each_as_often():
    taken = torch.cat([EVENTS, EVENTS[:3]])  # again: the same users
    drawn = Fellows(taken).drawn(torch.arange(11).repeat(1000), torch.Generator().manual_seed(0)).view(1000, 11)
    # users 0 to 2 took item 1, users 2 and 3 took item 4, and nobody else the items of events 0, 3 and 6
    of_event = [{0}, {1, 2}, {0, 2}, {1}, {0, 1}, {3}, {3}, {2}, {0}, {1, 2}, {0, 2}]
    for column, wanted in zip(drawn.T, of_event, strict=True):
        users, counts = column.unique(return_counts=True)
        assert set(users.tolist()) == wanted
        assert int(counts.min()) > 1000 / len(wanted) - 80
    with pytest.raises(DataError, match="no two users took the same item: leave out the view user_fellow"):
        Fellows(torch.tensor([[0, 0], [0, 0], [1, 1]]))


def test_codes_that_no_user_takes_are_moved_to_users():
    module, record, *_ = made(LOG, "item_item", "user_user", num_items=5)
    codebook = module.user_side.network.codebooks[0]
    with torch.no_grad():
        codebook[3] = 1e3
    for step, is_far in ((1, True), (2, True), (100, True), (101, False)):
        module(dataclasses.replace(record, step=step))
        assert bool((codebook[3] == 1e3).all()) is is_far


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
    loss = {"class": "tesserec.semantic_ids.das:DualAlignment", "views": ["item_item"]}
    built = build_component({"class": "tesserec.semantic_ids.rq_vae:RQVAE", "losses": [loss]}, "quantizer")
    assert built.losses == (DualAlignment(views=("item_item",)),)
    assert isinstance(built.losses[0], QuantizerLoss)


def test_has_six_views():
    assert set(DualAlignment().views) == set(get_args(View))
    assert len(get_args(View)) == 6


def test_refuses_logs_that_say_nothing():
    with pytest.raises(DataError, match="DualAlignment reads training events"):
        DualAlignment().module(setup(None, randn(3, 3)))
    apart = interactions_of([[[0]], [[1]]], 3)
    with pytest.raises(DataError, match="no items follow each other in the training events"):
        DualAlignment().module(setup(apart, randn(3, 3)))
    DualAlignment(views=("item_user",)).module(setup(apart, randn(3, 3)))
    with pytest.raises(DataError, match="no two users took the same item"):
        DualAlignment(views=("item_user", "user_fellow")).module(setup(apart, randn(3, 3)))


def test_refuses_views_that_change_nothing():
    with pytest.raises(ValueError, match="at least 1 item"):
        DualAlignment(views=())
    with pytest.raises(ValueError, match=r"views \['user_item'\] leave the codes of items as they are"):
        DualAlignment(views=("user_item",))


def test_users_have_codes_only_where_items_are_trained_with_them():
    features, side = two_factors.features(), two_factors.side()
    with pytest.raises(DataError, match="views of users need codebooks in training"):
        DRQ(num_latents=8, training=QUICK, losses=(DualAlignment(),)).fit(features, side)
    of_items = DualAlignment(views=("item_item", "item_user", "item_follower"))
    DRQ(num_levels=1, codebook_size=8, num_latents=8, training=QUICK, losses=(of_items,)).fit(features, side)
