"""Collaborative vectors: counts and PMI by hand, a planted pair of worlds."""

import math

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
import torch

from tesserec.embedders import CooccurrenceSVD
from tesserec.embedders.cooccurrence_svd import cooccurrence_counts, positive_pmi
from tesserec.errors import DataError, NotFittedError
from tesserec.types import Catalog, Embedder, Interactions, Vocabulary


def events(rows, num_items, kinds=None):
    """Rows of (user, item, time)."""
    user, item, time = (torch.tensor(column) for column in zip(*rows, strict=True))
    options = {} if kinds is None else {"kinds": ("buy", "return"), "positive_kinds": ("buy",)}
    return Interactions(
        users=Vocabulary.of(list(range(int(user.max()) + 1))),
        items=Vocabulary.of(list(range(num_items))),
        user_E=user.int(),
        item_E=item.int(),
        time_E=time,
        order_E=torch.arange(len(rows)),
        kind_E=None if kinds is None else torch.tensor(kinds),
        **options,
    )


def catalog(size):
    return Catalog(Vocabulary.of(list(range(size))), pl.DataFrame({"title": ["x"] * size}))


# user 0: basket {0, 1, 1}, then {2}, then {0, 3}; user 1: {3}
ROWS = [(0, 0, 1), (0, 1, 1), (0, 1, 1), (0, 2, 5), (0, 0, 6), (0, 3, 6), (1, 3, 7)]


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (0, [[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]),
        (1, [[0, 1, 1, 1], [1, 0, 0.5, 0], [1, 0.5, 0, 0.5], [1, 0, 0.5, 0]]),
        (2, [[0, 4 / 3, 1, 4 / 3], [4 / 3, 0, 0.5, 1 / 3], [1, 0.5, 0, 0.5], [4 / 3, 1 / 3, 0.5, 0]]),
        (9, [[0, 4 / 3, 1, 4 / 3], [4 / 3, 0, 0.5, 1 / 3], [1, 0.5, 0, 0.5], [4 / 3, 1 / 3, 0.5, 0]]),
    ],
)
def test_counts_by_hand(window, expected):
    counts = cooccurrence_counts(events(ROWS, 4), window)
    assert np.allclose(counts.toarray(), expected)


def test_positive_pmi_by_hand():
    counts = sp.csr_matrix(np.array([[0, 4.0, 1.0], [4.0, 0, 0], [1.0, 0, 0]]))
    plain = positive_pmi(counts, 1.0).toarray()
    # marginals 5, 4, 1 of 10: log(4·10 / (5·4)) and log(1·10 / (5·1))
    assert np.allclose(plain, [[0, math.log(2), math.log(2)], [math.log(2), 0, 0], [math.log(2), 0, 0]])
    smooth = positive_pmi(counts, 0.5).toarray()
    total = 5**0.5 + 2 + 1
    assert smooth[0, 2] == pytest.approx(math.log(total / 5))
    assert smooth[2, 0] == pytest.approx(math.log(total / 5**0.5))
    # 0 and 1 meet as often as chance would have it, 0 and 2 less often
    rare = sp.csr_matrix(np.array([[0, 6.0, 1], [6, 0, 3], [1, 3, 0]]))
    assert positive_pmi(rare, 1.0)[0, 2] == 0
    assert positive_pmi(rare, 1.0).nnz == 4


def test_at_full_rank_the_factors_are_those_of_the_pmi_matrix():
    train = events(ROWS, 4)
    embeddings = CooccurrenceSVD(window=2).embed(catalog(4), train)
    u, s, _ = np.linalg.svd(positive_pmi(cooccurrence_counts(train, 2), 0.75).toarray())
    expected = u * np.sqrt(s)
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    found = embeddings.vectors_ND.double().numpy()
    assert np.allclose(found @ found.T, expected @ expected.T, atol=1e-5)
    assert embeddings.source == "CooccurrenceSVD"


def test_tells_two_planted_worlds_apart():
    generator = np.random.default_rng(0)
    rows = [
        (user, int(item) + 10 * (user % 2), step)
        for user in range(100)
        for step, item in enumerate(generator.choice(10, 5, replace=False))
    ]
    vectors = CooccurrenceSVD(num_features=2).embed(catalog(20), events(rows, 20)).vectors_ND
    cosines = vectors @ vectors.T
    assert cosines[:10, :10].min() > 0.9
    assert cosines[:10, 10:].abs().max() < 0.1


def test_cold_items_are_zero_and_missing():
    # item 3 is only ever returned, item 4 is alone
    rows = [(0, 0, 1), (0, 1, 1), (0, 3, 2), (1, 0, 1), (1, 2, 1), (2, 4, 1)]
    train = events(rows, 6, kinds=[0, 0, 1, 0, 0, 0])
    embeddings = CooccurrenceSVD(num_features=4).embed(catalog(6), train)
    assert embeddings.missing_N.tolist() == [False, False, False, True, True, True]
    assert torch.allclose(embeddings.vectors_ND.norm(dim=1), torch.tensor([1.0, 1, 1, 0, 0, 0]), atol=1e-6)


def test_later_items_are_zero_and_missing():
    model = CooccurrenceSVD(num_features=2)
    width = model.embed(catalog(4), events(ROWS, 4)).vectors_ND.shape[1]
    restored = CooccurrenceSVD(num_features=2)
    restored.restore(model.state())
    for one in (model, restored):
        later = one.embed_new(catalog(3))
        assert later.vectors_ND.tolist() == [[0.0] * width] * 3
        assert later.missing_N.tolist() == [True] * 3
    assert isinstance(model, Embedder)


def test_refuses_what_it_cannot_embed():
    with pytest.raises(DataError, match="CooccurrenceSVD reads training events: pass them, or use an embedder of cat"):
        CooccurrenceSVD().embed(catalog(4))
    with pytest.raises(DataError, match="the events are of 4 items, the catalog of 5: use the same"):
        CooccurrenceSVD().embed(catalog(5), events(ROWS, 4))
    with pytest.raises(
        DataError, match="no two items occur within 3 steps of one user more often than by chance: widen"
    ):
        CooccurrenceSVD().embed(catalog(2), events([(0, 0, 1), (1, 1, 1)], 2))
    for call in (CooccurrenceSVD().state, lambda: CooccurrenceSVD().embed_new(catalog(2))):
        with pytest.raises(NotFittedError, match="CooccurrenceSVD has seen no events yet: call embed or restore first"):
            call()
