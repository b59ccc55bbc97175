import pytest
import torch
from torch import nn

from tesserec.errors import VersionMismatchError
from tesserec.nn.growth import load_grown


class Table(nn.Module):
    def __init__(self, rows, width=2):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(rows, width))
        self.scale = nn.Parameter(torch.tensor(0.0))


GIVEN = {"table": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "scale": torch.tensor(7.0)}


def test_further_rows_keep_their_values():
    grown = Table(3)
    load_grown(grown, GIVEN, ["table"])
    assert grown.table.tolist() == [[1, 2], [3, 4], [0, 0]]
    assert grown.scale.item() == 7
    same = Table(2)
    load_grown(same, GIVEN)
    assert same.table.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("module", "given", "message"),
    [
        (
            Table(1),
            GIVEN,
            r"table is \(2, 2\) in the saved model and \(1, 2\) here: fit with the same settings, on a cat",
        ),
        (Table(2, 3), GIVEN, r"table is \(2, 2\) in the saved model and \(2, 3\) here"),
        (Table(2), {"table": GIVEN["table"]}, r"scale is None in the saved model and \(\) here"),
        (Table(2), GIVEN | {"more": torch.zeros(5)}, r"more is \(5,\) in the saved model and None here"),
        (Table(2), GIVEN | {"scale": torch.zeros(2)}, r"scale is \(2,\) in the saved model and \(\) here"),
        (Table(2), GIVEN | {"table": torch.tensor(0.0)}, r"table is \(\) in the saved model and \(2, 2\) here"),
    ],
)
def test_what_does_not_fit_is_refused(module, given, message):
    with pytest.raises(VersionMismatchError, match=message):
        load_grown(module, given, ["table"])


def test_only_what_is_named_may_grow_and_nothing_is_loaded_in_part():
    module = Table(3)
    with pytest.raises(VersionMismatchError, match=r"table is \(2, 2\) in the saved model and \(3, 2\) here"):
        load_grown(module, GIVEN)
    assert not module.table.any()
    assert module.scale == 0
