"""MMR: the next item is the best one that is not too much like those before it.

Paper: Carbonell & Goldstein 1998, "The Use of MMR, Diversity-Based Reranking for Reordering Documents and Producing
    Summaries", SIGIR 1998.
Adds: (1 − diversity) · relevance − diversity · the largest similarity to what was picked, greedily, item by item.
Differs: relevance is the score scaled to [0, 1] within the request's candidates, since scores of retrievers have no
    common unit; cosines below 0 count as 0; without vectors, similarity is the share of levels that two code tuples
    have in common before they first differ.
Checked: tests/rerankers/test_mmr.py (a greedy that tries every item at every place, hypothesis; values by hand).

Dimensions: B requests · X candidates · K picked · N items · D features · L levels.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserec.config import Field, component
from tesserec.errors import DataError, NotFittedError
from tesserec.types import PAD, Candidates, Requests

__all__ = ["MMR"]


@component
class MMR:
    """Reorders candidates so that neighbours in the list are unlike each other.

    An item that is picked scores least + (most − least) · value, where value is what it was picked by, and least and
    most are the candidates' own scores: in the unit of those, never above the item's own, and descending.
    """

    diversity: Annotated[float, Field(ge=0, le=1)] = 0.3
    """0: by score alone; 1: items as different as possible, after the best one."""

    def __post_init__(self) -> None:
        self._vectors_ND: Tensor | None = None
        self._codes_NL: Tensor | None = None

    def prepare(self, vectors_ND: Tensor | None, codes_NL: Tensor | None = None) -> MMR:
        """Take vectors of all items, or their codes where there are no vectors; returns itself.

        Raises ``DataError`` where there is neither.
        """
        if vectors_ND is None and codes_NL is None:
            raise DataError(
                "diversity compares items by vectors or codes and was given neither: add an [embedder] or a "
                "[semantic_ids] table to the recipe, or set diversity to 0"
            )
        self._vectors_ND, self._codes_NL = vectors_ND, codes_NL
        return self

    def rerank(self, requests: Requests, candidates: Candidates, k: int) -> Candidates:
        """At most ``k`` of the candidates of each request, in the order in which they are picked.

        Of equal values the earlier candidate is picked. Sources and traces go with their items. Raises
        ``NotFittedError`` before ``prepare``, ``DataError`` for candidates that it told nothing of, and ``ValueError``
        for ``k`` below 1.
        """
        if k < 1:
            raise ValueError(f"k = {k}: ask for at least one item")
        similar_BXX = self._similarities(candidates.items_BK)
        scores_BX, here_BX = candidates.scores_BK.double(), candidates.items_BK != PAD
        least_B1 = scores_BX.masked_fill(~here_BX, torch.inf).amin(1, keepdim=True)
        range_B1 = (scores_BX.amax(1, keepdim=True) - least_B1).nan_to_num(posinf=0, neginf=0)
        relevance_BX = ((scores_BX - least_B1) / range_B1.clamp(min=torch.finfo(torch.float64).tiny)).nan_to_num()
        picks_BK, values_BK = _greedy(relevance_BX, similar_BXX, here_BX, self.diversity, min(k, scores_BX.shape[1]))
        own_BK = scores_BX.gather(1, picks_BK)
        # Rounding must not lift an item above its own score.
        scores_BK = torch.minimum(least_B1 + range_B1 * values_BK, own_BK).to(candidates.scores_BK.dtype)
        items_BK = candidates.items_BK.gather(1, picks_BK)
        scores_BK = scores_BK.masked_fill(items_BK == PAD, -torch.inf)
        return _picked(candidates, picks_BK, items_BK, scores_BK.cummin(1).values, k)

    def _similarities(self, items_BX: Tensor) -> Tensor:
        """Similarity of each two candidates of a request, [B, X, X] in [0, 1]."""
        table = self._codes_NL if self._vectors_ND is None else self._vectors_ND
        if table is None:
            raise NotFittedError("MMR knows nothing of the items: call prepare with their vectors or codes first")
        if items_BX.numel() and int(items_BX.max()) >= len(table):
            raise DataError(
                f"candidate {int(items_BX.max())} has no vector or codes, {len(table)} items have: "
                "call prepare with those of all items"
            )
        rows_BXF = table[items_BX.clamp(min=0)]
        if self._vectors_ND is not None:
            unit_BXD = F.normalize(rows_BXF.double(), dim=2)
            return (unit_BXD @ unit_BXD.transpose(1, 2)).clamp(min=0, max=1)
        same_BXXL = rows_BXF[:, :, None] == rows_BXF[:, None]
        return same_BXXL.double().cumprod(3).mean(3)


def _greedy(
    relevance_BX: Tensor, similar_BXX: Tensor, here_BX: Tensor, diversity: float, k: int
) -> tuple[Tensor, Tensor]:
    """(the candidates in the order in which they are picked [B, K], the value of each when it was)."""
    weighted_BX = ((1 - diversity) * relevance_BX).masked_fill(~here_BX, -torch.inf)
    left_BX, redundancy_BX = torch.ones_like(here_BX), torch.zeros_like(relevance_BX)
    picks, values = [], []
    for _ in range(k):
        value_BX = weighted_BX - diversity * redundancy_BX
        # argmax over what is left, the first of equals; what is not there comes last.
        order_BX = value_BX.masked_fill(value_BX == -torch.inf, torch.finfo(value_BX.dtype).min)
        best_B1 = order_BX.masked_fill(~left_BX, -torch.inf).argmax(1, keepdim=True)
        picks.append(best_B1)
        values.append(value_BX.gather(1, best_B1))
        left_BX = left_BX.scatter(1, best_B1, False)
        to_best_BX = similar_BXX.gather(1, best_B1[..., None].expand(-1, 1, similar_BXX.shape[2])).squeeze(1)
        redundancy_BX = torch.maximum(redundancy_BX, to_best_BX)
    return torch.cat(picks, 1), torch.cat(values, 1)


def _picked(candidates: Candidates, picks_BK: Tensor, items_BK: Tensor, scores_BK: Tensor, k: int) -> Candidates:
    """The candidates at ``picks_BK`` with new scores, padded to ``k``."""
    missing = k - picks_BK.shape[1]

    def chosen(values: Tensor) -> Tensor:
        index = picks_BK.view(*picks_BK.shape, *[1] * (values.ndim - 2)).expand(*picks_BK.shape, *values.shape[2:])
        return F.pad(values.gather(1, index), (0, 0) * (values.ndim - 2) + (0, missing))

    source_BK = None if candidates.source_BK is None else chosen(candidates.source_BK)
    return Candidates(
        F.pad(items_BK, (0, missing), value=PAD),
        F.pad(scores_BK, (0, missing), value=-torch.inf),
        source_BK,
        candidates.sources,
        {name: chosen(values) for name, values in candidates.trace.items()},
    )
