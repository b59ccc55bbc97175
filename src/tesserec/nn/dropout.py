"""Dropout that draws a byte an element: on a CPU most of its time goes to random numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Dropout"]


class Dropout(nn.Dropout):
    """``nn.Dropout`` with a probability that is rounded to a multiple of 1/256, to neither 0 nor 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Elements dropped, and the others scaled, in training; ``x`` itself otherwise."""
        if not self.training or self.p in {0.0, 1.0} or x.device.type != "cpu":
            return F.dropout(x, self.p, self.training)
        dropped = min(max(round(self.p * 256), 1), 255)
        bytes_X = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None).view(torch.uint8)
        kept = bytes_X[: x.numel()].view(x.shape) >= dropped
        out: Tensor = x * kept * (256 / (256 - dropped))
        return out
