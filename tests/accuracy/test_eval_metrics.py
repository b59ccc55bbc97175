"""The lists that the speed of metrics is measured on are lists, and what is timed is the judging of them."""

import pytest

from benchmarks import eval_metrics
from tesserec.evaluation.metrics import METRICS, rank_relevant


def test_lists_are_distinct_and_half_of_the_relevant_items_are_in_them():
    candidates, relevant = eval_metrics.inputs(300)
    assert candidates.items_BK.shape == (300, eval_metrics.NUM_CANDIDATES)
    assert all(len(set(row)) == len(row) for row in candidates.items_BK.tolist())
    assert set(relevant.lengths.tolist()) == {1, 2, 3}
    found = rank_relevant(candidates, relevant).values.isfinite().double().mean()
    assert 0.4 < float(found) < 0.6


def test_every_metric_is_judged_at_every_cut_off():
    candidates, relevant = eval_metrics.inputs(50)
    ranks = rank_relevant(candidates, relevant)
    found = eval_metrics.judge(candidates, relevant)
    assert list(found) == [f"{name}{k}" for name in METRICS for k in (5, 10, 100)]
    assert found["ndcg10"] == pytest.approx(float(METRICS["ndcg"](ranks, 10).mean()))
