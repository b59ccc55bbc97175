import math

import pytest
import torch

from tesserec.testing.data import requests_of
from tesserec.training.validation import MAX_REQUESTS, mean_ndcg, validation_ndcg
from tesserec.types import PAD, Candidates, Holdout, Ragged

SECOND = 1 / math.log2(3)


def lists(rows):
    items_BK = torch.tensor(rows)
    scores_BK = -torch.arange(items_BK.shape[1]).float().repeat(len(rows), 1)
    return Candidates(items_BK, scores_BK.masked_fill(items_BK == PAD, -torch.inf))


def holdout(relevant):
    return Holdout(requests_of([[[0]]] * len(relevant)), Ragged.of(relevant))


@pytest.mark.parametrize(
    ("items", "relevant", "expected"),
    [
        ([4, 1, 2], [4], 1),
        ([1, 4, 2], [4], SECOND),
        ([1, 2, 4], [4], 0.5),
        ([1, 2, 3], [4], 0),
        ([4, 1, 2], [4, 7], 1 / (1 + SECOND)),
        ([7, 4, 2], [4, 7], 1),
        ([1, PAD, PAD], [1], 1),
        ([PAD, PAD, PAD], [0], 0),
        ([3, 2, 1], [1, 2, 3, 4, 5], (1 + SECOND + 0.5) / (1 + SECOND + 0.5)),
    ],
)
def test_ndcg_by_hand(items, relevant, expected):
    assert mean_ndcg(lists([items]), holdout([relevant]), k=3) == pytest.approx(expected)


def test_requests_count_alike_and_only_their_own_items_hit():
    candidates = lists([[2, 1], [2, 1], [0, PAD]])
    assert mean_ndcg(candidates, holdout([[1], [2], [1]])) == pytest.approx((SECOND + 1 + 0) / 3)
    # What is missing must not look like the last item of the request before.
    assert mean_ndcg(lists([[1, 0], [PAD, PAD]]), holdout([[2], [1]])) == 0


def test_only_the_first_k_count():
    candidates = lists([list(range(12))])
    assert mean_ndcg(candidates, holdout([[10]])) == 0
    assert mean_ndcg(candidates, holdout([[9]])) == pytest.approx(1 / math.log2(11))
    assert mean_ndcg(candidates, holdout([[1]]), k=1) == 0


def test_a_retriever_is_asked_in_batches():
    asked = []

    def retrieve(requests, k):
        asked.append((len(requests), k))
        return lists([[0, 1]] * len(requests))

    relevant = [[0]] * 256 + [[1]] * 44
    assert validation_ndcg(retrieve, holdout(relevant)) == pytest.approx((256 + 44 * SECOND) / 300)
    assert asked == [(256, 10), (44, 10)]
    assert validation_ndcg(retrieve, holdout(relevant), k=1) == pytest.approx(256 / 300)


def test_of_many_requests_some_are_asked_from_the_first_to_the_last():
    asked = []

    def retrieve(requests, k):
        asked.extend(requests.history.items.tolist())
        return lists([[0]] * len(requests))

    many = 2 * MAX_REQUESTS
    validation_ndcg(retrieve, Holdout(requests_of([[[n]] for n in range(many)]), Ragged.of([[0]] * many)))
    assert len(asked) == len(set(asked)) == MAX_REQUESTS
    assert (asked[0], asked[-1]) == (0, many - 1)
