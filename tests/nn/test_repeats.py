import math

import pytest
import torch

from tesserec.data.batches import windows_of
from tesserec.nn.repeats import SPEED, RepeatBonus
from tesserec.testing.data import DAY_S
from tesserec.types import History

# User 0: 3 | 1 3 | 2, after 0, 9 and 100 days; user 1: 2.
STEPS = torch.tensor([0, 1, 1, 2, 0])
TIMES = torch.tensor([0, 9, 9, 100, 0]) * DAY_S
WINDOWS = windows_of(History(torch.tensor([0, 4, 5]), torch.tensor([3, 1, 3, 2, 2]), {"step": STEPS, "time": TIMES}), 4)
STATES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.0]])
POSITIONS = torch.tensor([0, 1, 3, 7])
"""The first event, the first of the second step and the last event of user 0, and the event of user 1."""


def bonus():
    """a[0] = ln 2, a[1] = ln 3, a[2] = ln 5; c = ln 7 at 8 … 11 days, ln 11 at 100 days, ln 13 nowhere in the log."""
    module = RepeatBonus(2, 2)
    with torch.no_grad():
        module.steps[:3] = torch.tensor([2.0, 3.0, 5.0]).log() / SPEED
        module.days[[2, 17, 18]] = torch.tensor([7.0, 11.0, 13.0]).log() / SPEED
        module.weight.copy_(torch.tensor([0.5, 0.25]) / SPEED)
        module.bias.copy_(torch.tensor([4.0, 3.0]) / SPEED)
        module.gate.weight.copy_(torch.tensor([[10.0, 20.0], [30.0, 40.0]]))
    return module


def test_what_was_had_is_lifted_by_recency_and_state():
    module = bonus()
    items_ST, strength_ST = strengths = module.strengths(WINDOWS, POSITIONS)
    assert items_ST.tolist() == [[3, 1, 3, 2]] * 3 + [[0, 0, 0, 2]]
    # 9 days are 2 of four, 100 days 25 and 91 days 22: both 16 + ⌊16 · ln(22 … 25 / 16) / ln 64⌋ = 17.
    expected_ST = [[2, 0, 0, 0], [3 * 7, 2, 2, 0], [5 * 11, 3 * 11, 3 * 11, 2], [0, 0, 0, 2]]
    assert strength_ST.tolist() == [pytest.approx(row) for row in expected_ST]
    expected = torch.zeros(4, 5)
    expected[0, 3] = 0.5 * math.log(2) + 4 + 10
    expected[1, 1] = 0.5 * math.log(2) + 4 + 20
    expected[1, 3] = 0.5 * math.log(3 * 7 + 2) + 4 + 20
    expected[2, 3] = 0.5 * math.log(5 * 11 + 3 * 11) + 4 + 30
    expected[2, 1] = 0.5 * math.log(3 * 11) + 4 + 30
    expected[2, 2] = 0.5 * math.log(2) + 4 + 30
    expected[3, 2] = 0.5 * math.log(2) + 4 + 5
    torch.testing.assert_close(module(0, strengths, None, 5, STATES), expected)


def test_a_group_is_lifted_by_all_its_items_with_the_numbers_of_its_output():
    """Items 1 and 2 are one group, 3 another; nothing of the third group was had."""
    module = bonus()
    found = module(1, module.strengths(WINDOWS, POSITIONS), torch.tensor([2, 0, 0, 1, 2]), 3, STATES)
    expected = torch.zeros(4, 3)
    expected[0, 1] = 0.25 * math.log(2) + 3 + 30
    expected[1, 0] = 0.25 * math.log(2) + 3 + 40
    expected[1, 1] = 0.25 * math.log(3 * 7 + 2) + 3 + 40
    expected[2, 0] = 0.25 * math.log(3 * 11 + 2) + 3 + 70
    expected[2, 1] = 0.25 * math.log(5 * 11 + 3 * 11) + 3 + 70
    expected[3, 0] = 0.25 * math.log(2) + 3 + 15
    torch.testing.assert_close(found, expected)


def test_a_bonus_starts_alike_for_all_and_can_be_learnt():
    module = RepeatBonus(2, 2)
    found = module(0, module.strengths(WINDOWS, POSITIONS[2:3]), None, 5, STATES[:1])
    assert found[0].tolist() == pytest.approx([0, 2, 2, 2 + math.log(2), 0])
    found.sum().backward()
    for parameter in module.parameters():
        assert bool(parameter.grad.isfinite().all())
        assert bool(parameter.grad.any())
