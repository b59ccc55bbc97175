import math

import pytest
import torch

from tesserec.data.batches import windows_of
from tesserec.nn.repeats import RepeatBonus
from tesserec.testing.data import DAY_S
from tesserec.types import History

# User 0: 3 | 1 3 | 2, after 0, 9 and 100 days; user 1: 2.
STEPS = torch.tensor([0, 1, 1, 2, 0])
TIMES = torch.tensor([0, 9, 9, 100, 0]) * DAY_S
WINDOWS = windows_of(History(torch.tensor([0, 4, 5]), torch.tensor([3, 1, 3, 2, 2]), {"step": STEPS, "time": TIMES}), 4)
STATES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.0]])
ITEMS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [9.0, 9.0]])


def bonus():
    """a[0] = ln 2, a[1] = ln 3, a[2] = ln 5; c[0] = 0, c[2] = ln 7 (8 … 11 days), c[18] (91 days), c[19] (100 days)."""
    module = RepeatBonus(2)
    with torch.no_grad():
        module.steps[:3] = torch.tensor([2.0, 3.0, 5.0]).log()
        module.days[2] = math.log(7)
        module.days[17] = math.log(11)
        module.days[18] = math.log(13)
        module.weight.fill_(0.5)
        module.bias.fill_(4.0)
        module.gate.weight.copy_(torch.tensor([[10.0, 20.0]]))
        module.item.weight.copy_(torch.tensor([[100.0, 200.0]]))
    return module


def test_what_was_had_is_lifted_by_recency_state_and_item():
    """At the first event, the first of the second step, the last event of user 0, and the event of user 1."""
    found = bonus()(WINDOWS, torch.tensor([0, 1, 3, 7]), STATES, ITEMS)
    expected = torch.zeros(4, 5)
    expected[0, 3] = 0.5 * math.log(2) + 4 + 10 + 300
    # 9 days ago is bucket 2; the events of one step count together, whatever their order.
    expected[1, 1] = 0.5 * math.log(2) + 4 + 20 + 100
    expected[1, 3] = 0.5 * math.log(3 * 7 + 2) + 4 + 20 + 300
    # 100 days are 25 of four, and 91 days 22: 16 + ⌊16 · ln(22 / 16) / ln 64⌋ = 17.
    expected[2, 3] = 0.5 * math.log(5 * 11 + 3 * 11) + 4 + 30 + 300
    expected[2, 1] = 0.5 * math.log(3 * 11) + 4 + 30 + 100
    expected[2, 2] = 0.5 * math.log(2) + 4 + 30 + 400
    expected[3, 2] = 0.5 * math.log(2) + 4 + 5 + 400
    torch.testing.assert_close(found, expected)


def test_what_was_never_had_gets_nothing_even_where_the_bonus_is_negative():
    module = bonus()
    with torch.no_grad():
        module.bias.fill_(-1000.0)
    found = module(WINDOWS, torch.tensor([3]), STATES[:1], ITEMS)[0]
    assert found[[0, 4]].tolist() == [0, 0]
    assert bool((found[[1, 2, 3]] < -100).all())


def test_a_bonus_starts_as_a_constant_and_can_be_learnt():
    module = RepeatBonus(2)
    found = module(WINDOWS, torch.tensor([3]), STATES[:1], ITEMS)
    assert found[0].tolist() == pytest.approx([0, 2, 2, 2 + math.log(2), 0])
    found.sum().backward()
    for parameter in module.parameters():
        assert bool(parameter.grad.isfinite().all())
        assert bool(parameter.grad.any())
