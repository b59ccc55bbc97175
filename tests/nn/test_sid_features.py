"""SIDs as features: keys, rows and merges by brute force; a planted pattern over held-out items; bad input."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tesserec.errors import DataError, VersionMismatchError
from tesserec.nn.sid_features import SIDFeatures, SIDKeys, learn_pieces
from tesserec.types import SemanticIds

SIZES = (3, 4, 5)
KINDS = ("codes", "ngrams", "prefixes", "memory", "pieces")


def ids(num_items=40, has_digit=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (*SIZES, 16) if has_digit else SIZES
    codes_NL = torch.stack([torch.randint(size, (num_items,), generator=generator) for size in sizes], 1)
    return SemanticIds(codes_NL, sizes, "books", has_digit=has_digit)


def features(kind, semantic_ids=None, width=4, host_width=None, **settings):
    semantic_ids = ids() if semantic_ids is None else semantic_ids
    merges_M2 = learn_pieces(semantic_ids, torch.arange(len(semantic_ids)), 10) if kind == "pieces" else None
    keys = SIDKeys(kind=kind, **settings)
    return SIDFeatures(semantic_ids, keys, width, merges_M2=merges_M2, host_width=host_width)


SPANS = {
    "codes": [(0, 1), (1, 2), (2, 3)],
    "ngrams": [(0, 2), (1, 3)],
    "prefixes": [(0, 1), (0, 2), (0, 3)],
    "memory": [(0, 1), (1, 2), (0, 2), (2, 3), (1, 3), (0, 3)],
}


@pytest.mark.parametrize("kind", SPANS)
def test_a_vector_is_the_sum_of_the_rows_of_its_keys(kind):
    table = ids()
    made = features(kind, table)
    assert made.spans == SPANS[kind]
    starts = {}
    for span in made.spans:
        starts[span] = sum(torch.tensor(SIZES[a:b]).prod() for a, b in list(starts))
    for item, codes in enumerate(table.codes_NL.tolist()):
        expected = torch.zeros(4)
        for first, end in made.spans:
            key = 0
            for level in range(first, end):
                key = key * SIZES[level] + codes[level]
            expected += made.rows.weight[starts[first, end] + key]
        assert torch.allclose(made(torch.tensor([item])), expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_items_table_and_codes_agree(kind):
    table = ids()
    made = features(kind, table)
    items = torch.tensor([[1, 2, 3], [39, 0, 0]])
    assert made(items).shape == (2, 3, 4)
    assert torch.equal(made(items), made.table()[items])
    assert torch.allclose(made.of_codes(table.codes_NL[items]), made(items))
    made.table().sum().backward()
    assert made.rows.weight.grad[-1].tolist() == [0.0] * 4


def test_depth_one_prefixes_are_single_codes():
    one_level = SemanticIds(ids().codes_NL[:, :1], SIZES[:1], "books")
    torch.manual_seed(0)
    codes = features("codes", one_level)
    for kind in ("prefixes", "memory", "ngrams"):
        torch.manual_seed(0)
        assert torch.equal(features(kind, one_level).table(), codes.table())
    torch.manual_seed(0)
    first = features("prefixes", max_depth=1)
    assert torch.equal(first.row_NK, ids().codes_NL[:, :1])
    assert SIDKeys(kind="memory", max_depth=1).spans(3) == SIDKeys(kind="codes").spans(3)


def test_a_depth_that_does_nothing_is_a_warning():
    with pytest.warns(UserWarning, match="max_depth = 2 does nothing to keys of kind 'codes'"):
        SIDKeys(kind="codes", max_depth=2)


def test_the_digit_is_no_key():
    with_digit = features("prefixes", ids(has_digit=True))
    assert with_digit.sizes == SIZES
    assert with_digit.row_NK.shape == (40, 3)


def test_hashed_tables_stay_small_and_collisions_are_counted():
    table = ids(num_items=60)
    exact = features("prefixes", table)
    assert exact.num_rows == 3 + 12 + 60
    distinct = [len(torch.unique(table.codes_NL[:, :d], dim=0)) for d in (1, 2, 3)]
    assert exact.collisions() == {f"0:{d}": (distinct[d - 1], 0) for d in (1, 2, 3)}
    hashed = features("prefixes", table, max_rows=8, num_hashes=2)
    assert hashed.num_rows == 3 + 16 + 16
    assert hashed.row_NK.shape == (60, 5)
    rows_of = {}
    for codes, row in zip(table.codes_NL[:, :2].tolist(), hashed.row_NK[:, 1:3].tolist(), strict=True):
        rows_of[tuple(codes)] = tuple(row)
    shared = sum(list(rows_of.values()).count(row) > 1 for row in rows_of.values())
    assert hashed.collisions()["0:2"] == (distinct[1], shared)
    one = features("prefixes", table, max_rows=8).collisions()
    assert one["0:3"][1] > hashed.collisions()["0:3"][1] > 0  # two hashes part most keys that one confuses


def test_hashes_spread_evenly_and_are_the_same_everywhere():
    codes_NL = torch.cartesian_prod(torch.arange(64), torch.arange(64))
    made = features("ngrams", SemanticIds(codes_NL, (64, 64), "books"), max_rows=64)
    counts = torch.bincount(made.row_NK[:, 0], minlength=64).double()
    assert float(((counts - 64).square() / 64).sum()) < 110  # χ² with 63 degrees of freedom
    assert made.row_NK[:200, 0].tolist() == [hashed_by_hand(codes, 1) % 64 for codes in codes_NL[:200].tolist()]


def hashed_by_hand(codes, number):
    """SplitMix64's finisher after each code, in Python's unbounded integers."""
    state, full = number, (1 << 64) - 1
    for code in codes:
        state = (state * 0x9E3779B97F4A7C15 + code + 1) & full
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & full
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & full
        state ^= state >> 31
    return state - (1 << 64) if state >> 63 else state


def test_levels_are_the_keys_that_end_there_and_know_nothing_of_later_codes():
    table = ids()
    made = features("memory", table)
    whole = made.levels(table.codes_NL)
    assert whole.shape == (40, 3, 4)
    assert torch.allclose(whole.sum(1), made.table(), atol=1e-6)
    for length in (1, 2):
        assert torch.allclose(made.levels(table.codes_NL[:, :length]), whole[:, :length])
    beams = made.levels(table.codes_NL.view(4, 10, 3)[..., :2])
    assert torch.equal(beams.view(40, 2, 4), made.levels(table.codes_NL[:, :2]))
    bigrams = features("ngrams").levels(table.codes_NL)
    assert not bigrams[:, 0].any()
    assert not features("ngrams").levels(table.codes_NL[:, :1]).any()


def test_a_host_starts_as_it_was():
    made = features("memory", host_width=7)
    assert made.levels(ids().codes_NL).shape == (40, 3, 7)
    assert not made.levels(ids().codes_NL).any()
    assert not made.table().any()
    made.of_codes(ids().codes_NL[:3]).sum().backward()
    assert made.host.weight.grad.any()


def merges_by_brute_force(codes_NL, weights, num_merges):
    starts = [0, SIZES[0], SIZES[0] + SIZES[1]]
    rows = [[start + code for start, code in zip(starts, codes, strict=True)] for codes in codes_NL.tolist()]
    merges = []
    while len(merges) < num_merges:
        events = {}
        for row, weight in zip(rows, weights, strict=True):
            for at in range(len(row) - 1):
                pair = (row[at], row[at + 1])
                events[pair] = events.get(pair, 0) + weight
        if not events or not max(events.values()):
            break
        best = min(events, key=lambda pair: (-events[pair], pair))
        piece = sum(SIZES) + len(merges)
        for row in rows:
            for at in range(len(row) - 1):
                if (row[at], row[at + 1]) == best:
                    row[at : at + 2] = [piece]
                    break
        merges.append(best)
    return merges, rows


@pytest.mark.parametrize("num_merges", [0, 1, 7, 1000])
def test_pieces_are_those_of_brute_force(num_merges):
    table = ids(num_items=80)
    weights = torch.randint(0, 5, (80,), generator=torch.Generator().manual_seed(1))
    merges_M2 = learn_pieces(table, weights, num_merges)
    expected, rows = merges_by_brute_force(table.codes_NL, weights.tolist(), num_merges)
    assert merges_M2.tolist() == [list(pair) for pair in expected]
    made = SIDFeatures(table, SIDKeys(kind="pieces"), 4, merges_M2=merges_M2)
    padding = sum(SIZES) + len(expected)
    assert made.row_NK.tolist() == [row + [padding] * (3 - len(row)) for row in rows]
    assert made.collisions() == {}


def test_popular_items_are_one_piece_and_rare_ones_share():
    codes_NL = torch.tensor([[0, 0, 0]] * 9 + [[1, 1, 1], [1, 2, 1], [2, 1, 2]])
    table = SemanticIds(codes_NL, SIZES, "books")
    merges_M2 = learn_pieces(table, torch.tensor([100.0] * 9 + [1.0, 1.0, 0.0]), 2)
    made = SIDFeatures(table, SIDKeys(kind="pieces"), 4, merges_M2=merges_M2)
    used = (made.row_NK < made.num_rows).sum(1)
    assert used[:9].tolist() == [1] * 9
    assert used[9:].tolist() == [3] * 3


def test_there_are_no_merges_without_neighbours_or_events():
    one_level = SemanticIds(ids().codes_NL[:, :1], SIZES[:1], "books")
    assert learn_pieces(one_level, torch.ones(40), 5).shape == (0, 2)
    assert learn_pieces(ids(), torch.zeros(40), 5).shape == (0, 2)
    whole = SemanticIds(torch.tensor([[0, 0, 0]]), SIZES, "books")
    assert learn_pieces(whole, torch.ones(1), 5).tolist() == [[0, 3], [12, 7]]


def test_later_items_of_the_codebook_are_known():
    table = ids()
    made = features("prefixes", table)
    before = made.table()
    later = SemanticIds(torch.cat([table.codes_NL, table.codes_NL[:1]]), SIZES, "books", 1)
    made.with_items(later)
    assert torch.equal(made.table()[:40], before)
    assert torch.equal(made(torch.tensor(40)), before[0])
    assert sorted(made.state_dict()) == ["merges_M2", "rows.weight"]


def test_what_does_not_fit_is_refused():
    made = features("prefixes")
    with pytest.raises(VersionMismatchError, match="version other, these features were made for books"):
        made.with_items(SemanticIds(ids().codes_NL, SIZES, "other"))
    with pytest.raises(DataError, match=r"level 2 has codes in \[5, 5\], legal: \[0, 4\]"):
        made.of_codes(torch.tensor([0, 0, 5]))
    with pytest.raises(DataError, match="codes have 2 levels, the features 3"):
        made.of_codes(torch.tensor([[0, 0]]))
    with pytest.raises(DataError, match="codes have 4 levels, the features 3: leave out the digit"):
        made.levels(torch.zeros(1, 4).long())
    with pytest.raises(DataError, match="pieces need merges"):
        SIDFeatures(ids(), SIDKeys(kind="pieces"), 4)
    with pytest.raises(DataError, match="others none"):
        SIDFeatures(ids(), SIDKeys(), 4, merges_M2=torch.zeros(0, 2).long())
    with pytest.raises(DataError, match="level by level"):
        features("pieces").levels(ids().codes_NL)
    for popularity in (torch.ones(3), torch.full((40,), torch.nan), -torch.ones(40)):
        with pytest.raises(DataError, match="a finite count of at least 0 an item"):
            learn_pieces(ids(), popularity, 3)


class HashedItems(nn.Module):
    """The same size of table, but rows by a random hash of the item's index."""

    def __init__(self, num_items, num_rows, width):
        super().__init__()
        self.row_N = torch.randint(num_rows, (num_items,))
        self.rows = nn.Embedding(num_rows, width)
        nn.init.normal_(self.rows.weight, std=0.5 * width**-0.5)

    def forward(self, items):
        return self.rows(self.row_N[items])

    def table(self):
        return self.rows(self.row_N)


def catalog():
    """6 × 6 prefixes with eight items each; one item of every prefix is held out of training."""
    codes_NL = torch.cartesian_prod(torch.arange(6), torch.arange(6), torch.arange(8))
    table = SemanticIds(codes_NL, (6, 6, 8), "books")
    held_out = torch.arange(36) * 8 + torch.arange(36) % 8
    return table, held_out


def next_item_rank(items, held_out, follower):
    """Mean rank, from 0 to 1, of held-out items after a step of ``follower``, by a tiny dense retriever."""
    num_items = 288
    known = torch.tensor(sorted(set(range(num_items)) - set(held_out.tolist())))
    step = nn.Linear(16, 16)
    optimizer = torch.optim.Adam([*items.parameters(), *step.parameters()], lr=0.03)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        now = known[torch.randint(len(known), (128,), generator=generator)]
        after = follower[now // 8] * 8 + torch.randint(8, (128,), generator=generator)
        seen = torch.isin(after, known)
        scores = 4 * step(items(now[seen])) @ items.table()[known].T
        loss = F.cross_entropy(scores, torch.searchsorted(known, after[seen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        scores = step(items(held_out)) @ items.table().T
        target = scores.gather(1, (follower[held_out // 8] * 8)[:, None] + torch.arange(8))
        target = target[torch.isin((follower[held_out // 8] * 8)[:, None] + torch.arange(8), held_out)]
    return float((scores > target[:, None]).double().mean())


@pytest.mark.parametrize("kind", ["prefixes", "memory", "ngrams"])
def test_held_out_items_behave_like_their_prefix_which_hashing_of_ids_cannot_know(kind):
    torch.manual_seed(0)
    table, held_out = catalog()
    follower = torch.randperm(36)
    made = SIDFeatures(table, SIDKeys(kind=kind), 16)
    assert next_item_rank(made, held_out, follower) < 0.06
    assert next_item_rank(HashedItems(288, made.num_rows, 16), held_out, follower) > 0.25


def test_an_interaction_of_two_codes_needs_a_key_of_both():
    torch.manual_seed(0)
    table, held_out = catalog()
    label_N = ((table.codes_NL[:, 0] + table.codes_NL[:, 1]) % 2).float()  # neither code alone says anything
    known = torch.ones(288, dtype=torch.bool)
    known[held_out] = False
    accuracy = {}
    for kind in ("codes", "prefixes", "pieces"):
        merges_M2 = learn_pieces(table, known, 36) if kind == "pieces" else None
        made = SIDFeatures(table, SIDKeys(kind=kind), 8, merges_M2=merges_M2)
        read = nn.Linear(8, 1)
        optimizer = torch.optim.Adam([*made.parameters(), *read.parameters()], lr=0.05)
        for _ in range(60):
            loss = F.binary_cross_entropy_with_logits(read(made.table())[known, 0], label_N[known])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        accuracy[kind] = float(((read(made(held_out))[:, 0] > 0) == (label_N[held_out] > 0)).double().mean())
    assert accuracy["prefixes"] > 0.95
    assert accuracy["pieces"] > 0.95
    assert accuracy["codes"] < 0.75
