"""A matrix whose products, outside of training, are oneDNN's.

torch gives float32 products to MKL, which on AMD's processors takes twice the time of oneDNN; products of tensors in
oneDNN's own layout (``Tensor.to_mkldnn``) are oneDNN's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Linear", "from_onednn", "suits_onednn", "to_onednn"]

FEW_ROWS = 24
"""Rows from which on a product is worth the copies into oneDNN's layout and out of it."""


class Linear(nn.Linear):
    """A matrix without a bias. Its copy in oneDNN's layout is kept until the next call of ``train`` or ``eval``."""

    def __init__(self, inputs: int, outputs: int, std: float) -> None:
        super().__init__(inputs, outputs, bias=False)
        self._packed: Tensor | None = None
        nn.init.normal_(self.weight, std=std)

    def train(self, mode: bool = True) -> Linear:
        """As of every module; what was kept of the weights before is forgotten."""
        self._packed = None
        super().train(mode)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy: what is kept in oneDNN's own layout cannot be copied."""
        return {**self.__dict__, "_packed": None}

    def forward(self, x: Tensor) -> Tensor:
        """The product of the last axis with the matrix; what comes in oneDNN's layout, as rows, leaves in it."""
        if x.is_mkldnn:
            self._packed = self.weight.to_mkldnn() if self._packed is None else self._packed
            return F.linear(x, self._packed)
        if self.training or not suits_onednn(x):
            return super().forward(x)
        return from_onednn(self(to_onednn(x)), x.shape[:-1])


def suits_onednn(x: Tensor) -> bool:
    """Whether products with rows of ``x`` are faster in oneDNN's layout, which no gradient goes through."""
    return (
        not torch.is_grad_enabled()
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.shape[:-1].numel() >= FEW_ROWS
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's own
        and not torch.is_autocast_enabled("cpu")
    )


def to_onednn(x: Tensor) -> Tensor:
    """The rows of ``x`` in oneDNN's layout."""
    return x.flatten(0, -2).to_mkldnn()


def from_onednn(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse, with the rows in ``shape``."""
    return rows.to_dense().view(*shape, -1)
