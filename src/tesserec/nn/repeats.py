"""What having had an item before adds to its score.

Dimensions: B windows · T positions · S states · N items · G groups of items · F outputs · D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tesserec.data.batches import Windows
from tesserec.nn.transformer import NUM_BUCKETS, distance_buckets

__all__ = ["RepeatBonus"]

DAYS_A_BUCKET = 4.0

SPEED = 10.0
"""What the few numbers here are multiplied by, so that AdamW's steps, made for vectors, move them fast enough."""


class RepeatBonus(nn.Module):
    """bonus_f(s, g) = b_f + gate_f(state) + w_f · log Σ_events exp(a[steps ago] + c[days ago]), for groups had before.

    A group is an item, or all items below a prefix of codes; groups that the history does not touch get nothing. A dot
    product cannot learn this from few repeats a user; here it is a handful of numbers shared by all items and users.
    There is one output f for each softmax that the bonus is added to.
    """

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(NUM_BUCKETS))
        self.days = nn.Parameter(torch.zeros(NUM_BUCKETS))
        self.weight = nn.Parameter(torch.full((num_outputs,), 1 / SPEED))
        self.bias = nn.Parameter(torch.full((num_outputs,), 2 / SPEED))
        self.gate = nn.Linear(width, num_outputs, bias=False)
        nn.init.zeros_(self.gate.weight)

    def strengths(self, windows: Windows, position_S: Tensor) -> tuple[Tensor, Tensor]:
        """(items [S, T], what each adds to its group's sum [S, T]) before flat positions b * T + t.

        Only events of the position's own step and of steps before it count; the others are 0.
        """
        row_S = position_S // windows.items_BT.shape[1]
        ago_ST = windows.steps_BT[row_S] - windows.steps_BT.flatten()[position_S][:, None]
        days_ST = windows.days_BT[row_S] - windows.days_BT.flatten()[position_S][:, None]
        days_ST = (days_ST.clamp(min=0) / DAYS_A_BUCKET).long()
        had_ST = windows.valid_BT[row_S] & (ago_ST >= 0)
        log_ST = self.steps[distance_buckets(ago_ST.clamp(min=0))] + self.days[distance_buckets(days_ST)]
        return windows.items_BT[row_S].clamp(min=0), (SPEED * log_ST).exp() * had_ST

    def forward(
        self, output: int, strengths: tuple[Tensor, Tensor], group_N: Tensor | None, num_groups: int, states_SD: Tensor
    ) -> Tensor:
        """Bonus [S, G] for softmax ``output``; ``group_N`` is each item's group, None where items are the groups."""
        items_ST, strength_ST = strengths
        groups_ST = items_ST if group_N is None else group_N[items_ST]
        zeros_SG = torch.zeros(len(items_ST), num_groups, device=states_SD.device)
        sum_SG = zeros_SG.scatter_add(1, groups_ST, strength_ST)
        gate_S1 = self.gate(states_SD)[:, output : output + 1].float()
        level_SG = SPEED * self.weight[output] * sum_SG.clamp(min=1e-6).log() + SPEED * self.bias[output] + gate_S1
        return torch.where(sum_SG > 0, level_SG, 0.0)
