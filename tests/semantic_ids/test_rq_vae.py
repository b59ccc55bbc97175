"""RQ-VAE: codes by brute force in latent space, the loss by hand, dead codes, a planted hierarchy, bfloat16."""

import pytest
import torch
from torch import nn

from tesserec.config import component
from tesserec.errors import DataError, NotFittedError
from tesserec.semantic_ids import DRQ, FSQ, RQVAE, RQVAETraining, rq_network
from tesserec.semantic_ids.residual import explained_share
from tesserec.semantic_ids.rq_network import Network, revive
from tesserec.types import Quantizer, SideInformation

QUICK = RQVAETraining(num_steps=40, batch_size=64, revive_every=10)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quick(**settings):
    return RQVAE(num_levels=2, codebook_size=8, hidden_sizes=(16,), num_latents=4, training=QUICK, **settings)


def planted():
    coarse, fine = randn(8, 16) * 3, randn(4, 16, seed=1)
    return (coarse[:, None, None] + fine[None, :, None] + 0.03 * randn(8, 4, 16, 16, seed=2)).reshape(-1, 16)


def test_learns_a_planted_hierarchy_with_most_codes_in_use():
    features = planted()
    training = RQVAETraining(num_steps=200, batch_size=128, learning_rate=1e-2, revive_every=20)
    quantizer = RQVAE(num_levels=2, codebook_size=8, hidden_sizes=(48,), num_latents=8, training=training)
    quantizer.fit(features, SideInformation())
    codes = quantizer.encode(features)
    assert explained_share(features, quantizer.decode(codes)) > 0.95
    assert explained_share(features, quantizer.decode(codes[:, :1])) > 0.85
    assert min(len(codes[:, level].unique()) for level in range(2)) >= 7
    assert 28 <= len(torch.unique(codes, dim=0)) <= 40  # 32 clusters
    groups = codes.reshape(32, 16, 2)
    assert (groups == groups.mode(1, keepdim=True).values).all(2).double().mean() > 0.95  # a cluster has one tuple


@component
class KeepsRecords:
    """A loss that is zero and keeps the records of the batches."""

    weight: float = 1.0

    def module(self, setup):
        self.seen = []
        return _KeepsRecordsModule(self.seen)


class _KeepsRecordsModule(nn.Module):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, record):
        assert not torch.is_autocast_enabled("cpu")
        self.seen.append(record)
        return torch.zeros(())


@pytest.mark.parametrize("quantizer_class", [RQVAE, FSQ, DRQ])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_only_the_products_of_the_training_are_in_bfloat16(quantizer_class, precision):
    loss, features = KeepsRecords(), randn(60, 6)
    training = RQVAETraining(num_steps=3, batch_size=64, precision=precision)
    quantizer = quantizer_class(hidden_sizes=(16,), training=training, losses=(loss,))
    quantizer.fit(features, SideInformation())
    for record in loss.seen:
        reconstruction, rounded = record.reconstruction_BD, record.reconstruction_BD.bfloat16().float()
        assert reconstruction.dtype == record.quantized.latents_BZ.dtype == torch.float32
        assert torch.equal(reconstruction, rounded) == (precision == "bfloat16")
    network = quantizer._fitted()
    inputs = (features - network.mean) / network.scale
    assert torch.equal(network.latents(features), network.encoder(inputs))
    assert torch.equal(network.decoded(network.latents(features)), network.decoder(network.encoder(inputs)))
    assert all(tensor.dtype == torch.float32 for tensor in quantizer.state().tensors.values())


def test_bfloat16_learns_the_planted_hierarchy_too():
    features = planted()
    training = RQVAETraining(num_steps=200, batch_size=128, learning_rate=1e-2, revive_every=20, precision="bfloat16")
    quantizer = RQVAE(num_levels=2, codebook_size=8, hidden_sizes=(48,), num_latents=8, training=training)
    quantizer.fit(features, SideInformation())
    codes = quantizer.encode(features)
    assert explained_share(features, quantizer.decode(codes)) > 0.95
    assert explained_share(features, quantizer.decode(codes[:, :1])) > 0.85


def test_the_scale_of_many_rows_is_that_of_all_at_once(monkeypatch):
    features = 3 + 2 * randn(50, 4)
    found = []
    for at_once in (1 << 26, 28, 1):
        monkeypatch.setattr(rq_network, "_NUMBERS_AT_ONCE", at_once)
        network = Network(4, (), 2, (2,))
        network.set_scaling(features)
        found.append(network.scale)
    assert found[0] == (features - features.mean(0)).square().mean().sqrt()
    assert torch.allclose(torch.stack(found[1:]), found[0])


def test_no_other_code_of_a_level_is_closer_to_the_latents():
    features = randn(100, 6)
    quantizer = quick()
    quantizer.fit(features, SideInformation())
    network = quantizer._fitted()
    rest, codes = network.latents(features), quantizer.encode(features)
    for level, codebook in enumerate(network.codebooks):
        distances = torch.cdist(rest.double(), codebook.double())
        chosen = distances.gather(1, codes[:, level : level + 1]).squeeze(1)
        assert torch.all(chosen <= distances.min(1).values + 1e-5)
        rest = rest - codebook[codes[:, level]]


def test_loss_and_its_gradients_by_hand():
    network = Network(1, (), 1, (2, 2))
    with torch.no_grad():
        network.encoder[0].weight.fill_(2.0), network.encoder[0].bias.fill_(0.0)
        network.decoder[0].weight.fill_(1.0), network.decoder[0].bias.fill_(0.5)
        network.codebooks[0].copy_(torch.tensor([[1.0], [7.0]]))
        network.codebooks[1].copy_(torch.tensor([[0.5], [-4.0]]))
    # x = 1: z = 2; first code 1 leaves 1; second code 0.5; ẑ = 1.5; x̂ = 1.5 + 0.5 = 2
    loss, record = network.loss(torch.tensor([[1.0]]), 0.25, torch.tensor([0]))
    assert record.quantized.codes_BL.tolist() == [[0, 0]]
    assert [r.item() for r in record.quantized.residuals] == [2.0, 1.0]
    # (2 − 1)² + (1 + β)·(2 − 1)² + (1 + β)·(1 − 0.5)²
    assert loss.item() == pytest.approx(1 + 1.25 + 1.25 * 0.25)
    loss.backward()
    # codes: 2·(e − r), no gradient from the reconstruction
    assert network.codebooks[0].grad.tolist() == [[-2.0], [0.0]]
    assert network.codebooks[1].grad.tolist() == [[-1.0], [0.0]]
    # latents: reconstruction 2·(x̂ − x)·w_dec straight through, commitment 2β·(2 − 1) + 2β·(1 − 0.5); times x
    assert network.encoder[0].weight.grad.item() == pytest.approx(2 * (2 - 1) + 0.25 * (2 * 1 + 2 * 0.5))
    # decoder: 2·(x̂ − x)·ẑ
    assert network.decoder[0].weight.grad.item() == pytest.approx(2 * 1 * 1.5)


def test_loss_is_the_mean_over_the_batch_of_sums_over_features():
    network = Network(2, (3,), 2, (2,))
    features = randn(5, 2)
    alone = [network.loss(features[i : i + 1], 0.25, torch.tensor([i]))[0].item() for i in range(5)]
    assert network.loss(features, 0.25, torch.arange(5))[0].item() == pytest.approx(sum(alone) / 5)


def test_features_are_centred_and_scaled_and_codes_start_at_their_residuals():
    features = torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 2.0], [2.0, 8.0]])
    network = Network(2, (), 2, (8, 8))
    network.start(features, (8, 8), 0, torch.Generator().manual_seed(0))
    assert network.mean.tolist() == [2.0, 5.0]
    assert network.scale.item() == pytest.approx((20 / 8) ** 0.5)
    # four distinct latents: the first level holds them, the second only their zero rest
    latents = network.latents(features)
    assert torch.cdist(latents, network.codebooks[0]).min(1).values.max() < 1e-6
    assert network.codebooks[1].tolist() == [[0.0, 0.0]]
    expected = network.decoder(latents) * network.scale + network.mean
    assert torch.allclose(network.reconstructed(latents), expected)


def test_constant_features_do_not_divide_by_zero():
    quantizer = quick()
    quantizer.fit(torch.ones(4, 3), SideInformation())
    assert quantizer.codebook_sizes == (1, 1)
    assert quantizer.encode(torch.ones(2, 3)).tolist() == [[0, 0], [0, 0]]


def test_unused_codes_move_to_residuals_of_the_batch_without_momentum():
    network = Network(1, (), 1, (3,))
    codebook = network.codebooks[0]
    optimizer = torch.optim.AdamW([codebook], lr=0.1)
    codebook.grad = torch.ones(3, 1)
    optimizer.step()
    before, used = codebook.detach().clone(), [torch.tensor([True, False, False])]
    revive(network, optimizer, used, [torch.tensor([[5.0], [6.0]])], torch.Generator().manual_seed(0))
    assert codebook[0].item() == before[0].item()
    assert {codebook[1].item(), codebook[2].item()} <= {5.0, 6.0}
    for moment in ("exp_avg", "exp_avg_sq"):
        assert (optimizer.state[codebook][moment] == 0).squeeze(1).tolist() == [False, True, True]
    assert used[0].tolist() == [False, False, False]


def test_the_same_seed_gives_the_same_network_and_leaves_the_global_generator_alone():
    features = randn(80, 4)
    states = []
    torch.manual_seed(1)
    expected = torch.rand(1)
    for seed in (5, 5, 6):
        torch.manual_seed(1)
        quantizer = quick()
        quantizer.fit(features, SideInformation(seed=seed))
        states.append(quantizer.state().tensors)
        assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["encoder.0.weight"], states[2]["encoder.0.weight"])


def test_restore_brings_back_the_same_codes_and_decodings():
    features = randn(90, 4)
    quantizer = quick()
    assert quantizer.codebook_sizes == (8, 8)
    quantizer.fit(features, SideInformation())
    other = quick()
    other.restore(quantizer.state())
    codes = quantizer.encode(features)
    assert torch.equal(other.encode(features), codes)
    assert torch.equal(other.decode(codes), quantizer.decode(codes))
    assert other.codebook_sizes == (8, 8)
    assert not quantizer.decode(codes).requires_grad
    assert isinstance(quantizer, Quantizer)


def test_reports_progress():
    seen = []
    side = SideInformation(progress=lambda task, done, total, note="": seen.append((task, done, total, note[:5])))
    training = RQVAETraining(num_steps=60, batch_size=8, revive_every=100)
    RQVAE(num_levels=1, codebook_size=2, hidden_sizes=(), num_latents=2, training=training).fit(randn(20, 2), side)
    assert seen == [("RQ-VAE", 50, 60, "loss "), ("RQ-VAE", 60, 60, "loss ")]


def test_refuses_what_it_cannot_quantize():
    quantizer = quick()
    for call in (lambda: quantizer.encode(randn(1, 3)), quantizer.state, lambda: quantizer.decode(torch.zeros(1, 1))):
        with pytest.raises(NotFittedError, match="RQVAE has no codebooks yet: call fit or restore first"):
            call()
    with pytest.raises(DataError, match="features of item 0 hold NaN"):
        quantizer.fit(torch.full((2, 2), float("nan")), SideInformation())
    quantizer.fit(randn(10, 3), SideInformation())
    with pytest.raises(DataError, match="features have 2 columns, the codebooks were fitted on 3"):
        quantizer.encode(randn(4, 2))
    with pytest.raises(ValueError, match="codebook_size has 3 sizes for 2 levels"):
        RQVAE(num_levels=2, codebook_size=(2, 2, 2))
