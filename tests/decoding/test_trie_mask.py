import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.decoding.top_k import allowed_items
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_mask import Availability, TrieMask, contains
from tesserec.decoding.trie_updates import with_items
from tesserec.errors import DataError
from tesserec.testing.data import requests_of
from tesserec.testing.decoding import random_requests, random_semantic_ids
from tesserec.types import Filters, History, Ragged, Requests, SemanticIds

# Seven items, five tuples: (0 0 1): 5 · (0 2 0): 3, 0 · (0 2 3): 1 · (2 0 0): 2 · (2 0 1): 4, 6
CODES = [[0, 2, 0], [0, 2, 3], [2, 0, 0], [0, 2, 0], [2, 0, 1], [0, 0, 1], [2, 0, 1]]
TRIE = Trie.build(SemanticIds(torch.tensor(CODES), (3, 3, 4), "test"))


def tolists(tensors):
    return [tensor.tolist() for tensor in tensors]


def opened(mask, rows=1):
    """Whether each node of depths 1 … L is open, for each request."""
    nodes = (torch.arange(mask.trie.num_nodes(depth)).expand(rows, -1) for depth in range(1, mask.trie.num_levels + 1))
    return [mask.allows(level, of_depth).tolist() for level, of_depth in enumerate(nodes)]


def test_unavailable_items_close_what_they_empty_for_everybody():
    mask = TrieMask.of(TRIE, requests_of([[]], available=[False, True, False, True, False, True, False]))
    assert opened(mask) == [[[True, False]], [[True, True, False]], [[True, True, True, False, False]]]
    assert tolists(mask.keys) == [[], [], []]


def test_a_bucket_is_closed_only_when_all_of_it_is_excluded():
    requests = requests_of([[[4]], [[4, 4], [6]], [[4]]], exclude_history=True, excluded=[[], [5], [6, 2, 2]])
    mask = TrieMask.of(TRIE, requests)
    assert tolists(mask.keys) == [
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
    mask = TrieMask.of(TRIE, requests_of([[]], excluded=[[4, 2]], available=[True] * 6 + [False]))
    assert tolists(mask.keys) == [[1], [2], [3, 4]]
    mask = TrieMask.of(TRIE, requests_of([[]], excluded=[[6]], available=[True] * 6 + [False]))
    assert tolists(mask.keys) == [[], [], []]


def test_a_filter_of_another_catalog_is_refused():
    with pytest.raises(DataError, match=r"available_N has shape \(6,\) and type torch.bool, expected \(7,\)"):
        TrieMask.of(TRIE, requests_of([[]], available=[True] * 6))


def test_contains_looks_at_both_ends():
    assert contains(torch.zeros(0, dtype=torch.int64), torch.tensor([0, 1])).tolist() == [False, False]
    keys = torch.tensor([2, 5])
    assert contains(keys, torch.tensor([[1, 2], [5, 6]])).tolist() == [[False, True], [True, False]]


def test_an_allow_list_closes_everything_else():
    lists = Ragged(torch.tensor([0, 2, 2]), torch.tensor([6, 1]))
    filters = Filters(excluded=Ragged(torch.tensor([0, 1, 1]), torch.tensor([1])), allowed=lists)
    requests = Requests(History(torch.zeros(3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)), filters=filters)
    mask = TrieMask.of(TRIE, requests)
    assert mask.allows(0, torch.tensor([[0, 1], [0, 1]])).tolist() == [[False, True], [False, False]]
    assert mask.allows(2, torch.tensor([[0, 4, -1], [0, 4, -1]])).tolist() == [[False, True, False], [False] * 3]
    rows, places = torch.tensor([0, 0, 1]), torch.tensor([5, 6, 6])
    assert mask.allows_places(rows, places).tolist() == [False, True, False]


def test_what_a_slate_already_holds_is_closed():
    mask = TrieMask.of(TRIE, requests_of([[], []]))
    later = mask.excluding(torch.tensor([1, 1]), torch.tensor([4, 6])).excluding(torch.tensor([1]), torch.tensor([2]))
    assert opened(later, rows=2)[0] == [[True, True], [True, False]]
    assert opened(mask, rows=2)[0] == [[True, True], [True, True]]


def test_an_availability_that_is_at_hand_is_used():
    available_N = torch.tensor([True, False, True, False, True, False, True])
    requests = requests_of([[]], available=available_N.tolist())
    assert opened(TrieMask.of(TRIE, requests, Availability.of(TRIE, available_N))) == opened(
        TrieMask.of(TRIE, requests)
    )


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 10_000), st.booleans())
def test_a_node_is_open_where_an_item_below_it_is_allowed(num_items, sizes, seed, lazily):
    generator = torch.Generator().manual_seed(seed)
    trie = Trie.build(random_semantic_ids(num_items, tuple(sizes), generator))
    requests = random_requests(3, num_items, generator)
    mask = TrieMask.of(trie, requests)
    if lazily and mask.availability is not None:
        mask.availability.__dict__["open_nodes"] = (None,) * len(sizes)
    allowed_BN = allowed_items(requests, num_items)
    for level in range(len(sizes)):
        nodes = torch.arange(-1, trie.num_nodes(level + 1)).expand(3, -1)
        expected = torch.zeros(nodes.shape, dtype=torch.bool)
        for row, item in allowed_BN.nonzero().tolist():
            expected[row, 1 + trie.paths_NL[item, level]] = True
        assert mask.allows(level, nodes).tolist() == expected.tolist()
    rows = torch.arange(3).repeat_interleave(num_items)
    places = torch.arange(num_items).repeat(3)
    assert mask.allows_places(rows, places).tolist() == allowed_BN[rows, trie.items[places].long()].tolist()


def test_flags_or_an_availability_of_another_trie_are_refused():
    with pytest.raises(DataError, match=r"^available_N has shape \(7,\) and type torch.float32, expected \(7,\) and"):
        Availability.of(TRIE, torch.ones(7))
    with pytest.raises(DataError, match=r"^available_N has shape \(8,\)"):
        Availability.of(TRIE, torch.ones(8, dtype=torch.bool))
    other = Trie.build(SemanticIds(torch.tensor(CODES).flip(0), (3, 3, 4), "test"))
    availability = Availability.of(other, torch.ones(7, dtype=torch.bool))
    with pytest.raises(DataError, match=r"^the availability is of another trie: make it with Availability.of"):
        TrieMask.of(TRIE, requests_of([[]]), availability)


def test_a_mask_of_another_trie_or_of_other_requests_is_refused():
    mask = TrieMask.of(TRIE, requests_of([[], []]))
    mask.check(TRIE.to("cpu"), 2)
    with pytest.raises(DataError, match=r"^the mask is of another trie: make it anew"):
        mask.check(with_items(TRIE, torch.tensor([[0, 0, 0]])), 2)
    with pytest.raises(DataError, match=r"^the mask is of 2 requests, the search of 3: make both of the same$"):
        mask.check(TRIE, 3)


def test_a_slate_that_ran_dry_takes_nothing_and_other_mistakes_are_refused():
    mask = TrieMask.of(TRIE, requests_of([[], []]))
    assert mask.excluding(torch.tensor([0, 1]), torch.tensor([-1, -1])).excluded.tolist() == []
    with pytest.raises(DataError, match=r"^items_X holds item 7, of a catalogue with items 0 to 6"):
        mask.excluding(torch.tensor([0]), torch.tensor([7]))
    with pytest.raises(DataError, match=r"^rows_X = \[2\]: the mask is of requests 0 to 1$"):
        mask.excluding(torch.tensor([2]), torch.tensor([0]))
    with pytest.raises(
        DataError, match=r"^rows_X and items_X have shapes \(2,\) and \(2, 1\): give the request of each"
    ):
        mask.excluding(torch.arange(2), torch.tensor([[0], [1]]))
