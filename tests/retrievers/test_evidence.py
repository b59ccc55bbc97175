import numpy as np
import pytest
import scipy.sparse as sp
import torch

from tesserec.decoding.top_k import top_k
from tesserec.errors import NotFittedError
from tesserec.retrievers import evidence
from tesserec.retrievers.evidence import (
    Shares,
    history_matrix,
    no_own,
    require_fitted,
    row_shares,
    sparse_from_state,
    sparse_state,
    steps_ago,
)
from tesserec.retrievers.popularity import Popularity
from tesserec.testing.data import requests_of
from tesserec.types import History


def test_steps_ago_counts_baskets_from_the_last_one():
    history = requests_of([[[0, 1], [2], [3, 4]], [], [[5]], [[6, 6]]]).history
    assert steps_ago(history).tolist() == [2, 2, 1, 0, 0, 0, 0, 0]


def test_steps_ago_restarts_where_the_next_request_has_the_same_step_number():
    history = History(torch.tensor([0, 2, 4]), torch.zeros(4, dtype=torch.int64), {"step": torch.tensor([3, 7, 7, 9])})
    assert steps_ago(history).tolist() == [1, 0, 1, 0]


def test_steps_ago_without_steps_counts_events():
    history = History(torch.tensor([0, 3, 3, 4]), torch.zeros(4, dtype=torch.int64))
    assert steps_ago(history).tolist() == [2, 1, 0, 0]


def test_steps_ago_of_no_events():
    assert steps_ago(requests_of([[], []]).history).tolist() == []
    assert steps_ago(requests_of([]).history).tolist() == []


def test_history_matrix_adds_repeated_items():
    history = requests_of([[[1, 0], [1]], [], [[2]]]).history
    matrix = history_matrix(history, torch.tensor([1.0, 2.0, 4.0, 0.0]), 3)
    assert matrix.toarray().tolist() == [[2.0, 5.0, 0.0], [0.0] * 3, [0.0] * 3]
    assert matrix.nnz == 2


def test_sparse_state_survives_and_grows():
    matrix = history_matrix(requests_of([[[1]], [[0], [1]]]).history, torch.tensor([1.0, 2.0, 3.0]), 2)
    state = sparse_state(matrix)
    assert {name: tensor.dtype for name, tensor in state.tensors.items()} == {
        "offsets": torch.int64,
        "columns": torch.int32,
        "weights": torch.float32,
    }
    assert sparse_from_state(state, 2).toarray().tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert sparse_from_state(state, 3).toarray().tolist() == [[0.0, 1.0, 0.0], [2.0, 3.0, 0.0], [0.0] * 3]


def test_require_fitted_names_the_component():
    assert require_fitted(0, "x") == 0
    with pytest.raises(NotFittedError, match=r"^Popularity is not fitted: call fit or restore first$"):
        require_fitted(None, Popularity())


def random_shares(generator, num_requests, num_items):
    own = torch.rand(num_requests, num_items, generator=generator)
    own *= torch.rand(num_requests, num_items, generator=generator) < 0.3
    shared_N = torch.rand(num_items, generator=generator)
    return Shares(sp.csr_matrix(own.numpy()), shared_N), own + shared_N


@pytest.mark.parametrize("small", [0, evidence.SMALL])
@pytest.mark.parametrize("seed", range(12))
def test_shares_are_as_if_written_out(seed, small, monkeypatch):
    monkeypatch.setattr(evidence, "SMALL", small)
    generator = torch.Generator().manual_seed(seed)
    shares, dense_BN = random_shares(generator, 3, 11)
    torch.testing.assert_close(shares.dense(), dense_BN)
    items_BX = torch.randint(11, (3, 6), generator=generator)
    torch.testing.assert_close(shares.at(items_BX), dense_BN.gather(1, items_BX))
    requests = requests_of(
        [[[0, 4]], [[7], [2]], []],
        exclude_history=seed % 2 == 0,
        excluded=[[], [10, 0, 1, 3, 5, 6, 8], [9]] if seed % 3 else None,
        available=[item != seed for item in range(11)] if seed % 4 else None,
        allowed=[[1, 9, 4, 1], [], [2, 3, 5, 7, 9]] if seed % 5 == 1 else None,
    )
    for k in (1, 4, 13):
        found = shares.best(requests, k)
        assert found.dtype == torch.int64
        expected = top_k(dense_BN, requests, k).items_BK
        assert found.sort(1).values.tolist() == expected.sort(1).values.tolist()


@pytest.mark.parametrize("small", [0, evidence.SMALL])
def test_without_own_items_all_requests_get_what_they_share(small, monkeypatch):
    monkeypatch.setattr(evidence, "SMALL", small)
    shares = Shares(no_own(2, 4), torch.tensor([0.1, 0.3, 0.0, 0.6]))
    requests = requests_of([[[3]], []], exclude_history=True)
    assert shares.best(requests, 2).sort(1).values.tolist() == [[0, 1], [1, 3]]
    assert shares.at(torch.tensor([[3], [2]])).tolist() == [[pytest.approx(0.6)], [0.0]]
    nobody = Shares(no_own(0, 4), shares.shared_N)
    assert nobody.best(requests_of([]), 2).shape == (0, 2)


def test_rows_are_scaled_to_a_sum_and_empty_ones_stay():
    matrix = sp.csr_matrix((np.array([3, 1, 2], np.float32), np.array([2, 0, 1]), np.array([0, 2, 2, 3])), shape=(3, 3))
    found = row_shares(matrix, 0.5)
    assert found.toarray().tolist() == [[0.125, 0, 0.375], [0, 0, 0], [0, 0.5, 0]]
    assert found.indices.tolist() == [0, 2, 1]
    assert found.dtype == np.float32
