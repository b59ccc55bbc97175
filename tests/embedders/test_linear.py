"""Unit rows and the truncated SVD."""

import numpy as np
import scipy.sparse as sp
import torch

from tesserec.embedders.linear import truncated_svd, unit_rows


def test_unit_rows_keep_zero_rows():
    rows = unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]], dtype=torch.float64))
    assert torch.allclose(rows, torch.tensor([[0.6, 0.8], [0, 0], [0, -1.0]]))
    assert rows.dtype == torch.float32


def test_svd_agrees_with_numpy_and_has_positive_largest_entries():
    matrix = np.random.default_rng(0).normal(size=(8, 5))
    u, s, vt = truncated_svd(sp.csr_matrix(matrix), 3, seed=0)
    assert np.allclose(s, np.linalg.svd(matrix)[1][:3])
    assert np.allclose(matrix @ vt.T, u * s)
    assert all(row[np.abs(row).argmax()] > 0 for row in vt)


def test_svd_leaves_out_what_the_matrix_does_not_have():
    rank_two = np.outer([1, 2, 3, 4], [1, 0, 1]) + np.outer([1, 0, 1, 0], [0, 1, 0])
    u, s, vt = truncated_svd(sp.csr_matrix(rank_two.astype(float)), 10, seed=0)
    assert (u.shape, s.shape, vt.shape) == ((4, 2), (2,), (2, 3))
    assert np.allclose(u * s @ vt, rank_two)
