import pytest
import torch
from torch import nn

from tesserec.nn.dropout import Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("p", "share"), [(0.1, 26 / 256), (0.5, 0.5), (1e-4, 1 / 256), (0.9999, 255 / 256)])
def test_as_many_are_dropped_as_asked_and_the_sum_stays(p, share, dtype):
    torch.manual_seed(0)
    x = torch.ones(1000, 1003, dtype=dtype)
    out = Dropout(p)(x)
    assert out.dtype == dtype
    assert float((out == 0).double().mean()) == pytest.approx(share, abs=2e-3)
    assert float(out.double().mean()) == pytest.approx(1, abs=0.005 + 0.004 * (share / (1 - share)) ** 0.5)
    assert len(out.unique()) == 2
    columns = (out == 0).double().mean(0)
    assert float(columns.std()) < 1.2 * (share * (1 - share) / 1000) ** 0.5  # every byte of a word is as likely


def test_a_gradient_passes_where_nothing_was_dropped():
    x = torch.randn(50, 7, requires_grad=True)
    out = Dropout(0.5)(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(out == 0, 0.0, 2.0))


def test_nothing_is_dropped_outside_of_training_and_the_generator_decides():
    x = torch.randn(5, 7)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert not Dropout(1.0)(x).any()
    assert Dropout(0.5)(torch.empty(0, 3)).shape == (0, 3)
    first, second = (torch.manual_seed(3), Dropout(0.5)(x))[1], (torch.manual_seed(3), Dropout(0.5)(x))[1]
    assert torch.equal(first, second)
    assert isinstance(Dropout(0.5), nn.Dropout)
