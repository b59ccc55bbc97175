"""Collaborative vectors: SVD of the positive pointwise mutual information of items bought near each other.

Paper: Levy, Goldberg and Dagan 2015, https://aclanthology.org/Q15-1016
Adds: vectors without text; items of one basket and of neighbouring baskets are each other's context.
Differs: distance is counted in steps (baskets), not events, because the order inside a basket means nothing; a basket
    counts a pair once however often it repeats an item.
Checked: tests/embedders/test_cooccurrence_svd.py (counts and PMI by hand; at full rank the factors rebuild the matrix).

Dimensions: N items · S steps · D features.
"""

from typing import Annotated

import numpy as np
import scipy.sparse as sp
import torch

from tesserec.config import Field, component
from tesserec.embedders.linear import truncated_svd, unit_rows
from tesserec.errors import DataError, NotFittedError
from tesserec.types import Catalog, ComponentState, Interactions, ItemEmbeddings, as_numpy

__all__ = ["CooccurrenceSVD", "cooccurrence_counts", "positive_pmi"]


@component
class CooccurrenceSVD:
    """Item vectors from which items are bought together and one after another."""

    num_features: Annotated[int, Field(gt=0)] = 128
    """Features of a vector; a smaller catalog gets fewer."""
    window: Annotated[int, Field(ge=0)] = 3
    """Steps between two events that still count as together; 0 for the same basket only."""
    smoothing: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Exponent of the context distribution, which tames rare items (Levy et al., section 3.1)."""
    seed: int = 0
    """Of the randomised SVD."""

    def __post_init__(self) -> None:
        self._num_features_found: int | None = None

    def embed(self, catalog: Catalog, train: Interactions | None = None) -> ItemEmbeddings:
        """Vectors [N, D] of unit length; items that never occur with another have a zero row and are marked missing.

        Raises ``DataError`` where there are no training events, or no two items ever occur together.
        """
        if train is None:
            raise DataError("CooccurrenceSVD reads training events: pass them, or use an embedder of catalog text")
        if len(train.items) != len(catalog):
            raise DataError(f"the events are of {len(train.items)} items, the catalog of {len(catalog)}: use the same")
        pmi_NN = positive_pmi(cooccurrence_counts(train.positives(), self.window), self.smoothing)
        if not pmi_NN.nnz:
            raise DataError(
                f"no two items occur within {self.window} steps of one user more often than by chance: "
                "widen the window, or use an embedder of catalog text"
            )
        u, s, _ = truncated_svd(pmi_NN, self.num_features, self.seed)
        self._num_features_found = len(s)
        # half of the singular values' weight on each side (Levy et al., section 3.3)
        vectors_ND = unit_rows(torch.from_numpy(u * np.sqrt(s)))
        missing_N = torch.from_numpy(np.diff(pmi_NN.indptr) == 0)
        vectors_ND[missing_N] = 0
        return ItemEmbeddings(vectors_ND, "CooccurrenceSVD", missing_N)

    def embed_new(self, catalog: Catalog) -> ItemEmbeddings:
        """Zero rows, all marked missing: later items have no events."""
        zeros_ND = torch.zeros(len(catalog), self._fitted())
        return ItemEmbeddings(zeros_ND, "CooccurrenceSVD", torch.ones(len(catalog), dtype=torch.bool))

    def state(self) -> ComponentState:
        """The width of the vectors: all that later items need."""
        return ComponentState({}, {"num_features": str(self._fitted())})

    def restore(self, state: ComponentState) -> None:
        """The inverse of ``state``."""
        self._num_features_found = int(state.metadata["num_features"])

    def _fitted(self) -> int:
        if self._num_features_found is None:
            raise NotFittedError("CooccurrenceSVD has seen no events yet: call embed or restore first")
        return self._num_features_found


def cooccurrence_counts(train: Interactions, window: int) -> sp.csr_matrix:
    """How often two different items lie within ``window`` steps of one user, [N, N] symmetric, float32.

    A pair ``d`` steps apart counts 1 / (1 + d): 1 in the same basket, ½ in the next, and so on.
    """
    size = (int(train.step_E[-1]) + 1 if len(train) else 0, len(train.items))
    ones = np.ones(len(train), dtype=np.float32)
    steps_SN = sp.csr_matrix((ones, (as_numpy(train.step_E), as_numpy(train.item_E))), shape=size)
    steps_SN.data[:] = 1  # an item twice in a basket is in it once
    user_S = np.zeros(size[0], dtype=np.int64)
    user_S[as_numpy(train.step_E)] = as_numpy(train.user_E)
    counts_NN = sp.csr_matrix(steps_SN.T @ steps_SN)
    for distance in range(1, min(window, size[0] - 1) + 1):
        of_one_user = sp.diags((user_S[distance:] == user_S[:-distance]).astype(np.float32))
        after_NN = (steps_SN[:-distance].T @ of_one_user @ steps_SN[distance:]) / (1 + distance)
        counts_NN = counts_NN + after_NN + after_NN.T
    counts_NN = sp.csr_matrix(counts_NN)
    counts_NN.setdiag(0)
    counts_NN.eliminate_zeros()
    return counts_NN


def positive_pmi(counts_NN: sp.csr_matrix, smoothing: float) -> sp.csr_matrix:
    """max(0, log p(i, j) / (p(i) · q(j))) where counts are positive; q is the marginal to the power ``smoothing``."""
    marginal_N = np.asarray(counts_NN.sum(1)).ravel().astype(np.float64)
    context_N = marginal_N**smoothing
    pairs = sp.coo_matrix(counts_NN)
    ratio = pairs.data * context_N.sum() / (marginal_N[pairs.row] * context_N[pairs.col])
    values = np.maximum(np.log(ratio), 0).astype(np.float32)
    pmi_NN = sp.csr_matrix((values, (pairs.row, pairs.col)), shape=counts_NN.shape)
    pmi_NN.eliminate_zeros()
    return pmi_NN
