"""DRQ: codes are those of k-means on the latents; divergence by hand; what the latents keep."""

import pytest
import torch
from tests.semantic_ids import two_factors
from tests.semantic_ids.two_factors import randn

from tesserec.errors import DataError, NotFittedError
from tesserec.semantic_ids import DRQ, RQVAE, CoOccurrence, ResidualKMeans, RQVAETraining
from tesserec.semantic_ids.composition import LossRecord
from tesserec.semantic_ids.drq import _Spread, _unquantized
from tesserec.semantic_ids.residual import explained_share
from tesserec.types import Quantizer, SideInformation

QUICK = RQVAETraining(num_steps=40, batch_size=64)


def quick(training=QUICK, **settings):
    return DRQ(num_levels=2, codebook_size=8, hidden_sizes=(16,), num_latents=4, training=training, **settings)


def test_codes_are_those_of_residual_k_means_on_the_frozen_latents():
    features = randn(200, 6)
    quantizer = quick()
    quantizer.fit(features, SideInformation(seed=2))
    latents = quantizer._fitted().latents(features)
    expected = ResidualKMeans(num_levels=2, codebook_size=8)
    expected.fit(latents, SideInformation(seed=2))
    assert torch.equal(quantizer.encode(features), expected.encode(latents))
    decoded = quantizer._fitted().reconstructed(expected.decode(expected.encode(latents)))
    assert torch.equal(quantizer.decode(quantizer.encode(features)), decoded)


def test_no_other_code_of_a_level_is_closer_to_the_latents():
    features = randn(100, 6)
    quantizer = quick()
    quantizer.fit(features, SideInformation())
    rest, codes = quantizer._fitted().latents(features), quantizer.encode(features)
    for level, codebook in enumerate(quantizer._fitted().codebooks):
        distances = torch.cdist(rest.double(), codebook.double())
        assert torch.all(distances.gather(1, codes[:, level : level + 1]).squeeze(1) <= distances.min(1).values + 1e-5)
        rest = rest - codebook[codes[:, level]]


def test_latents_keep_what_few_codes_cannot_say():
    features = torch.cat([two_factors.features(), randn(two_factors.NUM_ITEMS, 2, seed=5)], 1)
    training = RQVAETraining(num_steps=300, batch_size=128, learning_rate=1e-2, revive_every=50)
    settings = {"num_levels": 1, "codebook_size": 4, "hidden_sizes": (32,), "num_latents": 12, "training": training}
    kept = []
    for quantizer in (RQVAE(**settings, commitment_weight=10.0), DRQ(**settings)):
        quantizer.fit(features, SideInformation())
        network = quantizer._fitted()
        latents = network.latents(features)
        design = torch.cat([latents, torch.ones(len(latents), 1)], 1)
        told = design @ torch.linalg.lstsq(design, features[:, 4:]).solution
        kept.append(explained_share(features[:, 4:], told))
    assert kept[0] < 0.8
    assert kept[1] > 0.9


def test_without_divergence_there_is_no_noise_and_losses_of_weight_zero_change_no_bit():
    features = randn(100, 6)
    states = []
    for settings in ({}, {"losses": (CoOccurrence(weight=0.0),)}):
        quantizer = quick(divergence_weight=0.0, **settings)
        quantizer.fit(features, SideInformation())
        states.append(quantizer.state().tensors)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    noisy = quick(divergence_weight=1.0)
    noisy.fit(features, SideInformation())
    assert not torch.equal(noisy.state().tensors["encoder.0.weight"], states[0]["encoder.0.weight"])


def _no_loss(latents):
    return latents.new_zeros(()), _unquantized(latents)


def test_the_divergence_by_hand():
    spread = _Spread(2, 0)
    with torch.no_grad():
        spread.log_variance_Z.copy_(torch.tensor([0.0, 2.0]))
    latents = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    record = LossRecord(
        torch.arange(2), latents, latents, _unquantized(latents), (), _unquantized, _unquantized, _no_loss, 1
    )
    normal = torch.distributions.Normal(latents, torch.tensor([1.0, 2.718281828]))
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    assert spread(record).item() == pytest.approx(expected.item(), rel=1e-5)
    draws = spread.sampled(torch.ones(20_000, 2))
    assert draws.mean(0).tolist() == pytest.approx([1.0, 1.0], abs=0.1)
    assert draws.std(0).tolist() == pytest.approx([1.0, 2.718], rel=0.03)


def test_losses_see_the_latents_as_quantized():
    latents = randn(5, 3)
    quantized = _unquantized(latents)
    assert torch.equal(quantized.total(), latents)
    assert torch.allclose(quantized.straight_through(), latents)


def test_behaviour_comes_in_before_the_codes():
    features, found = two_factors.features(), []
    training = RQVAETraining(num_steps=200, batch_size=128, learning_rate=1e-2)
    for losses in ((), (CoOccurrence(weight=1.0, temperature=0.2),)):
        quantizer = DRQ(
            num_levels=1, codebook_size=4, hidden_sizes=(32,), num_latents=8, training=training, losses=losses
        )
        quantizer.fit(features, two_factors.side())
        found.append(two_factors.purity(quantizer.encode(features)[:, 0], two_factors.quiet()))
    assert found[0] < 0.6
    assert found[1] > 0.9


def test_restores_and_is_the_same_for_the_same_seed():
    features, states = randn(90, 4), []
    for seed in (5, 5, 6):
        quantizer = quick()
        quantizer.fit(features, SideInformation(seed=seed))
        states.append(quantizer.state())
    assert all(torch.equal(tensor, states[1].tensors[name]) for name, tensor in states[0].tensors.items())
    assert not torch.equal(states[1].tensors["encoder.0.weight"], states[2].tensors["encoder.0.weight"])
    other = quick()
    assert other.codebook_sizes == (8, 8)
    other.restore(states[2])
    assert torch.equal(other.encode(features), quantizer.encode(features))
    assert torch.equal(other.decode(other.encode(features)), quantizer.decode(quantizer.encode(features)))
    assert isinstance(other, Quantizer)
    few = quick()
    few.fit(features[:3], SideInformation())
    assert few.codebook_sizes == (3, 1)


def test_refuses_what_it_cannot_quantize():
    quantizer = quick()
    with pytest.raises(NotFittedError, match="DRQ has no codebooks yet: call fit or restore first"):
        quantizer.encode(randn(1, 3))
    with pytest.raises(DataError, match="features of item 1 hold NaN, infinity"):
        quantizer.fit(torch.tensor([[1.0], [float("inf")]]), SideInformation())
    quantizer.fit(randn(10, 3), SideInformation())
    with pytest.raises(DataError, match="features have 2 columns, the codebooks were fitted on 3"):
        quantizer.encode(randn(4, 2))
