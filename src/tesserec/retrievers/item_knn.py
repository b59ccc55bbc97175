"""ItemKNN: items whose buyers are those of the history's items.

Paper: Deshpande & Karypis 2004, "Item-Based Top-N Recommendation Algorithms", doi 10.1145/963770.963776.
Adds: cosine of the items' columns of the binary user–item matrix, the k nearest kept of each item; a request sums the
    similarities to its items.
Differs: shrinkage, so that a few shared users do not make a neighbour; the history may decay with age; popularity
    orders the rest of the list.
Checked: tests/retrievers/test_item_knn.py (similarities in NumPy loops; planted groups).

Dimensions: B requests · E events · N items · U users.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np
import scipy.sparse as sp
from torch import Tensor

from tesserec.config import Field, component
from tesserec.decoding.top_k import top_k_in_batches
from tesserec.retrievers.evidence import (
    Shares,
    history_matrix,
    require_fitted,
    row_shares,
    sparse_from_state,
    sparse_state,
    steps_ago,
    strongest,
)
from tesserec.retrievers.popularity import Popularity
from tesserec.types import Candidates, Catalog, ComponentState, FitContext, Interactions, Requests, as_numpy

__all__ = ["ItemKNN"]

BLOCK_ITEMS = 2**12
"""Items whose similarities to all others are in memory at once, before the nearest are chosen."""


@component
class ItemKNN:
    """Proposes the items most similar to those of the history, by the users that they share."""

    num_neighbors: Annotated[int, Field(ge=1)] = 100
    """Nearest items kept of each item, k."""
    shrinkage: Annotated[float, Field(ge=0)] = 10.0
    """Added to the divisor of the cosine; 0: the cosine itself."""
    history_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """What an event of the history counts, relative to one a step (basket) later; 1: all alike, as in the paper."""
    back_off: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of popularity in the score; 0: items that are no neighbours are not told apart."""
    popularity: Popularity = dataclasses.field(default_factory=Popularity)
    """What the rest of the list is ordered by."""

    def __post_init__(self) -> None:
        self._similarity: sp.csr_matrix | None = None

    def fit(self, train: Interactions, catalog: Catalog, context: FitContext) -> None:
        """Compute the similarities of items with shared users among the positive events."""
        events = train.positives()
        ones_E = np.ones(len(events), dtype=np.float32)
        place_E = (as_numpy(events.user_E), as_numpy(events.item_E))
        users_UN = sp.csr_matrix((ones_E, place_E), shape=(len(events.users), len(catalog)))
        users_UN.data[:] = 1.0
        self.popularity.fit(train, catalog, context)
        self._similarity = self._nearest(users_UN)

    def score_all(self, requests: Requests) -> Tensor:
        """(1 − back_off) · share of the similarities + back_off · popularity share, [B, N] float32 in [0, 1]."""
        return self.shares(requests).dense()

    def shares(self, requests: Requests) -> Shares:
        """The same without writing out items that are no neighbours of the history."""
        similarity = require_fitted(self._similarity, self)
        history = requests.history.positives()
        weights_H = self.history_decay ** steps_ago(history).float()
        similar = history_matrix(history, weights_H, similarity.shape[0]) @ similarity
        return Shares(row_shares(similar, 1 - self.back_off), self.back_off * self.popularity.share_N())

    def retrieve(self, requests: Requests, k: int) -> Candidates:
        """The ``k`` best items that the filters allow."""
        return top_k_in_batches(self.score_all, requests, k, require_fitted(self._similarity, self).shape[0])

    def add_items(self, catalog: Catalog, context: FitContext) -> None:
        """Know the items that were appended to ``catalog`` since the fit, as items without events."""
        self.restore(self.state(), catalog, context)

    def state(self) -> ComponentState:
        """The similarities and the popularity of every item."""
        similarity = sparse_state(require_fitted(self._similarity, self)).under("similarity")
        return ComponentState.merged(similarity, self.popularity.state().under("popularity"))

    def restore(self, state: ComponentState, catalog: Catalog, context: FitContext) -> None:
        """The inverse of ``state``; items added to the catalog since have no neighbours."""
        self.popularity.restore(state.part("popularity"), catalog, context)
        self._similarity = sparse_from_state(state.part("similarity"), len(catalog))

    def _nearest(self, users_UN: sp.csr_matrix) -> sp.csr_matrix:
        """Each item's similarities to its nearest ones, [N, N] float32."""
        items_NU = users_UN.T.tocsr()
        length_N = np.sqrt(np.diff(items_NU.indptr)).astype(np.float32)
        none = np.zeros(0, np.int32)
        blocks = [sp.csr_matrix((np.zeros(0, np.float32), (none, none)), shape=(0, len(length_N)))]
        for start in range(0, len(length_N), BLOCK_ITEMS):
            shared = items_NU[start : start + BLOCK_ITEMS] @ users_UN
            shared.sort_indices()
            rows = start + np.repeat(np.arange(shared.shape[0]), np.diff(shared.indptr))
            shared.data /= length_N[rows] * length_N[shared.indices] + np.float32(self.shrinkage)
            shared.data[rows == shared.indices] = 0
            blocks.append(strongest(shared, self.num_neighbors))
        return sp.vstack(blocks, format="csr", dtype=np.float32)
