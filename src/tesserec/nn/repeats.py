"""What having had an item before adds to its score.

Dimensions: B windows · T positions · S states · N items · D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tesserec.data.batches import Windows
from tesserec.nn.transformer import NUM_BUCKETS, distance_buckets

__all__ = ["RepeatBonus"]

DAYS_A_BUCKET = 4.0


class RepeatBonus(nn.Module):
    """bonus(s, i) = b + gate(state) + u · vector(i) + w · log Σ_events exp(a[steps ago] + c[days ago]), for items had.

    Items that the history does not hold get none. A dot product cannot learn this from few repeats a user; here it
    is a handful of numbers shared by all items and users.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(NUM_BUCKETS))
        self.days = nn.Parameter(torch.zeros(NUM_BUCKETS))
        self.weight = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.full((), 2.0))
        self.gate = nn.Linear(width, 1, bias=False)
        self.item = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.item.weight)

    def forward(self, windows: Windows, position_S: Tensor, states_SD: Tensor, items_ND: Tensor) -> Tensor:
        """Bonus [S, N] at flat positions b * T + t, from the events of their steps and the steps before."""
        row_S = position_S // windows.items_BT.shape[1]
        now_S1 = windows.steps_BT.flatten()[position_S][:, None]
        today_S1 = windows.days_BT.flatten()[position_S][:, None]
        ago_ST = windows.steps_BT[row_S] - now_S1
        days_ST = (windows.days_BT[row_S] - today_S1).clamp(min=0) / DAYS_A_BUCKET
        had_ST = (windows.valid_BT[row_S] & (ago_ST >= 0)).float()
        strength_ST = self.steps[distance_buckets(ago_ST.clamp(min=0))] + self.days[distance_buckets(days_ST.long())]
        zeros_SN = torch.zeros(len(position_S), len(items_ND), device=states_SD.device)
        sum_SN = zeros_SN.scatter_add(1, windows.items_BT[row_S].clamp(min=0), strength_ST.float().exp() * had_ST)
        level_SN = self.weight * sum_SN.clamp(min=1e-6).log() + self.bias
        level_SN = level_SN + self.gate(states_SD).float() + self.item(items_ND).float().T
        return torch.where(sum_SN > 0, level_SN, 0.0)
