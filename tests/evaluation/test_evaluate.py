"""``evaluate`` and ``compare`` on eight questions whose answers are known."""

import math
from dataclasses import replace

import polars as pl
import pytest
import torch

from tesserec.errors import DataError
from tesserec.evaluation import Estimate, Report, compare, evaluate, judge_lists, over_seeds
from tesserec.evaluation.slices import item_slices, request_slices
from tesserec.types import (
    PAD,
    Candidates,
    Catalog,
    ComponentState,
    Filters,
    FitContext,
    History,
    Holdout,
    Interactions,
    Ragged,
    Requests,
    Vocabulary,
)

INF = math.inf
NUM_ITEMS = 8
COUNTS = [5, 4, 3, 2, 1, 1, 0, 0]
"""Training events of each item: the median of those seen is 2, so items 3, 4 and 5 are tail, 6 and 7 cold."""


class Fixed:
    """A retriever whose list for a request is the one of its user."""

    def __init__(self, rows: list[list[int]], width: int = 20) -> None:
        self.items = torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows])
        self.asked: list[tuple[int, int]] = []

    def fit(self, train: Interactions, catalog: Catalog, context: FitContext) -> None:
        """Nothing to learn."""

    def retrieve(self, requests: Requests, k: int) -> Candidates:
        self.asked.append((len(requests), k))
        assert requests.user_B is not None
        items = self.items[requests.user_B][:, :k]
        return Candidates(items, torch.where(items == PAD, -INF, torch.arange(0, -items.shape[1], -1.0)))

    def state(self) -> ComponentState:
        return ComponentState({})

    def restore(self, state: ComponentState, catalog: Catalog, context: FitContext) -> None:
        """Nothing to restore."""


def log(counts: list[int]) -> Interactions:
    items = [item for item, count in enumerate(counts) for _ in range(count)]
    size = len(items)
    times = torch.arange(size)
    return Interactions(
        Vocabulary.of([0]),
        Vocabulary.of(list(range(len(counts)))),
        torch.zeros(size, dtype=torch.int32),
        torch.tensor(items, dtype=torch.int32),
        times,
        times,
    )


TRAIN = log(COUNTS)
HISTORIES = [[], [0], [0, 1, 2, 3], [1] * 5, [2] * 19, [3] * 20, [4] * 99, [5] * 100]
TARGETS = [[0], [1, 6], [0], [3], [7], [4, 5], [2], [5]]
FOUND = [[0], [6, 2], [1, 0], [], [1], [2, 3, 4], [2], [0, 1, 2, 3, 4, 5]]


def holdout(targets: list[list[int]] = TARGETS, *, filters: Filters | None = None) -> Holdout:
    rows = Ragged.of(HISTORIES)
    users = torch.arange(len(HISTORIES))
    requests = Requests(History(rows.offsets, rows.values), user_B=users, filters=filters or Filters())
    return Holdout(requests, Ragged.of(targets))


def report(found: list[list[int]] = FOUND, label: str = "fixed", **settings: object) -> Report:
    return evaluate(Fixed(found), holdout(), train=TRAIN, label=label, **settings)  # type: ignore[arg-type]


def test_per_request_values_and_their_means() -> None:
    found = report(ks=(2, 5))
    recall2 = [1, 1 / 2, 1, 0, 0, 0, 1, 0]
    ndcg5 = [1, 1 / (1 + 1 / math.log2(3)), 1 / math.log2(3), 0, 0, 0.5 / (1 + 1 / math.log2(3)), 1, 0]
    torch.testing.assert_close(found.values["recall2"], torch.tensor(recall2))
    torch.testing.assert_close(found.values["ndcg5"], torch.tensor(ndcg5))
    assert found.values["recall2"].dtype == torch.float32
    assert found.metrics["recall2"].mean == pytest.approx(sum(recall2) / 8)
    assert found.metrics["ndcg5"].mean == pytest.approx(sum(ndcg5) / 8)
    assert found.metrics["ndcg5"].low < found.metrics["ndcg5"].mean < found.metrics["ndcg5"].high
    assert list(found.metrics)[:4] == ["recall2", "recall5", "ndcg2", "ndcg5"]
    assert len(found.metrics) == 12
    assert found.num_requests == 8


def test_lists_are_asked_for_in_batches_and_kept() -> None:
    retriever = Fixed(FOUND, width=25)
    steps: list[tuple[str, float, float]] = []
    found = evaluate(
        retriever,
        holdout(),
        train=TRAIN,
        batch_size=3,
        num_candidates=25,
        progress=lambda task, done, total, note="": steps.append((task, done, total)),
    )
    assert retriever.asked == [(3, 25), (3, 25), (2, 25)]
    assert steps == [("evaluate", 3, 8), ("evaluate", 6, 8), ("evaluate", 8, 8)]
    assert found.label == "Fixed"
    assert found.items_BK is not None
    assert found.items_BK.shape == (8, 20)
    assert found.items_BK.dtype == torch.int32
    assert found.items_BK[5].tolist() == [2, 3, 4] + [PAD] * 17


def test_figures_are_the_same_each_time_and_costs_are_measured() -> None:
    first, second = report(costs={"train_s": 3.0}), report()
    assert first.metrics == second.metrics
    assert first.slices == second.slices
    assert first.aggregates == second.aggregates
    assert set(first.costs) == {"train_s", "retrieve_s_per_1000"}
    assert first.costs["train_s"] == 3
    assert 0 < first.costs["retrieve_s_per_1000"] < 1000
    assert report(seed=1).metrics != first.metrics
    assert report(seed=0).metrics == first.metrics


def test_protocol_says_what_the_figures_mean() -> None:
    plain = report(split="global_time.test").protocol
    assert {k: v for k, v in plain.items() if k != "holdout"} == {
        "split": "global_time.test",
        "refit": False,
        "seen_items": "allowed",
        "other_filters": False,
        "ties": "mean rank",
        "num_requests": 8,
    }
    filtered = holdout(filters=Filters(True, available_N=torch.ones(NUM_ITEMS, dtype=torch.bool)))
    found = evaluate(Fixed(FOUND), filtered, train=TRAIN, refit=True).protocol
    assert (found["seen_items"], found["other_filters"], found["refit"]) == ("removed", True, True)
    assert found["holdout"] == plain["holdout"]
    excluded = holdout(filters=Filters(excluded=Ragged.of([[]] * 8)))
    assert evaluate(Fixed(FOUND), excluded, train=TRAIN).protocol["other_filters"] is True
    changed = evaluate(Fixed(FOUND), holdout([[1], *TARGETS[1:]]), train=TRAIN).protocol["holdout"]
    assert changed != plain["holdout"]
    assert isinstance(changed, str)
    assert len(changed) == 16


def test_slices_of_items_judge_only_those_items() -> None:
    found = report().slices
    assert {name: part.num_requests for name, part in found.items()} == {
        "items:head": 4,
        "items:tail": 3,
        "items:cold": 2,
        "targets:repeated": 2,
        "targets:new": 6,
        "history:0": 1,
        "history:1-4": 2,
        "history:5-19": 2,
        "history:20-99": 2,
        "history:100+": 1,
    }
    assert found["items:head"].metrics["recall5"].mean == pytest.approx((1 + 0 + 1 + 1) / 4)
    assert found["items:tail"].metrics["recall10"].mean == pytest.approx((0 + 1 / 2 + 1) / 3)
    assert found["items:cold"].metrics["ndcg5"].mean == pytest.approx((1 + 0) / 2)
    assert found["targets:repeated"].metrics["recall10"].mean == pytest.approx((1 + 1) / 2)
    assert list(found["items:head"].metrics) == ["recall5", "recall10", "ndcg5", "ndcg10"]


def test_slices_of_requests_keep_their_values() -> None:
    found = report().slices
    assert found["history:0"].metrics["recall5"] == Estimate(1, 1, 1)
    assert found["history:1-4"].metrics["recall5"].mean == pytest.approx((1 / 2 + 1) / 2)
    assert found["history:100+"].metrics["recall10"].mean == 1
    assert found["history:100+"].metrics["recall5"].mean == 0
    names = list(request_slices(holdout()))
    assert names == ["history:0", "history:1-4", "history:5-19", "history:20-99", "history:100+"]


def test_item_masks_split_at_the_median_of_what_training_saw() -> None:
    masks = item_slices(holdout(), torch.tensor(COUNTS))
    assert masks["items:head"].tolist() == [True, True, False, True, False, False, False, False, True, False]
    assert masks["items:tail"].tolist() == [False, False, False, False, True, False, True, True, False, True]
    assert masks["items:cold"].tolist() == [False, False, True, False, False, True, False, False, False, False]
    assert masks["targets:repeated"].nonzero().squeeze(1).tolist() == [3, 9]
    assert masks["targets:new"].tolist() == [not x for x in masks["targets:repeated"].tolist()]
    unseen = item_slices(holdout(), torch.zeros(NUM_ITEMS, dtype=torch.int64))
    assert all(unseen["items:cold"].tolist())
    assert not any(unseen["items:tail"].tolist())


def catalog(domains: list[str | None]) -> Catalog:
    return Catalog(Vocabulary.of(list(range(len(domains)))), pl.DataFrame({"domain": domains}))


def test_slices_by_domain_follow_the_targets() -> None:
    found = report(catalog=catalog(["b", "a", "a", "a", "b", None, "c", "c"])).slices
    domains = {name: part.num_requests for name, part in found.items() if name.startswith("domain:")}
    assert domains == {"domain:a": 3, "domain:b": 3, "domain:c": 2}
    assert list(domains) == ["domain:a", "domain:b", "domain:c"]
    assert found["domain:b"].metrics["recall5"].mean == pytest.approx(1)
    one = report(catalog=catalog(["a"] * 8)).slices
    assert not any(name.startswith("domain:") for name in one)
    without = Catalog(Vocabulary.of(list(range(8))), pl.DataFrame({"title": ["x"] * 8}))
    assert (
        item_slices(holdout(), torch.tensor(COUNTS), without).keys()
        == item_slices(holdout(), torch.tensor(COUNTS)).keys()
    )


def test_only_the_largest_domains_have_slices() -> None:
    domains = [f"d{item:02}" for item in range(30)] + ["d29"]
    rows = Ragged.of([[]])
    asked = Holdout(Requests(History(rows.offsets, rows.values)), Ragged.of([[0]]))
    masks = item_slices(asked, torch.ones(31, dtype=torch.int64), catalog(list(domains)))
    names = [name for name in masks if name.startswith("domain:")]
    assert names == ["domain:d29", *(f"domain:d{item:02}" for item in range(19))]
    assert masks["domain:d00"].tolist() == [True]


def test_aggregates_are_of_the_first_k() -> None:
    found = report(ks=(1, 5)).aggregates
    assert list(found)[:4] == ["coverage1", "gini1", "novelty1", "popularity_lift1"]
    assert found["coverage1"].mean == len({0, 6, 1, 2}) / 8
    assert found["coverage5"].mean == len({0, 6, 2, 1, 3, 4}) / 8
    assert found["coverage5"].low < found["coverage5"].mean < found["coverage5"].high
    lists, had = [5 / 1, 0, 4, 4, 3, 3, 5], [None, 5, 3.5, 3, 2, 1, 1]
    pairs = [(a, b) for a, b in zip(lists, had, strict=True) if b is not None]
    expected = sum(a for a, _ in pairs) / sum(b for _, b in pairs) - 1
    assert found["popularity_lift1"].mean == pytest.approx(expected)
    bits = [-math.log2(max(count, 1) / 16) for count in lists]
    assert found["novelty1"].mean == pytest.approx(sum(bits) / 7)


def test_signals_such_as_returns_count_for_no_popularity_and_no_history() -> None:
    kinds = torch.tensor([0] * 15 + [1], dtype=torch.int32)
    train = replace(TRAIN, kind_E=kinds, kinds=("buy", "return"), positive_kinds=("buy",))
    rows = Ragged.of([[0, 5]])
    history = History(rows.offsets, rows.values, {"positive": torch.tensor([True, False])})
    asked = Holdout(Requests(history, user_B=torch.tensor([0])), Ragged.of([[5]]))
    found = evaluate(Fixed([[1]]), asked, train=train, ks=(1,))
    assert found.slices["items:cold"].num_requests == 1
    assert found.aggregates["popularity_lift1"].mean == pytest.approx(4 / 5 - 1)


def test_lists_of_others_bring_their_notes() -> None:
    lists = Candidates(torch.full((8, 1), PAD), torch.full((8, 1), -INF))
    found = judge_lists(lists, holdout(), train=TRAIN, label="none", notes={"requests_without_list": 8})
    assert found.metrics["recall5"] == Estimate(0, 0, 0)
    assert found.notes == {"requests_without_list": 8}
    assert found.costs == {}
    assert (found.protocol["refit"], found.protocol["split"]) == (False, "unnamed")
    assert (found.aggregates["coverage5"].mean, found.aggregates["coverage5"].high) == (0, 0)
    assert math.isnan(found.aggregates["novelty5"].mean)


def test_compare_is_first_minus_second_on_the_same_requests() -> None:
    good, bad = report(label="good"), report([[]] * 8, label="bad")
    found = compare(good, bad, "recall5")
    assert (found.first, found.second, found.metric, found.num_requests) == ("good", "bad", "recall5", 8)
    assert found.first_mean == pytest.approx(good.metrics["recall5"].mean)
    assert found.second_mean == 0
    assert found.difference == pytest.approx(found.first_mean)
    assert 0 < found.low < found.difference < found.high
    assert found.p_value < 0.05
    back = compare(bad, good, "recall5")
    assert (back.difference, back.low, back.high) == (-found.difference, -found.high, -found.low)
    assert compare(good, bad, "recall5", seed=0) == found
    assert compare(good, good).p_value == 1
    assert compare(good, good).metric == "ndcg10"
    assert compare(good, bad, seed=1) != compare(good, bad)


def test_several_reports_a_side_are_seeds() -> None:
    good, bad = report(), report([[]] * 8)
    mixed = over_seeds([good, bad], "recall5")
    assert mixed.mean == pytest.approx(good.metrics["recall5"].mean / 2)
    assert mixed.low == 0
    found = compare([good, bad], [bad, bad, bad], "recall5")
    assert found.first_mean == found.difference == pytest.approx(mixed.mean)
    assert found.low == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "last_out.test"}, "split is 'unnamed' in the one and 'last_out.test' in the other"),
        ({"refit": True}, "refit is False in the one and True in the other"),
    ],
)
def test_reports_of_other_protocols_are_not_compared(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=f'"fixed" and "other" cannot be compared: {message}; evaluate both in the'):
        compare(report(), report(label="other", **change))
    with pytest.raises(DataError, match="cannot be compared"):
        over_seeds([report(), report(), report(label="other", **change)])


def test_reports_on_other_questions_are_not_compared() -> None:
    other = evaluate(Fixed(FOUND), holdout([[7], *TARGETS[1:]]), train=TRAIN)
    with pytest.raises(DataError, match=r"holdout is '[0-9a-f]{16}' in the one and '[0-9a-f]{16}' in the other"):
        compare(report(), other)


def test_what_cannot_be_evaluated() -> None:
    rows = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(DataError, match="the holdout has no requests: there is nothing to judge; check the split"):
        evaluate(Fixed(FOUND), holdout().take(rows), train=TRAIN)
    with pytest.raises(DataError, match=r"ks = \(5, 0\): give cut-offs of at least 1, such as \(5, 10\)"):
        report(ks=(5, 0))
    with pytest.raises(DataError, match=r"ks = \(\): give cut-offs of at least 1"):
        report(ks=())
    with pytest.raises(DataError, match="num_candidates = 9 is less than k = 10: ask for at least as many"):
        report(num_candidates=9)
    with pytest.raises(DataError, match="the holdout holds item 7, train knows 7 items: both must share a vocabulary"):
        evaluate(Fixed(FOUND), holdout(), train=log(COUNTS[:7]))
    assert report(num_candidates=10, ks=[10]).num_requests == 8
