import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.decoding.trie import Trie
from tesserec.errors import DataError
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
    assert tolists(trie.item_bounds) == [[0, 7], [0, 4, 7], [0, 1, 4, 7], [0, 1, 3, 4, 5, 7]]
    assert trie.max_branching == (2, 2, 2)
    assert trie.items.tolist() == [5, 0, 3, 1, 2, 4, 6]
    assert trie.leaf_N.tolist() == [1, 2, 3, 1, 4, 0, 4]
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
    assert trie.items.tolist() == [5, 3, 0, 1, 2, 4, 6]
    assert Trie.build(table(), torch.arange(7)).items.tolist() == [5, 3, 0, 1, 2, 6, 4]


@pytest.mark.parametrize("shape", [(6,), (8,), (7, 1)])
def test_a_popularity_of_other_items_is_refused(shape):
    with pytest.raises(DataError, match=r"^popularity_N has shape \(.*\), expected \(7,\): give one number an item$"):
        Trie.build(table(), torch.zeros(shape))


def test_a_popularity_that_is_no_number_is_refused():
    with pytest.raises(DataError, match=r"^the popularity of item 2 is NaN: give 0 where it is not known$"):
        Trie.build(table(), torch.tensor([1.0, 0, torch.nan, 2.0, 5.0, 9.0, 5.0]))


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
    for name, tensor in trie.tensors().items():
        assert moved.tensors()[name].tolist() == tensor.tolist()
    assert (moved.order, moved.codebook_sizes) == (trie.order, trie.codebook_sizes)


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
            first, end = trie.item_bounds[level][node : node + 2].tolist()
            assert sorted(trie.items[first:end].tolist()) == [
                i for i, row in enumerate(tuples) if row[:level] == prefix
            ]
            assert trie.node_of(prefix) == node
        prefixes = below
        assert [int(node) for node in prefixes.values()] == list(range(trie.num_nodes(level + 1)))
        assert trie.paths_NL[:, level].tolist() == [int(prefixes[row[: level + 1]]) for row in tuples]
    leaves = torch.arange(trie.num_nodes(len(sizes)))
    assert trie.codes_of(leaves).tolist() == [list(prefix) for prefix in prefixes]


def test_a_prefix_that_no_item_has_is_refused_and_has_its_place():
    trie = Trie.build(table())
    with pytest.raises(DataError, match=r"^no item's codes begin with \(0, 1\): give a prefix"):
        trie.node_of([0, 1])
    with pytest.raises(DataError, match=r"^a prefix of 4 codes, expected at most 3: items have no more$"):
        trie.node_of([0, 2, 0, 0])
    nodes, places = trie.find(2, torch.tensor([[0, 1], [0, 2], [1, 0], [2, 2]]))
    assert nodes.tolist() == [-1, 1, -1, -1]
    assert places.tolist() == [1, 1, 2, 3]
    assert trie.codes_of(torch.tensor([[3, -1]])).tolist() == [[[2, 0, 0], [-1, -1, -1]]]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 14), st.permutations([0, 1, 2]), st.integers(0, 10_000))
def test_levels_may_be_filled_in_another_order(num_items, order, seed):
    codes = random_semantic_ids(num_items, (3, 2, 4), torch.Generator().manual_seed(seed))
    trie = Trie.build(codes, order=order)
    permuted = SemanticIds(codes.codes_NL[:, order], tuple((3, 2, 4)[level] for level in order), "permuted")
    expected = Trie.build(permuted)
    assert tolists(trie.child_codes) == tolists(expected.child_codes)
    assert trie.items.tolist() == expected.items.tolist()
    assert (trie.codes_of(trie.leaf_N.long()) == codes.codes_NL).all()


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [0, 1, 3]])
def test_an_order_names_each_level_once(order):
    with pytest.raises(ValueError, match=r"^order = \(.*\): give each of the levels 0 … 2 once$"):
        Trie.build(table(), order=order)


def test_rows_of_children_are_the_same_with_and_without_a_table():
    codes = random_semantic_ids(200, (5, 300, 3), torch.Generator().manual_seed(0))
    trie, rows = Trie.build(codes), Trie.build(codes)
    rows.__dict__["dense_rows"] = (None, None, None)
    assert all(table is not None for table in trie.dense_rows)
    for level in range(3):
        nodes = torch.arange(-1, trie.num_nodes(level))
        for table_side, rows_side in zip(trie.children(level, nodes), rows.children(level, nodes), strict=True):
            assert table_side.tolist() == rows_side.tolist()


def test_tuples_of_more_than_63_bits_are_sorted_too():
    sizes = (2**15, 2**15, 2**15, 2**15, 2**15)
    codes = random_semantic_ids(50, sizes, torch.Generator().manual_seed(0))
    trie = Trie.build(codes)
    assert [tuple(row) for row in codes.codes_NL[trie.items.long()].tolist()] == sorted(
        map(tuple, codes.codes_NL.tolist())
    )
    assert trie.child_codes[0].dtype == torch.int16
