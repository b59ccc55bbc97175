import copy

import pytest
import torch

from tesserec.nn.onednn import Linear, from_onednn, suits_onednn, to_onednn


def linear(seed=0):
    torch.manual_seed(seed)
    return Linear(6, 5, 0.3).eval()


@pytest.mark.parametrize("rows", [(1,), (40,), (7, 9), (0, 3)])
def test_the_product_is_that_of_torch_with_and_without_a_gradient(rows):
    matrix = linear()
    x = torch.randn(*rows, 6)
    wanted = x @ matrix.weight.T
    torch.testing.assert_close(matrix(x), wanted)
    with torch.inference_mode():
        torch.testing.assert_close(matrix(x), wanted)
    assert 0.1 < float(Linear(50, 60, 0.2).weight.detach().std()) < 0.3


def test_only_many_rows_of_float32_without_a_gradient_go_to_onednn():
    x = torch.randn(24, 6)
    assert not suits_onednn(x)
    with torch.no_grad():
        assert suits_onednn(x) == torch.backends.mkldnn.is_available()
        assert not suits_onednn(x[:23])
        assert not suits_onednn(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert not suits_onednn(x)
            assert linear()(x).dtype == torch.bfloat16


def test_what_comes_in_onednns_layout_leaves_in_it():
    matrix, x = linear(), torch.randn(3, 10, 6)
    with torch.no_grad():
        rows = matrix(to_onednn(x))
        assert rows.is_mkldnn
        torch.testing.assert_close(from_onednn(rows, (3, 10)), x @ matrix.weight.T)


def test_a_changed_matrix_is_used_from_the_next_eval_on_and_always_in_training():
    matrix, x = linear(), torch.randn(30, 6)
    with torch.no_grad():
        matrix(x)
        matrix.load_state_dict(linear(1).state_dict())
        wanted = x @ matrix.weight.T
        torch.testing.assert_close(matrix.eval()(x), wanted)
        torch.testing.assert_close(copy.deepcopy(matrix)(x), wanted)
        matrix.train()
        matrix(x)
        matrix.weight *= 2
        torch.testing.assert_close(matrix(x), 2 * wanted)
