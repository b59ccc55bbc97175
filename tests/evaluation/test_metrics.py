"""Metrics against arithmetic on the page, ir-measures, and properties."""

import math

import ir_measures
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.errors import DataError
from tesserec.evaluation import metrics
from tesserec.evaluation.metrics import (
    AGGREGATES,
    METRICS,
    Lists,
    Ranks,
    average_precision,
    coverage,
    gini,
    hit_rate,
    item_ranks,
    ndcg,
    novelty,
    order_ranks,
    popularity_lift,
    precision,
    rank_relevant,
    recall,
    reciprocal_rank,
)
from tesserec.types import PAD, Candidates, Ragged

INF = math.inf


def gain(rank: float) -> float:
    return 1 / math.log2(1 + rank)


def ranks_of(*rows: list[float]) -> Ranks:
    lengths = torch.tensor([0, *(len(row) for row in rows)])
    return Ranks(lengths.cumsum(0), torch.tensor([r for row in rows for r in row], dtype=torch.float64))


def candidates(*rows: list[tuple[int, float]]) -> Candidates:
    items = torch.tensor([[item for item, _ in row] for row in rows])
    return Candidates(items, torch.tensor([[score for _, score in row] for row in rows]))


def close(values: torch.Tensor, expected: list[float]) -> None:
    assert values.dtype == torch.float64
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=0, atol=1e-12)


LISTS = candidates(
    [(7, 0.9), (3, 0.5), (4, 0.5), (5, 0.5), (1, 0.1)],
    [(2, 0.3), (9, 0.3), (PAD, -INF), (PAD, -INF), (PAD, -INF)],
    [(0, 4.0), (1, 3.0), (2, 2.0), (3, 1.0), (4, 0.0)],
)


def test_tied_items_take_the_mean_of_their_places_and_absent_ones_none() -> None:
    relevant = Ragged.of([[1, 5, 7, 8], [9], [4, 0]])
    expected = [5, (2 + 3 + 4) / 3, 1, INF, (1 + 2) / 2, 5, 1]
    close(item_ranks(LISTS, relevant), expected)
    ranked = rank_relevant(LISTS, relevant)
    close(ranked.values, [1, 3, 5, INF, 1.5, 1, 5])
    assert ranked.offsets.tolist() == [0, 4, 5, 7]
    assert ranked.places_M.tolist() == [0, 1, 2, 3, 0, 0, 1]
    assert ranked.rows_M.tolist() == [0, 0, 0, 0, 1, 2, 2]
    assert len(ranked) == 3


@pytest.mark.parametrize("chunk", [1, 5, 10, 14, 15, 10_000])
def test_ranks_do_not_depend_on_the_size_of_the_chunks(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(metrics, "_CHUNK", chunk)
    close(item_ranks(LISTS, Ragged.of([[1, 5, 7, 8], [9], [4, 0]])), [5, 3, 1, INF, 1.5, 5, 1])


def test_ranks_of_lists_without_any_place_are_infinite() -> None:
    empty = Candidates(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0))
    close(item_ranks(empty, Ragged.of([[1], [0, 2]])), [INF, INF, INF])


def test_each_request_needs_a_list() -> None:
    with pytest.raises(DataError, match="3 lists for 2 requests: give each request one list"):
        item_ranks(LISTS, Ragged.of([[1], [2]]))


def test_order_ranks_keeps_only_the_chosen_items() -> None:
    kept = order_ranks(
        torch.tensor([0, 3, 4, 6]),
        torch.tensor([4.0, INF, 2.0, 1.0, 9.0, 3.0], dtype=torch.float64),
        torch.tensor([True, False, True, False, True, True]),
    )
    assert kept.offsets.tolist() == [0, 2, 2, 4]
    assert kept.values.tolist() == [2, 4, 3, 9]
    assert kept.num_relevant_B.tolist() == [2, 0, 2]


RANKED = ranks_of([1, 3, INF], [6], [], [2.5, 2.5], [5])


@pytest.mark.parametrize(
    ("metric", "at_1", "at_5"),
    [
        (recall, [1 / 3, 0, math.nan, 0, 0], [2 / 3, 0, math.nan, 1, 1]),
        (precision, [1, 0, math.nan, 0, 0], [2 / 5, 0, math.nan, 2 / 5, 1 / 5]),
        (hit_rate, [1, 0, math.nan, 0, 0], [1, 0, math.nan, 1, 1]),
        (reciprocal_rank, [1, 0, math.nan, 0, 0], [1, 0, math.nan, 1 / 2.5, 1 / 5]),
        (
            average_precision,
            [1 / 3, 0, math.nan, 0, 0],
            [(1 / 1 + 2 / 3) / 3, 0, math.nan, (1 / 2.5 + 2 / 2.5) / 2, 1 / 5],
        ),
        (
            ndcg,
            [1, 0, math.nan, 0, 0],
            [
                (1 + gain(3)) / (1 + gain(2) + gain(3)),
                0,
                math.nan,
                2 * gain(2.5) / (1 + gain(2)),
                gain(5),
            ],
        ),
    ],
)
def test_metrics_by_hand(metric: metrics.Metric, at_1: list[float], at_5: list[float]) -> None:
    close(metric(RANKED, 1), at_1)
    close(metric(RANKED, 5), at_5)


def test_k_places_hold_at_most_k_hits() -> None:
    """All five tie for ranks 1–5, so that each has rank 3: at 3, three of them are hits, not five."""
    tied = ranks_of([3, 3, 3, 3, 3])
    close(recall(tied, 2), [0])
    close(recall(tied, 3), [3 / 5])
    close(precision(tied, 3), [1])
    close(ndcg(tied, 3), [3 * gain(3) / (1 + gain(2) + gain(3))])
    close(average_precision(tied, 3), [(1 + 2 + 3) / 3 / 5])
    close(reciprocal_rank(tied, 3), [1 / 3])


def test_ideal_gain_is_of_as_many_relevant_items_as_there_are_places() -> None:
    close(ndcg(ranks_of([1, 2, 3]), 2), [1])
    close(ndcg(ranks_of([1, 3, 4]), 2), [1 / (1 + gain(2))])


def test_a_cut_off_is_at_least_one() -> None:
    with pytest.raises(DataError, match="k = 0: a cut-off is at least 1"):
        recall(RANKED, 0)


def test_names_of_metrics() -> None:
    assert list(METRICS) == ["recall", "ndcg", "mrr", "map", "hit_rate", "precision"]
    assert list(AGGREGATES) == ["coverage", "gini", "novelty", "popularity_lift"]


def test_agrees_with_ir_measures() -> None:
    """Tie-free rankings of 40 requests, 12 of 30 items returned, 1 to 8 relevant.

    ``AP@k`` of trec_eval divides by |T|, as ours does; RR@k, P@k, R@k, Success@k and nDCG@k as they stand.
    """
    generator = np.random.default_rng(0)
    lists = np.stack([generator.permutation(30)[:12] for _ in range(40)])
    relevant = [generator.permutation(30)[: generator.integers(1, 9)].tolist() for _ in range(40)]
    scores = torch.arange(12, 0, -1).float().expand(40, 12)
    ranks = rank_relevant(Candidates(torch.from_numpy(lists), scores), Ragged.of(relevant))
    names = {"R": recall, "nDCG": ndcg, "RR": reciprocal_rank, "AP": average_precision, "P": precision}
    ours = {ir_measures.parse_measure(f"{name}@{k}"): m(ranks, k) for name, m in names.items() for k in (1, 5, 10)}
    ours |= {ir_measures.parse_measure(f"Success@{k}"): hit_rate(ranks, k) for k in (1, 5, 10)}
    qrels = [ir_measures.Qrel(str(b), str(i), 1) for b, row in enumerate(relevant) for i in row]
    run = [ir_measures.ScoredDoc(str(b), str(i), 12.0 - p) for b, row in enumerate(lists) for p, i in enumerate(row)]
    found = list(ir_measures.iter_calc(list(ours), qrels, run))
    assert len(found) == 18 * 40
    for one in found:
        assert float(ours[one.measure][int(one.query_id)]) == pytest.approx(one.value, abs=1e-6), one


@st.composite
def scored_lists(draw: st.DrawFn) -> tuple[list[int], list[float], list[int]]:
    items = draw(st.lists(st.integers(0, 15), min_size=1, max_size=10, unique=True))
    scores = sorted(draw(st.lists(st.integers(0, 4), min_size=len(items), max_size=len(items))), reverse=True)
    relevant = draw(st.lists(st.integers(0, 15), min_size=1, max_size=8, unique=True))
    return items, [float(s) for s in scores], relevant


def values_of(items: list[int], scores: list[float], relevant: list[int], k: int) -> dict[str, float]:
    ranks = rank_relevant(candidates(list(zip(items, scores, strict=True))), Ragged.of([relevant]))
    return {name: float(metric(ranks, k)) for name, metric in METRICS.items()}


@settings(max_examples=60, deadline=None)
@given(scored_lists(), st.integers(1, 11), st.randoms(use_true_random=False))
def test_properties(case: tuple[list[int], list[float], list[int]], k: int, random: "np.random.Generator") -> None:
    items, scores, relevant = case
    found = values_of(items, scores, relevant, k)
    assert all(0 <= value <= 1 + 1e-12 for value in found.values()), found

    keyed = sorted(zip(scores, [random.random() for _ in items], items, strict=True), reverse=True)
    assert values_of([item for _, _, item in keyed], scores, relevant, k) == found, "ties have no order"

    longer = values_of([*items, 99], [*scores, -1.0], relevant, k)
    assert longer == found, "an irrelevant item at the end changes nothing"

    perfect = values_of(relevant, [float(-place) for place in range(len(relevant))], relevant, k)
    assert perfect["ndcg"] == pytest.approx(1)
    assert perfect["recall"] == pytest.approx(min(k, len(relevant)) / len(relevant))


# Four items; popularity 6, 3, 1, 0. Two full lists, one of one item, one empty.
AGGREGATED = Lists(
    items_BK=torch.tensor([[0, 1], [0, 3], [1, PAD], [PAD, PAD]]),
    counts_N=torch.tensor([6, 3, 1, 0]),
    history=Ragged.of([[0, 1], [2], [], [0]]),
)
WEIGHTS = torch.tensor([[1, 1, 1, 1], [2, 0, 0, 1], [0, 0, 2, 1]])


def test_coverage_counts_distinct_items() -> None:
    close(coverage(AGGREGATED, WEIGHTS), [3 / 4, 2 / 4, 1 / 4])


def test_gini_of_exposure() -> None:
    """Shown 2, 2, 0, 1 times: sorted 0, 1, 2, 2, weights −3, −1, 1, 3 → (−1 + 2 + 6) / (4 · 5)."""
    close(gini(AGGREGATED, WEIGHTS), [7 / 20, (1 * 2 + 3 * 2) / (4 * 4), 3 / 4])


def test_gini_is_zero_when_all_items_are_shown_alike() -> None:
    close(gini(Lists(torch.tensor([[0, 1], [2, 3]]), torch.ones(4).long(), Ragged.of([[], []])), WEIGHTS[:1, :2]), [0])


def test_novelty_in_bits_with_unseen_items_as_seen_once() -> None:
    first, second = (math.log2(10 / 6) + math.log2(10 / 3)) / 2, (math.log2(10 / 6) + math.log2(10 / 1)) / 2
    third = math.log2(10 / 3)
    close(novelty(AGGREGATED, WEIGHTS), [(first + second + third) / 3, first, third])


def test_popularity_lift_is_over_requests_with_a_list_and_a_history() -> None:
    shown, known = [4.5, 3], [4.5, 1]
    close(popularity_lift(AGGREGATED, WEIGHTS), [sum(shown) / sum(known) - 1, 0, math.nan])


def test_empty_lists_cover_nothing_and_leave_the_rest_undefined() -> None:
    nothing = Lists(torch.full((2, 3), PAD), torch.tensor([1, 2]), Ragged.of([[0], [1]]))
    assert [float(metric(nothing, torch.ones(1, 2))) for metric in (coverage,)] == [0]
    assert all(math.isnan(float(metric(nothing, torch.ones(1, 2)))) for metric in (gini, novelty, popularity_lift))


def test_lift_is_undefined_where_nobody_has_a_history() -> None:
    newcomers = Lists(torch.tensor([[0, 1], [1, PAD]]), torch.tensor([2, 1]), Ragged.of([[], []]))
    assert math.isnan(float(popularity_lift(newcomers, torch.ones(1, 2))))
