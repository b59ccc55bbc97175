import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import tesserec.retrievers.cooccurrence as module
from tesserec.retrievers.cooccurrence import Cooccurrence
from tesserec.retrievers.popularity import Popularity
from tesserec.testing.data import catalog_of_size, chain, interactions_of, requests_of
from tesserec.testing.retriever_contract import RetrieverContract
from tesserec.types import FitContext, Requests, as_numpy

PLAIN = {"normalization": 0.0, "reverse": 0.0, "popularity": Popularity(window_days=None)}
# User 0: 0 1 2 0; user 1: 3 1.
LOG = interactions_of([[[0], [1], [2], [0]], [[3], [1]]], 5)


class TestCooccurrenceContract(RetrieverContract):
    make = Cooccurrence


def fitted(log=LOG, num_items=5, **settings):
    retriever = Cooccurrence(**(PLAIN | settings))
    retriever.fit(log, catalog_of_size(num_items), FitContext())
    return retriever


def pairs(retriever):
    """The pair weights as they are stored, as a dense matrix."""
    tensors = retriever.state().part("pairs").tensors
    parts = tuple(as_numpy(tensors[name]) for name in ("weights", "columns", "offsets"))
    size = len(tensors["offsets"]) - 1
    return sp.csr_matrix(parts, shape=(size, size)).toarray().round(6).tolist()


def test_pairs_of_a_user_count_by_distance():
    assert pairs(fitted(window=2, decay=0.5)) == [
        [0, 1, 0.5, 0, 0],
        [0.5, 0, 1, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0] * 5,
    ]
    assert pairs(fitted(window=3, decay=0.5))[0] == [0.25, 1, 0.5, 0, 0]
    assert pairs(fitted(window=1, decay=0.5))[0] == [0, 1, 0, 0, 0]
    assert pairs(fitted(window=100, decay=1.0))[0] == [1, 1, 1, 0, 0]


def test_reversed_pairs_have_their_share():
    found = np.array(pairs(fitted(window=1, reverse=0.25)))
    assert found.tolist()[1] == [0.25, 0, 1, 0.25, 0]
    forward = np.array(pairs(fitted(window=1)))
    assert found == pytest.approx(forward + 0.25 * forward.T)


def test_pairs_are_divided_by_a_power_of_the_count():
    assert pairs(fitted(window=1, normalization=1.0))[0] == [0, 0.5, 0, 0, 0]
    assert pairs(fitted(window=1, normalization=0.5))[1] == [0, 0, pytest.approx(0.5**0.5, abs=1e-6), 0, 0]
    assert pairs(fitted(window=1, normalization=1.0))[3] == [0, 1, 0, 0, 0]


def test_scores_add_the_rows_of_the_history_by_steps_ago():
    retriever = fitted(window=2, decay=0.5, history_decay=0.5, back_off=0)
    found = retriever.score_all(requests_of([[[0], [1]], [[1], [0, 3]], [[4]], []]))
    first = [0.5, 0.5, 1.25, 0, 0]
    second = [0.25, 2, 1, 0, 0]
    assert found.tolist() == [
        pytest.approx([w / 2.25 for w in first]),
        pytest.approx([w / 3.25 for w in second]),
        [0.0] * 5,
        [0.0] * 5,
    ]


def test_popularity_has_its_share_of_the_score():
    found = fitted(window=1, back_off=0.2).score_all(requests_of([[[3]], []]))
    popular = [2 / 6, 2 / 6, 1 / 6, 1 / 6, 0]
    assert found[0].tolist() == pytest.approx([0.2 * p + (0.8 if i == 1 else 0) for i, p in enumerate(popular)])
    assert found[1].tolist() == pytest.approx([0.2 * p for p in popular])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_chunks_change_nothing(monkeypatch, size):
    expected = pairs(fitted(window=3, decay=0.5, reverse=0.5))
    monkeypatch.setattr(module, "CHUNK_EVENTS", size)
    assert pairs(fitted(window=3, decay=0.5, reverse=0.5)) == expected


def test_only_the_strongest_pairs_are_kept():
    log = interactions_of([[[0], [2]], [[0], [1]], [[0], [3]], [[0], [3]], [[4], [0]]], 5)
    assert pairs(fitted(log, num_neighbors=3))[0] == [0, 1, 1, 2, 0]
    assert pairs(fitted(log, num_neighbors=2))[0] == [0, 1, 0, 2, 0]
    assert pairs(fitted(log, num_neighbors=1)) == [[0, 0, 0, 2, 0], [0] * 5, [0] * 5, [0] * 5, [1, 0, 0, 0, 0]]


@pytest.mark.parametrize(("most", "kept"), [(5, [0, 0, 0, 0, 0, 2]), (4, [0, 1, 0, 0, 0, 0])])
def test_with_too_many_pairs_four_times_the_strongest_are_kept_meanwhile(monkeypatch, most, kept):
    log = interactions_of([[[0], [item]] for item in (1, 2, 3, 4, 5, 5)], 6)
    monkeypatch.setattr(module, "CHUNK_EVENTS", 2)
    monkeypatch.setattr(module, "MAX_PAIRS", most)
    assert pairs(fitted(log, 6, num_neighbors=1))[0] == kept


def test_signals_are_neither_pairs_nor_history():
    kinds = {"kind_E": torch.tensor([0, 1, 0, 0, 0, 0]), "kinds": ("buy", "return"), "positive_kinds": ("buy",)}
    retriever = fitted(dataclasses.replace(LOG, **kinds), window=1, back_off=0)
    assert pairs(retriever)[0] == [0, 0, 1, 0, 0]
    requests = requests_of([[[0], [3]]])
    columns = {**requests.history.columns, "positive": torch.tensor([True, False])}
    signals = Requests(dataclasses.replace(requests.history, columns=columns))
    assert retriever.score_all(signals).tolist() == [[0, 0, 1, 0, 0]]


def test_a_log_without_pairs_falls_back_to_popularity():
    retriever = fitted(interactions_of([[[1]], [[1]], [[0]]], 3), 3)
    assert retriever.retrieve(requests_of([[[0]]]), 3).items_BK.tolist() == [[1, 0, 2]]


def test_the_next_item_of_a_chain_is_found():
    train, catalog = chain()
    retriever = Cooccurrence()
    retriever.fit(train, catalog, FitContext())
    found = retriever.retrieve(requests_of([[[3]], [[10], [11]], [[7]]], exclude_history=True), 2)
    assert found.items_BK.tolist() == [[4, 5], [0, 1], [8, 9]]


def test_settings():
    made = Cooccurrence()
    assert (made.window, made.decay, made.reverse, made.normalization) == (8, 0.7, 0.2, 0.7)
    assert (made.history_decay, made.num_neighbors, made.back_off) == (0.5, 1000, 0.01)
