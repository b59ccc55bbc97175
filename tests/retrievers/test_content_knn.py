import dataclasses

import pytest
import torch

from tesserec.errors import RecipeError
from tesserec.retrievers.content_knn import ContentKNN
from tesserec.testing.data import catalog_of_size, interactions_of, requests_of
from tesserec.testing.retriever_contract import RetrieverContract
from tesserec.types import FitContext, ItemEmbeddings, Requests

# Items 0 to 4; item 4 has nothing to embed, item 3 has no events.
VECTORS = torch.tensor([[2.0, 0.0], [0.0, 5.0], [3.0, 4.0], [-1.0, 0.0], [0.0, 0.0]])
LOG = interactions_of([[[0], [1]], [[2], [1], [4]]], 5)


def context(vectors_ND):
    return FitContext(seed=3, embeddings=ItemEmbeddings(vectors_ND, "planted"))


def random_vectors(num_items):
    return torch.randn(num_items, 6, generator=torch.Generator().manual_seed(0))


class TestContentKNNContract(RetrieverContract):
    make = ContentKNN

    def context(self, catalog):
        return context(random_vectors(14)[: len(catalog)])


def fitted(vectors_ND=VECTORS, log=LOG, **settings):
    retriever = ContentKNN(**settings)
    retriever.fit(log, catalog_of_size(len(vectors_ND)), context(vectors_ND))
    return retriever


def test_scores_are_cosines_with_the_mean_of_unit_vectors():
    found = fitted(history_decay=1.0).score_all(requests_of([[[0], [1]], [[2]], [[0, 3], [1]]]))
    half = 0.5**0.5
    expected = [[half, half, 1.4 * half, -half, 0], [0.6, 0.8, 1, -0.6, 0], [0, 1, 0.8, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_later_items_weigh_more_and_old_ones_nothing():
    profile = torch.tensor([0.5, 1.0]) / 1.25**0.5
    found = fitted(history_decay=0.5).score_all(requests_of([[[0], [1]]]))[0]
    torch.testing.assert_close(found[:2], profile)
    last = fitted(max_steps=1)
    assert torch.equal(last.score_all(requests_of([[[0], [1]]])), last.score_all(requests_of([[[1]]])))


def test_a_history_without_vectors_is_answered_by_popularity():
    retriever, requests = fitted(), requests_of([[], [[4]]])
    assert torch.equal(retriever.score_all(requests), retriever.popularity.score_all(requests))


def test_signals_do_not_count():
    requests = requests_of([[[0], [2]]])
    columns = {**requests.history.columns, "positive": torch.tensor([False, True])}
    signals = Requests(dataclasses.replace(requests.history, columns=columns))
    assert torch.equal(fitted().score_all(signals), fitted().score_all(requests_of([[[2]]])))


def test_the_rest_of_a_group_is_found_without_any_event_of_it():
    """Items of either half have vectors around a common one; only item 0 was ever bought."""
    vectors_ND = 0.1 * random_vectors(12)
    vectors_ND[:6, 0] += 1
    vectors_ND[6:, 1] += 1
    retriever = fitted(vectors_ND, interactions_of([[[0]]], 12))
    found = retriever.retrieve(requests_of([[[0, 1, 2]], [[6], [7, 9]]], exclude_history=True), 3)
    assert [sorted(row) for row in found.items_BK.tolist()] == [[3, 4, 5], [8, 10, 11]]


def test_a_new_item_is_proposed_by_its_vector():
    retriever, requests = fitted(), requests_of([[[0]], [[3]]], exclude_history=True)
    before = retriever.score_all(requests)
    grown = torch.cat([VECTORS, torch.tensor([[9.0, 0.1]])])
    retriever.add_items(catalog_of_size(6), context(grown))
    assert retriever.retrieve(requests, 1).items_BK.tolist() == [[5], [1]]
    assert torch.equal(retriever.score_all(requests)[:, :5], before)
    assert retriever.retrieve(requests_of([[[5]]], exclude_history=True), 1).items_BK.tolist() == [[0]]


def test_without_vectors_it_says_what_to_add():
    message = r"ContentKNN compares item vectors and was given none: add an \[embedder\] table"
    with pytest.raises(RecipeError, match=message):
        ContentKNN().fit(LOG, catalog_of_size(5), FitContext())
    with pytest.raises(RecipeError, match=message):
        ContentKNN().restore(fitted().state(), catalog_of_size(5), FitContext())


def test_settings():
    assert (ContentKNN().max_steps, ContentKNN().history_decay) == (10, 0.8)
