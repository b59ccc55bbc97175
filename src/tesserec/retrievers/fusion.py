"""Several sources of evidence as one score: a log-linear pool whose weights are fitted on validation requests.

An item has the weights of its group, which its number of training events decides: what counts events knows most of
frequent items and nothing of new ones. The weights are those of a conditional logit over the candidates (McFadden 1973,
"Conditional Logit Analysis of Qualitative Choice Behavior"), pulled to weights that all groups share, and these to a
prior.

Dimensions: B requests · X candidates of all sources · S sources · G groups · N items · K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserec.types import PAD, Candidates, Ragged

__all__ = ["NUM_GROUPS", "fit_weights", "fused", "groups_of", "union"]

FLOOR = 1e-4
"""Probability that a source gives at least, so that no source can veto alone: least of all what counts an item's events
where it has none yet."""

BOUNDS = (1, 3, 8, 20)
"""Training events from which an item is of the next group."""
NUM_GROUPS = len(BOUNDS) + 1

PULL = 1.0
"""Weight of the squared distances to the prior and to the shared weights, beside the log-likelihood of all requests."""
NUM_STEPS = 100
"""Steps of the fit at most."""


def groups_of(events_N: Tensor) -> Tensor:
    """The group of items by their training events, [N] int64 in [0, G)."""
    return torch.bucketize(events_N, torch.tensor(BOUNDS), right=True)


def union(parts: list[Tensor]) -> Tensor:
    """The distinct items of several candidate lists [B, K_s]: [B, X] ascending, ``PAD`` first."""
    items_BX = torch.cat(parts, 1).sort(1).values
    repeated_BX = torch.zeros_like(items_BX, dtype=torch.bool)
    repeated_BX[:, 1:] = items_BX[:, 1:] == items_BX[:, :-1]
    return items_BX.masked_fill(repeated_BX, PAD)


def fused(items_BX: Tensor, evidence_BXS: Tensor, weights: Tensor, names: tuple[str, ...], k: int) -> Candidates:
    """The ``k`` best by Σ_s weight_s · evidence_s; the evidence of each source is kept as trace.

    ``weights`` are [S], or [B, X, S] where they differ by candidate. ``source_BK`` is the source that lifts an item
    most above the mean of the candidates.
    """
    weighted_BXS = (evidence_BXS * weights).masked_fill((items_BX == PAD)[..., None], 0.0)
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


def fit_weights(parts: Sequence[tuple[Tensor, Tensor]], relevant: Ragged, prior_S: Tensor, group_N: Tensor) -> Tensor:
    """Weights [G, S] under which the relevant candidates are likeliest; ``parts`` are batches of (items, evidence).

    A source whose prior is 0 gets no weight. Where the fitted weights reach a lower mean NDCG@10 on these requests than
    the prior or one source alone, the best of those is the answer.
    """
    width = max(items_BX.shape[1] for items_BX, _ in parts)
    items_BX = torch.cat([F.pad(items, (width - items.shape[1], 0), value=PAD) for items, _ in parts])
    evidence_BXS = torch.cat([F.pad(evidence, (0, 0, width - evidence.shape[1], 0)) for _, evidence in parts])
    gains_BX = _wanted(items_BX, relevant).float()
    ideal_B = _discount(10).cumsum(0)[relevant.lengths.clamp(max=10) - 1]
    # Requests none of whose candidates is relevant say nothing of the weights.
    open_B = gains_BX.any(1)
    items_BX, evidence_BXS, gains_BX, ideal_B = (part[open_B] for part in (items_BX, evidence_BXS, gains_BX, ideal_B))
    group_BX1 = group_N[items_BX.clamp(min=0)][..., None]
    evidence_BXS = evidence_BXS.masked_fill((items_BX == PAD)[..., None], 0.0)

    def scores(weights_GS: Tensor) -> Tensor:
        scores_BX = (evidence_BXS @ weights_GS.T).gather(2, group_BX1).squeeze(2)
        return scores_BX.masked_fill(items_BX == PAD, -torch.inf)

    def value(weights_GS: Tensor) -> float:
        top_BK = scores(weights_GS).topk(min(10, width), dim=1).indices
        return float(((gains_BX.gather(1, top_BK) @ _discount(top_BK.shape[1])) / ideal_B).sum())

    def loss(shared_S: Tensor, own_GS: Tensor) -> Tensor:
        log_probs_BX = scores((shared_S + own_GS) * (prior_S != 0)).log_softmax(1)
        of_each_B = log_probs_BX.masked_fill(gains_BX == 0, 0.0).sum(1) / gains_BX.sum(1)
        return PULL * ((shared_S - prior_S).square().sum() + own_GS.square().sum()) - of_each_B.sum()

    alone = torch.eye(len(prior_S))[prior_S != 0]
    simple = [start_S.expand(NUM_GROUPS, -1) for start_S in (prior_S, *alone)]
    best_GS: Tensor = max([_minimum(loss, prior_S) * (prior_S != 0), *simple], key=value)
    return best_GS.clone()


def _minimum(loss: Callable[[Tensor, Tensor], Tensor], prior_S: Tensor) -> Tensor:
    """Shared and own weights of the smallest loss, added up: [G, S]. The loss is convex: any start would do."""
    with torch.enable_grad():
        shared_S = prior_S.clone().requires_grad_()
        own_GS = torch.zeros(NUM_GROUPS, len(prior_S), requires_grad=True)
        optimizer = torch.optim.LBFGS([shared_S, own_GS], max_iter=NUM_STEPS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss(shared_S, own_GS)
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return value

        optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return (shared_S + own_GS).detach()


def _wanted(items_BX: Tensor, relevant: Ragged) -> Tensor:
    """Whether each candidate is one of its request's relevant items."""
    size = int(max(items_BX.max(), relevant.values.max())) + 1
    keys_BX = torch.arange(len(items_BX))[:, None] * size + items_BX
    return torch.isin(keys_BX, relevant.rows * size + relevant.values) & (items_BX != PAD)


def _discount(k: int) -> Tensor:
    discount_K: Tensor = 1 / torch.log2(torch.arange(k) + 2.0)
    return discount_K
