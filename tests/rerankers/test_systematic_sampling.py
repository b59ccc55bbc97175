"""Stated probabilities of inclusion against frequencies and values by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tesserec.rerankers.systematic_sampling import draw, inclusion_probabilities

DRAWS = 4_000


def frequencies(inclusion_X, group_X=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts_X = torch.zeros(len(inclusion_X), dtype=torch.float64)
    size = round(float(inclusion_X.sum()))
    for _ in range(DRAWS):
        drawn = draw(inclusion_X, generator, group_X)
        assert len(drawn) == size
        counts_X[drawn] += 1
    return counts_X / DRAWS


def assert_agree(found_X, stated_X):
    """Each within 4.5 standard errors of a binomial; none drawn of 0, always of 1."""
    bound_X = 4.5 * (stated_X * (1 - stated_X) / DRAWS).sqrt()
    assert bool(((found_X - stated_X).abs() <= bound_X).all()), (found_X, stated_X)


def test_probabilities_by_hand():
    """Weights 8, 4, 2, 1, 1 and three places: 8 · 3 / 16 > 1, then 4 · 2 / 8 = 1, and 1 is shared as 2, 1, 1 of 4."""
    scores_X = torch.tensor([1.0, 8, 2, 4, 1]).log()
    expected = torch.tensor([0.25, 1, 0.5, 1, 0.25], dtype=torch.float64)
    assert torch.allclose(inclusion_probabilities(scores_X, 3, 1.0), expected, atol=1e-6)
    assert torch.allclose(inclusion_probabilities(2 * scores_X, 3, 2.0), expected, atol=1e-6)


@pytest.mark.parametrize("k", [0, 5, 7])
def test_none_or_all(k):
    assert inclusion_probabilities(torch.arange(5.0), k, 0.1).tolist() == [float(k > 0)] * 5


@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=40),
    st.integers(0, 40),
    st.sampled_from([1e-3, 0.1, 1.0, 10.0]),
)
def test_probabilities_sum_to_k_and_follow_the_scores(scores, k, temperature):
    scores_X = torch.tensor(scores, dtype=torch.float64)
    found_X = inclusion_probabilities(scores_X, k, temperature)
    assert math.isclose(float(found_X.sum()), min(k, len(scores)), abs_tol=1e-9)
    assert bool(((found_X >= 0) & (found_X <= 1)).all())
    assert bool((found_X[scores_X.argsort()].diff() >= -1e-9).all())
    below_x = (found_X < 1) & (found_X > 1e-12)
    constant_x = found_X[below_x].log() - scores_X[below_x] / temperature
    assert not len(constant_x) or float(constant_x.max() - constant_x.min()) < 1e-6, "in proportion to exp(score / T)"


@given(
    st.lists(st.floats(-20, 20), min_size=2, max_size=40),
    st.integers(1, 39),
    st.integers(0, 2**16),
    st.integers(0, 40),
)
def test_a_sample_has_its_size_and_all_that_are_certain(scores, k, seed, num_group):
    inclusion_X = inclusion_probabilities(torch.tensor(scores), k, 1.0)
    group_X = torch.arange(len(scores)) < num_group
    drawn = draw(inclusion_X, torch.Generator().manual_seed(seed), group_X).tolist()
    assert len(drawn) == len(set(drawn)) == min(k, len(scores))
    assert drawn == sorted(drawn)
    assert {x for x, p in enumerate(inclusion_X.tolist()) if p == 1} <= set(drawn)
    mass = float(inclusion_X[group_X].sum())
    assert math.floor(mass + 1e-9) <= sum(x < num_group for x in drawn) <= math.ceil(mass - 1e-9)


def test_frequencies_agree_with_the_stated_probabilities():
    inclusion_X = inclusion_probabilities(torch.tensor([3.0, 0.1, 0.7, -1, 0.2, 5, -4, 0.0]), 3, 1.0)
    assert int((inclusion_X == 1).sum()) == 2
    assert_agree(frequencies(inclusion_X), inclusion_X)


def test_frequencies_agree_where_a_group_is_counted():
    inclusion_X = torch.tensor([0.3, 0.9, 0.6, 0.2, 0.5, 0.5], dtype=torch.float64)
    group_X = torch.tensor([True, False, True, False, True, True])
    assert_agree(frequencies(inclusion_X, group_X), inclusion_X)


def test_neighbours_can_be_drawn_together():
    """In the order of the list, two neighbours of 0.5 would never be drawn together."""
    generator = torch.Generator().manual_seed(1)
    pairs = {tuple(draw(torch.full((4,), 0.5), generator).tolist()) for _ in range(200)}
    assert len(pairs) == 6
