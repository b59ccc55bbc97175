"""What the counting retrievers share: weights over a history, and scores as probabilities.

Dimensions: B requests · H history events · N items.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from tesserec.errors import NotFittedError
from tesserec.types import ComponentState, History, Requests, as_numpy

__all__ = [
    "Evidence",
    "history_matrix",
    "normalized",
    "require_fitted",
    "sparse_from_state",
    "sparse_state",
    "steps_ago",
]

T = TypeVar("T")


@runtime_checkable
class Evidence(Protocol):
    """A retriever that gives probabilities: one source of a mixture."""

    def probabilities(self, requests: Requests) -> Tensor:
        """[B, N] float32, before filters; a row sums to 1, or is all zero where nothing is known of the request."""


def steps_ago(history: History) -> Tensor:
    """How many steps before the last one each event happened, [H] int64; 0 is the latest basket.

    Events are steps of their own where the history has no ``step`` column.
    """
    step = history.columns.get("step")
    rank_H = torch.arange(len(history.items))
    if step is not None:
        changed = (step.diff() != 0) | (history.rows.diff() != 0)
        rank_H = torch.cat([rank_H[:1], changed.long().cumsum(0)])
    last_H = torch.repeat_interleave((history.offsets[1:] - 1).clamp(min=0), history.lengths)
    return rank_H[last_H] - rank_H


def history_matrix(history: History, weights_H: Tensor, num_items: int) -> sp.csr_matrix:
    """The weighted events of each request as a sparse [B, N] matrix; repeated items add up, zeros are left out."""
    parts = (as_numpy(weights_H), as_numpy(history.items), as_numpy(history.offsets))
    matrix = sp.csr_matrix(parts, shape=(len(history), num_items), copy=True)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def normalized(weights_BN: Tensor) -> Tensor:
    """Each row divided by its sum; rows without any weight stay zero."""
    total_B1 = weights_BN.sum(1, keepdim=True)
    return weights_BN / total_B1.masked_fill(total_B1 == 0, 1)


def require_fitted(state: T | None, component: object) -> T:
    """``state``, or ``NotFittedError`` where it is still None."""
    if state is None:
        raise NotFittedError(f"{type(component).__name__} is not fitted: call fit or restore first")
    return state


def sparse_state(matrix: sp.csr_matrix) -> ComponentState:
    """A sparse matrix as its three tensors."""
    return ComponentState(
        {
            "offsets": torch.from_numpy(matrix.indptr).long(),
            "columns": torch.from_numpy(matrix.indices).int(),
            "weights": torch.from_numpy(matrix.data),
        }
    )


def sparse_from_state(state: ComponentState, size: int) -> sp.csr_matrix:
    """The inverse of ``sparse_state``: a square matrix of ``size`` rows, those added since all zero."""
    weights, columns, offsets = (as_numpy(state.tensors[name]) for name in ("weights", "columns", "offsets"))
    offsets = np.pad(offsets, (0, size + 1 - len(offsets)), mode="edge")
    return sp.csr_matrix((weights, columns, offsets), shape=(size, size), copy=True)
