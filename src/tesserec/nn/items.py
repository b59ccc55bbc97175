"""Item vectors composed of what is known of an item: codes, content, its own id.

Dimensions: N items · L levels · F content features · D features · X items of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserec.config import Field, component
from tesserec.errors import RecipeError, VersionMismatchError
from tesserec.nn.gate_sid import GateSID
from tesserec.nn.growth import load_grown
from tesserec.nn.sid_features import SIDFeatures, SIDKeys, learn_pieces
from tesserec.types import SemanticIds

__all__ = ["GateConfig", "ItemEncoder", "KeepsVectors", "earlier_rows", "merges_for", "own_rows"]

OWN_LENGTH = 0.3
"""Length of an item's own vector at the start. Content starts at 1, so that what like items share is learnt first."""

MAX_ALIGNED = 1024
"""Items whose vectors are told apart by the loss of a gate, all from all."""


@component
class GateConfig:
    """An item's own vector and that of its codes and content, mixed by GateSID from its events in training."""

    alignment: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the loss that pulls both vectors of an item together, where the gate trusts codes and content."""
    hidden_size: Annotated[int, Field(gt=0)] = 32
    """Hidden units of the gate."""


class ItemEncoder(nn.Module):
    """vector(i) = Σ_l code_l[c_il] + W · content_i + own_i, the last only for items with enough events.

    With ``keys``, the rows of these keys of the codes are summed in place of one row a code (``SIDFeatures``). Content
    is scaled to length 1, and W starts as a random projection, which keeps its cosines. With ``gate``, the own vector
    and the sum of the others are weighed against each other (``GateSID``) in place of added; an item without a row of
    its own is what the others say.

    Items without content or events of their own are still placed by their codes: cold items need no special case.
    """

    codes_NL: Tensor
    content_NF: Tensor
    row_N: Tensor
    events_N: Tensor

    def __init__(
        self,
        semantic_ids: SemanticIds | None,
        content_NF: Tensor | None,
        row_N: Tensor,
        width: int,
        *,
        keys: SIDKeys | None = None,
        merges_M2: Tensor | None = None,
        gate: GateConfig | None = None,
        events_N: Tensor | None = None,
    ) -> None:
        """``row_N`` numbers the items that have a row of their own, −1 for the others; ``merges_M2`` are of pieces.

        A ``gate`` reads ``events_N``, the training events of each item (0 where they are not given).
        """
        super().__init__()
        num_rows = int((row_N >= 0).sum())
        levels = 0 if semantic_ids is None else semantic_ids.num_content_levels
        sizes = [] if semantic_ids is None else list(semantic_ids.codebook_sizes[:levels])
        starts = torch.tensor([0, *sizes]).cumsum(0)[:-1].to(torch.int64)
        codes_NL = (
            torch.zeros(len(row_N), 0).long() if semantic_ids is None else semantic_ids.codes_NL[:, :levels].long()
        )
        content_NF = torch.zeros(len(row_N), 0) if content_NF is None else content_NF
        self.register_buffer("codes_NL", codes_NL + starts[:levels], persistent=False)
        self.register_buffer("content_NF", F.normalize(content_NF, dim=1), persistent=False)
        self.register_buffer("row_N", row_N)
        self.codes: nn.Embedding | SIDFeatures = nn.Embedding(max(sum(sizes), 1), width)
        self.content = nn.Linear(content_NF.shape[1], width, bias=False) if content_NF.shape[1] else None
        self.own = nn.Embedding(num_rows + 1, width, padding_idx=num_rows)
        self._low_NF: Tensor | None = None
        nn.init.normal_(self.codes.weight, std=0.5 * width**-0.5)
        if keys is not None and semantic_ids is not None:
            self.codes = SIDFeatures(semantic_ids, keys, width, merges_M2=merges_M2)
        nn.init.normal_(self.own.weight, std=OWN_LENGTH * width**-0.5)
        if self.content is not None:
            nn.init.normal_(self.content.weight, std=width**-0.5)
        with torch.no_grad():
            self.own.weight[num_rows] = 0
        self.alignment_weight = 0.0
        self.gate: GateSID | None = None
        if gate is None:
            return
        if not codes_NL.shape[1] and self.content is None:
            raise RecipeError(
                "a gate mixes an item's own vector with that of codes or content, and there is neither: add a "
                "[semantic_ids] or [embedder] table to the recipe, or leave out gate"
            )
        self.alignment_weight, self.gate = gate.alignment, GateSID(width, 1, gate.hidden_size)
        self.register_buffer("events_N", torch.zeros(len(row_N)) if events_N is None else events_N.float())

    def forward(self, items: Tensor) -> Tensor:
        """Vectors [..., D] of items [...] (all ≥ 0)."""
        return self._vectors(items.flatten()).view(*items.shape, self.own.embedding_dim)

    def table(self) -> Tensor:
        """Vectors of all items, [N, D]."""
        return self._vectors(None)

    def load_earlier(self, tensors: Mapping[str, Tensor]) -> None:
        """Start from an earlier fit's tensors; the own rows are of the items that have one in both.

        Raises ``VersionMismatchError`` for an encoder of more items, and for one of other parts or shapes.
        """
        earlier_N, own = earlier_rows(tensors), self.state_dict()
        if len(earlier_N) > len(self.row_N):
            raise VersionMismatchError(
                f"the earlier fit knows {len(earlier_N)} items and the catalog has {len(self.row_N)}: "
                "a warm start needs the same items in the same order, new ones at the end"
            )
        of_this_fit = {name: value for name, value in own.items() if name in {"row_N", "events_N", "own.weight"}}
        load_grown(self, {**tensors, **of_this_fit})
        now_N = self.row_N[: len(earlier_N)]
        both_N = (earlier_N >= 0) & (now_N >= 0)
        with torch.no_grad():
            self.own.weight[now_N[both_N]] = tensors["own.weight"][earlier_N[both_N]]

    def alignment(self, items_X: Tensor) -> Tensor:
        """The weighted loss of the gate, a scalar, over the distinct items of ``items_X`` that have a row of their own.

        0 without a gate; of more than ``MAX_ALIGNED``, as many are drawn.
        """
        nothing = torch.zeros((), device=items_X.device)
        if self.gate is None or not self.alignment_weight:
            return nothing
        distinct_X = torch.unique(items_X)
        distinct_X = distinct_X[self.row_N[distinct_X] >= 0]
        if not len(distinct_X):
            return nothing
        distinct_X = distinct_X[torch.randperm(len(distinct_X))[:MAX_ALIGNED]]
        own_XD, semantic_XD = self._own(distinct_X), self._semantic(distinct_X)
        gate_X = self.gate.gate(own_XD, semantic_XD, self._statistics(distinct_X))
        return self.alignment_weight * self.gate.alignment(own_XD, semantic_XD, gate_X)

    def _vectors(self, items_X: Tensor | None) -> Tensor:
        """Vectors [X, D] of items, of all where none are given, as all below."""
        if self.gate is None:
            return sum(self._meanings(items_X), self._own(items_X))
        semantic_XD = self._semantic(items_X)
        mixed_XD, _ = self.gate(self._own(items_X), semantic_XD, self._statistics(items_X))
        return torch.where((self._rows(items_X) >= 0)[:, None], mixed_XD, semantic_XD)

    def _rows(self, items_X: Tensor | None) -> Tensor:
        return self.row_N if items_X is None else self.row_N[items_X]

    def _own(self, items_X: Tensor | None) -> Tensor:
        row_X = self._rows(items_X)
        vectors: Tensor = self.own(torch.where(row_X < 0, self.own.num_embeddings - 1, row_X))
        return vectors

    def _semantic(self, items_X: Tensor | None) -> Tensor:
        """What codes and content say together, in the type of the own vectors."""
        return sum(self._meanings(items_X), torch.zeros(1, self.own.embedding_dim, device=self.row_N.device))

    def _meanings(self, items_X: Tensor | None) -> Iterator[Tensor]:
        """The part of the codes and that of the content, where they are read."""
        codes_XD = self._of_codes(items_X)
        if codes_XD is not None:
            yield codes_XD
        if self.content is not None:
            yield self.content(self._content() if items_X is None else self._content()[items_X])

    def _statistics(self, items_X: Tensor | None) -> Tensor:
        """log(1 + events), [X, 1]."""
        return torch.log1p(self.events_N if items_X is None else self.events_N[items_X])[:, None]

    def _of_codes(self, items_X: Tensor | None) -> Tensor | None:
        """The part of the codes, [X, D], of all items where none are given; None where codes are not read."""
        if isinstance(self.codes, SIDFeatures):
            return self.codes.table() if items_X is None else self.codes(items_X)
        if not self.codes_NL.shape[1]:
            return None
        codes_XL = self.codes_NL if items_X is None else self.codes_NL[items_X]
        return F.embedding_bag(codes_XL, self.codes.weight, mode="sum")

    def _content(self) -> Tensor:
        """The content in the type of the products; a copy of lower precision is made once, not every step."""
        device = self.content_NF.device.type
        if not torch.is_autocast_enabled(device):
            return self.content_NF
        if self._low_NF is None or self._low_NF.device != self.content_NF.device:
            self._low_NF = self.content_NF.to(torch.get_autocast_dtype(device))
        return self._low_NF


class KeepsVectors(nn.Module):
    """A network that keeps the vectors of all items outside of training, until its weights may change."""

    _kept_ND: Tensor | None = None

    def train(self, mode: bool = True) -> Self:
        """As of every module; what was kept of the weights before is forgotten."""
        self._kept_ND = None
        return super().train(mode)

    def kept(self, vectors: Callable[[], Tensor]) -> Tensor:
        """``vectors()``, or what it gave since the last call of ``train`` or ``eval``."""
        if self._kept_ND is not None:
            return self._kept_ND
        vectors_ND = vectors()
        if not self.training and not torch.is_grad_enabled():
            self._kept_ND = vectors_ND.detach()  # a parameter would be one more of the network's
        return vectors_ND


def merges_for(
    keys: SIDKeys | None, semantic_ids: SemanticIds, events_N: Tensor, earlier: Mapping[str, Tensor] | None = None
) -> Tensor | None:
    """What pieces are made by: as many merges as there are rows for, or those of an ``earlier`` encoder's tensors.

    None for other keys.
    """
    if keys is None or keys.kind != "pieces":
        return None
    if earlier is not None:
        return earlier.get("codes.merges_M2")
    num_codes = sum(semantic_ids.codebook_sizes[: semantic_ids.num_content_levels])
    return learn_pieces(semantic_ids, events_N, max(0, keys.max_rows - num_codes))


def earlier_rows(tensors: Mapping[str, Tensor]) -> Tensor:
    """``row_N`` of the tensors of an encoder; raises ``VersionMismatchError`` for those of something else."""
    if "row_N" not in tensors:
        raise VersionMismatchError(
            "the saved model has no item vectors that are made of codes: fit with the same settings"
        )
    return tensors["row_N"]


def own_rows(events_N: Tensor, least: int, most: int) -> Tensor:
    """A row number for each of the ``most`` most frequent items with at least ``least`` events, −1 for the others."""
    order = torch.argsort(events_N, descending=True, stable=True)[:most]
    chosen = order[events_N[order] >= least].sort().values
    row_N = torch.full((len(events_N),), -1)
    row_N[chosen] = torch.arange(len(chosen))
    return row_N
