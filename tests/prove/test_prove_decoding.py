"""Large runs of the search: nothing illegal, repeated or filtered in ten million results; equality with brute force."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.decoding.beam_search import beam_search, beams_to_items
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_mask import TrieMask
from tesserec.decoding.trie_updates import with_items, without_items
from tesserec.testing.decoding import (
    MISTAKES,
    TableModel,
    count_mistakes,
    exhaustive,
    random_requests,
    random_semantic_ids,
)


def assert_no_mistakes(target):
    counts = count_mistakes(target)
    print(", ".join(f"{number:,} {name}" for name, number in counts.items()))
    assert counts["results"] >= target
    assert {counts[name] for name in MISTAKES} == {0}


def test_ten_thousand_results_are_legal_new_and_allowed():
    assert_no_mistakes(10_000)


@pytest.mark.prove
def test_ten_million_results_are_legal_new_and_allowed():
    assert_no_mistakes(10_000_000)


@pytest.mark.prove
@settings(max_examples=10_000, deadline=None)
@given(st.integers(1, 30), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 10**9), st.booleans())
def test_ten_thousand_searches_equal_brute_force(num_items, sizes, seed, ties):
    generator = torch.Generator().manual_seed(seed)
    trie = Trie.build(random_semantic_ids(num_items, tuple(sizes), generator))
    requests = random_requests(4, num_items, generator)
    step = TableModel.random(trie, 4, generator, ties)
    num_leaves = trie.num_nodes(trie.num_levels)
    mask = TrieMask.of(trie, requests)
    beams = beam_search(step, (), trie, num_requests=4, num_beams=num_leaves, mask=mask)
    found = beams_to_items(beams, trie, num_items, mask)
    items, scores = exhaustive(step, requests, num_items)
    for row in range(4):
        padding = num_items - len(items[row])
        assert found.items_BK[row].tolist() == items[row] + [-1] * padding
        assert found.scores_BK[row].tolist() == scores[row] + [-torch.inf] * padding


@pytest.mark.prove
def test_a_hundred_rounds_of_updates_equal_a_rebuild():
    generator = torch.Generator().manual_seed(0)
    table = random_semantic_ids(5_000, (16, 16, 16), generator)
    trie = Trie.build(table)
    for _ in range(100):
        new = random_semantic_ids(200, (16, 16, 16), generator)
        trie = with_items(trie, new.codes_NL)
        table = dataclasses.replace(table, codes_NL=torch.cat([table.codes_NL, new.codes_NL]))
        present = trie.items[torch.randperm(len(trie.items), generator=generator)]
        trie = without_items(trie, present[:190].long())
        kept = (trie.leaf_N >= 0).nonzero().squeeze(1)
        rebuilt = Trie.build(dataclasses.replace(table, codes_NL=table.codes_NL[kept]))
        assert torch.equal(kept[rebuilt.items.long()].int(), trie.items)
        for name in ("child_offsets", "child_codes", "item_bounds"):
            assert all(map(torch.equal, getattr(trie, name), getattr(rebuilt, name)))
