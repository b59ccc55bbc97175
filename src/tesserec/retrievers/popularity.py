"""Popularity: the same list for everybody, what was bought most in the last weeks of training.

Paper: none; the baseline every recommender must beat.
Adds: counts of a recent window, with an optional half-life, before counts of all time.
Differs: the window ends with the training events, never with the request, so that nothing later is seen.
Checked: tests/retrievers/test_popularity.py (counts by hand).

Dimensions: B requests · E events · N items.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from tesserec.config import Field, component
from tesserec.decoding.top_k import top_k_in_batches
from tesserec.retrievers.evidence import Shares, no_own, require_fitted
from tesserec.types import NO_TIME, Candidates, Catalog, ComponentState, FitContext, Interactions, Requests

__all__ = ["Popularity"]

SECONDS_A_DAY = 86_400


@component
class Popularity:
    """Proposes the items with the most recent events, to every request alike.

    An item scores the weight of its events in the window plus its share of all events, which is below 1: items of
    the window come first, then those of all time, then the others at 0, so that a list is always full. Events
    without a time count as outside the window, unless no event has a time: then all count.
    """

    window_days: Annotated[float, Field(gt=0)] | None = 14.0
    """Days before the last training event that count as recent; None: all."""
    half_life_days: Annotated[float, Field(gt=0)] | None = None
    """Age at which an event of the window counts half; None: all count alike."""

    def __post_init__(self) -> None:
        self._score_N: Tensor | None = None

    def fit(self, train: Interactions, catalog: Catalog, context: FitContext) -> None:
        """Count the positive events of ``train``."""
        events = train.positives()
        count_N = torch.bincount(events.item_E, minlength=len(catalog)).double()
        recent_N = torch.bincount(events.item_E, self._weights(events.time_E), minlength=len(catalog))
        self._score_N = (recent_N + count_N / (count_N.sum() + 1)).float()

    def score_all(self, requests: Requests) -> Tensor:
        """Recent weight plus share of all time, [B, N] float32, at least 0."""
        return require_fitted(self._score_N, self).repeat(len(requests), 1)

    def share_N(self) -> Tensor:
        """Each item's share of all scores, [N]; all zero where training had no events."""
        score_N = require_fitted(self._score_N, self)
        return score_N / score_N.sum().clamp(min=torch.finfo(torch.float32).tiny)

    def shares(self, requests: Requests) -> Shares:
        """The same shares for every request."""
        share_N = self.share_N()
        return Shares(no_own(len(requests), len(share_N)), share_N)

    def answer_newcomers(self, scores_BN: Tensor, requests: Requests) -> Tensor:
        """``scores_BN`` with the rows of requests that have no positive event replaced by ``score_all``."""
        empty_B1 = (requests.history.positives().lengths == 0)[:, None]
        return torch.where(empty_B1, require_fitted(self._score_N, self), scores_BN)

    def retrieve(self, requests: Requests, k: int) -> Candidates:
        """The ``k`` most popular items that the filters allow."""
        return top_k_in_batches(self.score_all, requests, k, len(require_fitted(self._score_N, self)))

    def add_items(self, catalog: Catalog, context: FitContext) -> None:
        """Know the items that were appended to ``catalog`` since the fit, as items without events."""
        self.restore(self.state(), catalog, context)

    def state(self) -> ComponentState:
        """The score of every item."""
        return ComponentState({"score": require_fitted(self._score_N, self)})

    def restore(self, state: ComponentState, catalog: Catalog, context: FitContext) -> None:
        """The inverse of ``state``; items added to the catalog since score 0."""
        score_N = torch.zeros(len(catalog))
        score_N[: len(state.tensors["score"])] = state.tensors["score"]
        self._score_N = score_N

    def _weights(self, time_E: Tensor) -> Tensor:
        """How much each event counts as recent, [E] float64 in [0, 1]."""
        known_E = time_E != NO_TIME
        if not bool(known_E.any()):
            return torch.ones(len(time_E), dtype=torch.float64)
        age_E = (time_E.max() - time_E).double() / SECONDS_A_DAY
        weights_E = known_E.double()
        if self.window_days is not None:
            weights_E *= age_E <= self.window_days
        if self.half_life_days is not None:
            weights_E *= 0.5 ** (age_E / self.half_life_days)
        return weights_E
