"""Hashed codes: the hash by hand, even use, nothing in common of like vectors, bad input."""

import hashlib

import pytest
import torch

from tesserec.errors import DataError, NotFittedError
from tesserec.semantic_ids import HashedCodes, diagnose
from tesserec.semantic_ids.table import build_semantic_ids
from tesserec.types import ItemEmbeddings, Quantizer, SideInformation


def fitted(features, seed=0, **settings):
    quantizer = HashedCodes(**settings)
    quantizer.fit(features, SideInformation(seed=seed))
    return quantizer


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_codes_are_remainders_of_the_hash():
    features = torch.tensor([[1.5, -2.0], [1.5, -2.0], [0.0, 1.0], [-0.0, 1.0]])
    codes = fitted(features, seed=3, num_levels=2, codebook_size=(10, 7)).encode(features)
    digest = hashlib.shake_256((3).to_bytes(8, "little") + features[0].numpy().tobytes()).digest(16)
    first, second = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
    assert codes[0].tolist() == codes[1].tolist() == [first % 10, second % 7]
    assert codes[2].tolist() == codes[3].tolist()


def test_codes_are_even_and_like_vectors_share_none():
    centres = randn(8, 16)
    features = centres.repeat_interleave(100, 0) + 1e-3 * randn(800, 16)
    codes = fitted(features, num_levels=2, codebook_size=16).encode(features)
    table = build_semantic_ids(codes, (16, 16), "x")
    report = diagnose(table, embeddings=ItemEmbeddings(features, "x"))
    assert all(level.gini < 0.2 for level in report.levels)
    assert report.coherence[0].cosine_within == pytest.approx(report.coherence[0].cosine_random, abs=0.02)


def test_another_seed_gives_other_codes_and_a_state_the_same_ones():
    features = randn(50, 4)
    quantizer = fitted(features, seed=1)
    assert isinstance(quantizer, Quantizer)
    assert quantizer.codebook_sizes == (256, 256, 256)
    assert not torch.equal(quantizer.encode(features), fitted(features, seed=2).encode(features))
    again = HashedCodes()
    again.restore(quantizer.state())
    assert torch.equal(again.encode(features), quantizer.encode(features))
    decoded = again.decode(quantizer.encode(features)[:, :1])
    assert torch.allclose(decoded, features.mean(0).expand(50, 4))


def test_bad_input_is_named():
    with pytest.raises(NotFittedError, match="call fit or restore first"):
        HashedCodes().encode(randn(2, 2))
    quantizer = fitted(randn(5, 2))
    with pytest.raises(DataError, match=r"codes have shape \(5, 4\), expected \[items, levels\] with 1 to 3"):
        quantizer.decode(torch.zeros(5, 4, dtype=torch.int64))
    with pytest.raises(DataError, match="fitted on 2"):
        quantizer.encode(randn(5, 3))
