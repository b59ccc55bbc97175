"""Item vectors composed of what is known of an item: codes, content, its own id.

Dimensions: N items · L levels · F content features · D features · R own rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserec.nn.sid_features import SIDFeatures, SIDKeys
from tesserec.types import SemanticIds

__all__ = ["ItemEncoder"]

OWN_LENGTH = 0.3
"""Length of an item's own vector at the start. Content starts at 1, so that what like items share is learnt first."""


class ItemEncoder(nn.Module):
    """vector(i) = Σ_l code_l[c_il] + W · content_i + own_i, the last only for items with enough events.

    With ``keys``, the rows of these keys of the codes are summed in place of one row a code (``SIDFeatures``). Content
    is scaled to length 1, and W starts as a random projection, which keeps its cosines.

    Items without content or events of their own are still placed by their codes: cold items need no special case.
    """

    codes_NL: Tensor
    content_NF: Tensor
    row_N: Tensor

    def __init__(  # noqa: PLR0917  # what a vector is composed of
        self,
        semantic_ids: SemanticIds | None,
        content_NF: Tensor | None,
        row_N: Tensor,
        width: int,
        keys: SIDKeys | None = None,
        merges_M2: Tensor | None = None,
    ) -> None:
        """``row_N`` numbers the items that have a row of their own, −1 for the others; ``merges_M2`` are of pieces."""
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

    def forward(self, items: Tensor) -> Tensor:
        """Vectors [..., D] of items [...] (all ≥ 0)."""
        flat_X = items.flatten()
        vectors_XD = self._vectors(self.row_N[flat_X], self._of_codes(flat_X), self._content()[flat_X])
        return vectors_XD.view(*items.shape, -1)

    def table(self) -> Tensor:
        """Vectors of all items, [N, D]."""
        return self._vectors(self.row_N, self._of_codes(), self._content())

    def _of_codes(self, items_X: Tensor | None = None) -> Tensor | None:
        """The part of the codes, [X, D], of all items where none are given; None where codes are not read."""
        if isinstance(self.codes, SIDFeatures):
            return self.codes.table() if items_X is None else self.codes(items_X)
        if not self.codes_NL.shape[1]:
            return None
        codes_XL = self.codes_NL if items_X is None else self.codes_NL[items_X]
        return F.embedding_bag(codes_XL, self.codes.weight, mode="sum")

    def _vectors(self, row_X: Tensor, codes_XD: Tensor | None, content_XF: Tensor) -> Tensor:
        vectors_XD = self.own(torch.where(row_X < 0, self.own.num_embeddings - 1, row_X))
        if codes_XD is not None:
            vectors_XD = vectors_XD + codes_XD
        if self.content is not None:
            vectors_XD = vectors_XD + self.content(content_XF)
        return torch.as_tensor(vectors_XD)

    def _content(self) -> Tensor:
        """The content in the type of the products; a copy of lower precision is made once, not every step."""
        device = self.content_NF.device.type
        if not torch.is_autocast_enabled(device):
            return self.content_NF
        if self._low_NF is None or self._low_NF.device != self.content_NF.device:
            self._low_NF = self.content_NF.to(torch.get_autocast_dtype(device))
        return self._low_NF
