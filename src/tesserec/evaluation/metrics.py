"""Ranking metrics from the ranks of relevant items, and aggregate metrics from all lists together.

Dimensions: B requests · K candidates · M relevant items of all requests · N items · R resamples ·
U items that any list holds.

**Tie rule.** An item's rank is the mean of the places that items of its score take in the returned list: two that tie
for places 2 and 3 both have rank 2.5. A relevant item is a hit at k where its rank is ≤ k, and gains are computed from
that rank. k places hold k items, so at most the k best-ranked relevant items of a request are hits. What was not
returned has no rank (infinity): a tie at the end of a list is a tie among those returned.

A metric is one function ``(ranks, k) -> values_B``: ranks as ``rank_relevant`` gives them, float64 values in [0, 1],
NaN where the request has no relevant item; the caller averages. An aggregate metric is one function
``(lists, weights_RB) -> values_R``: row r counts request b ``weights_RB[r, b]`` times, so that ones give the metric
itself and a bootstrap gives its spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from tesserec.errors import DataError
from tesserec.types import PAD, Candidates, Ragged, as_numpy

__all__ = [
    "AGGREGATES",
    "METRICS",
    "AggregateMetric",
    "Lists",
    "Metric",
    "Ranks",
    "average_precision",
    "coverage",
    "gini",
    "hit_rate",
    "item_ranks",
    "ndcg",
    "novelty",
    "order_ranks",
    "popularity_lift",
    "precision",
    "rank_relevant",
    "recall",
    "reciprocal_rank",
]

_CHUNK = 200_000
"""Comparisons of a relevant item with a candidate that are held at once (about 2 MB, which a cache holds)."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """Where the relevant items of each request were found: row b is ``values[offsets[b]:offsets[b + 1]]``."""

    offsets: Tensor
    """[B + 1] int64."""
    values: Tensor
    """[M] float64, ≥ 1, ascending within a row; infinity where not returned."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def num_relevant_B(self) -> Tensor:
        """|T| of each request, int64."""
        return self.offsets.diff()

    @cached_property
    def rows_M(self) -> Tensor:
        """The request of each rank, int64."""
        return torch.repeat_interleave(self.num_relevant_B)

    @cached_property
    def places_M(self) -> Tensor:
        """The position of each rank among those of its request, from 0, int64."""
        return torch.arange(len(self.values)) - self.offsets[self.rows_M]

    def hits_M(self, k: int) -> Tensor:
        """Whether each relevant item is a hit at ``k``, bool; raises ``DataError`` for k < 1."""
        if k < 1:
            raise DataError(f"k = {k}: a cut-off is at least 1")
        return (self.values <= k) & (self.places_M < k)

    def sums_B(self, gains_M: Tensor) -> Tensor:
        """The sum over each request's items, float64; NaN for a request without any."""
        sums_B = torch.bincount(self.rows_M, weights=gains_M.double(), minlength=len(self))
        return torch.where(self.num_relevant_B > 0, sums_B, torch.nan)


class Metric(Protocol):
    """A figure of each request."""

    def __call__(self, ranks: Ranks, k: int) -> Tensor:
        """Values [B] float64 in [0, 1]; NaN where undefined."""


def rank_relevant(candidates: Candidates, relevant: Ragged) -> Ranks:
    """The mean-of-ties ranks of each request's relevant items, ascending, infinity where not returned; float64."""
    return order_ranks(relevant.offsets, item_ranks(candidates, relevant))


def item_ranks(candidates: Candidates, relevant: Ragged) -> Tensor:
    """The rank of each relevant item, [M] float64 aligned with ``relevant.values``; infinity where not returned.

    Ranks start at 1 and follow the tie rule. Each list holds an item at most once. Memory is bounded: relevant items
    are compared with their lists some thousand at a time. Raises ``DataError`` where the number of lists differs.
    """
    if len(candidates) != len(relevant):
        raise DataError(f"{len(candidates)} lists for {len(relevant)} requests: give each request one list")
    items_BK, scores_BK = as_numpy(candidates.items_BK), as_numpy(candidates.scores_BK)
    rows_M, targets_M = as_numpy(relevant.rows), as_numpy(relevant.values)
    ranks_M = np.full(len(targets_M), np.inf)
    step = max(1, _CHUNK // max(1, items_BK.shape[1]))
    for start in range(0, len(targets_M), step):
        row_m = rows_M[start : start + step]
        same_mK = items_BK[row_m] == targets_M[start : start + step, None]
        found_h, place_h = np.divmod(np.flatnonzero(same_mK), items_BK.shape[1])
        scores_hK = scores_BK[row_m[found_h]]
        own_h1 = np.take_along_axis(scores_hK, place_h[:, None], axis=1)
        better_h = np.count_nonzero(scores_hK > own_h1, axis=1)
        tied_h = np.count_nonzero(scores_hK == own_h1, axis=1)
        ranks_M[start + found_h] = better_h + (tied_h + 1) / 2
    return torch.from_numpy(ranks_M)


def order_ranks(offsets: Tensor, ranks_M: Tensor, keep_M: Tensor | None = None) -> Ranks:
    """``item_ranks`` sorted within each request, ready for metrics; only those where ``keep_M`` holds, if given."""
    rows_M = torch.repeat_interleave(offsets.diff())
    if keep_M is not None:
        kept = torch.cat([torch.zeros(1, dtype=torch.int64), keep_M.long().cumsum(0)])
        offsets, rows_M, ranks_M = kept[offsets], rows_M[keep_M], ranks_M[keep_M]
    if not bool((offsets.diff() > 1).any()):
        return Ranks(offsets, ranks_M)
    order = torch.from_numpy(np.lexsort((as_numpy(ranks_M), as_numpy(rows_M))))
    return Ranks(offsets, ranks_M[order])


def recall(ranks: Ranks, k: int) -> Tensor:
    """The share of the relevant items that are hits: |top-k ∩ T| / |T|."""
    return ranks.sums_B(ranks.hits_M(k)) / ranks.num_relevant_B


def precision(ranks: Ranks, k: int) -> Tensor:
    """The share of the k places that hits take: |top-k ∩ T| / k."""
    return ranks.sums_B(ranks.hits_M(k)) / k


def hit_rate(ranks: Ranks, k: int) -> Tensor:
    """1 where any relevant item is a hit, else 0."""
    return ranks.sums_B(ranks.hits_M(k)).clamp(max=1)


def ndcg(ranks: Ranks, k: int) -> Tensor:
    """Σ over hits of 1 / log₂(1 + rank), over the same sum for ranks 1 … min(k, |T|)."""
    gains_M = torch.where(ranks.hits_M(k), 1 / torch.log2(1 + ranks.values), 0.0)
    ideal = torch.cat([torch.zeros(1), 1 / torch.log2(torch.arange(2, k + 2).double())]).cumsum(0)
    return ranks.sums_B(gains_M) / ideal[ranks.num_relevant_B.clamp(max=k)]


def reciprocal_rank(ranks: Ranks, k: int) -> Tensor:
    """1 / rank of the best-ranked hit, 0 without one; its mean is MRR@k."""
    first_M = ranks.hits_M(k) & (ranks.places_M == 0)
    return ranks.sums_B(torch.where(first_M, 1 / ranks.values, 0.0))


def average_precision(ranks: Ranks, k: int) -> Tensor:
    """Σ over hits of (hits up to it) / rank, over |T|; its mean is MAP@k.

    The divisor is |T| as in trec_eval's ``map_cut``, not min(k, |T|): with more relevant items than places it stays
    below 1, as recall does.
    """
    gains_M = torch.where(ranks.hits_M(k), (ranks.places_M + 1) / ranks.values, 0.0)
    return ranks.sums_B(gains_M) / ranks.num_relevant_B


METRICS: Mapping[str, Metric] = {
    "recall": recall,
    "ndcg": ndcg,
    "mrr": reciprocal_rank,
    "map": average_precision,
    "hit_rate": hit_rate,
    "precision": precision,
}
"""The metrics of a report by the name that k is appended to: ``ndcg`` at 10 is ``ndcg10``."""


@dataclass(frozen=True, eq=False)
class Lists:
    """What aggregate metrics read: the lists as they would be shown, and what was known of items and users."""

    items_BK: Tensor
    """Dense item indices, cut at the k in question; ``PAD`` where a list is shorter."""
    counts_N: Tensor
    """Training events of each item of the catalog, int64."""
    history: Ragged
    """The items that each request's user had before."""

    @cached_property
    def exposure_BU(self) -> Any:
        """How often each request's list holds each item that any list holds, a SciPy CSR matrix."""
        shown_BK = self.items_BK != PAD
        items = self.items_BK[shown_BK]
        columns = ((torch.bincount(items, minlength=1) > 0).cumsum(0) - 1)[items]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), shown_BK.sum(1).cumsum(0)])
        shape = (len(self.items_BK), int(columns.max()) + 1 if len(columns) else 0)
        ones = np.ones(len(columns), dtype=np.float32)
        return sparse.csr_matrix((ones, as_numpy(columns), as_numpy(offsets)), shape=shape)

    def exposure(self, weights_RB: Tensor) -> Tensor:
        """How often each recommended item is shown in all, [R, U] float64."""
        return torch.from_numpy((self.exposure_BU.T @ as_numpy(weights_RB.double()).T).T)

    def shown(self, value_N: Tensor) -> Tensor:
        """The mean of a value of items over each request's list, [B] float64, NaN for an empty list."""
        shown_BK = self.items_BK != PAD
        return torch.where(shown_BK, value_N[self.items_BK.clamp(min=0)].double(), 0.0).sum(1) / shown_BK.sum(1)

    def known(self, value_N: Tensor) -> Tensor:
        """The mean of a value of items over each request's history, [B] float64, NaN for an empty one."""
        total_B = torch.bincount(self.history.rows, weights=value_N[self.history.values].double(), minlength=len(self))
        return total_B.double() / self.history.lengths  # of no event at all, bincount makes whole numbers

    def __len__(self) -> int:
        return len(self.items_BK)


class AggregateMetric(Protocol):
    """A figure of all lists together."""

    def __call__(self, lists: Lists, weights_RB: Tensor) -> Tensor:
        """Values [R] float64, one for each row of request weights; NaN where undefined."""


def coverage(lists: Lists, weights_RB: Tensor) -> Tensor:
    """The share of the catalog's items that at least one list holds, in [0, 1]."""
    return (lists.exposure(weights_RB) > 0).sum(1).double() / len(lists.counts_N)


def gini(lists: Lists, weights_RB: Tensor) -> Tensor:
    """The Gini coefficient of how often the catalog's items are shown: 0 all alike, (N − 1) / N only one item."""
    exposure_RU = lists.exposure(weights_RB).sort(1).values
    num_items, num_shown = len(lists.counts_N), exposure_RU.shape[1]
    place_U = torch.arange(num_items - num_shown + 1, num_items + 1).double()
    return (exposure_RU * (2 * place_U - num_items - 1)).sum(1) / (num_items * exposure_RU.sum(1))


def novelty(lists: Lists, weights_RB: Tensor) -> Tensor:
    """Mean −log₂ of the shown items' share of the training events, in bits; ≥ 0.

    The mean is over each list and then over requests with one. An item unseen in training counts as seen once.
    """
    share_N = lists.counts_N.clamp(min=1).double() / lists.counts_N.sum()
    return _weighted_mean(lists.shown(-torch.log2(share_N)), weights_RB)


def popularity_lift(lists: Lists, weights_RB: Tensor) -> Tensor:
    """How much more popular shown items are than those the users had: 0 alike, 1 twice as popular, > −1.

    Popularity is the count of training events. (mean over requests of the list's mean) / (mean over the same requests
    of the history's mean) − 1, over requests that have both a list and a history.
    """
    shown_B, known_B = lists.shown(lists.counts_N), lists.known(lists.counts_N)
    both_B = ~(shown_B.isnan() | known_B.isnan())
    weights_Rb = weights_RB[:, both_B].double()
    return (weights_Rb @ shown_B[both_B]) / (weights_Rb @ known_B[both_B]) - 1


AGGREGATES: Mapping[str, AggregateMetric] = {
    "coverage": coverage,
    "gini": gini,
    "novelty": novelty,
    "popularity_lift": popularity_lift,
}
"""The aggregate metrics of a report by the name that k is appended to."""


def _weighted_mean(values_B: Tensor, weights_RB: Tensor) -> Tensor:
    defined_B = ~values_B.isnan()
    weights_Rb = weights_RB[:, defined_B].double()
    return (weights_Rb @ values_B[defined_B]) / weights_Rb.sum(1)
