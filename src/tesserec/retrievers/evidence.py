"""What the counting retrievers share: weights over a history, and scores as probabilities.

Dimensions: B requests · H history events · N items · X items asked for · K best items · O own entries of a request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from tesserec.decoding.top_k import allowed_keys, available_items, excluded_keys, first_best, top_k
from tesserec.errors import NotFittedError
from tesserec.types import PAD, ComponentState, History, Requests, as_numpy

__all__ = [
    "Shares",
    "history_matrix",
    "no_own",
    "require_fitted",
    "row_shares",
    "sparse_from_state",
    "sparse_state",
    "steps_ago",
    "strongest",
]

T = TypeVar("T")

SMALL = 2**20
"""Numbers that are written out rather than looked up."""


@dataclass(frozen=True)
class Shares:
    """A number for each request and item, [B, N]: its own where there is one, plus one that all requests share.

    A request knows something of a few items only, so that a large catalog is never written out.
    """

    own: sp.csr_matrix
    """[B, N], at least 0."""
    shared_N: Tensor
    """At least 0."""

    def dense(self) -> Tensor:
        """All of it, [B, N] float32."""
        return self._dense_BN

    @cached_property
    def _dense_BN(self) -> Tensor:
        return torch.from_numpy(self.own.toarray()) + self.shared_N

    @property
    def _is_small(self) -> bool:
        return bool(math.prod(self.own.shape) <= SMALL)

    def at(self, items_BX: Tensor) -> Tensor:
        """The numbers of some items of each request, [B, X]; those of ``PAD`` mean nothing."""
        items_BX = items_BX.clamp(min=0)
        if self._is_small:
            return self.dense().gather(1, items_BX)
        rows = np.repeat(np.arange(self.own.shape[0]), np.diff(self.own.indptr))
        keys = torch.from_numpy(rows * self.own.shape[1] + self.own.indices)
        found_BX = self.shared_N[items_BX]
        if not len(keys):
            return found_BX
        wanted_BX = torch.arange(len(items_BX))[:, None] * self.own.shape[1] + items_BX
        place_BX = torch.searchsorted(keys, wanted_BX).clamp(max=len(keys) - 1)
        own_BX = torch.from_numpy(self.own.data)[place_BX]
        return found_BX + own_BX.masked_fill(keys[place_BX] != wanted_BX, 0.0)

    def best(self, requests: Requests, k: int) -> Tensor:
        """The ``k`` allowed items of each request with the largest numbers, [B, k] in no order; ``PAD`` where fewer.

        They are among the request's allow-list, or else its own items and the ``k`` allowed ones that all requests
        share most of.
        """
        if self._is_small:
            return top_k(self.dense(), requests, k).items_BK
        num_items = self.own.shape[1]
        excluded = excluded_keys(requests, num_items)
        available_N = available_items(requests, num_items)
        allowed = allowed_keys(requests, num_items)
        if allowed is None:
            items_BX = self._most_likely(excluded, available_N, k)
        else:
            items_BX = _as_rows(allowed, len(requests), num_items)
        scores_BX = self.at(items_BX).masked_fill((items_BX == PAD) | ~available_N[items_BX], -torch.inf)
        scores_BX = scores_BX.masked_fill(torch.isin(_keys(items_BX, num_items), excluded), -torch.inf)
        picks_BK = first_best(scores_BX, min(k, scores_BX.shape[1]))
        items_BK = items_BX.gather(1, picks_BK).masked_fill(scores_BX.gather(1, picks_BK) == -torch.inf, PAD)
        return F.pad(items_BK, (0, k - items_BK.shape[1]), value=PAD)

    def _most_likely(self, excluded: Tensor, available_N: Tensor, k: int) -> Tensor:
        """Distinct items of each request, [B, X], its ``k`` best allowed ones among them; ``PAD`` in between."""
        num_items = self.own.shape[1]
        most = min(num_items, k + int(torch.bincount(excluded // num_items, minlength=1).max()))
        shared_N = self.shared_N.masked_fill(~available_N, -torch.inf)
        shared_BK = first_best(shared_N[None], most).expand(self.own.shape[0], -1)
        own_BO = self._own_items()
        repeated_BK = torch.isin(_keys(shared_BK, num_items), _keys(own_BO, num_items))
        return torch.cat([shared_BK.masked_fill(repeated_BK, PAD), own_BO], 1)

    def _own_items(self) -> Tensor:
        """The items of each row, [B, O], ``PAD`` at the end."""
        counts = np.diff(self.own.indptr)
        items = np.full((len(counts), counts.max(initial=0)), PAD)
        items[np.arange(items.shape[1]) < counts[:, None]] = self.own.indices
        return torch.from_numpy(items)


def _keys(items_BX: Tensor, num_items: int) -> Tensor:
    """``request · num_items + item``, [B, X]; ``PAD`` stays."""
    keys_BX = torch.arange(len(items_BX))[:, None] * num_items + items_BX
    return keys_BX.masked_fill(items_BX == PAD, PAD)


def _as_rows(keys: Tensor, num_requests: int, num_items: int) -> Tensor:
    """The items of ascending keys, a row a request, [B, X] with ``PAD`` at the end."""
    row_X = keys // num_items
    counts_B = torch.bincount(row_X, minlength=num_requests)
    items_BX = torch.full((num_requests, int(counts_B.max()) if num_requests else 0), PAD)
    items_BX[row_X, torch.arange(len(keys)) - (counts_B.cumsum(0) - counts_B)[row_X]] = keys % num_items
    return items_BX


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


def no_own(num_requests: int, num_items: int) -> sp.csr_matrix:
    """The own part [B, N] of ``Shares`` where there is none."""
    none = np.zeros(0, np.int32)
    return sp.csr_matrix((np.zeros(0, np.float32), (none, none)), shape=(num_requests, num_items))


def row_shares(matrix: sp.csr_matrix, factor: float) -> sp.csr_matrix:
    """Each row scaled to the sum ``factor``, columns ascending; rows without any weight stay empty."""
    total_B = np.asarray(matrix.sum(1)).squeeze(1)
    matrix.data *= np.repeat(factor / np.where(total_B == 0, 1, total_B), np.diff(matrix.indptr)).astype(np.float32)
    matrix.sort_indices()
    return matrix


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


def strongest(matrix: sp.csr_matrix, limit: int) -> sp.csr_matrix:
    """``matrix`` with the ``limit`` largest entries of each row, the lower column first among equals; in place."""
    for row in np.flatnonzero(np.diff(matrix.indptr) > limit):
        values = matrix.data[matrix.indptr[row] : matrix.indptr[row + 1]]
        least = np.partition(values, -limit)[-limit]
        equal = np.flatnonzero(values == least)
        room = limit - np.count_nonzero(values > least)
        values[values < least] = 0
        values[equal[room:]] = 0
    matrix.eliminate_zeros()
    return matrix
