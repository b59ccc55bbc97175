"""DOS: orthogonal turns, code vectors of chosen directions, histories by hand, a quiet factor by which users click."""

import dataclasses
import statistics

import pytest
import torch
import torch.nn.functional as F
from tests.semantic_ids import two_factors
from tests.semantic_ids.two_factors import randn

from tesserec.config import build_component
from tesserec.errors import DataError
from tesserec.semantic_ids import RQVAE, OrthogonalLevels, RQVAEParts, RQVAETraining, UserFlow
from tesserec.semantic_ids.composition import LevelTransform, LossSetup, QuantizerLoss
from tesserec.semantic_ids.dos import clicks_before
from tesserec.semantic_ids.rq_network import Network
from tesserec.testing.data import interactions_of
from tesserec.types import SideInformation

QUICK = RQVAETraining(num_steps=40, batch_size=64, learning_rate=1e-2, revive_every=10)


def quick(*losses, transform=None, training=QUICK):
    return RQVAE(
        num_levels=2,
        codebook_size=16,
        hidden_sizes=(32,),
        num_latents=8,
        training=training,
        losses=losses,
        parts=RQVAEParts(transform=transform),
    )


def turned(primary_share=0.5):
    return OrthogonalLevels(primary_share=primary_share).level(randn(6, 4) * torch.tensor([1.0, 9.0, 1.0, 5.0]))


def test_a_level_starts_with_the_directions_of_its_longest_codes_and_unturned():
    level, codebook = turned(), randn(6, 4, seed=1)
    assert torch.allclose(level(codebook), codebook * torch.tensor([0.0, 1.0, 0.0, 1.0]))
    everything = turned(primary_share=1.0)
    assert torch.equal(everything(codebook), codebook)  # the degenerate case: plain code vectors


def test_turns_are_orthogonal_and_pulled_back():
    level = turned()
    with torch.no_grad():
        level.angles_ZZ.copy_(randn(4, 4, seed=2))
    rotation = level.rotation()
    assert torch.allclose(rotation.T @ rotation, torch.eye(4), atol=1e-5)
    vectors = level(randn(6, 4))
    assert torch.linalg.matrix_rank(vectors) == 2
    assert torch.allclose(level(level.pull_back(vectors)), vectors, atol=1e-5)
    vectors.square().sum().backward()
    assert level.score_Z.grad.abs().sum() > 0
    level(randn(6, 4)).sum().backward()
    assert level.angles_ZZ.grad.abs().sum() > 0


def test_a_fitted_level_has_codes_of_half_the_directions_and_encodes_by_the_nearest():
    features = two_factors.features()
    quantizer = quick(transform=OrthogonalLevels())
    quantizer.fit(features, SideInformation())
    network, codes = quantizer._fitted(), quantizer.encode(features)
    rest = network.latents(features)
    for level, codebook in enumerate(network.codebooks):
        assert torch.linalg.matrix_rank(codebook, rtol=1e-4) == 4
        distances = torch.cdist(rest.double(), codebook.double())
        assert torch.all(distances.gather(1, codes[:, level : level + 1]).squeeze(1) <= distances.min(1).values + 1e-5)
        rest = rest - codebook[codes[:, level]]
    overlap = torch.linalg.svdvals(
        torch.linalg.qr(network.codebooks[0].T[:, :4])[0].T @ torch.linalg.qr(network.codebooks[1].T[:, :4])[0]
    )
    assert overlap.min() < 0.99  # another half at the second level
    other = quick(transform=OrthogonalLevels())
    other.restore(quantizer.state())
    assert torch.equal(other.encode(features), codes)


def separation(quantizer, features):
    network = quantizer._fitted()
    vectors = F.normalize(network.quantize(network.latents(features)).total(), dim=1)
    same = two_factors.quiet()[:, None] == two_factors.quiet()
    cosines = vectors @ vectors.T
    return float(cosines[same].mean() - cosines[~same].mean())


def test_finds_the_quiet_factor_by_which_users_click():
    features, found = two_factors.features(), []
    training = RQVAETraining(num_steps=400, batch_size=128, learning_rate=1e-2, revive_every=20)
    for losses in ((), (UserFlow(weight=0.5),)):
        for seed in range(3):
            quantizer = quick(*losses, training=training)
            quantizer.fit(features, dataclasses.replace(two_factors.side(), seed=seed))
            found.append(separation(quantizer, features))
    assert max(found[:3]) < 0.3
    assert statistics.median(found[3:]) > 0.7  # one start in three finds a part of it only


def test_weight_zero_is_plain_bit_for_bit_and_the_same_seed_gives_the_same():
    features = two_factors.features()
    states = []
    for losses in ((), (UserFlow(weight=0.0),), (UserFlow(weight=1.0),), (UserFlow(weight=1.0),)):
        quantizer = quick(*losses)
        quantizer.fit(features, two_factors.side())
        states.append(quantizer.state().tensors)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(torch.equal(states[2][name], states[3][name]) for name in states[2])
    assert set(states[0]) == set(states[2])
    assert not torch.equal(states[0]["encoder.0.weight"], states[2]["encoder.0.weight"])


def test_clicks_before_by_hand():
    train = interactions_of([[[0], [1, 2], [3]], [[2], [0]]], 4)
    history, following = clicks_before(train, 2)
    assert following.tolist() == [0, 1, 2, 3, 2, 0]
    # items of one basket do not see each other; the second user does not see the first
    assert history.tolist() == [[-1, -1], [-1, 0], [-1, 0], [1, 2], [-1, -1], [-1, 2]]
    empty = train.select(torch.zeros(6, dtype=torch.bool))
    assert clicks_before(empty, 2)[0].shape == (0, 2)


def setup(train, features, **side):
    side = SideInformation(train=train, **side)
    return LossSetup(features, 4, (4,), side, torch.Generator().manual_seed(0))


def test_the_loss_by_hand_of_users_with_one_click():
    # every user clicks item 0, then 1 or 2; a new module takes a user for the mean of their clicks, item 0 itself
    features = randn(3, 5)
    train = interactions_of([[[0], [1]], [[0], [2]]], 3)
    network = Network(5, (), 4, (4,))
    with torch.no_grad():
        network.codebooks[0].copy_(randn(4, 4, seed=3))
    flow = UserFlow(batch_size=400, temperature=0.7, commitment_weight=0.5)
    module = flow.module(setup(train, features))
    _, record = network.loss(features, 0.25, torch.arange(3))
    quantized = network.quantize(network.latents(features))
    z = F.normalize(quantized.total(), dim=1)
    cosine = z[0] @ z.T / 0.7
    match = F.softplus(-cosine[1:]).mean()
    clash = F.softplus(cosine[1:]).mean()
    expected = match + clash + 0.5 * quantized.latent_errors[0][0]
    assert module(record).item() == pytest.approx(expected.item(), rel=0.05)  # 200 of each in the mean


def test_a_user_is_the_mean_of_clicks_and_of_what_attention_makes_of_them():
    features = randn(3, 5)
    module = UserFlow(num_clicks=3).module(setup(interactions_of([[[0], [1], [2]]], 3), features))
    network = Network(5, (), 4, (4,))
    _, record = network.loss(features, 0.25, torch.arange(3))
    with torch.no_grad():
        torch.nn.init.eye_(module.out.weight)
        found = module._users(torch.tensor([[-1, 0, 1], [-1, -1, 2]]), record)
        for user, clicks in ((0, [0, 1]), (1, [2])):
            z = network.latents(features[clicks])
            assert torch.allclose(found[user], (z + module.attention(z[None])[0]).mean(0), atol=1e-5)


def test_recipes_name_both():
    table = {
        "class": "tesserec.semantic_ids.rq_vae:RQVAE",
        "losses": [{"class": "tesserec.semantic_ids.dos:UserFlow"}],
        "parts": {"transform": {"class": "tesserec.semantic_ids.dos:OrthogonalLevels", "primary_share": 0.25}},
    }
    built = build_component(table, "quantizer")
    assert built.parts.transform == OrthogonalLevels(primary_share=0.25)
    assert isinstance(built.losses[0], QuantizerLoss)
    assert isinstance(built.parts.transform, LevelTransform)


def test_refuses_logs_that_say_nothing():
    with pytest.raises(DataError, match="UserFlow reads training events"):
        UserFlow().module(setup(None, randn(3, 3)))
    with pytest.raises(DataError, match="no item follows another in the training events"):
        UserFlow().module(setup(interactions_of([[[0, 1]], [[1]]], 3), randn(3, 3)))
