import dataclasses

import pytest
import torch

from tesserec.retrievers.popularity import Popularity
from tesserec.testing.data import catalog_of_size, interactions_of, requests_of
from tesserec.testing.retriever_contract import RetrieverContract
from tesserec.types import NO_TIME, FitContext

CONTEXT = FitContext()
# Days 0 to 3: item 0 on day 0 (twice), item 1 on days 1 and 2, item 2 on day 3; item 3 never.
LOG = interactions_of([[[0], [1], [1], [2]], [[0]]], 4)
EMPTY = requests_of([[]])


class TestPopularityContract(RetrieverContract):
    make = Popularity


def fitted(log=LOG, num_items=4, **settings):
    retriever = Popularity(**settings)
    retriever.fit(log, catalog_of_size(num_items), CONTEXT)
    return retriever


@pytest.mark.parametrize(
    ("days", "recent"),
    [(None, [2, 2, 1, 0]), (3, [2, 2, 1, 0]), (2, [0, 2, 1, 0]), (1.5, [0, 1, 1, 0]), (0.5, [0, 0, 1, 0])],
)
def test_events_of_the_window_count_before_those_of_all_time(days, recent):
    shares = [2 / 6, 2 / 6, 1 / 6, 0]
    expected = [count + share for count, share in zip(recent, shares, strict=True)]
    assert fitted(window_days=days).score_all(EMPTY)[0].tolist() == pytest.approx(expected)


def test_an_event_counts_half_at_the_half_life():
    found = fitted(window_days=2, half_life_days=2).score_all(EMPTY)[0].tolist()
    assert found == pytest.approx([2 / 6, 0.5 + 0.5**0.5 + 2 / 6, 1 + 1 / 6, 0])


def test_events_without_a_time_are_not_recent_unless_none_has_one():
    time = LOG.time_E.clone()
    time[3] = NO_TIME
    found = fitted(dataclasses.replace(LOG, time_E=time), window_days=1).score_all(EMPTY)[0].tolist()
    assert found == pytest.approx([2 / 6, 2 + 2 / 6, 1 / 6, 0])
    untimed = dataclasses.replace(LOG, time_E=torch.full_like(LOG.time_E, NO_TIME))
    assert fitted(untimed, window_days=1).score_all(EMPTY)[0].tolist() == pytest.approx(
        [2 + 2 / 6, 2 + 2 / 6, 1 + 1 / 6, 0]
    )


def test_signals_do_not_count():
    log = dataclasses.replace(
        LOG, kind_E=torch.tensor([0, 1, 1, 0, 0]), kinds=("purchase", "return"), positive_kinds=("purchase",)
    )
    assert fitted(log, window_days=None).score_all(EMPTY)[0].tolist() == pytest.approx([2 + 2 / 4, 0, 1 + 1 / 4, 0])


def test_the_list_is_the_same_for_all_and_full():
    found = fitted(window_days=1).retrieve(requests_of([[], [[3]]]), 4)
    assert found.items_BK.tolist() == [[1, 2, 0, 3]] * 2
    assert found.scores_BK[0, 3] == 0


def test_shares_sum_to_one_and_are_zero_without_events():
    found = fitted(window_days=None).shares(requests_of([[], []])).dense()
    assert found.tolist() == [pytest.approx([14 / 35, 14 / 35, 7 / 35, 0])] * 2
    nothing = fitted(interactions_of([[]], 4))
    assert nothing.shares(EMPTY).dense().tolist() == [[0.0] * 4]
    assert nothing.retrieve(EMPTY, 2).items_BK.tolist() == [[0, 1]]


def test_items_added_since_the_fit_score_zero():
    restored = Popularity()
    restored.restore(fitted(window_days=None).state(), catalog_of_size(6), CONTEXT)
    assert restored.score_all(EMPTY)[0].tolist() == pytest.approx([2 + 2 / 6, 2 + 2 / 6, 1 + 1 / 6, 0, 0, 0])


def test_the_last_two_weeks_count_by_default():
    assert (Popularity().window_days, Popularity().half_life_days) == (14, None)
