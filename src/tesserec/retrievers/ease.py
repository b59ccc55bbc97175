"""EASE: a linear item-to-item model in closed form.

Paper: Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data", arXiv 1905.03375.
Adds: B = I − P · diag(1 / diag P), P = (XᵀX + λI)⁻¹: ridge regression of every item on all others.
Differs: items without events are left out of the inverse; a catalog that memory cannot hold is refused.
Checked: tests/retrievers/test_ease.py (NumPy closed form; the diagonal stays zero).

Dimensions: B requests · N items · M items with events · U users.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from tesserec.config import Field, component
from tesserec.decoding.top_k import top_k_in_batches
from tesserec.errors import ResourceError
from tesserec.retrievers.evidence import history_matrix, require_fitted
from tesserec.retrievers.popularity import Popularity
from tesserec.types import Candidates, Catalog, ComponentState, FitContext, Interactions, Requests, as_numpy

__all__ = ["EASE"]

BYTES_A_PAIR = 24
"""Peak memory of the fit for each pair of items: two float64 matrices and, meanwhile, copies and float32 results."""


@component
class EASE:
    """Proposes items whose events a ridge regression predicts from the others of the history.

    Items without training events score 0. An empty history is answered by popularity.
    """

    l2: Annotated[float, Field(gt=0)] = 500.0
    """λ; the paper's values are 200 to 1,000 (Table 1: 500 for ML-20M)."""
    max_memory_bytes: Annotated[int, Field(gt=0)] = 8 * 2**30
    """What the fit may use at its peak, 24 bytes for each pair of items that have events."""

    popularity: Popularity = dataclasses.field(default_factory=Popularity)
    """What requests without a history get."""

    def __post_init__(self) -> None:
        self._weights_MM: Tensor | None = None
        self._items_M = torch.zeros(0, dtype=torch.int64)
        self._num_items = 0

    def fit(self, train: Interactions, catalog: Catalog, context: FitContext) -> None:
        """Solve for the weights; raises ``ResourceError`` where memory would not hold them."""
        events = train.positives()
        items_M, column_E = torch.unique(events.item_E.long(), return_inverse=True)
        self._check_memory(len(items_M))
        ones_E = np.ones(len(events), dtype=np.float64)
        shape = (len(events.users), len(items_M))
        matrix_UM = sp.csr_matrix((ones_E, (as_numpy(events.user_E), as_numpy(column_E))), shape=shape)
        matrix_UM.data[:] = 1.0
        self._weights_MM = _closed_form(torch.from_numpy((matrix_UM.T @ matrix_UM).toarray()), self.l2)
        self._items_M, self._num_items = items_M, len(catalog)
        self.popularity.fit(train, catalog, context)

    def score_all(self, requests: Requests) -> Tensor:
        """Sum of the weights of the history's distinct items, [B, N] float32; popularity where there are none."""
        weights_MM = require_fitted(self._weights_MM, self)
        history = requests.history.positives()
        seen = history_matrix(history, torch.ones(len(history.items)), self._num_items)
        seen.data[:] = 1.0
        scores_BN = torch.zeros(len(requests), self._num_items)
        scores_BN[:, self._items_M] = torch.from_numpy(seen[:, as_numpy(self._items_M)] @ as_numpy(weights_MM))
        return self.popularity.answer_newcomers(scores_BN, requests)

    def retrieve(self, requests: Requests, k: int) -> Candidates:
        """The ``k`` best items that the filters allow."""
        require_fitted(self._weights_MM, self)
        return top_k_in_batches(self.score_all, requests, k, self._num_items)

    def add_items(self, catalog: Catalog, context: FitContext) -> None:
        """Know the items that were appended to ``catalog`` since the fit, as items without events."""
        self.restore(self.state(), catalog, context)

    def state(self) -> ComponentState:
        """The weights, the items they belong to, and the popularity of every item."""
        weights = ComponentState({"weights": require_fitted(self._weights_MM, self), "items": self._items_M})
        return ComponentState.merged(weights, self.popularity.state().under("popularity"))

    def restore(self, state: ComponentState, catalog: Catalog, context: FitContext) -> None:
        """The inverse of ``state``; items added to the catalog since score 0."""
        self._weights_MM, self._items_M = state.tensors["weights"], state.tensors["items"]
        self._num_items = len(catalog)
        self.popularity.restore(state.part("popularity"), catalog, context)

    def _check_memory(self, num_items: int) -> None:
        fits = math.isqrt(self.max_memory_bytes // BYTES_A_PAIR)
        if num_items > fits:
            raise ResourceError(
                f"EASE needs {BYTES_A_PAIR * num_items**2 / 2**30:.3g} GiB for {num_items} items with events; "
                f"max_memory_bytes = {self.max_memory_bytes} holds {fits}: "
                "raise it, drop rare items (k-core), or use tesserec.retrievers.cooccurrence:Cooccurrence"
            )


def _closed_form(gram_MM: Tensor, l2: float) -> Tensor:
    """Weights [M, M] float32 with a zero diagonal (equation 8) from XᵀX in float64, which is overwritten."""
    gram_MM.diagonal().add_(l2)
    inverse_MM = torch.cholesky_inverse(torch.linalg.cholesky(gram_MM))
    weights_MM = inverse_MM.div_(-inverse_MM.diagonal().clone()).float()
    return weights_MM.fill_diagonal_(0)
