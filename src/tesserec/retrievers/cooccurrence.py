"""Co-occurrence: items that follow the last ones of the history, within a few events, in other users' logs.

Paper: none; sequential rules with decay as in Ludewig & Jannach 2018, "Evaluation of Session-based Recommendation
    Algorithms", arXiv 1803.09587 (SR, section 3.1), a strong and cheap baseline.
Adds: C[i, j] = Σ decay^(distance − 1) over pairs of a user's events, i before j, at most ``window`` apart, divided by
    count(i)^normalization; a request adds the rows of its last events.
Differs: decay is exponential where SR divides by the distance; pairs also count a little against their order; a history
    of several events is used, and popularity orders the rest.
Checked: tests/retrievers/test_cooccurrence.py (pairs by hand); Amazon 2014
    Beauty, last_out, trained on train only, test: Recall@10 0.0840, NDCG@10 0.0517 (validation 0.1037, 0.0652).

Dimensions: B requests · E events · H history events · N items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from tesserec.config import Field, component, fresh
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
from tesserec.training.measure import Measured
from tesserec.types import (
    Candidates,
    Catalog,
    ComponentState,
    Estimate,
    FitContext,
    Interactions,
    Requests,
    as_numpy,
)

__all__ = ["Cooccurrence"]

Array = np.ndarray[Any, Any]

CHUNK_EVENTS = 2**19
"""Events whose pairs are in memory at once."""
MAX_PAIRS = 2**27
"""Distinct pairs (1 GiB) beyond which only four times the final neighbours are kept while counting goes on."""
PAIR_BYTES = 8
"""A column and a weight."""


@component
class Cooccurrence:
    """Proposes what followed the last items of the history most often; popular items where those are too few.

    Distances count events in the order of the log, so that neighbours within a basket count too.
    """

    window: Annotated[int, Field(ge=1)] = 8
    """Largest distance of a pair, in events of one user."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.7
    """What a pair counts, relative to one an event closer."""
    reverse: Annotated[float, Field(ge=0, le=1)] = 0.2
    """What a pair counts against its order: 1 makes the relation symmetric."""
    normalization: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Power of count(i) by which the pairs of i are divided; at 0 frequent items of a history dominate it."""
    history_decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """What an event of the history counts, relative to one a step (basket) later."""
    num_neighbors: Annotated[int, Field(ge=1)] = 1000
    """Strongest pairs kept of each item."""
    back_off: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of popularity in the score; 0: items that follow nothing are not told apart."""
    popularity: Popularity = dataclasses.field(default_factory=Popularity)
    """What the rest of the list is ordered by."""

    def __post_init__(self) -> None:
        self._weights: sp.csr_matrix | None = None

    def fit(self, train: Interactions, catalog: Catalog, context: FitContext) -> None:
        """Count the pairs of positive events, in time O(E · window)."""
        events = train.positives()
        num_items = len(catalog)
        weights = strongest(self._counted_pairs(events, num_items), self.num_neighbors)
        count_N = np.bincount(as_numpy(events.item_E), minlength=num_items)
        divisor_N = (np.maximum(count_N, 1) ** self.normalization).astype(np.float32)
        weights.data /= np.repeat(divisor_N, np.diff(weights.indptr))
        self.popularity.fit(train, catalog, context)
        self._weights = weights

    def estimate(self, train: Interactions, catalog: Catalog, context: FitContext) -> Estimate:
        """Time of ``fit`` from that of its first events; memory as if no pair came twice."""
        sample = train.select(torch.arange(min(len(train), CHUNK_EVENTS)))
        probe = fresh(self)
        with Measured() as cost:
            probe.fit(sample, catalog, context)
        seconds = cost.seconds * len(train) / max(len(sample), 1)
        return Estimate(seconds, cost.peak_rss_bytes + 2 * self.pair_bytes(len(train), len(catalog)))

    def pair_bytes(self, num_events: int, num_items: int) -> int:
        """Bytes of all pairs of so many events, at most."""
        return PAIR_BYTES * min(2 * self.window * num_events, num_items**2, MAX_PAIRS)

    def score_all(self, requests: Requests) -> Tensor:
        """(1 − back_off) · share of the history's pairs + back_off · popularity share, [B, N] float32 in [0, 1]."""
        return self.shares(requests).dense()

    def shares(self, requests: Requests) -> Shares:
        """The same without writing out items that follow nothing of the history."""
        weights = require_fitted(self._weights, self)
        history = requests.history.positives()
        weights_H = self.history_decay ** steps_ago(history).float()
        following = history_matrix(history, weights_H, weights.shape[0]) @ weights
        return Shares(row_shares(following, 1 - self.back_off), self.back_off * self.popularity.share_N())

    def retrieve(self, requests: Requests, k: int) -> Candidates:
        """The ``k`` best items that the filters allow."""
        return top_k_in_batches(self.score_all, requests, k, require_fitted(self._weights, self).shape[0])

    def add_items(self, catalog: Catalog, context: FitContext) -> None:
        """Know the items that were appended to ``catalog`` since the fit, as items without events."""
        self.restore(self.state(), catalog, context)

    def state(self) -> ComponentState:
        """The pairs and the popularity of every item."""
        pairs = sparse_state(require_fitted(self._weights, self)).under("pairs")
        return ComponentState.merged(pairs, self.popularity.state().under("popularity"))

    def restore(self, state: ComponentState, catalog: Catalog, context: FitContext) -> None:
        """The inverse of ``state``; items added to the catalog since have no pairs."""
        self.popularity.restore(state.part("popularity"), catalog, context)
        self._weights = sparse_from_state(state.part("pairs"), len(catalog))

    def _counted_pairs(self, events: Interactions, num_items: int) -> sp.csr_matrix:
        """The weights of all pairs; sums of like size are added, so that each pair is copied a few times only."""
        shape = num_items, num_items
        none = np.zeros(0, np.int32)
        sums = [sp.csr_matrix((np.zeros(0, np.float32), (none, none)), shape=shape)]
        for first, second, value in self._pairs(events):
            chunk = sp.csr_matrix((value, (first, second)), shape=shape)
            sums.append(chunk + self.reverse * chunk.T.tocsr())
            while len(sums) > 1 and sums[-2].nnz <= 2 * sums[-1].nnz:
                sums.append(self._bounded(sums.pop() + sums.pop()))
        while len(sums) > 1:
            sums.append(self._bounded(sums.pop() + sums.pop()))
        return sums[0]

    def _bounded(self, weights: sp.csr_matrix) -> sp.csr_matrix:
        return strongest(weights, 4 * self.num_neighbors) if weights.nnz > MAX_PAIRS else weights

    def _pairs(self, events: Interactions) -> Iterator[tuple[Array, Array, Array]]:
        """Chunks of pairs: the earlier items, the later ones and their weights."""
        user_E, item_E = as_numpy(events.user_E), as_numpy(events.item_E)
        for start in range(0, len(events), CHUNK_EVENTS):
            end = min(start + CHUNK_EVENTS, len(events))
            parts = []
            for distance in range(1, self.window + 1):
                first = np.arange(start, min(end, len(events) - distance))
                first = first[user_E[first] == user_E[first + distance]]
                weight = np.full(len(first), self.decay ** (distance - 1), dtype=np.float32)
                parts.append((item_E[first], item_E[first + distance], weight))
            columns = list(zip(*parts, strict=True))
            yield np.concatenate(columns[0]), np.concatenate(columns[1]), np.concatenate(columns[2])
