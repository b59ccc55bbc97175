import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tesserec.retrievers.fusion import fit_weights, fused, union
from tesserec.types import PAD, Ragged

INF = float("inf")
SECOND = 1 / math.log2(3)


def test_a_union_holds_each_item_once():
    parts = [torch.tensor([[4, 1], [2, PAD]]), torch.tensor([[1, 0, 4], [PAD, PAD, PAD]])]
    assert union(parts).tolist() == [[0, 1, PAD, 4, PAD], [PAD, PAD, PAD, PAD, 2]]


def test_evidence_is_added_by_weight():
    """Item 7 scores −1 · 2 − 2 · 0.5 = −3, item 8 −2.5 and item 9 −2."""
    items_BX = torch.tensor([[PAD, 7, 8, 9]])
    evidence_BXS = torch.tensor([[[9.0, 9.0], [-1.0, -2.0], [-1.0, -1.0], [-0.5, -2.0]]])
    found = fused(items_BX, evidence_BXS, torch.tensor([2.0, 0.5]), ("a", "b"), 3)
    assert found.items_BK.tolist() == [[9, 8, 7]]
    assert found.scores_BK.tolist() == [[-2, -2.5, -3]]
    assert found.sources == ("a", "b")
    assert {name: values.tolist() for name, values in found.trace.items()} == {
        "a": [[-1, -2, -2]],
        "b": [[-1, -0.5, -1]],
    }
    # Means are −5 / 3 and −5 / 6: 9 is lifted by a, 8 by b; 7 is lowered by both, by b less.
    assert found.source_BK.tolist() == [[0, 1, 1]]
    assert fused(items_BX, evidence_BXS, torch.tensor([2.0, 0.5]), ("a", "b"), 1).items_BK.tolist() == [[9]]


def test_of_equal_scores_the_lower_item_comes_first():
    found = fused(torch.tensor([[3, 5, 6]]), torch.zeros(1, 3, 1), torch.ones(1), ("a",), 2)
    assert found.items_BK.tolist() == [[3, 5]]


def test_lists_are_padded_and_infinite_evidence_of_padding_is_nothing():
    found = fused(
        torch.tensor([[PAD, 7], [PAD, PAD]]),
        torch.tensor([[[-INF], [-1.0]], [[-INF], [INF]]]),
        torch.ones(1),
        ("a",),
        4,
    )
    assert found.items_BK.tolist() == [[7, PAD, PAD, PAD], [PAD] * 4]
    assert found.scores_BK.tolist() == [[-1, -INF, -INF, -INF], [-INF] * 4]
    assert found.trace["a"].tolist() == [[-1, 0, 0, 0], [0] * 4]
    assert found.source_BK.shape == (2, 4)


def requests(*rows):
    """Two sources' evidence of items 0, 1, 2 … of each request."""
    evidence_BXS = torch.tensor(rows).transpose(1, 2)
    return torch.arange(evidence_BXS.shape[1]).repeat(len(rows), 1), evidence_BXS


def ndcg(parts, relevant, weights_S):
    """Mean NDCG@10 of the fused lists."""
    values = []
    for items_BX, evidence_BXS in parts:
        lists = fused(items_BX, evidence_BXS, weights_S, ("a", "b", "c")[: len(weights_S)], 10).items_BK.tolist()
        for items in lists:
            wanted = set(relevant[len(values)].tolist())
            gain = sum(1 / math.log2(place + 2) for place, item in enumerate(items) if item in wanted)
            values.append(gain / sum(1 / math.log2(place + 2) for place in range(min(len(wanted), 10))))
    return sum(values) / len(values)


def test_a_source_that_is_right_gets_the_weight():
    """The first source is right about request 0 and the second about request 1, by less than it is wrong elsewhere."""
    right = requests([[0.0, -1.0, -9.0], [-1.0, -1.0, -0.9]], [[-1.0, -1.0, -1.0], [-2.0, -3.0, -1.0]])
    relevant = Ragged.of([[0], [2]])
    found = fit_weights([right], relevant, torch.tensor([0.0, 1.0]))
    assert float(found.sum()) == pytest.approx(1)
    assert bool((found >= 0).all())
    assert ndcg([right], relevant, found) == 1
    # The second source alone puts 2 before 0; a prior that already does all right is kept as it is.
    assert ndcg([right], relevant, torch.tensor([0.0, 1.0])) < 1
    assert fit_weights([right], relevant, torch.tensor([3.0, 1.0])).tolist() == [0.75, 0.25]


def test_a_grid_of_weights_is_tried_for_each_source():
    """Item 0 is to be first of request 0: a says so by 1 and b the opposite by 10. Of request 1 only b knows.

    So b may have less than a tenth of the weight of a, but not none: from the prior's halves, 0.02 is tried first.
    """
    told = requests([[0.0, -1.0], [-10.0, 0.0]], [[-1.0, -1.0], [-1.0, 0.0]])
    relevant = Ragged.of([[0], [1]])
    found = fit_weights([told], relevant, torch.tensor([2.0, 2.0]))
    assert found.tolist() == pytest.approx([0.5 / 0.52, 0.02 / 0.52])
    assert ndcg([told], relevant, found) == 1


@given(st.integers(0, 10**6))
def test_the_fusion_is_never_worse_than_the_prior_or_the_best_source(seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(4, width, 3, generator=generator) for width in (14, 8))
    items = [torch.arange(14).repeat(4, 1), torch.arange(8).repeat(4, 1)]
    items[1][:, :3] = PAD
    parts = list(zip(items, (first, second), strict=True))
    relevant = Ragged.of([[int(i) for i in torch.randperm(14, generator=generator)[:2]] for _ in range(8)])
    prior_S = torch.tensor([0.5, 0.3, 0.2])
    reached = ndcg(parts, relevant, fit_weights(parts, relevant, prior_S))
    assert reached >= max(ndcg(parts, relevant, start) for start in [prior_S, *torch.eye(3)]) - 1e-5


def test_relevant_items_that_nobody_proposed_count_as_missed():
    parts = requests([[0.0, -1.0], [-1.0, 0.0]])
    found = fit_weights([parts], Ragged.of([[1, 40, 41]]), torch.tensor([1.0, 0.0]))
    assert ndcg([parts], Ragged.of([[1, 40, 41]]), found) == pytest.approx(1 / (1 + SECOND + 0.5))
