"""PLUM's co-occurrence loss: items that follow each other get near code vectors.

Paper: PLUM, https://arxiv.org/abs/2510.07784 (Semantic IDs, version 2)
Adds: InfoNCE between the quantized vectors of items that follow each other in the training sessions.
Differs: cosines over a temperature, weight 0.1 and temperature 0.07 (the paper does not say); a pair is two
    neighbouring events of a user, of one session where the log has sessions; negatives are the partners of the rest of
    the batch, those that are the same item or belong to the same item left out; the latents before quantization may
    be compared instead, which finds what no code says yet. The paper's other parts are settings of ``RQVAE``:
    ``codebook_size = [512, 256, 128]``, ``parts.depth_masking`` and ``parts.source_widths``.
Checked: tests/semantic_ids/test_plum.py (pairs and loss by hand; a quiet factor by which items are bought, which plain
    RQ-VAE does not find).

Dimensions: N rows of the features · B batch · P pairs · Z latent features.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from tesserec.config import Field, component
from tesserec.errors import DataError
from tesserec.semantic_ids.composition import LossRecord, LossSetup, Quantized, info_nce
from tesserec.types import Interactions

__all__ = ["CoOccurrence", "following_pairs"]


@component
class CoOccurrence:
    """Pulls together the quantized vectors of items that follow each other in training events."""

    weight: Annotated[float, Field(ge=0)] = 0.1
    """λ: strength."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """τ: of the softmax over the batch."""
    compared: Literal["quantized", "latents"] = "quantized"
    """Vectors that are compared: those of the codes, or those of the encoder."""

    def module(self, setup: LossSetup) -> nn.Module:
        """Raises ``DataError`` where there are no training events, or none of one item after another."""
        train = setup.side.train
        if train is None:
            raise DataError("CoOccurrence reads training events: fit in a pipeline, or give SideInformation(train=…)")
        first_P, second_P = following_pairs(train)
        row_of = torch.full((len(train.items),), -1, dtype=torch.int64)
        row_of[setup.items_N] = torch.arange(len(setup.features_ND))
        pairs_P2 = row_of[torch.stack([first_P, second_P], 1)]
        pairs_P2 = pairs_P2[(pairs_P2 >= 0).all(1)]
        if not len(pairs_P2):
            raise DataError("no two items follow each other in the training events: leave CoOccurrence out")
        return _CoOccurrence(setup, torch.cat([pairs_P2, pairs_P2.flip(1)]), self)


def following_pairs(train: Interactions) -> tuple[Tensor, Tensor]:
    """(items, the other items right after them) in neighbouring events of a user and session, [P] int64 each."""
    item_E = train.item_E.long()
    together = (train.user_E.diff() == 0) & (item_E.diff() != 0)
    if train.session_E is not None:
        together &= train.session_E.diff() == 0
    return item_E[:-1][together], item_E[1:][together]


class _CoOccurrence(nn.Module):
    def __init__(self, setup: LossSetup, pairs_P2: Tensor, settings: CoOccurrence) -> None:
        super().__init__()
        num_rows = len(setup.features_ND)
        self._features_ND, self._generator, self._settings = setup.features_ND, setup.generator, settings
        self._partner_P = pairs_P2[torch.argsort(pairs_P2[:, 0], stable=True), 1]
        self._count_N = torch.bincount(pairs_P2[:, 0], minlength=num_rows)
        self._start_N = self._count_N.cumsum(0) - self._count_N

    def forward(self, record: LossRecord) -> Tensor:
        rows_B = record.rows_B.cpu()
        has_B = self._count_N[rows_B] > 0
        own_BZ = self._compared(record.quantized)[has_B.to(record.rows_B.device)]
        if not len(own_BZ):
            return own_BZ.sum()
        rows_B = rows_B[has_B]
        partners_B = self.drawn(rows_B)
        other_BZ = self._compared(record.quantize(self._features_ND[partners_B.to(own_BZ.device)]))
        masked_BB = same_items(rows_B, partners_B).to(own_BZ.device)
        return info_nce(own_BZ, other_BZ, self._settings.temperature, masked_BB)

    def _compared(self, quantized: Quantized) -> Tensor:
        return quantized.latents_BZ if self._settings.compared == "latents" else quantized.straight_through()

    def drawn(self, rows_B: Tensor) -> Tensor:
        """One partner of each row, as often as they occurred together."""
        chance_B = torch.rand(len(rows_B), generator=self._generator, dtype=torch.float64)
        return self._partner_P[self._start_N[rows_B] + (chance_B * self._count_N[rows_B]).long()]


def same_items(rows_B: Tensor, partners_B: Tensor) -> Tensor:
    """Where partner j is no negative of row i: it is i or i's partner, or it is the partner of i again, [B, B] bool."""
    masked_BB = (partners_B == rows_B[:, None]) | (partners_B == partners_B[:, None]) | (rows_B == rows_B[:, None])
    return masked_BB & ~torch.eye(len(rows_B), dtype=torch.bool)
