"""Churn, popularity shares and overlap: by hand, by brute force, and at their extremes."""

import math

import pytest
import torch

from tesserec.errors import DataError
from tesserec.semantic_ids import build_semantic_ids
from tesserec.semantic_ids.diagnostics import churn, code_vectors, nearest_distance, overlap, popularity_shares
from tesserec.types import SemanticIds

OLD = SemanticIds(torch.tensor([[0, 1], [0, 2], [1, 0], [1, 1]]), (2, 3), "old")


def test_a_table_has_no_churn_against_itself():
    found = churn(OLD, OLD)
    assert (found.num_items, found.codes, found.prefixes, found.whole) == (4, (0, 0), (0, 0), 0)


def test_churn_by_level_and_depth_by_hand():
    # item 1 changes its first code only, item 3 its second, item 4 is later
    new = SemanticIds(torch.tensor([[0, 1], [1, 2], [1, 0], [1, 2], [0, 0]]), (2, 3), "new")
    found = churn(OLD, new)
    assert found.num_items == 4
    assert found.codes == (0.25, 0.25)
    assert found.prefixes == (0.25, 0.5)
    assert found.whole == 0.5
    moved = churn(OLD, new, torch.tensor([-1, -1, 2, -1, 0]))
    assert (moved.num_items, moved.codes) == (2, (0, 0.5))


def test_the_digit_counts_for_the_whole_tuple_only():
    codes_NL = torch.tensor([[0, 1], [0, 1], [1, 0]])
    first = build_semantic_ids(codes_NL, (2, 3), "f", popularity_N=torch.tensor([2, 1, 0]))
    second = build_semantic_ids(codes_NL, (2, 3), "f", popularity_N=torch.tensor([1, 2, 0]))
    found = churn(first, second)
    assert found.prefixes == (0, 0)
    assert found.whole == pytest.approx(2 / 3)


def test_churn_refuses_tables_that_cannot_be_compared():
    with pytest.raises(DataError, match="2 and 1 levels"):
        churn(OLD, SemanticIds(OLD.codes_NL[:, :1], (2,), "x"))
    with pytest.raises(DataError, match="no item in common"):
        churn(OLD, OLD, torch.full((4,), -1))
    with pytest.raises(DataError, match="reaches to 4 and has 0 repeats: expected distinct indices below 4"):
        churn(OLD, OLD, torch.tensor([0, 1, 2, 4]))
    with pytest.raises(DataError, match="reaches to 2 and has 1 repeats"):
        churn(OLD, OLD, torch.tensor([0, 1, 2, 2]))
    with pytest.raises(DataError, match=r"old_item_N has shape \(1,\)"):
        churn(OLD, OLD, torch.tensor([0]))


def test_popularity_shares_by_hand():
    first, second = popularity_shares(OLD, torch.tensor([6, 1, 2, 1]))
    assert first.tolist() == pytest.approx([0.7, 0.3])
    assert second.tolist() == pytest.approx([0.2, 0.7, 0.1])


@pytest.mark.parametrize(
    ("popularity", "message"),
    [
        ([1.0], "shape"),
        ([1.0, float("nan"), 0.0, 0.0], "NaN, infinity or counts below 0"),
        ([1.0, -1.0, 0.0, 0.0], "counts below 0"),
        ([0.0] * 4, "0 for all items"),
    ],
)
def test_bad_popularity(popularity, message):
    with pytest.raises(DataError, match=message):
        popularity_shares(OLD, torch.tensor(popularity))


def test_capacity_at_its_extremes():
    apart = overlap(torch.ones(8), 100 * torch.eye(8), noise=1.0)
    assert apart.effective_capacity == pytest.approx(8)
    assert apart.used_capacity == pytest.approx(8)
    one = overlap(torch.tensor([5.0, 0.0, 0.0]), torch.eye(3))
    assert (one.effective_capacity, one.used_capacity, one.noise) == pytest.approx((1, 1, 0.1))
    blurred = overlap(torch.ones(8), torch.eye(8), noise=1e6)
    assert blurred.effective_capacity == pytest.approx(1)
    assert blurred.used_capacity == pytest.approx(8)


def test_overlap_is_the_double_sum():
    torch.manual_seed(0)
    codebook_CD, usage_C = torch.randn(6, 3), torch.tensor([3.0, 0.0, 1.0, 4.0, 1.0, 5.0])
    expected = 0.0
    for i in range(6):
        for j in range(6):
            confused = math.exp(-float((codebook_CD[i] - codebook_CD[j]).square().sum()) / (8 * 0.7**2))
            expected += float(usage_C[i] * usage_C[j]) / 14**2 * confused
    assert overlap(usage_C, codebook_CD, 0.7).expected_overlap == pytest.approx(expected, rel=1e-5)


def test_the_default_noise_is_a_tenth_of_the_nearest_distance():
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]])
    assert nearest_distance(points) == pytest.approx((5 + 1 + 1) / 3)
    assert overlap(torch.ones(3), points).noise == pytest.approx(7 / 30)


def test_overlap_refuses_what_does_not_fit():
    with pytest.raises(DataError, match=r"usage_C has shape \(2,\), codebook_CD \(3, 3\)"):
        overlap(torch.ones(2), torch.eye(3))
    with pytest.raises(DataError, match="codebook_CD holds NaN"):
        overlap(torch.ones(2), torch.tensor([[1.0], [float("nan")]]))
    with pytest.raises(DataError, match="no code is in use"):
        overlap(torch.zeros(3), torch.eye(3))
    with pytest.raises(DataError, match="noise = 0"):
        overlap(torch.ones(3), torch.eye(3), noise=0)


def test_code_vectors_are_means():
    vectors = code_vectors(torch.tensor([1, 1, 0]), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), 3)
    assert vectors.tolist() == [[5, 6], [2, 3], [0, 0]]
    with pytest.raises(DataError, match="1 codes for 2 vectors"):
        code_vectors(torch.tensor([0]), torch.zeros(2, 2), 1)
