"""Personal frequency: what this user bought before, most often and most recently first.

Paper: none; the baseline of repeat purchases (Hu et al. 2020, "Modeling Personalized Item Frequency Information for
    Next-basket Recommendation", arXiv 2006.00556, show how strong it is).
Adds: counts of the user's own history with decay by steps, before popularity.
Differs: one decay by steps in place of the paper's two nested ones; no neighbours.
Checked: tests/retrievers/test_personal_frequency.py (weights by hand).

Dimensions: B requests · H history events · N items.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from torch import Tensor

from tesserec.config import Field, component
from tesserec.decoding.top_k import top_k_in_batches
from tesserec.retrievers.evidence import Shares, history_matrix, require_fitted, row_shares, steps_ago
from tesserec.retrievers.popularity import Popularity
from tesserec.types import Candidates, Catalog, ComponentState, FitContext, Interactions, Requests

__all__ = ["PersonalFrequency"]


@component
class PersonalFrequency:
    """Proposes the user's own items again; popular ones where those are too few.

    Events that are signals only, such as returns, do not count.
    """

    decay: Annotated[float, Field(gt=0, le=1)] = 0.95
    """What an event counts, relative to one a step (basket) later."""
    back_off: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of popularity in the score; 0: only the user's own items are told apart."""
    popularity: Popularity = dataclasses.field(default_factory=Popularity)
    """What the rest of the list is ordered by."""

    def __post_init__(self) -> None:
        self._num_items: int | None = None

    def fit(self, train: Interactions, catalog: Catalog, context: FitContext) -> None:
        """Count what is popular; the rest is read from each request."""
        self.popularity.fit(train, catalog, context)
        self._num_items = len(catalog)

    def score_all(self, requests: Requests) -> Tensor:
        """(1 − back_off) · own share + back_off · popularity share, [B, N] in [0, 1]; own: of decayed events."""
        return self.shares(requests).dense()

    def shares(self, requests: Requests) -> Shares:
        """The same without writing out items that the user never had."""
        num_items = require_fitted(self._num_items, self)
        history = requests.history.positives()
        own = history_matrix(history, self.decay ** steps_ago(history).float(), num_items)
        return Shares(row_shares(own, 1 - self.back_off), self.back_off * self.popularity.share_N())

    def retrieve(self, requests: Requests, k: int) -> Candidates:
        """The ``k`` best items that the filters allow."""
        return top_k_in_batches(self.score_all, requests, k, require_fitted(self._num_items, self))

    def add_items(self, catalog: Catalog, context: FitContext) -> None:
        """Know the items that were appended to ``catalog`` since the fit, as items without events."""
        self.restore(self.state(), catalog, context)

    def state(self) -> ComponentState:
        """The popularity of every item."""
        require_fitted(self._num_items, self)
        return self.popularity.state().under("popularity")

    def restore(self, state: ComponentState, catalog: Catalog, context: FitContext) -> None:
        """The inverse of ``state``."""
        self.popularity.restore(state.part("popularity"), catalog, context)
        self._num_items = len(catalog)
