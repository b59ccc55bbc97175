"""Several sources of evidence as one score: a log-linear pool whose weights are fitted on validation requests.

Dimensions: B requests · X candidates of all sources · S sources · K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserec.types import PAD, Candidates, Ragged

__all__ = ["fit_weights", "fused", "union"]

FLOOR = 1e-4
"""Probability that a source gives at least, so that no source can veto alone: least of all what counts an item's events
where it has none yet."""

GRID = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5)
"""Weights that are tried for a source while the others sum to 1 or so."""

ROUNDS = 4
"""Passes over the sources."""


def union(parts: list[Tensor]) -> Tensor:
    """The distinct items of several candidate lists [B, K_s]: [B, X] ascending, ``PAD`` first."""
    items_BX = torch.cat(parts, 1).sort(1).values
    repeated_BX = torch.zeros_like(items_BX, dtype=torch.bool)
    repeated_BX[:, 1:] = items_BX[:, 1:] == items_BX[:, :-1]
    return items_BX.masked_fill(repeated_BX, PAD)


def fused(items_BX: Tensor, evidence_BXS: Tensor, weights_S: Tensor, names: tuple[str, ...], k: int) -> Candidates:
    """The ``k`` best by Σ_s weight_s · evidence_s; the evidence of each source is kept as trace.

    ``source_BK`` is the source that lifts an item most above the mean of the candidates.
    """
    weighted_BXS = (evidence_BXS * weights_S).masked_fill((items_BX == PAD)[..., None], 0.0)
    scores_BX = weighted_BXS.sum(-1).masked_fill(items_BX == PAD, -torch.inf)
    if scores_BX.shape[1] < k:
        missing = k - scores_BX.shape[1]
        items_BX, scores_BX = F.pad(items_BX, (0, missing), value=PAD), F.pad(scores_BX, (0, missing), value=-torch.inf)
        weighted_BXS = F.pad(weighted_BXS, (0, 0, 0, missing))
    scores_BK, order_BK = scores_BX.sort(dim=1, descending=True, stable=True)
    scores_BK, order_BK = scores_BK[:, :k], order_BK[:, :k]
    count_B = (items_BX != PAD).sum(1).clamp(min=1)
    lift_BXS = weighted_BXS - weighted_BXS.sum(1, keepdim=True) / count_B[:, None, None]
    kept_BKS = weighted_BXS.gather(1, order_BK[..., None].expand(-1, -1, len(names)))
    lift_BKS = lift_BXS.gather(1, order_BK[..., None].expand(-1, -1, len(names)))
    trace = {name: kept_BKS[..., s] for s, name in enumerate(names)}
    return Candidates(items_BX.gather(1, order_BK), scores_BK, lift_BKS.argmax(-1), names, trace)


def fit_weights(parts: Sequence[tuple[Tensor, Tensor]], relevant: Ragged, prior_S: Tensor) -> Tensor:
    """Weights ≥ 0 that maximise the mean NDCG@10 of the fused lists; ``parts`` are batches of (items, evidence).

    Coordinate ascent over a fixed grid, from ``prior_S`` and from each source alone, so that the fusion is on these
    requests never worse than its best source. NDCG is flat between changes of order, so there is no gradient to
    follow; the search is deterministic. Only ratios count: the result sums to 1.
    """
    width = max(items_BX.shape[1] for items_BX, _ in parts)
    items_BX = torch.cat([F.pad(items, (width - items.shape[1], 0), value=PAD) for items, _ in parts])
    evidence_BXS = torch.cat([F.pad(evidence, (0, 0, width - evidence.shape[1], 0)) for _, evidence in parts])
    gains_BX = _wanted(items_BX, relevant).float()
    ideal_B = _discount(10).cumsum(0)[relevant.lengths.clamp(max=10) - 1]
    # Requests none of whose candidates is relevant gain nothing by any weights.
    open_B = gains_BX.any(1)
    items_BX, evidence_BXS, gains_BX, ideal_B = (part[open_B] for part in (items_BX, evidence_BXS, gains_BX, ideal_B))

    def value(weights_S: Tensor) -> float:
        scores_BX = (evidence_BXS @ weights_S).masked_fill(items_BX == PAD, -torch.inf)
        top_BK = scores_BX.topk(min(10, width), dim=1).indices
        return float(((gains_BX.gather(1, top_BK) @ _discount(top_BK.shape[1])) / ideal_B).sum() / len(relevant))

    starts = [prior_S / prior_S.sum(), *torch.eye(len(prior_S))]
    best_S: Tensor = max(starts, key=value)
    best = value(best_S)
    for _ in range(ROUNDS):
        for source in range(len(prior_S)):
            for weight in GRID:
                tried_S = best_S.clone()
                tried_S[source] = weight
                if bool(tried_S.sum() > 0) and (found := value(tried_S)) > best + 1e-6:
                    best, best_S = found, tried_S
        best_S = best_S / best_S.sum()
    return best_S


def _wanted(items_BX: Tensor, relevant: Ragged) -> Tensor:
    """Whether each candidate is one of its request's relevant items."""
    size = int(max(items_BX.max(), relevant.values.max())) + 1
    keys_BX = torch.arange(len(items_BX))[:, None] * size + items_BX
    return torch.isin(keys_BX, relevant.rows * size + relevant.values) & (items_BX != PAD)


def _discount(k: int) -> Tensor:
    discount_K: Tensor = 1 / torch.log2(torch.arange(k) + 2.0)
    return discount_K
