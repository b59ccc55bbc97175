import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.decoding.beam_search import beam_search
from tesserec.decoding.diverse_beam_search import diverse_beam_search
from tesserec.decoding.trie import Trie
from tesserec.testing.decoding import TableModel, random_semantic_ids


def case(num_items, sizes, seed, rows=2):
    generator = torch.Generator().manual_seed(seed)
    trie = Trie.build(random_semantic_ids(num_items, tuple(sizes), generator))
    return trie, TableModel.random(trie, rows, generator)


def naive(step, trie, row, num_groups, size, penalty):
    """The same search over lists, for one request: the leaves of all groups."""
    paths = sorted({tuple(path) for path in trie.paths_NL.tolist()})
    groups = [[(0.0, ())] for _ in range(num_groups)]
    for level in range(trie.num_levels):
        taken, chosen = {}, set()
        for group in range(num_groups):
            longer = []
            for place, (score, path) in enumerate(groups[group]):
                for node in sorted({p[level] for p in paths if p[:level] == path}):
                    if (last := level == trie.num_levels - 1) and node in chosen:
                        continue
                    code = int(trie.child_codes[level][node])
                    total = score + float(step.tables[level][row, node])
                    longer.append((total - penalty * taken.get(code, 0), place, node, total, code, path, last))
            longer.sort(key=lambda beam: (-beam[0], beam[1], beam[2]))
            kept = sorted(longer[:size], key=lambda beam: (beam[1], beam[2]))
            groups[group] = [(total, (*path, node)) for _, _, node, total, _, path, _ in kept]
            for _, _, node, _, code, _, _ in kept:
                taken[code] = taken.get(code, 0) + 1
                chosen.add(node)
    return {path[-1]: score for beams in groups for score, path in beams}


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 14),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(0, 10_000),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_it_equals_a_search_over_lists(num_items, sizes, seed, num_groups, size):
    trie, step = case(num_items, sizes, seed)
    found = diverse_beam_search(
        step, (), trie, num_requests=2, num_beams=num_groups * size, num_groups=num_groups, penalty=1.5
    )
    for row in range(2):
        expected = naive(step, trie, row, num_groups, size, 1.5)
        leaves = [leaf for leaf in found.leaves_BM[row].tolist() if leaf >= 0]
        assert sorted(leaves) == sorted(expected)
        assert found.log_probs_BM[row, : len(leaves)].tolist() == pytest.approx(
            [expected[leaf] for leaf in leaves], abs=1e-5
        )


def test_one_group_is_a_beam():
    trie, step = case(30, (4, 4, 4), 1)
    plain = beam_search(step, (), trie, num_requests=2, num_beams=6)
    found = diverse_beam_search(step, (), trie, num_requests=2, num_beams=6, num_groups=1, penalty=9.0)
    assert found.leaves_BM.tolist() == plain.leaves_BM.tolist()


def test_a_penalty_spreads_the_first_codes():
    trie, step = case(60, (8, 8), 2)
    found = diverse_beam_search(step, (), trie, num_requests=2, num_beams=6, num_groups=6, penalty=100.0)
    assert all(len(set(codes)) == 6 for codes in found.codes_BML[:, :, 0].tolist())


@pytest.mark.parametrize(("num_groups", "penalty"), [(0, 1.0), (4, 1.0), (2, -0.5), (2, math.inf), (2, math.nan)])
def test_wrong_groups_are_refused(num_groups, penalty):
    trie, step = case(5, (2, 2), 0)
    with pytest.raises(ValueError, match=rf"^6 beams in {num_groups} groups with penalty {penalty}: give groups that"):
        diverse_beam_search(step, (), trie, num_requests=2, num_beams=6, num_groups=num_groups, penalty=penalty)
