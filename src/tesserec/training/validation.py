"""NDCG@k of lists while training: what the best epoch is chosen by.

Dimensions: B requests · K candidates.
"""

from collections.abc import Callable

import torch

from tesserec.types import Candidates, Holdout, Requests

__all__ = ["MAX_REQUESTS", "mean_ndcg", "validation_ndcg"]


def mean_ndcg(candidates: Candidates, holdout: Holdout, k: int = 10) -> float:
    """Mean NDCG@k in [0, 1] with binary gains; ties stay in list order (reports use ``tesserec.evaluation``)."""
    size = int(max(candidates.items_BK.max(), holdout.relevant.values.max())) + 1
    wanted = holdout.relevant.rows * size + holdout.relevant.values
    items_BK = candidates.items_BK[:, :k]
    keys_BK = torch.arange(len(items_BK))[:, None] * size + items_BK
    hits_BK = torch.isin(keys_BK, wanted) & (items_BK >= 0)
    discount_K = 1 / torch.log2(torch.arange(k) + 2.0)
    ideal_B = discount_K.cumsum(0)[holdout.relevant.lengths.clamp(max=k) - 1]
    return float(((hits_BK * discount_K[: items_BK.shape[1]]).sum(1) / ideal_B).mean())


MAX_REQUESTS = 5000
"""Requests that a model is asked after each epoch at most, so that asking does not take as long as training."""


def validation_ndcg(retrieve: Callable[[Requests, int], Candidates], holdout: Holdout, k: int = 10) -> float:
    """Mean NDCG@k of what ``retrieve`` answers to the holdout's requests, in batches of 256.

    Of more than ``MAX_REQUESTS`` requests as many are asked, evenly spaced.
    """
    if len(holdout) > MAX_REQUESTS:
        holdout = holdout.take(torch.linspace(0, len(holdout) - 1, MAX_REQUESTS).long())
    parts = [retrieve(holdout.requests.take(rows), k) for rows in holdout.requests.batches(256)]
    return mean_ndcg(Candidates.concatenate(parts), holdout, k)
