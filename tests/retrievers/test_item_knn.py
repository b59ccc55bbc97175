import dataclasses

import numpy as np
import pytest
import torch

from tesserec.retrievers import item_knn
from tesserec.retrievers.item_knn import ItemKNN
from tesserec.retrievers.popularity import Popularity
from tesserec.testing.data import catalog_of_size, interactions_of, requests_of, two_groups
from tesserec.testing.retriever_contract import RetrieverContract
from tesserec.types import FitContext, Requests

# Five users over items 0 to 5; item 3 has no events, user 0 has item 0 twice.
LOG = interactions_of([[[0], [1], [0]], [[0], [1], [2]], [[2], [4]], [[4], [5], [1]], [[5]]], 6)
USERS = [{0, 1}, {0, 1, 2}, {2, 4}, {4, 5, 1}, {5}]


class TestItemKNNContract(RetrieverContract):
    make = ItemKNN


def fitted(log=LOG, num_items=6, **settings):
    retriever = ItemKNN(**({"back_off": 0.0} | settings))
    retriever.fit(log, catalog_of_size(num_items), FitContext())
    return retriever


def similarities(users, num_items, shrinkage):
    found = np.zeros((num_items, num_items))
    for i in range(num_items):
        for j in range(num_items):
            with_i, with_j = [i in user for user in users], [j in user for user in users]
            shared = sum(a and b for a, b in zip(with_i, with_j, strict=True))
            if i != j and shared:
                found[i, j] = shared / (np.sqrt(sum(with_i) * sum(with_j)) + shrinkage)
    return found


def dense(retriever):
    return retriever._similarity.toarray()


@pytest.mark.parametrize("shrinkage", [0.0, 3.0])
def test_similarities_are_shrunk_cosines(shrinkage, monkeypatch):
    expected = similarities(USERS, 6, shrinkage)
    assert dense(fitted(shrinkage=shrinkage)) == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr(item_knn, "BLOCK_ITEMS", 4)
    assert dense(fitted(shrinkage=shrinkage)) == pytest.approx(expected, abs=1e-6)


def test_only_the_nearest_are_kept():
    expected = similarities(USERS, 6, 0.0)
    for row in expected:
        row[np.argsort(-row, kind="stable")[2:]] = 0
    assert dense(fitted(shrinkage=0, num_neighbors=2)) == pytest.approx(expected, abs=1e-6)


def test_a_history_adds_the_similarities_of_its_items_the_later_the_more():
    expected = similarities(USERS, 6, 1.0)
    requests = requests_of([[[1, 4], [2]], [[3]]])
    found = fitted(shrinkage=1.0).score_all(requests).numpy()
    total = expected[[1, 4, 2]].sum(0)
    assert found == pytest.approx(np.stack([total / total.sum(), np.zeros(6)]), abs=1e-6)
    decayed = 0.5 * expected[[1, 4]].sum(0) + expected[2]
    found = fitted(shrinkage=1.0, history_decay=0.5).score_all(requests).numpy()
    assert found[0] == pytest.approx(decayed / decayed.sum(), abs=1e-6)


def test_popularity_orders_the_rest():
    popularity = Popularity()
    popularity.fit(LOG, catalog_of_size(6), FitContext())
    found = fitted(back_off=0.25).score_all(requests_of([[], [[5]]]))
    torch.testing.assert_close(found[0], 0.25 * popularity.share_N())
    torch.testing.assert_close(found[1], 0.75 * fitted().score_all(requests_of([[[5]]]))[0] + found[0])


def test_signals_do_not_count():
    kinds = {"kind_E": torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0]), "kinds": ("buy", "return")}
    log = dataclasses.replace(LOG, **kinds, positive_kinds=("buy",))
    retriever = fitted(log, shrinkage=0)
    assert dense(retriever) == pytest.approx(similarities([{0, 1}, {0, 1, 2}, {2}, {4, 5}, {5}], 6, 0.0), abs=1e-6)
    requests = requests_of([[[0], [2]]])
    columns = {**requests.history.columns, "positive": torch.tensor([False, True])}
    signals = Requests(dataclasses.replace(requests.history, columns=columns))
    assert torch.equal(retriever.score_all(signals), retriever.score_all(requests_of([[[2]]])))


def test_without_any_event_there_are_no_neighbours():
    assert fitted(interactions_of([[]], 6)).score_all(requests_of([[[0]]])).tolist() == [[0.0] * 6]


def test_the_rest_of_a_group_is_found():
    train, catalog = two_groups()
    retriever = ItemKNN()
    retriever.fit(train, catalog, FitContext())
    found = retriever.retrieve(requests_of([[[0, 1, 2]], [[6, 7, 9]]], exclude_history=True), 3)
    assert [sorted(row) for row in found.items_BK.tolist()] == [[3, 4, 5], [8, 10, 11]]


def test_settings():
    made = ItemKNN()
    assert (made.num_neighbors, made.shrinkage, made.history_decay, made.back_off) == (100, 10.0, 1.0, 0.01)
