"""Several sources of evidence as one score: a log-linear pool whose weights are fitted on validation requests.

Dimensions: B requests · X candidates of all sources · S sources · K candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tesserec.types import PAD, Candidates, Ragged

__all__ = ["fit_weights", "fused", "union"]

FLOOR = 1e-7
"""Probability that a source gives at least, so that no source can veto alone."""


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
        pad = torch.nn.functional.pad
        items_BX, scores_BX = pad(items_BX, (0, missing), value=PAD), pad(scores_BX, (0, missing), value=-torch.inf)
        weighted_BXS = pad(weighted_BXS, (0, 0, 0, missing))
    scores_BK, order_BK = scores_BX.sort(dim=1, descending=True, stable=True)
    scores_BK, order_BK = scores_BK[:, :k], order_BK[:, :k]
    count_B = (items_BX != PAD).sum(1).clamp(min=1)
    lift_BXS = weighted_BXS - weighted_BXS.sum(1, keepdim=True) / count_B[:, None, None]
    kept_BKS = weighted_BXS.gather(1, order_BK[..., None].expand(-1, -1, len(names)))
    lift_BKS = lift_BXS.gather(1, order_BK[..., None].expand(-1, -1, len(names)))
    trace = {name: kept_BKS[..., s] for s, name in enumerate(names)}
    return Candidates(items_BX.gather(1, order_BK), scores_BK, lift_BKS.argmax(-1), names, trace)


def fit_weights(items_BX: Tensor, evidence_BXS: Tensor, relevant: Ragged, prior_S: Tensor, l2: float = 1e-3) -> Tensor:
    """Weights ≥ 0 that make the relevant items likeliest among the candidates (convex; L-BFGS; deterministic).

    Minimises the mean cross-entropy of a softmax over each request's candidates, its relevant ones equally likely,
    plus l2 · ‖weights − prior‖². Requests without a relevant candidate say nothing and are left out.
    """
    size = int(items_BX.max().clamp(min=0)) + 1
    keys_BX = torch.arange(len(items_BX))[:, None] * size + items_BX
    inside = relevant.values < size
    wanted_BX = torch.isin(keys_BX, relevant.rows[inside] * size + relevant.values[inside]) & (items_BX != PAD)
    kept = wanted_BX.any(1)
    if not bool(kept.any()):
        return prior_S
    wanted_BX, evidence_BXS, absent_BX = wanted_BX[kept], evidence_BXS[kept], (items_BX == PAD)[kept]
    target_BX = wanted_BX / wanted_BX.sum(1, keepdim=True)
    log_weights_S = prior_S.clamp(min=1e-3).log().requires_grad_()
    optimizer = torch.optim.LBFGS([log_weights_S], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        weights_S = log_weights_S.exp()
        scores_BX = (evidence_BXS @ weights_S).masked_fill(absent_BX, -1e9)
        loss = -(target_BX * scores_BX.log_softmax(1)).sum(1).mean() + l2 * (weights_S - prior_S).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return log_weights_S.detach().exp()
