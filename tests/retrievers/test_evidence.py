import pytest
import torch

from tesserec.errors import NotFittedError
from tesserec.retrievers.cooccurrence import Cooccurrence
from tesserec.retrievers.ease import EASE
from tesserec.retrievers.evidence import (
    Evidence,
    history_matrix,
    normalized,
    require_fitted,
    sparse_from_state,
    sparse_state,
    steps_ago,
)
from tesserec.retrievers.personal_frequency import PersonalFrequency
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


def test_normalized_rows_sum_to_one_or_stay_zero():
    assert normalized(torch.tensor([[1.0, 3.0], [0.0, 0.0]])).tolist() == [[0.25, 0.75], [0.0, 0.0]]


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


def test_which_retrievers_give_probabilities():
    assert all(isinstance(retriever, Evidence) for retriever in (Popularity(), PersonalFrequency(), Cooccurrence()))
    assert not isinstance(EASE(), Evidence)
