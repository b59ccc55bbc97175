"""Which code of a level a residual takes: the nearest, or one of an even share.

Paper: LETTER, https://arxiv.org/abs/2405.07314 (Sinkhorn on the last level); Cuturi 2013, https://arxiv.org/abs/1306.0895
Adds: Sinkhorn assignment, by which the codes of a level are taken about equally often, so that fewer items collide.
Differs: the column potentials of the training items are kept and subtracted from the distances when encoding, so that
    an item's code does not depend on which other items are encoded with it (LETTER runs Sinkhorn again on each batch);
    the scaling is stabilised, so that a small ε does not overflow.
Checked: tests/semantic_ids/test_assigners.py (log-domain iteration in NumPy; brute force with potentials; even shares).

Dimensions: B points · Z latent features · C codes of a level.
"""

from typing import Annotated, Protocol, runtime_checkable

import torch
from torch import Tensor

from tesserec.config import Field, component

__all__ = ["Assigner", "Nearest", "Sinkhorn", "assign"]

_DISTANCES_AT_ONCE = 1 << 22
_ITERATIONS_AT_ONCE = 5
_SMALLEST = 1e-300


@runtime_checkable
class Assigner(Protocol):
    """How the codes of a level are taken; a component."""

    def offsets(self, points_BZ: Tensor, codebook_CZ: Tensor) -> Tensor:
        """What is subtracted from the squared distance of every point to each code, [C] float32."""


@component
class Nearest:
    """Every residual takes the nearest code."""

    def offsets(self, points_BZ: Tensor, codebook_CZ: Tensor) -> Tensor:
        """Zeros [C]."""
        return torch.zeros(len(codebook_CZ), device=points_BZ.device)


@component
class Sinkhorn:
    """Residuals share the codes of a level about equally: optimal transport with entropy."""

    epsilon: Annotated[float, Field(gt=0)] = 0.003
    """ε: strength of the entropy, in units of half the range of the squared distances."""
    num_iterations: Annotated[int, Field(gt=0)] = 50
    """Rounds of scaling columns and rows."""

    def offsets(self, points_BZ: Tensor, codebook_CZ: Tensor) -> Tensor:
        """ε · log v, the column potentials [C] in units of the squared distances; their mean is zero.

        The plan is u · exp(−distance / ε) · v with rows of 1/B and columns of 1/C.
        """
        distances_BC = torch.cdist(points_BZ.double(), codebook_CZ.double()).square()
        unit = self.epsilon * max(float(distances_BC.max() - distances_BC.min()) / 2, 1e-12)
        potentials_C = torch.zeros(len(codebook_CZ), dtype=torch.float64, device=points_BZ.device)
        done = 0
        while done < self.num_iterations:
            logits_BC = potentials_C - distances_BC / unit
            kernel_BC = (logits_BC - logits_BC.max(1, keepdim=True).values).exp()
            rounds = min(_ITERATIONS_AT_ONCE, self.num_iterations - done)
            potentials_C = potentials_C + _scaled(kernel_BC, rounds).log()
            done += rounds
        offsets_C = potentials_C * unit
        return (offsets_C - offsets_C.mean()).float()


def _scaled(kernel_BC: Tensor, rounds: int) -> Tensor:
    """The column factors [C] after some rounds of Sinkhorn, rows first."""
    columns_C = torch.ones(kernel_BC.shape[1], dtype=kernel_BC.dtype, device=kernel_BC.device)
    for _ in range(rounds):
        rows_B = 1 / (kernel_BC @ columns_C).clamp(min=_SMALLEST) / len(kernel_BC)
        columns_C = 1 / (rows_B @ kernel_BC).clamp(min=_SMALLEST) / len(columns_C)
    return columns_C


def assign(points_BZ: Tensor, codebook_CZ: Tensor, offsets_C: Tensor) -> Tensor:
    """argmin over codes of ‖x − c‖² − offset, [B] int64; the lowest where two are equal."""
    constants_C = codebook_CZ.square().sum(1) / 2 - offsets_C / 2
    rows = max(1, _DISTANCES_AT_ONCE // len(codebook_CZ))
    found = [torch.addmm(constants_C, part, codebook_CZ.T, alpha=-1).argmin(1) for part in torch.split(points_BZ, rows)]
    return torch.cat(found)
