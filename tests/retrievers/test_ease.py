import dataclasses

import numpy as np
import pytest
import torch

from tesserec.errors import ResourceError
from tesserec.retrievers.ease import EASE
from tesserec.retrievers.popularity import Popularity
from tesserec.testing.data import catalog_of_size, interactions_of, requests_of, two_groups
from tesserec.testing.retriever_contract import RetrieverContract
from tesserec.types import FitContext, Requests

# Five users over items 0 to 5; item 3 has no events, user 0 has item 0 twice.
LOG = interactions_of([[[0], [1], [0]], [[0], [1], [2]], [[2], [4]], [[4], [5], [1]], [[5]]], 6)


class TestEASEContract(RetrieverContract):
    make = EASE


def fitted(log=LOG, num_items=6, **settings):
    retriever = EASE(**settings)
    retriever.fit(log, catalog_of_size(num_items), FitContext())
    return retriever


def numpy_weights(log, num_items, l2):
    matrix = np.zeros((len(log.users), num_items))
    matrix[log.user_E.numpy(), log.item_E.numpy()] = 1
    inverse = np.linalg.inv(matrix.T @ matrix + l2 * np.eye(num_items))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


@pytest.mark.parametrize("l2", [0.5, 10.0])
def test_weights_are_the_closed_form(l2):
    expected = numpy_weights(LOG, 6, l2)
    found = fitted(l2=l2).score_all(requests_of([[[i]] for i in range(6)])).numpy()
    assert found == pytest.approx(expected, abs=1e-6)
    assert np.diag(found).tolist() == [0.0] * 6
    assert found.dtype == np.float32


def test_a_history_adds_the_weights_of_its_distinct_items():
    expected = numpy_weights(LOG, 6, 2.0)
    found = fitted(l2=2.0).score_all(requests_of([[[1, 4], [1]], [[3]]])).numpy()
    assert found == pytest.approx(np.stack([expected[1] + expected[4], np.zeros(6)]), abs=1e-6)


def test_an_empty_history_is_answered_by_popularity():
    popularity = Popularity()
    popularity.fit(LOG, catalog_of_size(6), FitContext())
    empty = requests_of([[]])
    assert torch.equal(fitted().score_all(empty), popularity.score_all(empty))
    restored = EASE()
    restored.restore(fitted().state(), catalog_of_size(6), FitContext())
    assert torch.equal(restored.score_all(empty), popularity.score_all(empty))


def test_items_without_events_take_no_room_and_score_zero():
    state = fitted().state()
    assert state.tensors["items"].tolist() == [0, 1, 2, 4, 5]
    assert state.tensors["weights"].shape == (5, 5)
    assert fitted().score_all(requests_of([[[0, 1, 2]]]))[0, 3] == 0
    restored = EASE()
    restored.restore(state, catalog_of_size(8), FitContext())
    assert restored.score_all(requests_of([[[0], [7]]]))[0, 6:].tolist() == [0, 0]


def test_signals_do_not_count():
    kinds = {"kind_E": torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0]), "kinds": ("buy", "return")}
    log = dataclasses.replace(LOG, **kinds, positive_kinds=("buy",))
    retriever = fitted(log, l2=1.0)
    expected = numpy_weights(log.positives(), 6, 1.0)
    requests = requests_of([[[0], [2]]])
    columns = {**requests.history.columns, "positive": torch.tensor([False, True])}
    signals = Requests(dataclasses.replace(requests.history, columns=columns))
    assert retriever.score_all(signals).numpy()[0] == pytest.approx(expected[2], abs=1e-6)


def test_a_catalog_that_memory_cannot_hold_is_refused():
    fitted(max_memory_bytes=24 * 5**2)
    with pytest.raises(
        ResourceError, match=r"5 items with events; max_memory_bytes = 599 holds 4: raise it, drop rare"
    ):
        fitted(max_memory_bytes=24 * 5**2 - 1)
    log = interactions_of([[list(range(4000))]], 4000)
    with pytest.raises(ResourceError, match=r"^EASE needs 0\.358 GiB for 4000 items"):
        fitted(log, 4000, max_memory_bytes=2**20)


def test_a_refused_fit_leaves_the_earlier_one():
    retriever = fitted(l2=1.0, max_memory_bytes=24 * 5**2)
    before = retriever.score_all(requests_of([[[0]]]))
    with pytest.raises(ResourceError, match="holds 5"):
        retriever.fit(two_groups()[0], catalog_of_size(12), FitContext())
    assert torch.equal(retriever.score_all(requests_of([[[0]]])), before)


def test_the_rest_of_a_group_is_found():
    train, catalog = two_groups()
    retriever = EASE(l2=1.0)
    retriever.fit(train, catalog, FitContext())
    found = retriever.retrieve(requests_of([[[0, 1, 2]], [[6, 7, 9]]], exclude_history=True), 3)
    assert [sorted(row) for row in found.items_BK.tolist()] == [[3, 4, 5], [8, 10, 11]]


def test_settings():
    assert (EASE().l2, EASE().max_memory_bytes) == (500.0, 8 * 2**30)
