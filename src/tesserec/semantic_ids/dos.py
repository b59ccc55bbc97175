"""DOS: codes of chosen directions, learned together with the users who read them.

Paper: DOS, https://arxiv.org/abs/2602.04460
Adds: each level turns the space and quantizes the main half of the directions only, the rest goes on to the next level;
    users, encoded from their clicks, are quantized by the same codebooks, and must match the item they click next.
Differs: the turn is exactly orthogonal, the exponential of a skew matrix (the paper: a penalty); directions are chosen
    for a level, not for each item, so that a level's code vectors are fixed and encoding stays that of ``RQVAE``; the
    term of mutual information is left out, since choice per item is what it trains; weight 0.1 and a temperature of 0.5
    are ours. Negatives are the next clicks of other users. Attention knows no order: a user is a set of last clicks.
Checked: tests/semantic_ids/test_dos.py (turns are orthogonal, codes the nearest; histories and loss by hand; a quiet
    factor by which users click; no planted pattern was found that needs the turns).

Dimensions: N rows of the features · E events · U users of a batch · H history events · Z latent features · C codes of a
level.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserec.config import Field, component
from tesserec.errors import DataError
from tesserec.semantic_ids.composition import LossRecord, LossSetup
from tesserec.types import Interactions

__all__ = ["OrthogonalLevels", "UserFlow", "clicks_before"]


@component
class OrthogonalLevels:
    """Each level's code vectors lie in some directions of a turned space, both of them learned."""

    primary_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the directions that a level quantizes; at least one is."""

    def level(self, codebook_CZ: Tensor) -> nn.Module:
        """Starts unturned, with the directions in which the code vectors are longest."""
        return _Turned(codebook_CZ, max(1, round(self.primary_share * codebook_CZ.shape[1])))


class _Turned(nn.Module):
    def __init__(self, codebook_CZ: Tensor, num_primary: int) -> None:
        super().__init__()
        num_latents = codebook_CZ.shape[1]
        energy_Z = codebook_CZ.detach().square().mean(0)
        self.angles_ZZ = nn.Parameter(torch.zeros(num_latents, num_latents))
        self.score_Z = nn.Parameter(energy_Z / energy_Z.mean().clamp(min=1e-8))
        self._num_primary = num_primary

    def rotation(self) -> Tensor:
        """W [Z, Z], orthogonal."""
        rotation_ZZ: Tensor = torch.matrix_exp(self.angles_ZZ - self.angles_ZZ.T)
        return rotation_ZZ

    def chosen(self) -> Tensor:
        """1 for the directions of the highest scores, 0 for the others; the gradient is that of the sigmoid."""
        hard_Z = torch.zeros_like(self.score_Z).scatter(0, self.score_Z.topk(self._num_primary).indices, 1.0)
        soft_Z = self.score_Z.sigmoid()
        return hard_Z + (soft_Z - soft_Z.detach())

    def forward(self, codebook_CZ: Tensor) -> Tensor:
        return (codebook_CZ * self.chosen()) @ self.rotation().T

    def pull_back(self, points_BZ: Tensor) -> Tensor:
        """Points in the turned space."""
        return points_BZ @ self.rotation()


@component
class UserFlow:
    """Users are quantized by the codebooks of the items, and must match what they click next."""

    weight: Annotated[float, Field(ge=0)] = 0.1
    """Strength."""
    temperature: Annotated[float, Field(gt=0)] = 0.5
    """Of the cosine of user and item, before the logistic loss."""
    commitment_weight: Annotated[float, Field(ge=0)] = 0.25
    """Pull of a user's latents towards their codes."""
    num_clicks: Annotated[int, Field(gt=0)] = 10
    """The last clicks that are read."""
    batch_size: Annotated[int, Field(gt=1)] = 128
    """Users a batch."""

    def module(self, setup: LossSetup) -> nn.Module:
        """Raises ``DataError`` where there are no training events, or no item of the features comes after others."""
        if setup.side.train is None:
            raise DataError("UserFlow reads training events: fit in a pipeline, or give SideInformation(train=…)")
        row_of_item = torch.full((len(setup.side.train.items) + 1,), -1, dtype=torch.int64)  # the last one is PAD
        row_of_item[setup.items_N] = torch.arange(len(setup.features_ND))
        history_EH, next_E = clicks_before(setup.side.train, self.num_clicks)
        history_EH, next_E = row_of_item[history_EH], row_of_item[next_E]
        usable_E = (next_E >= 0) & (history_EH >= 0).any(1)
        if not bool(usable_E.any()):
            raise DataError("no item follows another in the training events: leave UserFlow out")
        return _UserFlow(self, setup, history_EH[usable_E], next_E[usable_E])


def clicks_before(train: Interactions, num_clicks: int) -> tuple[Tensor, Tensor]:
    """(the last items of the user before each event's step [E, H], filled up with PAD; its own item [E])."""
    item_E, step_E = train.item_E.long(), train.step_E
    if not len(train):
        return item_E.new_zeros((0, num_clicks)), item_E
    _, counts = torch.unique_consecutive(step_E, return_counts=True)
    step_start_E = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    place_EH = step_start_E[:, None] + torch.arange(-num_clicks, 0)
    own_EH = place_EH >= train.user_offsets[train.user_E.long()][:, None]
    return torch.where(own_EH, item_E[place_EH.clamp(min=0)], -1), item_E


class _UserFlow(nn.Module):
    def __init__(self, settings: UserFlow, setup: LossSetup, history_EH: Tensor, next_E: Tensor) -> None:
        super().__init__()
        self._settings, self._generator, self._features_ND = settings, setup.generator, setup.features_ND
        self._history_EH, self._next_E = history_EH, next_E
        width = setup.num_latents
        self.attention = nn.TransformerEncoderLayer(width, 1, 2 * width, dropout=0.0, batch_first=True)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)  # a user starts as the mean of their clicks
        nn.init.zeros_(self.out.bias)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, record: LossRecord) -> Tensor:
        s, device = self._settings, self._features_ND.device
        events_U = torch.randint(len(self._next_E), (s.batch_size,), generator=self._generator)
        history_UH, next_U = self._history_EH[events_U].to(device), self._next_E[events_U].to(device)
        user = record.levels(self._users(history_UH, record))
        item_UZ = F.normalize(record.quantize(self._features_ND[next_U]).straight_through(), dim=1)
        user_UZ = F.normalize(user.straight_through(), dim=1)
        logit_U = (user_UZ * item_UZ).sum(1) / s.temperature + self.bias
        other_U = (user_UZ * item_UZ.roll(1, 0)).sum(1) / s.temperature + self.bias
        fair_U = next_U != next_U.roll(1, 0)  # the same item is no negative
        loss = F.softplus(-logit_U).mean() + (F.softplus(other_U) * fair_U).sum() / fair_U.sum().clamp(min=1)
        pull = torch.stack(user.latent_errors).sum(0).mean()
        return loss + s.commitment_weight * pull

    def _users(self, history_UH: Tensor, record: LossRecord) -> Tensor:
        """Latents [U, Z] of users: the mean of those of their clicks, and what attention makes of them."""
        missing_UH = history_UH < 0
        rows, place = torch.unique(history_UH.clamp(min=0), return_inverse=True)
        latents_UHZ = record.quantize(self._features_ND[rows]).latents_BZ[place]
        mixed_UHZ = self.attention(latents_UHZ, src_key_padding_mask=missing_UH)
        known_UH1 = (~missing_UH)[:, :, None]
        latents_UZ: Tensor = ((latents_UHZ + self.out(mixed_UHZ)) * known_UH1).sum(1) / known_UH1.sum(1)
        return latents_UZ
