import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tesserec.errors import RecipeError
from tesserec.retrievers import content_knn
from tesserec.retrievers.content_knn import ContentKNN, closeness
from tesserec.testing.data import catalog_of_size, interactions_of, requests_of
from tesserec.testing.retriever_contract import RetrieverContract
from tesserec.types import PAD, FitContext, History, ItemEmbeddings, Requests

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


def test_closeness_is_the_mean_cube_of_the_cosines_with_the_last_events():
    generator = torch.Generator().manual_seed(0)
    unit_NF = F.normalize(torch.randn(20, 6, generator=generator), dim=1)
    history = History(torch.tensor([0, 3, 3, 15]), torch.arange(15) % 20, {"step": torch.tensor([0, 1, 1, *range(12)])})
    items_BX = torch.tensor([[4, 5, PAD], [1, 2, 3], [0, 19, 18]])
    found_BX = closeness(unit_NF, history, items_BX)

    def expected(events, weights, item):
        cosines = (unit_NF[events] @ unit_NF[item]).clamp(min=0)
        return float((cosines**3 * weights).sum() / weights.sum())

    first = torch.tensor([0.7, 1.0, 1.0])
    last = 0.7 ** torch.arange(9, -1, -1.0)
    wanted = [
        [expected(torch.arange(3), first, 4), expected(torch.arange(3), first, 5), 0],
        [0, 0, 0],
        [expected(torch.arange(5, 15), last, item) for item in (0, 19, 18)],
    ]
    torch.testing.assert_close(found_BX, torch.tensor(wanted))


def test_closeness_does_not_depend_on_what_is_asked_at_once(monkeypatch):
    unit_NF = F.normalize(torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    history = History(torch.tensor([0, 3, 4, 8]), torch.arange(8))
    items_BX = torch.arange(15).view(3, 5)
    whole_BX = closeness(unit_NF, history, items_BX)
    monkeypatch.setattr(content_knn, "CHUNK_FLOATS", 1)
    torch.testing.assert_close(closeness(unit_NF, history, items_BX), whole_BX)


def test_without_content_nothing_is_close():
    history = History(torch.tensor([0, 2]), torch.tensor([0, 1]))
    assert closeness(torch.zeros(5, 0), history, torch.tensor([[2, 3]])).tolist() == [[0, 0]]
