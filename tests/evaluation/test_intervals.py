"""Bootstrap intervals against SciPy and theory, paired tests against arithmetic."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tesserec.errors import DataError
from tesserec.evaluation import intervals
from tesserec.evaluation.intervals import (
    Estimate,
    estimate,
    estimates,
    paired,
    request_weights,
    resample_means,
    spread,
)


def values(size: int, seed: int = 0, loc: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(loc, 1.0, size))


def test_agrees_with_scipy() -> None:
    data = values(300) ** 2
    found = estimate(data, num_resamples=4000)
    scipy = stats.bootstrap((data.numpy(),), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert found.mean == pytest.approx(float(data.mean()))
    assert found.low == pytest.approx(scipy.low, abs=0.012)
    assert found.high == pytest.approx(scipy.high, abs=0.012)


def test_same_seed_same_interval_and_another_seed_another() -> None:
    data = values(50)
    assert estimate(data, seed=3) == estimate(data, seed=3)
    assert estimate(data, seed=3) != estimate(data, seed=4)
    assert estimate(data) == estimate(data, num_resamples=1000, seed=0)
    assert estimates({"a": data})["a"] == estimate(data)
    assert paired(data, 0 * data) == paired(data, 0 * data, num_resamples=10_000, seed=0)
    seeds = torch.stack([data, data + 1])
    assert estimate(seeds, seed=3) == estimate(seeds, seed=3)
    assert paired(seeds, seeds, seed=3) == paired(seeds, seeds, seed=3)


def test_undefined_values_are_left_out() -> None:
    data = torch.tensor([1.0, math.nan, 3.0, math.nan])
    found = estimate(data)
    assert found.mean == 2
    assert (found.low, found.high) == (1, 3)
    nothing = estimate(torch.full((4,), math.nan))
    assert all(math.isnan(x) for x in (nothing.mean, nothing.low, nothing.high))


def test_a_constant_has_no_spread() -> None:
    assert estimate(torch.full((7,), 0.25)) == Estimate(0.25, 0.25, 0.25)


def test_several_columns_share_their_resamples() -> None:
    data = values(80)
    found = estimates({"a": data, "twice": 2 * data, "gaps": torch.where(data > 0, data, math.nan)}, seed=5)
    assert list(found) == ["a", "twice", "gaps"]
    assert found["twice"].low == pytest.approx(2 * found["a"].low)
    assert found["a"].low == pytest.approx(estimate(data, seed=5).low)
    assert found["gaps"].mean == pytest.approx(float(data[data > 0].mean()))
    assert found["a"].low < found["a"].mean < found["a"].high < found["gaps"].low
    assert estimates({}) == {}


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    hits = sum(e.low <= 0 <= e.high for e in (estimate(values(60, seed), num_resamples=400) for seed in range(200)))
    assert 180 <= hits <= 197


def test_weights_draw_each_request_as_often_as_there_are_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.cat(list(request_weights(10, num_resamples=7, seed=2)))
    assert whole.shape == (7, 10)
    assert whole.dtype == torch.float64
    assert whole.sum(1).tolist() == [10.0] * 7
    monkeypatch.setattr(intervals, "_CHUNK", 35)
    pieces = list(request_weights(10, num_resamples=7, seed=2))
    assert [len(piece) for piece in pieces] == [3, 3, 1]
    torch.testing.assert_close(torch.cat(pieces), whole)


def test_groups_of_requests_keep_the_interval_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    data = values(4001, loc=2.0)
    monkeypatch.setattr(intervals, "MAX_GROUPS", 400)
    grouped = estimate(data, num_resamples=4000)
    half = 1.96 * float(data.std()) / math.sqrt(4001)
    assert grouped.mean == pytest.approx(float(data.mean()))
    assert (grouped.high - grouped.low) / 2 == pytest.approx(half, rel=0.1)
    assert grouped.low < grouped.mean < grouped.high
    dealt = torch.bincount(intervals._groups(4001, 0))
    assert dealt.tolist() == [11] + [10] * 399
    assert intervals._groups(4001, 0)[:5].tolist() != [0, 1, 2, 3, 4]
    assert intervals._groups(400, 0).tolist() == list(range(400))


def test_seeds_and_requests_are_both_drawn() -> None:
    """Three seeds that differ by far more than their requests: the interval reaches from the lowest to the highest."""
    seeds = torch.tensor([0.0, 1.0, 2.0])[:, None] + 0.001 * values(100)[None]
    found = estimate(seeds, num_resamples=4000)
    assert found.mean == pytest.approx(float(seeds.mean()))
    assert found.low == pytest.approx(0, abs=0.001)
    assert found.high == pytest.approx(2, abs=0.001)
    alike = torch.stack([values(100)] * 3)
    assert estimate(alike).high == pytest.approx(estimate(values(100)).high)


def test_spread_is_moved_to_the_figure() -> None:
    found = spread(torch.tensor([1.0, 2.0, 3.0, math.nan]), 10.0)
    assert found == Estimate(10.0, pytest.approx(10 - 0.95), pytest.approx(10 + 0.95))


def test_paired_difference_of_a_constant() -> None:
    data = values(40)
    found = paired(data + 0.5, data)
    assert found.mean == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5)
    assert found.high == pytest.approx(0.5)
    assert found.p_value == 2 / 10_001
    mirrored = paired(data, data + 0.5)
    assert mirrored.mean == pytest.approx(-0.5)
    assert mirrored.p_value == 2 / 10_001
    assert paired(data, data, num_resamples=99).p_value == 1


def test_p_value_counts_resamples_beyond_zero() -> None:
    """Values −1, 1, 1: the mean of three draws is ≤ 0 with at least two −1: 7 of 27."""
    found = paired(torch.tensor([-1.0, 1.0, 1.0]), torch.zeros(3), num_resamples=20_000)
    assert found.p_value == pytest.approx(2 * 7 / 27, abs=0.015)
    assert (found.low, found.high) == (-1, 1)


def test_pairing_removes_what_both_share() -> None:
    shared, noise = 10 * values(200), 0.1 * values(200, seed=1, loc=1)
    found = paired(shared + noise, shared)
    assert found.low > 0.05
    assert found.high < 0.15
    assert found.p_value < 0.001


def test_paired_seeds_are_drawn_on_each_side() -> None:
    same = torch.tensor([[0.0], [1.0]]).expand(2, 30)
    found = paired(same, same, num_resamples=2000)
    assert found.mean == 0
    assert (found.low, found.high) == (-1, 1)
    one_sided = paired(same + 5, torch.zeros(30), num_resamples=2000)
    assert (one_sided.mean, one_sided.low, one_sided.high) == (5.5, 5, 6)


def test_a_paired_test_needs_the_same_requests() -> None:
    with pytest.raises(DataError, match="3 values against 4: a paired test needs the same requests"):
        paired(torch.zeros(3), torch.zeros(4))


def test_values_are_by_request_or_by_seed_and_request() -> None:
    with pytest.raises(DataError, match=r"shape \(1, 2, 3\): expected \[requests\] or \[seeds, requests\]"):
        estimate(torch.zeros(1, 2, 3))


def test_no_values_no_mean() -> None:
    with pytest.raises(DataError, match="no values to take the mean of: give at least one request"):
        resample_means([torch.zeros(0)], num_resamples=10, seed=0)


def test_columns_drawn_together_are_what_they_are_alone_whatever_each_leaves_out() -> None:
    full = values(40)
    gaps = torch.where(full > 0, full, torch.nan)
    columns = [full, gaps, full * 2, gaps * 3, torch.full_like(full, torch.nan)]
    together = resample_means(columns, num_resamples=20, seed=4)
    alone = [resample_means([column], num_resamples=20, seed=4)[:, 0] for column in columns]
    torch.testing.assert_close(together, torch.stack(alone, dim=1), equal_nan=True)
