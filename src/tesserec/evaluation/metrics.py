"""Ranking metrics from the ranks of relevant items, and aggregate metrics from all lists together.

Dimensions: B requests · K candidates · M relevant items of all requests · N items · R resamples · U recommended items.

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

_CHUNK = 2_000_000
"""Comparisons of a relevant item with a candidate that are held at once (about 20 MB)."""


class Metric(Protocol):
    """A figure of each request."""

    def __call__(self, ranks: Ragged, k: int) -> Tensor:
        """Values [B] float64 in [0, 1]; NaN where undefined."""


def rank_relevant(candidates: Candidates, relevant: Ragged) -> Ragged:
    """The mean-of-ties ranks of each request's relevant items, ascending, infinity where not returned; float64."""
    return order_ranks(relevant.offsets, item_ranks(candidates, relevant))


def item_ranks(candidates: Candidates, relevant: Ragged) -> Tensor:
    """The rank of each relevant item, [M] float64 aligned with ``relevant.values``; infinity where not returned.

    Ranks start at 1 and follow the tie rule. Each list holds an item at most once. Memory is bounded: relevant items
    are compared with their lists a few thousand at a time. Raises ``DataError`` where the number of lists differs.
    """
    if len(candidates) != len(relevant):
        raise DataError(f"{len(candidates)} lists for {len(relevant)} requests: give each request one list")
    ranks_M = torch.full((len(relevant.values),), torch.inf, dtype=torch.float64)
    step = max(1, _CHUNK // max(1, candidates.items_BK.shape[1]))
    columns = (ranks_M, relevant.rows, relevant.values)
    for ranks_m, row_m, item_m in zip(*(torch.split(column, step) for column in columns), strict=True):
        found_h, place_h = (candidates.items_BK[row_m] == item_m[:, None]).nonzero(as_tuple=True)
        scores_hK = candidates.scores_BK[row_m[found_h]]
        own_h1 = scores_hK.gather(1, place_h[:, None])
        better_h, tied_h = (scores_hK > own_h1).sum(1), (scores_hK == own_h1).sum(1)
        ranks_m[found_h] = better_h + (tied_h + 1).double() / 2
    return ranks_M


def order_ranks(offsets: Tensor, ranks_M: Tensor, keep_M: Tensor | None = None) -> Ragged:
    """Ranks sorted within each request, ready for metrics; only those where ``keep_M`` holds, if it is given."""
    rows_M = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    if keep_M is not None:
        kept = torch.cat([torch.zeros(1, dtype=torch.int64), keep_M.long().cumsum(0)])
        offsets, rows_M, ranks_M = kept[offsets], rows_M[keep_M], ranks_M[keep_M]
    order = torch.from_numpy(np.lexsort((as_numpy(ranks_M), as_numpy(rows_M))))
    return Ragged(offsets, ranks_M[order])


def recall(ranks: Ragged, k: int) -> Tensor:
    """The share of the relevant items that are hits: |top-k ∩ T| / |T|."""
    return _sums(ranks, _hits(ranks, k).double()) / ranks.lengths


def precision(ranks: Ragged, k: int) -> Tensor:
    """The share of the k places that hits take: |top-k ∩ T| / k."""
    return _defined(ranks, _sums(ranks, _hits(ranks, k).double()) / k)


def hit_rate(ranks: Ragged, k: int) -> Tensor:
    """1 where any relevant item is a hit, else 0."""
    return _defined(ranks, (_sums(ranks, _hits(ranks, k).double()) > 0).double())


def ndcg(ranks: Ragged, k: int) -> Tensor:
    """Σ over hits of 1 / log₂(1 + rank), over the same sum for ranks 1 … min(k, |T|)."""
    gains_M = torch.where(_hits(ranks, k), 1 / torch.log2(1 + ranks.values), 0.0)
    ideal = torch.cat([torch.zeros(1), 1 / torch.log2(torch.arange(2, k + 2).double())]).cumsum(0)
    return _sums(ranks, gains_M) / ideal[ranks.lengths.clamp(max=k)]


def reciprocal_rank(ranks: Ragged, k: int) -> Tensor:
    """1 / rank of the best-ranked hit, 0 without one; its mean is MRR@k."""
    first_M = _hits(ranks, k) & (_places(ranks) == 0)
    return _defined(ranks, _sums(ranks, torch.where(first_M, 1 / ranks.values, 0.0)))


def average_precision(ranks: Ragged, k: int) -> Tensor:
    """Σ over hits of (hits up to it) / rank, over |T|; its mean is MAP@k.

    The divisor is |T| as in trec_eval's ``map_cut``, not min(k, |T|): with more relevant items than places it stays
    below 1, as recall does.
    """
    gains_M = torch.where(_hits(ranks, k), (_places(ranks) + 1) / ranks.values, 0.0)
    return _sums(ranks, gains_M) / ranks.lengths


METRICS: Mapping[str, Metric] = {
    "recall": recall,
    "ndcg": ndcg,
    "mrr": reciprocal_rank,
    "map": average_precision,
    "hit_rate": hit_rate,
    "precision": precision,
}
"""The metrics of a report by the name that k is appended to: ``ndcg`` at 10 is ``ndcg10``."""


def _places(ranks: Ragged) -> Tensor:
    """The position of each rank among those of its request, from 0, [M]."""
    return torch.arange(len(ranks.values)) - ranks.offsets[ranks.rows]


def _hits(ranks: Ragged, k: int) -> Tensor:
    if k < 1:
        raise DataError(f"k = {k}: a cut-off is at least 1")
    return (ranks.values <= k) & (_places(ranks) < k)


def _sums(ranks: Ragged, gains_M: Tensor) -> Tensor:
    return torch.bincount(ranks.rows, weights=gains_M, minlength=len(ranks))


def _defined(ranks: Ragged, values_B: Tensor) -> Tensor:
    return torch.where(ranks.lengths > 0, values_B, torch.nan)


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
        _, columns = torch.unique(self.items_BK[shown_BK], return_inverse=True)
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
        return total_B / self.history.lengths

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
