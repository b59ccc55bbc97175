"""What the embedders share: rows of unit length, and a truncated SVD that is the same every time.

Dimensions: N items · V columns of a sparse matrix · D features.
"""

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

__all__ = ["truncated_svd", "unit_rows"]

_SMALLEST_SHARE = 1e-6
"""Singular values below this share of the largest are rounding noise."""


def unit_rows(vectors_ND: Tensor) -> Tensor:
    """Each row divided by its length; zero rows stay zero. [N, D] float32."""
    return torch.nn.functional.normalize(vectors_ND.float(), dim=1)


def truncated_svd(
    matrix: sp.csr_matrix, num_features: int, seed: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(U, singular values, Vᵀ) of the at most ``num_features`` strongest directions of a sparse matrix.

    Fewer where the matrix has a lower rank. The entry of each row of Vᵀ that is largest in size is positive.
    """
    from sklearn.utils.extmath import randomized_svd  # a second to import, and rarely needed

    u, s, vt = randomized_svd(matrix, min(num_features, *matrix.shape), random_state=seed)
    kept = s > _SMALLEST_SHARE * s[0]
    u, s, vt = u[:, kept], s[kept], vt[kept]
    signs = np.sign(vt[np.arange(len(vt)), np.abs(vt).argmax(1)])
    return u * signs, s, vt * signs[:, None]
