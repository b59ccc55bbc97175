"""DAS: codes and collaborative vectors learned at once, each aligned with the other.

Paper: DAS, https://arxiv.org/abs/2508.10584
Adds: a collaborative model of users and items trained together with the quantizer, and contrastive views between the
    quantized vector of an item and the collaborative vector of itself, of a user who took it, and of an item that
    followed it.
Differs: items only, since users have no content vectors here: the paper quantizes users too, which gives three more
    views; the collaborative vectors are tables without a branch for popularity, because negatives of the same batch
    come as often as they are popular, which leaves popularity out of the scores; weight and temperature are ours.
Checked: tests/semantic_ids/test_das.py (each view by hand; a quiet factor by which items are bought, found by each).

Dimensions: N rows of the features · U users · E events · P pairs · B batch · Z latent features.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from tesserec.config import Field, component
from tesserec.errors import DataError
from tesserec.semantic_ids.composition import LossRecord, LossSetup, info_nce
from tesserec.semantic_ids.plum import following_pairs

__all__ = ["DualAlignment"]

View = Literal["item", "user", "follower"]


@component
class DualAlignment:
    """Learns collaborative vectors beside the quantizer, and pulls quantized and collaborative vectors together."""

    weight: Annotated[float, Field(ge=0)] = 0.1
    """Strength of the collaborative loss and of each view."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Of all softmaxes over the batch."""
    views: Annotated[tuple[View, ...], Field(min_length=1)] = ("item", "user", "follower")
    """Collaborative vectors to which an item's codes are aligned: its own, a user's, that of an item after it."""
    batch_size: Annotated[int, Field(gt=1)] = 256
    """Events a batch."""

    def module(self, setup: LossSetup) -> nn.Module:
        """Raises ``DataError`` where there are no training events of the items, or none follow each other."""
        train = setup.side.train
        if train is None:
            raise DataError("DualAlignment reads training events: fit in a pipeline, or give SideInformation(train=…)")
        row_of_item = torch.full((len(train.items),), -1, dtype=torch.int64)
        row_of_item[setup.items_N] = torch.arange(len(setup.features_ND))
        taken_E2 = torch.stack([row_of_item[train.item_E.long()], train.user_E.long()], 1)
        taken_E2 = taken_E2[taken_E2[:, 0] >= 0]
        pairs_P2 = row_of_item[torch.stack(following_pairs(train), 1)]
        pairs_P2 = pairs_P2[(pairs_P2 >= 0).all(1)]
        if not len(taken_E2) or ("follower" in self.views and not len(pairs_P2)):
            raise DataError("no items follow each other in the training events: leave DualAlignment or that view out")
        return _DualAlignment(self, setup, taken_E2, pairs_P2, len(train.users))


class _DualAlignment(nn.Module):
    def __init__(  # what was made of the log
        self, settings: DualAlignment, setup: LossSetup, taken_E2: Tensor, pairs_P2: Tensor, num_users: int
    ) -> None:
        super().__init__()
        self._settings, self._generator, self._features_ND = settings, setup.generator, setup.features_ND
        self._taken_E2, self._pairs_P2 = taken_E2, pairs_P2
        self.items = nn.Embedding(len(setup.features_ND), setup.num_latents)
        self.users = nn.Embedding(num_users, setup.num_latents)

    def forward(self, record: LossRecord) -> Tensor:
        s = self._settings
        rows_B, users_B = self._drawn(self._taken_E2)
        items_BZ, users_BZ = self.items(rows_B), self.users(users_B)
        loss = info_nce(users_BZ, items_BZ, s.temperature, same(rows_B) | same(users_B))
        quantized_BZ = self._quantized(rows_B, record)
        if "item" in s.views:
            loss = loss + info_nce(quantized_BZ, items_BZ, s.temperature, same(rows_B))
        if "user" in s.views:
            loss = loss + info_nce(quantized_BZ, users_BZ, s.temperature, same(rows_B) | same(users_B))
        if "follower" in s.views:
            first_B, second_B = self._drawn(self._pairs_P2)
            masked_BB = same(first_B) | same(second_B)
            loss = loss + info_nce(self._quantized(first_B, record), self.items(second_B), s.temperature, masked_BB)
        return loss

    def _quantized(self, rows_B: Tensor, record: LossRecord) -> Tensor:
        return record.quantize(self._features_ND[rows_B]).straight_through()

    def _drawn(self, rows_P2: Tensor) -> tuple[Tensor, Tensor]:
        """Both columns of a batch of rows, drawn with replacement."""
        chosen_B = torch.randint(len(rows_P2), (self._settings.batch_size,), generator=self._generator)
        first_B, second_B = rows_P2[chosen_B].to(self._features_ND.device).unbind(1)
        return first_B, second_B


def same(rows_B: Tensor) -> Tensor:
    """Where two places of a batch hold the same, [B, B] bool without the diagonal."""
    return (rows_B == rows_B[:, None]).fill_diagonal_(False)
