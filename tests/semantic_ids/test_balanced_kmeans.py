"""Balanced residual k-means: capacities by hand and at every level, and what it is without them."""

import math

import polars as pl
import pytest
import torch

from tesserec.errors import DataError, NotFittedError
from tesserec.semantic_ids import RQFSQ, BalancedResidualKMeans, ResidualKMeans, content_codes, fit_semantic_ids
from tesserec.semantic_ids.balanced_kmeans import nearest_with_room
from tesserec.semantic_ids.residual import explained_share, nearest
from tesserec.types import Catalog, HasFittedCodes, ItemEmbeddings, Quantizer, SideInformation, Vocabulary


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fitted(features, cls=BalancedResidualKMeans, **settings):
    quantizer = cls(**settings)
    quantizer.fit(features, SideInformation())
    return quantizer


def skewed():
    """Three quarters of the items around one of eight centres."""
    return torch.cat([randn(750, 4), randn(8, 4, seed=1).repeat(32, 1)[:250] * 10 + randn(250, 4, seed=2)])


def gini(codes, size):
    counts = torch.bincount(codes, minlength=size).double().sort().values
    ranks = torch.arange(1, size + 1)
    return float((2 * ranks - size - 1).double() @ counts / (size * counts.sum()))


def test_a_full_code_keeps_the_nearest_and_the_others_ask_again():
    codebook = torch.tensor([[0.0], [10.0], [100.0]])
    points = torch.tensor([[3.0], [1.0], [2.0], [0.0], [9.0], [4.0]])
    # all but 9 ask for 0, which keeps 0 and 1; of 2, 3 and 4, 10 has room for the last beside 9; 100 gets the rest
    assert nearest_with_room(points, codebook).tolist() == [2, 0, 2, 0, 1, 1]
    assert nearest_with_room(points, codebook, 1.5).tolist() == [1, 0, 0, 0, 1, 1]
    assert nearest_with_room(points, codebook, 3.0).tolist() == nearest(points, codebook).tolist() == [0, 0, 0, 0, 1, 0]


def test_equally_near_points_are_kept_in_their_order():
    points = torch.zeros(5, 1)
    assert nearest_with_room(points, torch.tensor([[0.0], [1.0]])).tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(("num_items", "size"), [(1000, 16), (100, 7), (33, 32)])
def test_every_code_of_every_level_has_at_most_its_share_of_the_items(num_items, size):
    features = skewed()[torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:num_items]]
    quantizer = fitted(features, num_levels=3, codebook_size=size)
    assert quantizer.fit_codes_NL.shape == (num_items, 3)
    for level, codes in enumerate(quantizer.fit_codes_NL.T):
        assert torch.bincount(codes).max() <= math.ceil(num_items / quantizer.codebook_sizes[level])


def test_a_sample_for_k_means_does_not_change_the_capacity():
    features = skewed()
    quantizer = fitted(features, num_levels=2, codebook_size=8, points_per_code=20)
    for codes in quantizer.fit_codes_NL.T:
        assert torch.bincount(codes).max() <= 125


def test_codes_of_skewed_items_are_used_more_alike_than_by_plain_k_means():
    features = skewed()
    plain = fitted(features, ResidualKMeans, num_levels=1, codebook_size=16)
    balanced = fitted(features, num_levels=1, codebook_size=16)
    assert gini(plain.encode(features)[:, 0], 16) > 0.2
    assert gini(balanced.fit_codes_NL[:, 0], 16) < 0.01
    assert explained_share(features, balanced.decode(balanced.fit_codes_NL)) > 0.5


def test_room_for_everything_is_plain_residual_k_means():
    features = skewed()
    plain = fitted(features, ResidualKMeans, num_levels=3, codebook_size=8)
    roomy = fitted(features, num_levels=3, codebook_size=8, capacity_ratio=8.0)
    for name, tensor in plain.state().tensors.items():
        assert torch.equal(roomy.state().tensors[name], tensor)
    assert torch.equal(roomy.fit_codes_NL, plain.encode(features))
    assert roomy.moved_shares == (0.0, 0.0, 0.0)


def test_items_that_are_balanced_by_themselves_are_not_moved():
    features = (randn(6, 3)[:, None] * 10 + 0.01 * randn(6, 20, 3, seed=1)).reshape(-1, 3)
    quantizer = fitted(features, num_levels=1, codebook_size=6)
    assert quantizer.moved_shares == (0.0,)
    assert torch.equal(quantizer.fit_codes_NL, quantizer.encode(features))


def test_says_how_many_items_are_not_at_their_nearest_code():
    features = torch.tensor([[0.0], [0.1], [0.2], [0.3], [9.0], [9.1]])
    seen = []
    quantizer = BalancedResidualKMeans(num_levels=1, codebook_size=2)
    quantizer.fit(features, SideInformation(progress=lambda *report: seen.append(report)))
    assert sorted(torch.bincount(quantizer.fit_codes_NL[:, 0]).tolist()) == [3, 3]
    differs = (quantizer.fit_codes_NL != quantizer.encode(features)).float().mean()
    assert quantizer.moved_shares == (pytest.approx(float(differs)),) == (pytest.approx(1 / 6),)
    assert seen == [("balanced residual k-means", 1, 1, "16.7% of the items are not at their nearest code")]


def test_few_distinct_items_are_spread_over_their_codes():
    features = torch.tensor([[0.0, 0.0]] * 7 + [[1.0, 0.0], [0.0, 3.0]])
    quantizer = fitted(features, num_levels=1, codebook_size=8)
    assert quantizer.codebook_sizes == (3,)
    assert torch.bincount(quantizer.fit_codes_NL[:, 0]).tolist() == [3, 3, 3]
    assert len(torch.unique(quantizer.encode(features)[:7])) == 1


def test_a_table_holds_the_balanced_codes_of_the_fitted_items_and_the_nearest_of_others():
    features = skewed()
    missing = torch.zeros(1000, dtype=torch.bool)
    missing[5] = True
    features[5] = 0.0
    catalog = Catalog(Vocabulary.of(list(range(1000))), pl.DataFrame({"title": ["t"] * 1000}))
    quantizer = BalancedResidualKMeans(num_levels=2, codebook_size=8)
    table = fit_semantic_ids(quantizer, catalog, ItemEmbeddings(features, "mine", missing), SideInformation())
    codes = content_codes(table)
    assert torch.equal(codes[~missing], quantizer.fit_codes_NL)
    assert torch.equal(codes[5], quantizer.encode(features[5:6])[0])


def test_a_quantizer_around_it_keeps_its_balance():
    features = skewed()[:360]
    missing = torch.arange(360) == 5
    catalog = Catalog(Vocabulary.of(list(range(360))), pl.DataFrame({"title": ["t"] * 360}))
    coarse = BalancedResidualKMeans(num_levels=2, codebook_size=8)
    quantizer = RQFSQ(coarse=coarse, grid_size=4)
    table = fit_semantic_ids(quantizer, catalog, ItemEmbeddings(features, "mine", missing), SideInformation())
    codes, plain = content_codes(table), quantizer.encode(features)
    assert torch.bincount(plain[:, 0]).max() > 45 >= torch.bincount(codes[~missing, 0]).max()
    assert torch.equal(codes[~missing, :2], coarse.fit_codes_NL)
    assert torch.equal(codes[:, 2:], plain[:, 2:])
    assert torch.equal(codes[5], plain[5])
    error = (features - quantizer.decode(codes))[~missing]  # the map is the best for the codes of the table
    assert error.sum(0).abs().max() < 1e-2
    assert (coarse.decode(codes[~missing, :2]).T @ error).abs().max() < 0.1
    with pytest.raises(DataError, match=r"codes have shape \(360, 2\), those of the fit \(359, 2\): give the codes"):
        quantizer.fitted_codes(plain)


def test_restore_brings_back_what_later_items_need():
    features = skewed()
    quantizer = fitted(features, codebook_size=8)
    other = fitted(features[:100], codebook_size=8)
    other.restore(quantizer.state())
    assert torch.equal(other.encode(features), quantizer.encode(features))
    assert isinstance(quantizer, Quantizer)
    assert isinstance(quantizer, HasFittedCodes)
    assert not isinstance(ResidualKMeans(), HasFittedCodes)
    assert other.moved_shares == ()
    for unfitted in (other, BalancedResidualKMeans()):
        with pytest.raises(NotFittedError, match="balanced codes are known after fit only: keep them in a table"):
            _ = unfitted.fit_codes_NL


def test_the_same_seed_gives_the_same_codes():
    features = skewed()
    first, second = (fitted(features, codebook_size=8) for _ in range(2))
    assert torch.equal(first.fit_codes_NL, second.fit_codes_NL)
    assert all(torch.equal(first.state().tensors[n], t) for n, t in second.state().tensors.items())


def test_refuses_what_it_cannot_quantize():
    quantizer = BalancedResidualKMeans(codebook_size=2)
    with pytest.raises(NotFittedError, match="BalancedResidualKMeans has no codebooks yet"):
        quantizer.encode(randn(1, 3))
    with pytest.raises(DataError, match="features of item 1 hold NaN"):
        quantizer.fit(torch.tensor([[0.0], [float("nan")]]), SideInformation())
    quantizer.fit(randn(10, 3), SideInformation())
    with pytest.raises(DataError, match="features have 2 columns, the codebooks were fitted on 3"):
        quantizer.encode(randn(4, 2))
    with pytest.raises(ValueError, match="capacity_ratio"):
        BalancedResidualKMeans(capacity_ratio=0.9)
