"""CRAB: what is split, how, and what stays; the balanced parts against all partitions."""

from itertools import product

import pytest
import torch

from tesserec.errors import DataError
from tesserec.semantic_ids import add_items, build_semantic_ids, content_codes
from tesserec.semantic_ids.crab import CRAB, balanced_parts, tree_regulariser
from tesserec.semantic_ids.table import groups

# Ten codes at the middle level; code 3 has two kinds of next codes, 0 1 2 and 3 4 5
NEXT_VECTORS = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [5.0, 5.0], [5.1, 5.0], [5.0, 5.1], [9.0, 0.0]])
SIZES = (2, 10, 7)
POPULAR = [(i % 2, 3, i % 6) for i in range(24)]
OTHERS = [(i % 2, i % 10, i % 7) for i in range(30) if i % 10 != 3]
CODES = torch.tensor(POPULAR + OTHERS)
EVENTS = torch.tensor([10] * len(POPULAR) + [3] * len(OTHERS))


def table():
    return build_semantic_ids(CODES, SIZES, "f", popularity_N=EVENTS)


def test_two_kinds_of_next_codes_come_apart():
    found, split = CRAB(max_parts=2).split(table(), EVENTS, NEXT_VECTORS)
    assert found.codebook_sizes == (2, 11, 7, 16)
    assert split.split_S.tolist() == [3]
    assert split.parent_E.tolist() == [3]
    codes_NL = found.codes_NL[: len(POPULAR)]
    new_N = codes_NL[:, 1] == 10
    assert torch.equal(new_N, codes_NL[:, 2] >= 3) or torch.equal(new_N, codes_NL[:, 2] < 3)
    assert split.owner_SK[0, 6] in (3, 10)  # a next code without events has an owner, too


def test_everything_else_stays():
    before = table()
    found, split = CRAB(max_parts=4).split(before, EVENTS, NEXT_VECTORS)
    assert found.codebook_version != before.codebook_version
    assert found.table_revision == before.table_revision
    assert found.has_digit
    for level in (0, 2, 3):
        assert torch.equal(found.codes_NL[:, level], before.codes_NL[:, level])
    assert torch.equal(found.codes_NL[len(POPULAR) :], before.codes_NL[len(POPULAR) :])
    sizes = [found.codebook_sizes[:3], before.codebook_sizes[:3]]
    assert torch.equal(
        torch.bincount(groups(content_codes(found), sizes[0])).sort().values,
        torch.bincount(groups(content_codes(before), sizes[1])).sort().values,
    )
    # the way back
    parent_C = torch.cat([torch.arange(10), split.parent_E])
    assert torch.equal(parent_C[found.codes_NL[:, 1]], before.codes_NL[:, 1])


def test_popularity_is_more_equal_afterwards():
    before, (found, split) = table(), CRAB().split(table(), EVENTS, NEXT_VECTORS)
    shares = [torch.bincount(t.codes_NL[:, 1], weights=EVENTS.double()).max() / EVENTS.sum() for t in (before, found)]
    assert len(split.parent_E) == 3  # ⌈240 / mean⌉ parts, at most 4
    assert shares[1] < 0.5 * shares[0]
    again, _ = CRAB().split(table(), EVENTS, NEXT_VECTORS)
    assert torch.equal(again.codes_NL, found.codes_NL)
    assert again.codebook_version == found.codebook_version


@pytest.mark.parametrize("events", [torch.ones(len(CODES)), torch.zeros(len(CODES))])
def test_without_an_over_popular_code_the_table_is_the_same_object(events):
    codes_NL = torch.tensor([(0, i % 10, i % 7) for i in range(len(CODES))])
    before = build_semantic_ids(codes_NL, SIZES, "f")
    found, split = CRAB().split(before, events, NEXT_VECTORS)
    assert found is before
    assert split.recode(codes_NL) is codes_NL
    assert split.new_rows(torch.zeros(10, 2), torch.zeros(7, 2)).shape == (0, 2)
    assert float(tree_regulariser(torch.zeros(10, 2), torch.zeros(7, 2), codes_NL, split, torch.ones(10))) == 0


def test_a_code_with_a_single_next_code_cannot_be_split():
    codes_NL = torch.tensor([(0, 3, 5)] * 5 + [(0, i, 0) for i in range(10) if i != 3])
    before = build_semantic_ids(codes_NL, SIZES, "f")
    assert CRAB().split(before, torch.ones(14), NEXT_VECTORS)[0] is before


def test_later_items_go_to_the_part_of_their_next_code():
    found, split = CRAB(max_parts=2).split(table(), EVENTS, NEXT_VECTORS)
    later_ML = torch.tensor([[0, 3, 0], [1, 3, 5], [1, 4, 5]])
    recoded_ML = split.recode(later_ML)
    assert recoded_ML[:, [0, 2]].tolist() == later_ML[:, [0, 2]].tolist()
    like = [found.codes_NL[POPULAR.index((0, 3, 0)), 1], found.codes_NL[POPULAR.index((1, 3, 5)), 1], 4]
    assert recoded_ML[:, 1].tolist() == like
    grown = add_items(found, recoded_ML)
    assert grown.codebook_version == found.codebook_version
    assert grown.table_revision == found.table_revision + 1
    with pytest.raises(DataError, match=r"level 2 has codes in \[7, 7\], legal: \[0, 6\]"):
        split.recode(torch.tensor([[0, 3, 7]]))


def objective(points, weight, part, num_parts, balance):
    points = points - weight @ points
    points = points / (weight @ points.square().sum(1)).sqrt()
    cost = 0.0
    for p in range(num_parts):
        inside = part == p
        load = weight[inside].sum()
        if inside.any():
            mean = weight[inside] @ points[inside] / load
            cost += float(weight[inside] @ (points[inside] - mean).square().sum(1))
        cost += balance * float((load - 1 / num_parts) ** 2)
    return cost


@pytest.mark.parametrize("balance", [0.0, 1.0, 30.0])
def test_balanced_parts_against_all_partitions(balance):
    generator = torch.Generator().manual_seed(0)
    exact = 0
    for _ in range(10):
        points = torch.randn(6, 2, generator=generator).double() + 4 * (torch.arange(6)[:, None] % 2)
        weight = torch.rand(6, generator=generator).double()
        weight = weight / weight.sum()
        found = balanced_parts(points, weight, 2, balance)
        cost = objective(points, weight, found, 2, balance)
        for point in range(6):  # no single move is better
            moved = found.clone()
            moved[point] = 1 - moved[point]
            assert objective(points, weight, moved, 2, balance) >= cost - 1e-9
        best = min(objective(points, weight, torch.tensor(p), 2, balance) for p in product(range(2), repeat=6))
        exact += cost < best + 1e-9
    assert exact >= 5


def test_rounds_are_limited():
    points, weight = torch.randn(40, 2).double(), torch.full((40,), 1 / 40).double()
    costs = [objective(points, weight, balanced_parts(points, weight, 4, 30.0, n), 4, 30.0) for n in (1, 2, 20)]
    assert costs[0] >= costs[1] >= costs[2]


def test_balance_makes_loads_equal():
    points = torch.tensor([[0.0], [0.1], [0.2], [9.0]]).double()
    weight = torch.full((4,), 0.25).double()
    assert balanced_parts(points, weight, 2, 0.0).bincount().sort().values.tolist() == [1, 3]
    assert balanced_parts(points, weight, 2, 100.0).bincount().tolist() == [2, 2]


def test_new_rows_are_the_parents_moved_by_their_next_codes():
    _, split = CRAB(max_parts=2).split(table(), EVENTS, NEXT_VECTORS)
    rows_CD, next_KD = torch.arange(20.0).view(10, 2), NEXT_VECTORS.clone()
    own = [k for k in range(6) if split.owner_SK[0, k] == 10]
    expected = rows_CD[3] + next_KD[own].mean(0) - next_KD[:6].mean(0)  # all next codes have as many events
    assert torch.allclose(split.new_rows(rows_CD, next_KD), expected[None])
    with pytest.raises(DataError, match="embeddings of 2 and 3 features"):
        split.new_rows(rows_CD, torch.zeros(7, 3))


def test_the_regulariser_by_hand():
    found, split = CRAB(max_parts=2).split(table(), EVENTS, NEXT_VECTORS)
    torch.manual_seed(0)
    rows_CD, next_KD = torch.randn(11, 4, requires_grad=True), torch.randn(7, 4)
    events_C = torch.bincount(found.codes_NL[:, 1], weights=EVENTS.double(), minlength=11)
    mean = (rows_CD[3] + rows_CD[10]) / 2
    average = (events_C[3] + events_C[10]) / 2
    expected = sum((rows_CD[c] - mean).square().sum() * average / events_C[c] for c in (3, 10)) / 2
    pairs = {(c, k) for _, c, k, _ in found.codes_NL.tolist() if c in (3, 10)}
    expected = expected + sum((next_KD[k] - rows_CD[c]).square().sum() for c, k in pairs) / len(pairs)
    loss = tree_regulariser(rows_CD, next_KD, found.codes_NL, split, events_C)
    assert torch.allclose(loss, expected.float())
    loss.backward()
    assert rows_CD.grad[[3, 10]].abs().min() > 0
    assert not rows_CD.grad[:3].any()
    with pytest.raises(DataError, match="10 and 7 embeddings for 11 codes and 7 next codes"):
        tree_regulariser(rows_CD[:10], next_KD, found.codes_NL, split, events_C)


def test_levels_share_and_bounds():
    with pytest.raises(DataError, match="level 2 of 3 levels of content has no next level"):
        CRAB(level=2).split(table(), EVENTS, NEXT_VECTORS)
    one_level = build_semantic_ids(torch.zeros(3, 1).long(), (2,), "f")
    with pytest.raises(DataError, match="level 0 of 1 levels"):
        CRAB().split(one_level, torch.ones(3), NEXT_VECTORS)
    with pytest.raises(DataError, match="expected \\[7, features\\]"):
        CRAB().split(table(), EVENTS, NEXT_VECTORS[:3])
    with pytest.raises(DataError, match="next_vectors_KD holds NaN"):
        CRAB().split(table(), EVENTS, NEXT_VECTORS.where(NEXT_VECTORS < 9, torch.nan))
    with pytest.raises(DataError, match="popularity_N holds NaN"):
        CRAB().split(table(), EVENTS * torch.nan, NEXT_VECTORS)
    with pytest.raises(DataError, match=r"popularity_N has shape \(1,\)"):
        CRAB().split(table(), EVENTS[:1], NEXT_VECTORS)
    first, _ = CRAB(level=0, over_popular=1.0).split(table(), EVENTS + 100 * (CODES[:, 0] == 0), torch.randn(10, 3))
    assert first.codebook_sizes == (3, 10, 7, 16)
