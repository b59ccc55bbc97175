"""MMR against a greedy that tries every item at every place."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tesserec.errors import DataError, NotFittedError
from tesserec.rerankers.mmr import MMR
from tesserec.testing.data import requests_of
from tesserec.types import PAD, Candidates, Reranker

VECTORS_ND = torch.tensor([[2.0, 0], [1, 0], [0, 3], [-1, 0], [0, 0], [1, 1]])


def lists(*rows):
    """Candidates of rows of (item, score), padded."""
    width = max(len(row) for row in rows)
    padded = [[*row, *[(PAD, -math.inf)] * (width - len(row))] for row in rows]
    items, scores = ([[pair[i] for pair in row] for row in padded] for i in (0, 1))
    return Candidates(torch.tensor(items), torch.tensor(scores), trace={"item": torch.tensor(items)[..., None]})


def reranked(candidates, k, diversity, vectors_ND=VECTORS_ND, codes_NL=None):
    mmr = MMR(diversity=diversity).prepare(vectors_ND, codes_NL)
    return mmr.rerank(requests_of([[]] * len(candidates)), candidates, k)


def cosine(a, b):
    lengths = math.hypot(*a) * math.hypot(*b)
    return max(0.0, sum(x * y for x, y in zip(a, b, strict=True)) / lengths) if lengths else 0.0


def prefix_share(a, b):
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
    return same / len(a)


def assert_greedy(row, found, diversity, likeness):
    """Every (item, score) of ``found`` is, given those before it, the best by the definition, and scores what it says.

    Of equal values either may come first, since the definition's own rounding decides between them.
    """
    own = dict(row)
    least, most = min(own.values()), max(own.values())
    picked = []
    for item, score in found:

        def value(one):
            relevance = (own[one] - least) / (most - least) if most > least else 0.0
            redundancy = max((likeness(one, other) for other in picked), default=0.0)
            return (1 - diversity) * relevance - diversity * redundancy

        best = max(value(one) for one in own if one not in picked)
        assert item not in picked
        assert value(item) == pytest.approx(best, abs=1e-6)
        assert score == pytest.approx(least + (most - least) * best, rel=1e-5, abs=1e-4)
        picked.append(item)


def test_it_is_a_reranker():
    assert isinstance(MMR(), Reranker)


def test_values_by_hand():
    """Item 1 points where 0 does, so item 2 comes before it: 0.5 · 0.5 − 0 against 0.5 · 0.75 − 0.5."""
    found = reranked(lists([(0, 4.0), (1, 3.0), (2, 2.0), (3, 0.0)]), 4, 0.5)
    assert found.items_BK.tolist() == [[0, 2, 3, 1]]
    assert found.scores_BK.tolist() == [[2.0, 1.0, 0.0, -0.5]]
    assert found.trace["item"][..., 0].tolist() == [[0, 2, 3, 1]], "traces go with their items"


def test_without_diversity_nothing_changes():
    candidates = lists([(0, 4.0), (1, 3.5), (5, 3.0)], [(3, 1.0)])
    found = reranked(candidates, 5, 0.0)
    assert found.items_BK.tolist() == [[0, 1, 5, PAD, PAD], [3, *[PAD] * 4]]
    assert torch.allclose(found.scores_BK[:, :3], candidates.scores_BK)


def test_codes_stand_for_vectors():
    codes_NL = torch.tensor([[0, 0], [0, 1], [1, 0], [0, 0]])
    found = reranked(lists([(0, 4.0), (3, 3.0), (1, 2.0), (2, 1.0)]), 4, 0.6, None, codes_NL)
    assert found.items_BK.tolist() == [[0, 2, 1, 3]], "another first code, then another second one, then the same"


@given(st.data(), st.floats(0, 1), st.booleans())
def test_it_is_exactly_greedy(data, diversity, codes):
    numbers = st.integers(-3, 3)
    scores = st.floats(-100, 100, width=32)
    num = data.draw(st.integers(1, 9))
    table = data.draw(st.lists(st.tuples(numbers, numbers, numbers), min_size=num, max_size=num))
    rows = []
    for _ in range(2):
        size = data.draw(st.integers(1, num))
        items = data.draw(st.permutations(range(num)))[:size]
        own = sorted(data.draw(st.lists(scores, min_size=size, max_size=size)), reverse=True)
        rows.append(list(zip(items, own, strict=True)))
    k = data.draw(st.integers(1, 10))
    if codes:
        found = reranked(lists(*rows), k, diversity, None, torch.tensor(table))
    else:
        found = reranked(lists(*rows), k, diversity, torch.tensor(table, dtype=torch.float32))
    likeness = prefix_share if codes else cosine
    for row, items, values in zip(rows, found.items_BK.tolist(), found.scores_BK.tolist(), strict=True):
        size = min(k, len(row))
        assert items[size:] == [PAD] * (k - size)
        pairs = list(zip(items[:size], values[:size], strict=True))
        assert_greedy(row, pairs, diversity, lambda a, b: likeness(table[a], table[b]))


def test_what_is_refused():
    candidates = lists([(0, 1.0), (6, 0.5)])
    with pytest.raises(DataError, match=r"candidate 6 has no vector or codes, 6 items have"):
        reranked(candidates, 2, 0.5)
    with pytest.raises(DataError, match="was given neither"):
        MMR().prepare(None)
    with pytest.raises(NotFittedError, match="MMR knows nothing of the items"):
        MMR().rerank(requests_of([[]]), candidates, 2)
    with pytest.raises(ValueError, match="k = 0"):
        reranked(candidates, 0, 0.5)
