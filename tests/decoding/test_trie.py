import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.decoding.trie import Trie, TrieMask, contains
from tesserec.errors import DataError
from tesserec.testing.data import requests_of
from tesserec.testing.decoding import random_semantic_ids
from tesserec.types import SemanticIds

# Seven items, five tuples: (0 0 1): 5 · (0 2 0): 3, 0 · (0 2 3): 1 · (2 0 0): 2 · (2 0 1): 4, 6
CODES = [[0, 2, 0], [0, 2, 3], [2, 0, 0], [0, 2, 0], [2, 0, 1], [0, 0, 1], [2, 0, 1]]


def table(codes=CODES, sizes=(3, 3, 4)):
    return SemanticIds(torch.tensor(codes), sizes, "test")


def tolists(tensors):
    return [tensor.tolist() for tensor in tensors]


def test_arrays_of_a_small_trie():
    trie = Trie.build(table())
    assert tolists(trie.child_codes) == [[0, 2], [0, 2, 0], [1, 0, 3, 0, 1]]
    assert tolists(trie.child_offsets) == [[0, 2], [0, 2, 3], [0, 1, 3, 5]]
    assert tolists(trie.num_leaves_below) == [[5], [3, 2], [1, 2, 2], [1, 1, 1, 1, 1]]
    assert trie.max_branching == (2, 2, 2)
    assert trie.buckets.values.tolist() == [5, 0, 3, 1, 2, 4, 6]
    assert trie.buckets.offsets.tolist() == [0, 1, 3, 4, 5, 7]
    assert trie.paths_NL.tolist() == [[0, 1, 1], [0, 1, 2], [1, 2, 3], [0, 1, 1], [1, 2, 4], [0, 0, 0], [1, 2, 4]]
    assert (trie.num_levels, trie.num_items) == (3, 7)
    assert [trie.num_nodes(depth) for depth in range(4)] == [1, 2, 3, 5]
    assert trie.device == torch.device("cpu")


def test_a_later_code_that_stays_does_not_join_two_prefixes():
    trie = Trie.build(table([[0, 1], [1, 1], [2, 1]], (3, 2)))
    assert tolists(trie.child_codes) == [[0, 1, 2], [1, 1, 1]]
    assert tolists(trie.child_offsets) == [[0, 3], [0, 1, 2, 3]]
    assert trie.max_branching == (3, 1)


def test_buckets_are_in_order_of_popularity_then_index():
    popularity = torch.tensor([1.0, 0, 0, 2.0, 5.0, 9.0, 5.0])
    trie = Trie.build(table(), popularity)
    assert trie.buckets.values.tolist() == [5, 3, 0, 1, 2, 4, 6]
    assert Trie.build(table(), torch.arange(7)).buckets.values.tolist() == [5, 3, 0, 1, 2, 6, 4]


def test_children_are_padded_and_nothing_is_below_no_node():
    trie = Trie.build(table())
    nodes, codes = trie.children(1, torch.tensor([[0, 1], [-1, 0]]))
    assert nodes.tolist() == [[[0, 1], [2, -1]], [[-1, -1], [0, 1]]]
    assert codes.tolist() == [[[0, 2], [0, -1]], [[-1, -1], [0, 2]]]
    nodes, codes = trie.children(2, torch.tensor([2, 0]))
    assert nodes.tolist() == [[3, 4], [0, -1]]
    assert codes.tolist() == [[0, 1], [1, -1]]


def test_a_moved_trie_is_the_same():
    trie = Trie.build(table())
    moved = trie.to("cpu")
    assert moved.children(0, torch.zeros(1, dtype=torch.int64))[1].tolist() == [[0, 2]]
    for name in ("child_offsets", "child_codes", "num_leaves_below"):
        assert tolists(getattr(moved, name)) == tolists(getattr(trie, name))
    assert moved.buckets.values.tolist() == trie.buckets.values.tolist()
    assert moved.paths_NL.tolist() == trie.paths_NL.tolist()


def test_unavailable_items_close_what_they_empty_for_everybody():
    mask = TrieMask.of(Trie.build(table()), requests_of([[]], available=[False, True, False, True, False, True, False]))
    assert tolists(mask.open_nodes) == [[True, False], [True, True, False], [True, True, True, False, False]]
    assert tolists(mask.closed_keys) == [[], [], []]


def test_a_bucket_is_closed_only_when_all_of_it_is_excluded():
    trie = Trie.build(table())
    requests = requests_of([[[4]], [[4, 4], [6]], [[4]]], exclude_history=True, excluded=[[], [5], [6, 2, 2]])
    mask = TrieMask.of(trie, requests)
    assert tolists(mask.open_nodes) == [[True] * 2, [True] * 3, [True] * 5]
    assert tolists(mask.closed_keys) == [
        [2 * 2 + 1],
        [1 * 3 + 0, 2 * 3 + 2],
        [1 * 5 + 0, 1 * 5 + 4, 2 * 5 + 3, 2 * 5 + 4],
    ]
    nodes = torch.tensor([[0, 1, -1]] * 3)
    assert mask.allows(0, nodes).tolist() == [[True, True, False], [True, True, False], [True, False, False]]
    nodes = torch.tensor([[[0, 3], [4, -1]]] * 3)
    assert mask.allows(2, nodes).tolist() == [
        [[True, True], [True, False]],
        [[False, True], [False, False]],
        [[True, False], [False, False]],
    ]


def test_exclusions_and_unavailable_items_together_close_a_bucket():
    trie = Trie.build(table())
    mask = TrieMask.of(trie, requests_of([[]], excluded=[[4, 2]], available=[True] * 6 + [False]))
    assert tolists(mask.closed_keys) == [[1], [2], [3, 4]]
    mask = TrieMask.of(trie, requests_of([[]], excluded=[[6]], available=[True] * 6 + [False]))
    assert tolists(mask.closed_keys) == [[], [], []]


def test_a_filter_of_another_catalog_is_refused():
    with pytest.raises(DataError, match=r"available_N has shape \(6,\), expected \(7,\)"):
        TrieMask.of(Trie.build(table()), requests_of([[]], available=[True] * 6))


def test_contains_looks_at_both_ends():
    keys = torch.tensor([2, 5])
    assert contains(keys, torch.tensor([[1, 2], [5, 6]])).tolist() == [[False, True], [True, False]]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 14), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 10_000))
def test_every_prefix_has_the_children_of_a_dictionary(num_items, sizes, seed):
    codes = random_semantic_ids(num_items, tuple(sizes), torch.Generator().manual_seed(seed))
    trie = Trie.build(codes)
    prefixes = {(): torch.tensor(0)}
    tuples = [tuple(row) for row in codes.codes_NL.tolist()]
    for level in range(len(sizes)):
        below = {}
        for prefix, node in prefixes.items():
            nodes, choices = trie.children(level, node)
            expected = sorted({row[level] for row in tuples if row[:level] == prefix})
            padding = [-1] * (trie.max_branching[level] - len(expected))
            assert choices.tolist() == expected + padding
            assert nodes.tolist()[len(expected) :] == padding
            below |= {(*prefix, code): child for code, child in zip(expected, nodes, strict=False)}
            assert int(trie.num_leaves_below[level][node]) == len({row for row in tuples if row[:level] == prefix})
        prefixes = below
        assert [int(node) for node in prefixes.values()] == list(range(trie.num_nodes(level + 1)))
        assert trie.paths_NL[:, level].tolist() == [int(prefixes[row[: level + 1]]) for row in tuples]
    assert [trie.buckets[int(leaf)].tolist() for leaf in prefixes.values()] == [
        [item for item, row in enumerate(tuples) if row == leaf] for leaf in prefixes
    ]
