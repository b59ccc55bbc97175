"""Product quantization: brute force over a slice, faiss beside, a planted rotation, bad input."""

import faiss
import pytest
import torch

from tesserec.errors import DataError, NotFittedError
from tesserec.semantic_ids import ProductQuantization
from tesserec.semantic_ids.residual import explained_share
from tesserec.types import Quantizer, SideInformation


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fitted(features, **settings):
    quantizer = ProductQuantization(**settings)
    quantizer.fit(features, SideInformation())
    return quantizer


def error(quantizer, features):
    return float((features - quantizer.decode(quantizer.encode(features))).square().sum())


def correlated():
    """Eight features of which each has its twin in the other half, plus a little noise."""
    half = randn(1500, 4)
    return torch.cat([half, half], 1) + 0.1 * randn(1500, 8, seed=1)


@pytest.mark.parametrize("num_rotations", [0, 3])
def test_no_other_code_of_a_slice_reconstructs_better(num_rotations):
    features = randn(200, 7)
    quantizer = fitted(features, num_levels=3, codebook_size=(4, 6, 5), num_rotations=num_rotations)
    codes = quantizer.encode(features)
    chosen = (features - quantizer.decode(codes)).square().sum(1)
    for level, size in enumerate((4, 6, 5)):
        errors = []
        for code in range(size):
            other = codes.clone()
            other[:, level] = code
            errors.append((features - quantizer.decode(other)).square().sum(1))
        assert torch.all(chosen <= torch.stack(errors).min(0).values + 1e-5)


def test_error_is_that_of_faiss():
    features = randn(2000, 16)
    other = faiss.ProductQuantizer(16, 4, 4)
    other.train(features.numpy())
    theirs = (features.numpy() - other.decode(other.compute_codes(features.numpy()))) ** 2
    assert error(fitted(features, num_levels=4, codebook_size=16), features) == pytest.approx(theirs.sum(), rel=0.02)


def test_independent_slices_come_back_exactly():
    left, right = randn(5, 3) * 10, randn(7, 3, seed=1) * 10
    features = torch.cat([left[:, None].expand(5, 7, 3), right[None].expand(5, 7, 3)], 2).reshape(35, 6)
    quantizer = fitted(features, num_levels=2, codebook_size=8)
    assert quantizer.codebook_sizes == (5, 7)
    assert torch.allclose(quantizer.decode(quantizer.encode(features)), features, atol=1e-5)


def test_a_learned_rotation_reconstructs_correlated_features_better():
    features = correlated()
    errors = [error(fitted(features, num_levels=2, codebook_size=16, num_rotations=r), features) for r in (0, 1, 20)]
    assert errors[1] <= errors[0]
    assert errors[2] < 0.9 * errors[0]


def test_a_planted_rotation_is_found():
    slices = [randn(4, 3, seed=seed)[torch.arange(800) // 4**seed % 4] * 3 for seed in range(3)]
    rotation = torch.linalg.qr(randn(9, 9, seed=5)).Q
    features = torch.cat(slices, 1) @ rotation + 0.01 * randn(800, 9, seed=6)
    plain = fitted(features, num_levels=3, codebook_size=4)
    rotated = fitted(features, num_levels=3, codebook_size=4, num_rotations=50)
    assert explained_share(features, plain.decode(plain.encode(features))) < 0.9
    assert explained_share(features, rotated.decode(rotated.encode(features))) > 0.95
    turned = rotated.state().tensors["rotation"]
    assert torch.allclose(turned @ turned.T, torch.eye(9), atol=1e-5)


def test_a_prefix_reconstructs_the_mean_in_the_other_slices():
    features = randn(300, 6) + torch.arange(6.0)
    quantizer = fitted(features, num_levels=3, codebook_size=8)
    codes = quantizer.encode(features)
    prefix = quantizer.decode(codes[:, :1])
    assert torch.allclose(prefix[:, :2], quantizer.decode(codes)[:, :2])
    assert torch.allclose(prefix[:, 2:], features.mean(0)[2:].expand(300, 4), atol=1e-5)


def test_batches_give_the_codes_of_the_whole():
    features = randn(100, 6)
    quantizer = fitted(features, num_levels=2, codebook_size=8, num_rotations=2)
    batches = [quantizer.encode(batch) for batch in torch.split(features, 13)]
    assert torch.equal(torch.cat(batches), quantizer.encode(features))


@pytest.mark.parametrize("num_rotations", [0, 2])
def test_restore_brings_back_the_same_codes_and_vectors(num_rotations):
    features = randn(100, 4)
    settings = {"num_levels": 2, "codebook_size": 8, "num_rotations": num_rotations}
    quantizer = fitted(features, **settings)
    other = ProductQuantization(**settings)
    other.restore(quantizer.state())
    assert list(quantizer.state().tensors) == ["codebook_0", "codebook_1", "mean", "rotation"]
    assert torch.equal(other.encode(features), quantizer.encode(features))
    assert torch.equal(other.decode(other.encode(features)), quantizer.decode(quantizer.encode(features)))
    assert isinstance(quantizer, Quantizer)


def test_the_same_seed_gives_the_same_state_and_another_another():
    features = randn(300, 4)
    states = []
    for seed in (5, 5, 6):
        quantizer = ProductQuantization(num_levels=2, codebook_size=16, num_rotations=2)
        quantizer.fit(features, SideInformation(seed=seed))
        states.append(quantizer.state().tensors)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["codebook_0"], states[2]["codebook_0"])


def test_constant_columns_zero_vectors_and_duplicates_have_codes_like_others():
    features = randn(50, 4)
    features[:, 2:] = 5.0
    features[3] = features[4]
    features[7] = 0.0
    features[8] = -0.0
    quantizer = fitted(features, num_levels=2, codebook_size=8, num_rotations=1)
    constant = fitted(features[9:], num_levels=2, codebook_size=8)
    assert constant.codebook_sizes == (8, 1)
    codes = quantizer.encode(features)
    assert torch.equal(codes[3], codes[4])
    assert torch.equal(codes[7], codes[8])


def test_fewer_items_than_codes_shrink_the_levels():
    quantizer = fitted(randn(3, 4), num_levels=2, codebook_size=8, num_rotations=4)
    assert quantizer.codebook_sizes == (3, 3)
    assert torch.allclose(quantizer.decode(quantizer.encode(randn(3, 4))), randn(3, 4), atol=1e-5)


def test_passes_its_settings_on_and_reports_progress():
    features = randn(400, 4)
    base = {"num_levels": 2, "codebook_size": 4}
    plain = fitted(features, **base).state().tensors["codebook_0"]
    assert not torch.equal(plain, fitted(features, **base, num_iterations=1).state().tensors["codebook_0"])
    assert not torch.equal(plain, fitted(features, **base, points_per_code=5).state().tensors["codebook_0"])
    seen = []
    side = SideInformation(progress=lambda task, done, total, note="": seen.append((task, done, total)))
    ProductQuantization(**base, num_rotations=2).fit(features, side)
    assert seen == [
        ("product quantization", 1, 2),
        ("product quantization", 2, 2),
        ("rotations", 1, 2),
        ("rotations", 2, 2),
    ]


def test_refuses_what_it_cannot_quantize():
    quantizer = ProductQuantization(num_levels=2, codebook_size=2)
    for call in (lambda: quantizer.encode(randn(1, 3)), quantizer.state, lambda: quantizer.decode(torch.zeros(1, 1))):
        with pytest.raises(NotFittedError, match="ProductQuantization has no codebooks yet: call fit or restore first"):
            call()
    with pytest.raises(DataError, match="features have 1 columns for 2 levels: a level needs one at least"):
        quantizer.fit(randn(5, 1), SideInformation())
    with pytest.raises(DataError, match="features of item 0 hold NaN"):
        quantizer.fit(torch.full((2, 2), float("nan")), SideInformation())
    quantizer.fit(randn(10, 3), SideInformation())
    with pytest.raises(DataError, match="features have 2 columns, the codebooks were fitted on 3"):
        quantizer.encode(randn(4, 2))
    for shape in ((2, 3), (2, 0), (2,)):
        with pytest.raises(DataError, match=r"codes have shape \(2.*expected \[items, levels\] with 1 to 2 levels"):
            quantizer.decode(torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(ValueError, match="codebook_size has 1 sizes for 2 levels"):
        ProductQuantization(num_levels=2, codebook_size=(2,))
