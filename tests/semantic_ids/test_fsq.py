"""FSQ and RQ-FSQ: rounding by brute force, independent factors, two branches that complete each other."""

import pytest
import torch
from tests.semantic_ids import two_factors
from tests.semantic_ids.two_factors import randn

from tesserec.config import build_component, described, fresh
from tesserec.errors import DataError, NotFittedError
from tesserec.semantic_ids import FSQ, RQFSQ, RQVAE, CoOccurrence, ResidualKMeans, RQVAETraining
from tesserec.semantic_ids.fsq import grid_values, rounded
from tesserec.semantic_ids.residual import explained_share
from tesserec.types import Quantizer, SideInformation

QUICK = RQVAETraining(num_steps=40, batch_size=64)
LONGER = RQVAETraining(num_steps=300, batch_size=128, learning_rate=1e-2, revive_every=20)


def factors(num_factors=8, num_items=512):
    """Independent factors of three values each, turned."""
    values = torch.randint(0, 3, (num_items, num_factors), generator=torch.Generator().manual_seed(0)) - 1.0
    turn, _ = torch.linalg.qr(randn(num_factors, num_factors, seed=1))
    return values @ turn


def test_no_other_value_of_the_grid_is_nearer():
    features = randn(80, 6)
    quantizer = FSQ(grid_sizes=(3, 4, 16), hidden_sizes=(8,), training=QUICK)
    quantizer.fit(features, SideInformation())
    bounded, codes = quantizer._fitted().latents(features).tanh(), quantizer.encode(features)
    for level, size in enumerate((3, 4, 16)):
        grid = torch.linspace(-1, 1, size)
        distances = (bounded[:, level, None] - grid).abs()
        chosen = distances.gather(1, codes[:, level : level + 1]).squeeze(1)
        assert torch.all(chosen <= distances.min(1).values + 1e-6)
        assert torch.allclose(quantizer.values(codes)[:, level], grid[codes[:, level]], atol=1e-6)
    expected = quantizer._fitted().reconstructed(quantizer.values(codes))
    assert torch.equal(quantizer.decode(codes), expected)
    assert quantizer.codebook_sizes == (3, 4, 16)


def test_rounding_by_hand():
    bounded = torch.tensor([[-1.0, 1.0], [0.1, -0.4], [0.6, 0.2]])
    assert rounded(bounded, (3, 4)).tolist() == [[0, 3], [1, 1], [2, 2]]
    assert grid_values(torch.tensor([[0, 3], [1, 1]]), (3, 4)).tolist()[1] == pytest.approx([0, -1 / 3])


def test_counts_out_independent_factors_that_residual_codes_cannot():
    features = factors()
    plain = RQVAE(num_levels=2, codebook_size=16, hidden_sizes=(), num_latents=8, training=LONGER)
    finite = FSQ(grid_sizes=(3,) * 8, hidden_sizes=(), training=LONGER)  # fewer numbers than two codebooks of 16
    shares = []
    for quantizer in (plain, finite):
        quantizer.fit(features, SideInformation())
        shares.append(explained_share(features, quantizer.decode(quantizer.encode(features))))
    assert shares[0] < 0.75
    assert shares[1] > 0.85


def test_levels_that_are_not_given_are_at_the_middle():
    quantizer = FSQ(grid_sizes=(3, 5), hidden_sizes=(), training=QUICK)
    quantizer.fit(randn(30, 3), SideInformation())
    assert quantizer.values(torch.tensor([[2]])).tolist() == [[1.0, 0.0]]
    assert torch.equal(quantizer.decode(torch.tensor([[2]])), quantizer.decode(torch.tensor([[2, 2]])))


def test_joined_codes_say_the_same_in_fewer_levels():
    features, alone = randn(80, 6), FSQ(grid_sizes=(3, 4, 5, 3), hidden_sizes=(8,), training=QUICK)
    joined = FSQ(grid_sizes=(3, 4, 5, 3), joined=2, hidden_sizes=(8,), training=QUICK)
    for quantizer in (alone, joined):
        quantizer.fit(features, SideInformation())
    assert joined.codebook_sizes == (12, 15)
    each, pairs = alone.encode(features), joined.encode(features)
    assert torch.equal(pairs, torch.stack([each[:, 0] * 4 + each[:, 1], each[:, 2] * 3 + each[:, 3]], 1))
    for levels in (1, 2):
        assert torch.equal(joined.values(pairs[:, :levels]), alone.values(each[:, : 2 * levels]))
    with pytest.raises(DataError, match="with 1 to 2 levels"):
        joined.values(each)
    with pytest.raises(ValueError, match="3 grids cannot be joined 2 to a level: give a multiple"):
        FSQ(grid_sizes=(3, 4, 5), joined=2)


def test_losses_of_weight_zero_change_no_bit_and_others_are_heard():
    features, states = two_factors.features(), []
    for losses in ((), (CoOccurrence(weight=0.0),), (CoOccurrence(weight=1.0),)):
        quantizer = FSQ(grid_sizes=(4, 4), hidden_sizes=(), training=QUICK, losses=losses)
        quantizer.fit(features, two_factors.side())
        states.append(quantizer.state().tensors)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["encoder.0.weight"], states[2]["encoder.0.weight"])


def both(codebook_size=4):
    return RQFSQ(coarse=ResidualKMeans(num_levels=1, codebook_size=codebook_size), grid_size=4)


def test_two_branches_tell_what_neither_does():
    detail = torch.cat([factors(4, 640), torch.zeros(640, 2)], 1)
    centres = torch.cat([torch.zeros(32, 4), 20 * randn(32, 2)], 1)[torch.arange(640) % 32]
    features = centres + detail
    quantizer = both(codebook_size=32)
    quantizer.fit(features, SideInformation())
    codes = quantizer.encode(features)
    coarse = quantizer.decode(codes[:, :1])
    assert explained_share(detail, coarse - centres) < 0.1  # no code is left for the detail
    said = quantizer._said(codes)[:, 6:]
    fine = said @ torch.linalg.lstsq(said, features, driver="gelsd").solution
    assert explained_share(centres, fine - detail) < 0.95  # two features of four values cannot name 32 centres
    decoded = quantizer.decode(codes)
    assert explained_share(detail, decoded - centres) > 0.7
    assert explained_share(centres, decoded - detail) > 0.995


def test_branches_are_parallel_and_the_map_is_least_squares():
    features = randn(120, 6)
    quantizer = both()
    assert quantizer.codebook_sizes == (4,)
    quantizer.fit(features, SideInformation(seed=1))
    alone = ResidualKMeans(num_levels=1, codebook_size=4)
    alone.fit(features, SideInformation(seed=1))
    codes = quantizer.encode(features)
    assert torch.equal(codes[:, :1], alone.encode(features))
    assert torch.equal(quantizer.decode(codes[:, :1]), alone.decode(codes[:, :1]))
    grid = torch.linspace(-1, 1, 4)
    standard = ((features - features.mean(0)) / features.std(0, correction=0)).tanh()
    assert torch.equal(codes[:, 1:], (standard[:, :, None] - grid).abs().argmin(2))
    error = features - quantizer.decode(codes)  # at the least squares, nothing that was said explains the error
    said = torch.cat([alone.decode(codes[:, :1]), grid[codes[:, 1:]], torch.ones(120, 1)], 1)
    assert (said.T @ error).abs().max() < 1e-2
    assert quantizer.codebook_sizes == (4,) * 7


def test_a_constant_column_is_no_trouble():
    features = torch.cat([randn(30, 2), torch.ones(30, 1)], 1)
    quantizer = both()
    quantizer.fit(features, SideInformation())
    assert torch.allclose(quantizer.decode(quantizer.encode(features))[:, 2], torch.ones(30), atol=1e-3)


@pytest.mark.parametrize("make", [lambda: FSQ(grid_sizes=(3, 4), hidden_sizes=(8,), training=QUICK), both])
def test_restores_and_is_the_same_for_the_same_seed(make):
    features = randn(60, 5)
    quantizer, again, other = make(), make(), make()
    quantizer.fit(features, SideInformation(seed=4))
    again.fit(features, SideInformation(seed=4))
    assert all(torch.equal(again.state().tensors[name], t) for name, t in quantizer.state().tensors.items())
    other.restore(quantizer.state())
    codes = quantizer.encode(features)
    assert torch.equal(other.encode(features), codes)
    assert torch.equal(other.decode(codes), quantizer.decode(codes))
    assert isinstance(other, Quantizer)
    assert build_component(described(other), "quantizer") == fresh(other)


def test_refuses_what_it_cannot_quantize():
    quantizer = FSQ(grid_sizes=(3, 3), hidden_sizes=(), training=QUICK)
    for call in (lambda: quantizer.encode(randn(1, 3)), quantizer.state):
        with pytest.raises(NotFittedError, match="FSQ has no networks yet: call fit or restore first"):
            call()
    for call in (lambda: both().decode(torch.zeros(1, 1)), both().state):
        with pytest.raises(NotFittedError, match="RQFSQ has no codebooks yet: call fit or restore first"):
            call()
    with pytest.raises(DataError, match="features of item 0 hold NaN"):
        quantizer.fit(torch.full((2, 2), float("nan")), SideInformation())
    quantizer.fit(randn(10, 3), SideInformation())
    with pytest.raises(DataError, match="features have 2 columns, the codebooks were fitted on 3"):
        quantizer.encode(randn(4, 2))
    with pytest.raises(DataError, match=r"codes have shape \(1, 3\), expected \[items, levels\] with 1 to 2 levels"):
        quantizer.decode(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="greater than or equal to 3"):
        FSQ(grid_sizes=(2,))
    branches = both()
    branches.fit(randn(10, 3), SideInformation())
    with pytest.raises(DataError, match=r"codes have shape \(1, 3\), expected .* with 1 to 1 or with 4 levels"):
        branches.decode(torch.zeros(1, 3))
    with pytest.raises(DataError, match="features have 2 columns, the codebooks were fitted on 3"):
        branches.encode(randn(4, 2))
