"""What the parts of an RQ-VAE tell each other: the record of a batch, and the protocols of losses and level transforms.

A published tokenizer adds a term to the loss, or writes the code vectors of a level in another way. Both see the batch
as one ``LossRecord`` and what is known of the items as one ``LossSetup``, and know nothing of the training loop.

Dimensions: N rows of the features · B batch · M other vectors · D features · Z latent features · L levels · C codes of
a level.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserec.types import SideInformation

__all__ = ["LevelTransform", "LossRecord", "LossSetup", "Quantized", "QuantizerLoss", "TransformModule", "info_nce"]


@dataclass(frozen=True, eq=False)
class Quantized:
    """Latents on their way through the levels."""

    latents_BZ: Tensor
    """What the encoder made."""
    residuals: tuple[Tensor, ...]
    """What each level saw, [B, Z], with the gradient of the encoder."""
    chosen: tuple[Tensor, ...]
    """The code vector that each level took, [B, Z], with the gradient of the codebook."""
    codes_BL: Tensor
    code_errors: tuple[Tensor, ...]
    """Squared distance of residual and code vector at each level, [B], with the gradient of the codebook only."""
    latent_errors: tuple[Tensor, ...]
    """The same with the gradient of the encoder only."""

    def total(self, depth_B: Tensor | None = None) -> Tensor:
        """The sum of the code vectors, [B, Z]: of all levels, or of the first ``depth_B`` ones of each row."""
        total_BZ = torch.zeros_like(self.latents_BZ)
        for level, chosen_BZ in enumerate(self.chosen):
            total_BZ = total_BZ + (chosen_BZ if depth_B is None else chosen_BZ * (depth_B > level)[:, None])
        return total_BZ

    def straight_through(self, depth_B: Tensor | None = None) -> Tensor:
        """``total``, whose gradient goes to the latents as if nothing had been quantized."""
        return self.latents_BZ + (self.total(depth_B) - self.latents_BZ).detach()


@dataclass(frozen=True, eq=False)
class LossRecord:
    """One batch, as a loss sees it."""

    rows_B: Tensor
    """Which rows of the features the batch holds, int64."""
    inputs_BD: Tensor
    """Their features, centred and scaled: what is to be reconstructed."""
    reconstruction_BD: Tensor
    quantized: Quantized
    codebooks: tuple[Tensor, ...]
    """The code vectors [C, Z] of each level, in the space of the latents, with their gradient."""
    quantize: Callable[[Tensor], Quantized]
    """The way of other features [M, D], in the units of ``LossSetup.features_ND``, through encoder and levels."""
    levels: Callable[[Tensor], Quantized]
    """The way of other latents [M, Z] through the levels."""
    loss_of: Callable[[Tensor], tuple[Tensor, Quantized]]
    """The mean loss of other features [M, D], summed over the features as that of the batch is, and their way."""
    step: int
    """Of the training, from 1."""


@dataclass(frozen=True, eq=False)
class LossSetup:
    """What a loss may read before the training begins."""

    features_ND: Tensor
    num_latents: int
    codebook_sizes: tuple[int, ...]
    side: SideInformation
    generator: torch.Generator
    """The loss's own, on the CPU: what it draws changes nothing else."""
    hidden_sizes: tuple[int, ...] = ()
    """Widths of the encoder's hidden layers."""

    @property
    def items_N(self) -> Tensor:
        """The item of each row of the features, int64."""
        return self.side.items_of_rows(len(self.features_ND))


@runtime_checkable
class QuantizerLoss(Protocol):
    """A term of the loss of an RQ-VAE; a component, so that a recipe names it by its ``class`` path."""

    weight: float
    """Strength beside the error of reconstruction, which is 1 where codes say nothing of the vectors and 0 where they
    say all; at 0 the loss is left out, and the fit is that without it, bit for bit."""

    def module(self, setup: LossSetup) -> nn.Module:
        """What gives the mean loss of a ``LossRecord`` (a scalar); its parameters are trained with the networks."""


class TransformModule(Protocol):
    """A way to write the code vectors of one level: a module whose parameters are trained with the codebooks."""

    def __call__(self, codebook_CZ: Tensor) -> Tensor:
        """Code vectors [C, Z] in the space of the latents."""

    def pull_back(self, points_BZ: Tensor) -> Tensor:
        """The rows of a codebook whose code vectors come nearest to ``points_BZ``, [B, Z]."""


@runtime_checkable
class LevelTransform(Protocol):
    """How the levels of an RQ-VAE write their code vectors; a component."""

    def level(self, codebook_CZ: Tensor) -> nn.Module:
        """A new ``TransformModule`` of one level, whose codebook starts as ``codebook_CZ``."""


def info_nce(a_BZ: Tensor, b_BZ: Tensor, temperature: float, masked_BB: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of ``b_i`` being found for ``a_i`` among all ``b`` by their cosines over ``temperature``.

    Pairs of ``masked_BB`` (bool, no diagonal) are no negatives.
    """
    logits_BB = F.normalize(a_BZ, dim=1) @ F.normalize(b_BZ, dim=1).T / temperature
    if masked_BB is not None:
        logits_BB = logits_BB.masked_fill(masked_BB, float("-inf"))
    return F.cross_entropy(logits_BB, torch.arange(len(a_BZ), device=a_BZ.device))
