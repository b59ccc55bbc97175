import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_updates import with_items, without_items
from tesserec.errors import DataError
from tesserec.testing.decoding import random_semantic_ids, updated_at_random
from tesserec.types import SemanticIds

TRIE = Trie.build(SemanticIds(torch.tensor([[0, 1], [2, 0], [0, 1]]), (3, 2), "test"))


def same(trie, other):
    return {name: tensor.tolist() for name, tensor in trie.tensors().items()} == {
        name: tensor.tolist() for name, tensor in other.tensors().items()
    }


def test_new_items_are_last_in_their_bucket():
    trie = with_items(TRIE, torch.tensor([[0, 1], [1, 1], [0, 0]]))
    assert trie.items.tolist() == [5, 0, 2, 3, 4, 1]
    assert trie.codes_of(trie.leaf_N.long()).tolist() == [[0, 1], [2, 0], [0, 1], [0, 1], [1, 1], [0, 0]]
    assert with_items(TRIE, torch.zeros(0, 2, dtype=torch.int64)) is TRIE


def test_removed_items_keep_their_numbers_and_have_no_leaf():
    trie = without_items(TRIE, torch.tensor([1, 0]))
    assert trie.items.tolist() == [2]
    assert trie.leaf_N.tolist() == [-1, -1, 0]
    assert (trie.num_items, trie.num_nodes(1)) == (3, 1)
    assert same(without_items(TRIE, torch.zeros(0, dtype=torch.int64)), TRIE)


def test_everything_may_be_removed_and_come_again():
    empty = without_items(TRIE, torch.arange(3))
    assert [empty.num_nodes(depth) for depth in range(3)] == [1, 0, 0]
    children, codes = empty.children(0, torch.zeros(1, 1, dtype=torch.int64))
    assert children.shape == codes.shape == (1, 1, 0)
    assert with_items(empty, torch.tensor([[1, 1]])).items.tolist() == [3]


def test_wrong_codes_and_items_are_refused():
    with pytest.raises(DataError, match=r"^codes_XL has shape \(1, 3\), expected \[new items, 2\]$"):
        with_items(TRIE, torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(DataError, match=r"^new codes are outside of the codebooks, of \(3, 2\) codes"):
        with_items(TRIE, torch.tensor([[0, 2]]))
    with pytest.raises(DataError, match=r"^codes_XL has type torch.float32: give integers$"):
        with_items(TRIE, torch.tensor([[0.5, 1.0]]))
    with pytest.raises(DataError, match=r"^items to remove have type torch.bool: give their indices, int64$"):
        without_items(TRIE, torch.tensor([True, False, False]))
    with pytest.raises(DataError, match=r"^items to remove reach from -1 to 3: legal: 0 to 2$"):
        without_items(TRIE, torch.tensor([3, -1]))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 10_000))
def test_updates_equal_a_rebuild(num_items, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    trie, table = updated_at_random(random_semantic_ids(num_items, tuple(sizes), generator), 4, generator)
    kept = (trie.leaf_N >= 0).nonzero().squeeze(1)
    rebuilt = Trie.build(SemanticIds(table.codes_NL[kept], table.codebook_sizes, "kept"))
    assert kept[rebuilt.items.long()].tolist() == trie.items.tolist()
    for name in ("child_offsets", "child_codes", "item_bounds"):
        for ours, theirs in zip(getattr(trie, name), getattr(rebuilt, name), strict=True):
            assert ours.tolist() == theirs.tolist()
