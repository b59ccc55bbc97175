import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tesserec.decoding.top_k as module
from tesserec.decoding.top_k import (
    allowed_items,
    allowed_keys,
    available_items,
    excluded_keys,
    first_best,
    top_k,
    top_k_in_batches,
)
from tesserec.errors import DataError
from tesserec.testing.data import requests_of
from tesserec.types import Filters, Ragged, Requests

INF = float("inf")


def test_allowed_items_joins_all_filters():
    requests = requests_of(
        [[[0, 1]], [[2]]],
        exclude_history=True,
        excluded=[[4], [4, 0, 0]],
        available=[True, True, True, False, True, True],
    )
    assert allowed_items(requests, 6).tolist() == [
        [False, False, True, False, False, True],
        [False, True, False, False, False, True],
    ]
    assert excluded_keys(requests, 6).tolist() == [0, 1, 4, 6, 8, 10]
    assert available_items(requests, 6).tolist() == [True, True, True, False, True, True]


def test_without_filters_everything_is_allowed_even_the_history():
    requests = requests_of([[[0, 1]], []])
    assert allowed_items(requests, 3).tolist() == [[True] * 3] * 2
    assert excluded_keys(requests, 3).tolist() == []


def test_exclusions_do_not_reach_the_shared_filter():
    requests = requests_of([[[0]]], exclude_history=True, available=[True, True])
    allowed_items(requests, 2)
    assert requests.filters.available_N.tolist() == [True, True]


@pytest.mark.parametrize("number", [2, 4])
def test_a_filter_of_another_catalog_is_refused(number):
    requests = requests_of([[]], available=[True] * number)
    with pytest.raises(
        DataError,
        match=rf"available_N has shape \({number},\) and type torch.bool, expected \(3,\) .*: give one flag an item$",
    ):
        top_k(torch.zeros(1, 3), requests, 1)


def test_flags_that_are_numbers_are_refused():
    requests = Requests(requests_of([[]]).history, filters=Filters(available_N=torch.tensor([0, 1, 0])))
    with pytest.raises(DataError, match=r"^available_N has shape \(3,\) and type torch.int64, expected .* torch.bool"):
        top_k(torch.zeros(1, 3), requests, 1)


@pytest.mark.parametrize("item", [-1, 3])
def test_an_item_of_no_catalogue_does_not_filter_another_request(item):
    histories = requests_of([[[item]], [[0]]], exclude_history=True)
    with pytest.raises(DataError, match=rf"^the history, which is excluded, holds item {item}, of .* items 0 to 2: "):
        excluded_keys(histories, 3)
    with pytest.raises(DataError, match=rf"^filters.excluded holds item {item}, of a catalogue with items 0 to 2: lea"):
        excluded_keys(requests_of([[], []], excluded=[[item], []]), 3)
    lists = Requests(requests_of([[], []]).history, filters=Filters(allowed=Ragged.of([[], [item]])))
    with pytest.raises(DataError, match=rf"^filters.allowed holds item {item}, of a catalogue with items 0 to 2: leav"):
        allowed_keys(lists, 3)


def test_best_first_and_the_lower_index_of_equals():
    scores = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    found = top_k(scores, requests_of([[], []]), 4)
    assert found.items_BK.tolist() == [[1, 3, 2, 4], [0, 1, 2, 3]]
    assert found.scores_BK.tolist() == [[3.0, 3.0, 2.0, 2.0], [0.0] * 4]


def test_what_is_not_allowed_or_has_no_score_ends_in_padding():
    scores = torch.tensor([[5.0, -INF, 4.0, 3.0]])
    found = top_k(scores, requests_of([[[0]]], exclude_history=True), 3)
    assert found.items_BK.tolist() == [[2, 3, -1]]
    assert found.scores_BK.tolist() == [[4.0, 3.0, -INF]]
    assert scores.tolist() == [[5.0, -INF, 4.0, 3.0]]


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_k_up_to_and_beyond_the_catalog(k):
    found = top_k(torch.tensor([[1.0, 2.0]]), requests_of([[]]), k)
    assert found.items_BK.tolist() == [([1, 0] + [-1] * 3)[:k]]
    assert found.scores_BK.tolist() == [([2.0, 1.0] + [-INF] * 3)[:k]]


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(k):
    with pytest.raises(ValueError, match=f"^k = {k}: ask for at least one item$"):
        top_k(torch.zeros(1, 2), requests_of([[]]), k)


def test_nan_and_missing_rows_are_our_mistakes():
    with pytest.raises(AssertionError, match=r"^scores must not be NaN"):
        top_k(torch.tensor([[1.0, float("nan"), 2.0]]), requests_of([[]]), 1)
    with pytest.raises(AssertionError, match=r"^one row of scores a request"):
        top_k(torch.zeros(2, 2), requests_of([[]]), 1)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 7).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from([-INF, -1.0, 0.0, 1.0, 2.0]), min_size=n, max_size=n), min_size=1, max_size=4
        )
    ),
    st.integers(1, 7),
)
def test_first_best_is_what_sorting_finds(rows, k):
    k = min(k, len(rows[0]))
    expected = [sorted(sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]) for row in rows]
    assert first_best(torch.tensor(rows), k).tolist() == expected


@pytest.mark.parametrize(("most", "sizes"), [(12, [3]), (11, [2, 1]), (8, [2, 1]), (7, [1, 1, 1]), (1, [1, 1, 1])])
def test_batches_hold_so_many_scores_and_change_nothing(monkeypatch, most, sizes):
    scores = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    requests = requests_of([[[0]], [[1]], [[2]]], exclude_history=True)
    expected = top_k(scores, requests, 5)
    seen = []

    def score(batch):
        seen.append(len(batch))
        return scores[batch.history.items]

    monkeypatch.setattr(module, "MAX_SCORES", most)
    found = top_k_in_batches(score, requests, 5, 4)
    assert seen == sizes
    assert found.items_BK.tolist() == expected.items_BK.tolist()
    assert found.scores_BK.tolist() == expected.scores_BK.tolist()


def test_no_requests_ask_the_scorer_once():
    assert top_k_in_batches(lambda _: torch.zeros(0, 4), requests_of([]), 2, 4).items_BK.shape == (0, 2)
    assert module.MAX_SCORES == 16_777_216


def test_hundreds_of_equal_scores_stay_in_order_of_index():
    scores = torch.tensor([[float(i % 3 == 0) for i in range(900)]])
    assert top_k(scores, requests_of([[]]), 500).items_BK[0].tolist() == [
        *range(0, 900, 3),
        *[i for i in range(900) if i % 3][:200],
    ]
