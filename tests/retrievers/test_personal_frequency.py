import dataclasses

import pytest
import torch

from tesserec.retrievers.personal_frequency import PersonalFrequency
from tesserec.retrievers.popularity import Popularity
from tesserec.testing.data import baskets, catalog_of_size, interactions_of, requests_of
from tesserec.testing.retriever_contract import RetrieverContract
from tesserec.types import FitContext, Requests

# Popularity: item 3 three times, item 2 once.
LOG = interactions_of([[[3], [3], [3], [2]]], 5)


class TestPersonalFrequencyContract(RetrieverContract):
    make = PersonalFrequency


def fitted(**settings):
    retriever = PersonalFrequency(popularity=Popularity(window_days=None), **settings)
    retriever.fit(LOG, catalog_of_size(5), FitContext())
    return retriever


def test_events_count_by_steps_ago():
    requests = requests_of([[[0, 1], [1], [4, 0]], []])
    found = fitted(decay=0.5, back_off=0).score_all(requests)
    assert found.tolist() == [pytest.approx([1.25 / 3, 0.75 / 3, 0, 0, 1 / 3]), [0.0] * 5]


def test_popularity_has_its_share_of_the_score():
    requests = requests_of([[[0], [1]], []])
    found = fitted(decay=0.5, back_off=0.25).score_all(requests)
    popular = [0, 0, 1.2 / 4.8, 3.6 / 4.8, 0]
    own = [1 / 3, 2 / 3, 0, 0, 0]
    assert found[0].tolist() == pytest.approx([0.75 * o + 0.25 * p for o, p in zip(own, popular, strict=True)])
    assert found[1].tolist() == pytest.approx([0.25 * p for p in popular])


def test_own_items_come_first_then_popular_ones():
    found = fitted().retrieve(requests_of([[[0], [1], [0]], []]), 5)
    assert found.items_BK.tolist() == [[0, 1, 3, 2, 4], [3, 2, 0, 1, 4]]


def test_returned_items_do_not_count():
    requests = requests_of([[[0], [1]]])
    columns = {**requests.history.columns, "positive": torch.tensor([True, False])}
    signals = Requests(dataclasses.replace(requests.history, columns=columns))
    assert fitted(back_off=0).score_all(signals).tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]]


def test_a_pair_that_is_bought_again_is_found():
    train, catalog = baskets(length=3)
    retriever = PersonalFrequency()
    retriever.fit(train, catalog, FitContext())
    found = retriever.retrieve(requests_of([[[4, 5], [0, 1], [4, 5]]]), 4)
    assert found.items_BK.tolist() == [[4, 5, 0, 1]]


def test_settings():
    assert (PersonalFrequency().decay, PersonalFrequency().back_off) == (0.95, 0.1)
    assert sorted(fitted().state().tensors) == ["popularity.score"]
