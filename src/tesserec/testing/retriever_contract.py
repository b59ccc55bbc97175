"""What every retriever must do, as a class of tests: ``class TestEASE(RetrieverContract): make = EASE``.

A subclass gives ``make``, and overrides ``data`` or ``context`` where its method needs more than events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch

from tesserec.errors import NotFittedError
from tesserec.testing.data import baskets, catalog_of_size, requests_of
from tesserec.types import (
    PAD,
    Candidates,
    Catalog,
    FitContext,
    Interactions,
    Requests,
    Retriever,
    Scorer,
    TakesNewItems,
)

__all__ = ["RetrieverContract"]

HISTORIES: tuple[list[list[int]], ...] = ([[0, 1], [2, 3]], [], [[4], [4], [5]], [[11]])


class RetrieverContract:
    """Subclass it in a test module, with ``make`` returning an unfitted retriever that learns fast."""

    make: ClassVar[Callable[[], Retriever]]
    """Builds the retriever; a class with defaults will do."""
    tolerance: ClassVar[float] = 1e-5
    """How far scores of one request alone and in a batch may differ."""

    def data(self) -> tuple[Interactions, Catalog]:
        """Events and catalog to fit on: 12 items."""
        return baskets()

    def context(self, catalog: Catalog) -> FitContext:
        """What the fit gets beside the events."""
        return FitContext(seed=3)

    def fitted(self) -> Retriever:
        """A retriever fitted on ``data``."""
        train, catalog = self.data()
        retriever = type(self).make()
        retriever.fit(train, catalog, self.context(catalog))
        return retriever

    def test_lists_are_legal_sorted_and_without_repeats(self) -> None:
        """Every list holds distinct items of the catalog, best first."""
        requests = requests_of(HISTORIES)
        candidates = self.fitted().retrieve(requests, 5)
        assert candidates.items_BK.shape == (len(HISTORIES), 5)
        _check_legal(candidates, 12)
        assert isinstance(self.fitted(), Retriever)

    def test_an_empty_history_is_answered(self) -> None:
        """Somebody new gets a full list."""
        candidates = self.fitted().retrieve(requests_of([[]]), 5)
        assert bool((candidates.items_BK != PAD).all())

    def test_nothing_excluded_is_proposed(self) -> None:
        """History, further exclusions and unavailable items are left out, together."""
        excluded = [[6], [0, 1, 2], [], [3, 3]]
        available = [item != 8 for item in range(12)]
        requests = requests_of(HISTORIES, exclude_history=True, excluded=excluded, available=available)
        candidates = self.fitted().retrieve(requests, 12)
        _check_legal(candidates, 12)
        for row, history in enumerate(HISTORIES):
            forbidden = {item for basket in history for item in basket} | set(excluded[row]) | {8}
            assert not forbidden & set(candidates.items_BK[row].tolist())

    def test_nothing_beside_an_allow_list_is_proposed(self) -> None:
        """All of a request's allow-list but what other filters take, and nothing else."""
        allowed = [[5, 9, 8, 9], [3], [], [11, 0]]
        available = [item != 8 for item in range(12)]
        requests = requests_of(HISTORIES, exclude_history=True, available=available, allowed=allowed)
        found = self.fitted().retrieve(requests, 4).items_BK.tolist()
        assert [sorted(item for item in items if item != PAD) for items in found] == [[5, 9], [3], [], [0]]

    def test_everything_excluded_gives_an_empty_list(self) -> None:
        """Where nothing is allowed, nothing is proposed."""
        requests = requests_of([[[0]], [[1]]], available=[False] * 12)
        assert self.fitted().retrieve(requests, 3).items_BK.tolist() == [[PAD] * 3] * 2

    def test_one_allowed_item_is_found(self) -> None:
        """What is left after all other items are excluded is proposed, however unlikely it is."""
        requests = requests_of([[[0, 1]]], available=[item == 9 for item in range(12)])
        assert self.fitted().retrieve(requests, 2).items_BK.tolist() == [[9, PAD]]

    def test_more_than_the_catalog_is_padded(self) -> None:
        """A ``k`` above the number of items ends in PAD."""
        candidates = self.fitted().retrieve(requests_of(HISTORIES), 20)
        assert candidates.items_BK.shape == (len(HISTORIES), 20)
        _check_legal(candidates, 12)
        assert bool((candidates.items_BK[:, 12:] == PAD).all())

    def test_no_requests_give_no_lists(self) -> None:
        """An empty batch is answered by an empty one."""
        assert self.fitted().retrieve(requests_of([]), 4).items_BK.shape == (0, 4)

    def test_one_request_alone_gets_what_it_gets_in_a_batch(self) -> None:
        """Lists do not depend on what else is asked."""
        retriever, requests = self.fitted(), requests_of(HISTORIES)
        together = retriever.retrieve(requests, 5)
        for row in range(len(requests)):
            alone = retriever.retrieve(requests.take(torch.tensor([row])), 5)
            _check_same(alone, together.items_BK[row : row + 1], together.scores_BK[row : row + 1], self.tolerance)

    def test_state_and_restore_give_the_same_lists(self) -> None:
        """A restored retriever answers as the fitted one."""
        _, catalog = self.data()
        fitted, restored, requests = self.fitted(), type(self).make(), requests_of(HISTORIES)
        restored.restore(fitted.state(), catalog, self.context(catalog))
        expected = fitted.retrieve(requests, 8)
        _check_same(restored.retrieve(requests, 8), expected.items_BK, expected.scores_BK, 0.0)

    def test_the_same_seed_gives_the_same_lists(self) -> None:
        """Two fits alike answer alike."""
        requests = requests_of(HISTORIES)
        expected = self.fitted().retrieve(requests, 8)
        _check_same(self.fitted().retrieve(requests, 8), expected.items_BK, expected.scores_BK, 0.0)

    def test_use_before_fit_is_refused(self) -> None:
        """Neither lists nor a state without a fit."""
        retriever = type(self).make()
        with pytest.raises(NotFittedError, match="is not fitted: call fit or restore first"):
            retriever.retrieve(requests_of(HISTORIES), 3)
        with pytest.raises(NotFittedError, match="is not fitted"):
            retriever.state()

    def test_inputs_stay_as_they_were(self) -> None:
        """Neither events nor requests are written to."""
        train, catalog = self.data()
        before = {name: column.clone() for name, column in train.columns().items()}
        requests = requests_of(HISTORIES, exclude_history=True)
        copies = [tensor.clone() for tensor in _tensors(requests)]
        retriever = type(self).make()
        retriever.fit(train, catalog, self.context(catalog))
        retriever.retrieve(requests, 4)
        assert all(torch.equal(column, before[name]) for name, column in train.columns().items())
        assert all(torch.equal(a, b) for a, b in zip(_tensors(requests), copies, strict=True))

    def test_scores_of_all_items_give_the_same_lists(self) -> None:
        """A ``Scorer`` proposes by the scores it gives, and gives fresh ones."""
        retriever, requests = self.fitted(), requests_of(HISTORIES)
        if not isinstance(retriever, Scorer):
            pytest.skip("not a Scorer")
        scores_BN = retriever.score_all(requests)
        assert scores_BN.shape == (len(HISTORIES), 12)
        assert scores_BN.dtype == torch.float32
        candidates = retriever.retrieve(requests, 12)
        assert torch.allclose(scores_BN.gather(1, candidates.items_BK), candidates.scores_BK, atol=self.tolerance)
        scores_BN.fill_(0)
        assert torch.equal(retriever.retrieve(requests, 12).items_BK, candidates.items_BK)

    def test_new_items_can_be_asked_about(self) -> None:
        """Items appended to the catalog are legal in filters and histories, and are proposed where nothing else is."""
        retriever = self.fitted()
        if not isinstance(retriever, TakesNewItems):
            pytest.skip("takes no new items")
        catalog = self.grown()
        retriever.add_items(catalog, self.context(catalog))
        requests = requests_of([[[0, 1]], [[12], [13]], []], available=[item >= 12 for item in range(14)])
        assert [sorted(items) for items in retriever.retrieve(requests, 2).items_BK.tolist()] == [[12, 13]] * 3

    def grown(self) -> Catalog:
        """The catalog of ``data`` with two more items."""
        return catalog_of_size(14)


def _check_legal(candidates: Candidates, num_items: int) -> None:
    for items in candidates.items_BK.tolist():
        proposed = [item for item in items if item != PAD]
        assert len(set(proposed)) == len(proposed)
        assert all(0 <= item < num_items for item in proposed)
        assert items[len(proposed) :] == [PAD] * (len(items) - len(proposed))
    assert candidates.items_BK.dtype == torch.int64
    assert not bool(candidates.scores_BK.isnan().any())


def _check_same(found: Candidates, items_BK: torch.Tensor, scores_BK: torch.Tensor, tolerance: float) -> None:
    assert torch.allclose(found.scores_BK, scores_BK, atol=tolerance, rtol=tolerance)
    clear_BK = torch.ones_like(scores_BK, dtype=torch.bool)
    if tolerance:
        close = (scores_BK.diff(dim=1).abs() <= 2 * tolerance) | (scores_BK[:, 1:] == scores_BK[:, :-1])
        clear_BK[:, 1:] &= ~close
        clear_BK[:, :-1] &= ~close
        clear_BK[:, -1] = False
    assert bool(((found.items_BK == items_BK) | ~clear_BK).all())


def _tensors(requests: Requests) -> list[torch.Tensor]:
    history = requests.history
    return [history.offsets, history.items, *history.columns.values()]
