"""Residual k-means: brute force, a planted hierarchy, small catalogs."""

import pytest
import torch
from sklearn.cluster import MiniBatchKMeans

from tesserec.errors import DataError, NotFittedError, RecipeError
from tesserec.semantic_ids import ResidualKMeans
from tesserec.semantic_ids.residual import explained_share
from tesserec.types import Quantizer, SideInformation


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fitted(features, **settings):
    quantizer = ResidualKMeans(**settings)
    quantizer.fit(features, SideInformation())
    return quantizer


def test_no_other_code_of_a_level_reconstructs_better():
    features = randn(200, 5)
    quantizer = fitted(features, num_levels=3, codebook_size=(4, 6, 5))
    codes = quantizer.encode(features)
    for level in range(3):
        prefix = codes[:, : level + 1]
        errors = []
        for code in range(quantizer.codebook_sizes[level]):
            other = prefix.clone()
            other[:, level] = code
            errors.append((features - quantizer.decode(other)).square().sum(1))
        chosen = (features - quantizer.decode(prefix)).square().sum(1)
        assert torch.all(chosen <= torch.stack(errors).min(0).values + 1e-5)


def test_recovers_a_planted_hierarchy_in_which_deeper_levels_repeat():
    coarse, fine = randn(6, 8) * 10, randn(4, 8, seed=1)
    features = (coarse[:, None, None] + fine[None, :, None] + 0.01 * randn(6, 4, 10, 8, seed=2)).reshape(-1, 8)
    quantizer = fitted(features, num_levels=2, codebook_size=(6, 4))
    codes = quantizer.encode(features).reshape(6, 4, 10, 2)
    assert torch.all(codes == codes[:, :1, :1] * torch.tensor([1, 0]) + codes[:1, :, :1] * torch.tensor([0, 1]))
    assert len(torch.unique(codes.reshape(-1, 2), dim=0)) == 24
    assert explained_share(features, quantizer.decode(codes.reshape(-1, 2))) > 0.999


def test_deeper_levels_and_larger_codebooks_explain_more():
    features = randn(400, 6)
    shares = []
    for levels, size in [(1, 8), (2, 8), (2, 16)]:
        quantizer = fitted(features, num_levels=levels, codebook_size=size)
        shares.append(explained_share(features, quantizer.decode(quantizer.encode(features))))
    assert shares == sorted(shares)
    assert shares[0] > 0.3


def test_the_same_seed_gives_the_same_codebooks_and_another_other_ones():
    features = randn(300, 4)
    states = []
    for seed in (5, 5, 6):
        quantizer = ResidualKMeans(codebook_size=16)
        quantizer.fit(features, SideInformation(seed=seed))
        states.append(quantizer.state().tensors)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["codebook_0"], states[2]["codebook_0"])


def test_fewer_distinct_items_than_codes_shrink_the_level():
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    quantizer = ResidualKMeans(num_levels=2, codebook_size=8)
    assert quantizer.codebook_sizes == (8, 8)
    quantizer.fit(features, SideInformation())
    assert quantizer.codebook_sizes == (3, 1)  # three distinct items, which leave nothing over
    codes = quantizer.encode(features)
    assert torch.equal(quantizer.decode(codes), features)
    assert codes[1].tolist() == codes[2].tolist()


def test_equal_items_share_every_code_and_constant_columns_and_zero_vectors_are_points_like_others():
    features = randn(60, 3)
    features[:, 1] = 7.0
    features[10:13] = 0.0
    features[20] = features[21]
    quantizer = fitted(features, num_levels=2, codebook_size=8)
    codes = quantizer.encode(features)
    assert torch.equal(codes[20], codes[21])
    assert torch.all(codes[10:13] == codes[10])
    constant = fitted(torch.full((9, 2), 3.0), num_levels=2, codebook_size=8)
    assert constant.codebook_sizes == (1, 1)
    assert torch.equal(constant.decode(constant.encode(torch.zeros(1, 2))), torch.full((1, 2), 3.0))


def test_a_sample_is_coded_by_the_levels_before():
    features = randn(3000, 4)
    quantizer = fitted(features, num_levels=3, codebook_size=8, points_per_code=20)
    codes = quantizer.encode(features)
    shares = [explained_share(features, quantizer.decode(codes[:, :levels])) for levels in (1, 2, 3)]
    assert shares[0] > 0.4
    assert shares[1] > 0.7
    assert shares[2] > 0.85


def test_errors_are_no_larger_than_those_of_mini_batch_k_means():
    features = randn(3000, 12) * torch.arange(1, 13) / 12  # no clusters: which start was luckier hardly matters
    quantizer = fitted(features, num_levels=3, codebook_size=24)
    codes = quantizer.encode(features)
    rest = features.numpy()
    for level in range(3):
        other = MiniBatchKMeans(24, random_state=0).fit(rest)
        rest = rest - other.cluster_centers_[other.predict(rest)]
        error = (features - quantizer.decode(codes[:, : level + 1])).square().sum()
        assert float(error) <= 1.005 * float((rest**2).sum())


def test_batches_give_the_codes_of_the_whole_and_half_precision_nearly():
    features = randn(500, 8)
    quantizer = fitted(features, num_levels=2, codebook_size=16)
    codes = quantizer.encode(features)
    assert torch.equal(torch.cat([quantizer.encode(batch) for batch in torch.split(features, 64)]), codes)
    assert (quantizer.encode(features.bfloat16()) == codes).float().mean() > 0.95


def test_restore_brings_back_the_same_codes():
    features = randn(100, 4)
    quantizer = fitted(features, codebook_size=8)
    other = ResidualKMeans(codebook_size=8)
    other.restore(quantizer.state())
    assert list(quantizer.state().tensors) == ["codebook_0", "codebook_1", "codebook_2"]
    assert torch.equal(other.encode(features), quantizer.encode(features))
    assert isinstance(quantizer, Quantizer)


def test_reports_progress_level_by_level():
    seen = []
    features = randn(50, 2)
    side = SideInformation(progress=lambda task, done, total, note="": seen.append((task, done, total)))
    ResidualKMeans(num_levels=2, codebook_size=4).fit(features, side)
    assert seen == [("residual k-means", 1, 2), ("residual k-means", 2, 2)]


def test_passes_its_settings_on():
    features = randn(400, 3)
    plain = fitted(features, num_levels=1, codebook_size=4).state().tensors["codebook_0"]
    brief = fitted(features, num_levels=1, codebook_size=4, num_iterations=1).state().tensors["codebook_0"]
    sampled = fitted(features, num_levels=1, codebook_size=4, points_per_code=1).state().tensors["codebook_0"]
    assert not torch.equal(plain, brief)
    assert {tuple(row) for row in sampled.tolist()} <= {tuple(row) for row in features.tolist()}


def test_refuses_what_it_cannot_quantize():
    quantizer = ResidualKMeans(codebook_size=2)
    for call in (lambda: quantizer.encode(randn(1, 3)), quantizer.state, lambda: quantizer.decode(torch.zeros(1, 1))):
        with pytest.raises(NotFittedError, match="ResidualKMeans has no codebooks yet: call fit or restore first"):
            call()
    with pytest.raises(DataError, match="features of item 0 hold NaN"):
        quantizer.fit(torch.full((2, 2), float("nan")), SideInformation())
    quantizer.fit(randn(10, 3), SideInformation())
    with pytest.raises(DataError, match="features have 2 columns, the codebooks were fitted on 3"):
        quantizer.encode(randn(4, 2))
    with pytest.raises(DataError, match="features of item 1 hold NaN"):
        quantizer.encode(torch.tensor([[0.0] * 3, [float("nan")] * 3]))
    with pytest.raises((ValueError, RecipeError), match="codebook_size has 1 sizes for 3 levels"):
        ResidualKMeans(codebook_size=(2,))
