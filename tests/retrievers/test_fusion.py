import math

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.retrievers.fusion import NUM_GROUPS, fit_weights, fused, groups_of, union
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


def ndcg(parts, relevant, weights_GS, group_N):
    """Mean NDCG@10 of the fused lists."""
    values = []
    for items_BX, evidence_BXS in parts:
        weights_BXS = weights_GS[group_N[items_BX.clamp(min=0)]]
        names = ("a", "b", "c")[: weights_GS.shape[1]]
        for items in fused(items_BX, evidence_BXS, weights_BXS, names, 10).items_BK.tolist():
            wanted = set(relevant[len(values)].tolist())
            gain = sum(1 / math.log2(place + 2) for place, item in enumerate(items) if item in wanted)
            values.append(gain / sum(1 / math.log2(place + 2) for place in range(min(len(wanted), 10))))
    return sum(values) / len(values)


def test_weights_may_differ_by_candidate():
    items_BX, evidence_BXS = torch.tensor([[3, 5]]), torch.tensor([[[-1.0, -2.0], [-2.0, -1.0]]])
    found = fused(items_BX, evidence_BXS, torch.tensor([[[1.0, 0.0], [0.0, 0.25]]]), ("a", "b"), 2)
    assert found.items_BK.tolist() == [[5, 3]]
    assert found.scores_BK.tolist() == [[-0.25, -1.0]]


def test_groups_are_of_training_events():
    events = [0, 1, 2, 3, 7, 8, 19, 20, 500]
    assert groups_of(torch.tensor(events)).tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert NUM_GROUPS == 5


def test_each_group_gets_the_source_that_knows_it():
    """Of 200 requests half want an item of group 4, which only source a knows, half one of group 0, which b knows."""
    generator = torch.Generator().manual_seed(0)
    group_N = torch.tensor([4] * 20 + [0] * 20)
    wanted_B = torch.cat([torch.arange(100) % 20, 20 + torch.arange(100) % 20])
    evidence_BXS = torch.randn(200, 40, 2, generator=generator)
    evidence_BXS[torch.arange(200), wanted_B, (torch.arange(200) >= 100).long()] += 3
    parts, relevant = (
        [(torch.arange(40).repeat(200, 1), evidence_BXS)],
        Ragged.of([[item] for item in wanted_B.tolist()]),
    )
    found_GS = fit_weights(parts, relevant, torch.tensor([0.5, 0.5]), group_N)
    assert found_GS[4, 0] > 4 * found_GS[4, 1].abs()
    assert found_GS[0, 1] > 4 * found_GS[0, 0].abs()
    shared_GS = torch.tensor([[0.5, 0.5]]).expand(NUM_GROUPS, -1)
    assert ndcg(parts, relevant, found_GS, group_N) > ndcg(parts, relevant, shared_GS, group_N) + 0.1
    torch.testing.assert_close(found_GS[2], found_GS[[0, 4]].mean(0), atol=0.5, rtol=0)  # nobody asked for group 2


def test_evidence_of_padding_says_nothing_of_the_weights():
    items_BX, evidence_BXS = requests([[0.0, -1.0], [-10.0, 0.0]], [[-1.0, -1.0], [-1.0, 0.0]])
    padded = F.pad(items_BX, (1, 0), value=PAD), F.pad(evidence_BXS, (0, 0, 1, 0), value=-INF)
    relevant, prior_S, group_N = Ragged.of([[0], [1]]), torch.tensor([0.5, 0.5]), torch.zeros(2, dtype=torch.int64)
    found_GS = fit_weights([padded], relevant, prior_S, group_N)
    torch.testing.assert_close(found_GS, fit_weights([(items_BX, evidence_BXS)], relevant, prior_S, group_N))


def test_a_source_whose_prior_is_nothing_gets_no_weight():
    told = requests([[0.0, -1.0], [-10.0, 0.0]], [[-1.0, -1.0], [-1.0, 0.0]])
    found_GS = fit_weights([told], Ragged.of([[0], [1]]), torch.tensor([0.0, 1.0]), torch.zeros(2, dtype=torch.int64))
    assert not found_GS[:, 0].any()
    assert found_GS[:, 1].all()


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_the_fusion_is_never_worse_than_the_prior_or_the_best_source(seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(4, width, 3, generator=generator) for width in (14, 8))
    items = [torch.arange(14).repeat(4, 1), torch.arange(8).repeat(4, 1)]
    items[1][:, :3] = PAD
    parts = list(zip(items, (first, second), strict=True))
    relevant = Ragged.of([[int(i) for i in torch.randperm(14, generator=generator)[:2]] for _ in range(8)])
    prior_S, group_N = torch.tensor([0.5, 0.3, 0.2]), torch.arange(14) % NUM_GROUPS
    reached = ndcg(parts, relevant, fit_weights(parts, relevant, prior_S, group_N), group_N)
    simple = [start_S.expand(NUM_GROUPS, -1) for start_S in (prior_S, *torch.eye(3))]
    assert reached >= max(ndcg(parts, relevant, start_GS, group_N) for start_GS in simple) - 1e-5


def test_where_nothing_relevant_was_proposed_the_prior_stays():
    parts = requests([[0.0, -1.0], [-1.0, 0.0]])
    prior_S = torch.tensor([1.0, 0.5])
    found_GS = fit_weights([parts], Ragged.of([[40, 41]]), prior_S, torch.zeros(42, dtype=torch.int64))
    torch.testing.assert_close(found_GS, prior_S.expand(NUM_GROUPS, -1))
