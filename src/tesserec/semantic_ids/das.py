"""DAS: codes and collaborative vectors learned at once, of users and items, each aligned with the others.

Paper: DAS, https://arxiv.org/abs/2508.10584
Adds: a collaborative model of users and items and a second quantizer, of users, trained together with that of items;
    six contrastive views: the quantized vector of an item finds the collaborative vector of itself, of a user who took
    it and of an item that followed it; that of a user finds its own, that of an item they took and that of another user
    who took the same item.
Differs: the content of a user is the mean of their items' vectors; the collaborative vectors are tables without a
    branch for popularity, because negatives of the same batch come as often as they are popular, which leaves
    popularity out of the scores; weight and temperature are ours; codes of users are not kept, since nothing here reads
    them.
Checked: tests/semantic_ids/test_das.py (each view by hand; quiet factors by which items are bought and by which users
    buy, found by each).

Dimensions: N rows of the features · U users · E events · P pairs · B batch · D features · Z latent features.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from tesserec.config import Field, component
from tesserec.errors import DataError, RecipeError
from tesserec.semantic_ids.composition import LossRecord, LossSetup, info_nce
from tesserec.semantic_ids.plum import following_pairs
from tesserec.semantic_ids.rq_network import Network, move_unused

__all__ = ["DualAlignment", "Fellows", "user_vectors"]

_STEPS_BETWEEN_MOVES = 100

View = Literal["item_item", "item_user", "item_follower", "user_user", "user_item", "user_fellow"]


@component
class DualAlignment:
    """Learns collaborative vectors beside the quantizers, and pulls quantized and collaborative vectors together."""

    weight: Annotated[float, Field(ge=0)] = 0.1
    """Strength of the collaborative loss and of each view; users are reconstructed as strongly as items."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Of all softmaxes over the batch."""
    views: Annotated[tuple[View, ...], Field(min_length=1)] = (
        *("item_item", "item_user", "item_follower"),
        *("user_user", "user_item", "user_fellow"),
    )
    """Whose codes are aligned to whose collaborative vectors; without any of a user's codes, users have none."""
    commitment_weight: Annotated[float, Field(ge=0)] = 0.25
    """Pull of a user's latents towards their code."""
    batch_size: Annotated[int, Field(gt=1)] = 256
    """Events a batch."""

    def __post_init__(self) -> None:
        if not any(view.startswith("item_") for view in self.views):
            raise RecipeError(f"views {list(self.views)} leave the codes of items as they are: add one of item_…")

    def module(self, setup: LossSetup) -> nn.Module:
        """Raises ``DataError`` where there are no training events of the items, or a view has no pairs in them.

        It also does where codes of users are asked of a quantizer that is trained without codebooks.
        """
        train = setup.side.train
        if train is None:
            raise DataError("DualAlignment reads training events: fit in a pipeline, or give SideInformation(train=…)")
        row_of_item = torch.full((len(train.items),), -1, dtype=torch.int64)
        row_of_item[setup.items_N] = torch.arange(len(setup.features_ND))
        taken_E2 = torch.stack([row_of_item[train.item_E.long()], train.user_E.long()], 1)
        taken_E2 = taken_E2[taken_E2[:, 0] >= 0]
        pairs_P2 = row_of_item[torch.stack(following_pairs(train), 1)]
        pairs_P2 = pairs_P2[(pairs_P2 >= 0).all(1)]
        if not len(taken_E2) or ("item_follower" in self.views and not len(pairs_P2)):
            raise DataError("no items follow each other in the training events: leave DualAlignment or that view out")
        module = _DualAlignment(self, setup, taken_E2, pairs_P2, len(train.users))
        if any(view.startswith("user_") for view in self.views):
            module.user_side = _UserSide(self, setup, taken_E2, len(train.users))
        if "user_fellow" in self.views:
            module.fellows = Fellows(taken_E2)
        return module


def user_vectors(features_ND: Tensor, taken_E2: Tensor, num_users: int) -> Tensor:
    """The mean of the vectors of each user's items, [U, D]; zero for users without any.

    ``taken_E2`` has the row of an item and a user for each event.
    """
    rows_E, users_E = taken_E2.to(features_ND.device).unbind(1)
    sums_UD = features_ND.new_zeros((num_users, features_ND.shape[1])).index_add_(0, users_E, features_ND[rows_E])
    return sums_UD / torch.bincount(users_E, minlength=num_users).clamp(min=1)[:, None]


class Fellows:
    """Users who took the same item."""

    def __init__(self, taken_E2: Tensor) -> None:
        """Raises ``DataError`` where no item was taken by two users; ``taken_E2`` as in ``user_vectors``."""
        pairs_P2, self._place_E = torch.unique(taken_E2, dim=0, return_inverse=True)
        items_P, self._user_P = pairs_P2.unbind(1)
        _, counts = torch.unique_consecutive(items_P, return_counts=True)
        self._count_P = counts.repeat_interleave(counts)
        self._start_P = (counts.cumsum(0) - counts).repeat_interleave(counts)
        if not bool((counts > 1).any()):
            raise DataError("no two users took the same item: leave out the view user_fellow of DualAlignment")

    def drawn(self, events_B: Tensor, generator: torch.Generator) -> Tensor:
        """For each event another user of its item, each as likely, [B] int64; its own user where there is no other."""
        place_B = self._place_E[events_B]
        start_B, count_B = self._start_P[place_B], self._count_P[place_B]
        chance_B = torch.rand(len(events_B), generator=generator, dtype=torch.float64)
        further_B = 1 + (chance_B * (count_B - 1)).long()
        other_B: Tensor = self._user_P[start_B + (place_B - start_B + further_B) % count_B]
        return other_B


class _UserSide(nn.Module):
    """The quantizer of users: a network as that of the items, on the vectors of users."""

    def __init__(self, settings: DualAlignment, setup: LossSetup, taken_E2: Tensor, num_users: int) -> None:
        super().__init__()
        if not setup.codebook_sizes:
            raise DataError("views of users need codebooks in training, as RQVAE has: name views of items only")
        self._commitment_weight, self._generator = settings.commitment_weight, setup.generator
        self._vectors_UD = user_vectors(setup.features_ND, taken_E2, num_users)
        num_features, sizes, device = self._vectors_UD.shape[1], setup.codebook_sizes, self._vectors_UD.device
        self.network = Network(num_features, setup.hidden_sizes, setup.num_latents, sizes).to(device)
        known_UD = self._vectors_UD[torch.unique(taken_E2[:, 1]).to(device)]
        self.network.start(known_UD, sizes, setup.side.seed, setup.generator)
        self._used = [torch.zeros(len(c), dtype=torch.bool, device=device) for c in self.network.codebooks]
        self._residuals: list[Tensor] = []

    def loss(self, users_B: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """(loss of the quantizer of users, their quantized vectors [B, Z])."""
        # after the step before, since its gradient needs the codes as they were; unused ones have no momentum left
        if self._residuals and step % _STEPS_BETWEEN_MOVES == 1:
            move_unused(self.network, self._used, self._residuals, self._generator)
        loss, record = self.network.loss(self._vectors_UD[users_B], self._commitment_weight, users_B)
        self._residuals = [residual_BZ.detach() for residual_BZ in record.quantized.residuals]
        for level, used_C in enumerate(self._used):
            used_C[record.quantized.codes_BL[:, level]] = True
        return loss, record.quantized.straight_through()


class _DualAlignment(nn.Module):
    def __init__(  # what was made of the log
        self, settings: DualAlignment, setup: LossSetup, taken_E2: Tensor, pairs_P2: Tensor, num_users: int
    ) -> None:
        super().__init__()
        self._settings, self._generator, self._features_ND = settings, setup.generator, setup.features_ND
        self._taken_E2, self._pairs_P2 = taken_E2, pairs_P2
        self.items = nn.Embedding(len(setup.features_ND), setup.num_latents)
        self.users = nn.Embedding(num_users, setup.num_latents)
        self.user_side: _UserSide | None = None
        self.fellows: Fellows | None = None

    def forward(self, record: LossRecord) -> Tensor:
        views, device = self._settings.views, self._features_ND.device
        events_B = torch.randint(len(self._taken_E2), (self._settings.batch_size,), generator=self._generator)
        rows_B, users_B = self._taken_E2[events_B].to(device).unbind(1)
        items_BZ, users_BZ = self.items(rows_B), self.users(users_B)
        losses = [self._finds(users_BZ, items_BZ, same(rows_B) | same(users_B))]
        if "item_item" in views or "item_user" in views:
            quantized_BZ = record.quantize(self._features_ND[rows_B]).straight_through()
            if "item_item" in views:
                losses.append(self._finds(quantized_BZ, items_BZ, same(rows_B)))
            if "item_user" in views:
                losses.append(self._finds(quantized_BZ, users_BZ, same(rows_B) | same(users_B)))
        if "item_follower" in views:
            losses.append(self._follower_view(record))
        if self.user_side is not None:
            user_loss, quantized_BZ = self.user_side.loss(users_B, record.step)
            losses.append(user_loss / (self._settings.weight * self._features_ND.shape[1]))  # counts as that of items
            if "user_user" in views:
                losses.append(self._finds(quantized_BZ, users_BZ, same(users_B)))
            if "user_item" in views:
                losses.append(self._finds(quantized_BZ, items_BZ, same(rows_B) | same(users_B)))
            if self.fellows is not None:
                losses.append(self._fellow_view(self.fellows.drawn(events_B, self._generator), users_B, quantized_BZ))
        return torch.stack(losses).sum()

    def _follower_view(self, record: LossRecord) -> Tensor:
        chosen_B = torch.randint(len(self._pairs_P2), (self._settings.batch_size,), generator=self._generator)
        first_B, second_B = self._pairs_P2[chosen_B].to(self._features_ND.device).unbind(1)
        quantized_BZ = record.quantize(self._features_ND[first_B]).straight_through()
        return self._finds(quantized_BZ, self.items(second_B), same(first_B) | same(second_B))

    def _fellow_view(self, fellows_B: Tensor, users_B: Tensor, quantized_BZ: Tensor) -> Tensor:
        fellows_B = fellows_B.to(users_B.device)
        has_B = fellows_B != users_B
        if not bool(has_B.any()):
            return quantized_BZ.new_zeros(())
        users_B, fellows_B, quantized_BZ = users_B[has_B], fellows_B[has_B], quantized_BZ[has_B]
        return self._finds(quantized_BZ, self.users(fellows_B), same(users_B) | same(fellows_B))

    def _finds(self, own_BZ: Tensor, wanted_BZ: Tensor, masked_BB: Tensor) -> Tensor:
        return info_nce(own_BZ, wanted_BZ, self._settings.temperature, masked_BB)


def same(rows_B: Tensor) -> Tensor:
    """Where two places of a batch hold the same, [B, B] bool without the diagonal."""
    return (rows_B == rows_B[:, None]).fill_diagonal_(False)
