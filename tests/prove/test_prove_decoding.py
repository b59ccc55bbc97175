"""Large runs of the search: nothing illegal, repeated or filtered in ten million results; equality with brute force."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.decoding.beam_search import beam_search, beams_to_items
from tesserec.decoding.top_k import allowed_items
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_mask import TrieMask
from tesserec.decoding.trie_updates import with_items, without_items
from tesserec.testing.decoding import TableModel, exhaustive, random_requests, random_semantic_ids

NUM_REQUESTS = 64


def generated(seed):
    """(trie, requests, beams, candidates) of a random model on a random trie with random filters."""
    generator = torch.Generator().manual_seed(seed)
    num_levels, num_items, num_beams, k = (
        int(torch.randint(low, high, (1,), generator=generator)) for low, high in ((1, 5), (1, 400), (1, 41), (1, 41))
    )
    sizes = tuple(torch.randint(1, 13, (num_levels,), generator=generator).tolist())
    trie = Trie.build(random_semantic_ids(num_items, sizes, generator))
    requests = random_requests(NUM_REQUESTS, num_items, generator)
    step = TableModel.random(trie, NUM_REQUESTS, generator, ties=seed % 4 == 0)
    mask = TrieMask.of(trie, requests)
    beams = beam_search(step, (), trie, num_requests=NUM_REQUESTS, num_beams=num_beams, mask=mask)
    return trie, requests, beams, beams_to_items(beams, trie, k, mask)


def count_results(target):
    """Results until there are ``target``, and how many of them are wrong in each way."""
    counts = dict.fromkeys(("results", "illegal", "repeated", "filtered", "useless_beams", "runs"), 0)
    while counts["results"] < target:
        trie, requests, beams, found = generated(counts["runs"])
        given_BK = found.items_BK >= 0
        rows, items = given_BK.nonzero()[:, 0], found.items_BK[given_BK]
        in_catalog = items < trie.num_items
        tuples = trie.paths_NL[items.clamp(max=trie.num_items - 1)]
        leaves_BM = beams.leaves_BM
        on_a_beam = (leaves_BM[rows] == tuples[:, -1:]).any(1)
        allowed_BN = allowed_items(requests, trie.num_items)
        useful_BP = torch.zeros(NUM_REQUESTS, trie.num_nodes(trie.num_levels), dtype=torch.bool)
        useful_BP[allowed_BN.nonzero()[:, 0], trie.paths_NL[allowed_BN.nonzero()[:, 1], -1]] = True
        is_beam = leaves_BM >= 0
        counts["results"] += len(items)
        counts["illegal"] += int((~in_catalog | ~on_a_beam).sum())
        counts["repeated"] += len(items) - len(torch.unique(rows * trie.num_items + items))
        counts["filtered"] += int((~allowed_BN[rows, items]).sum())
        counts["useless_beams"] += int((~useful_BP[is_beam.nonzero()[:, 0], leaves_BM[is_beam]]).sum())
        counts["runs"] += 1
    return counts


def assert_no_mistakes(target):
    counts = count_results(target)
    print(", ".join(f"{number:,} {name}" for name, number in counts.items()))
    assert counts["results"] >= target
    assert {name: counts[name] for name in ("illegal", "repeated", "filtered", "useless_beams")} == dict.fromkeys(
        ("illegal", "repeated", "filtered", "useless_beams"), 0
    )


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
