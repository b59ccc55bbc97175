"""GateSID: an item's own vector and that of its codes (or content), mixed by how much is known of the item.

Paper: GateSID, https://arxiv.org/abs/2603.22916 (components; its formulas were not at hand)
Adds: a gate from both vectors and the item's statistics, high where semantics are to be trusted; a contrastive loss
    that pulls the two vectors of an item together, as strongly as the gate says.
Differs: vectors are mixed, not the attention over a history, which belongs to a ranker; the formulas are
    ours.
Checked: tests/nn/test_gate_sid.py (closed form; learns that few events mean trust in content);
    tests/retrievers/test_next_item.py (in SASRec and HSTU).

Dimensions: B items · D features · S statistics.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserec.errors import DataError

__all__ = ["GateSID"]


class GateSID(nn.Module):
    """vector = (1 − g) · own + g · semantic with g = σ(MLP[own, semantic, statistics]) in (0, 1).

    Starts at g = 1/2 for all items.
    """

    def __init__(self, width: int, num_statistics: int, hidden_size: int = 32) -> None:
        """``width`` of both vectors; statistics are numbers such as log(1 + events) and days since the first one."""
        super().__init__()
        self.width, self.num_statistics = width, num_statistics
        self.hidden = nn.Linear(2 * width + num_statistics, hidden_size)
        self.out = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def gate(self, own_BD: Tensor, semantic_BD: Tensor, statistics_BS: Tensor) -> Tensor:
        """How much the semantic vector is trusted, [B] in (0, 1).

        Raises ``DataError`` for vectors and statistics of other widths, and for statistics that are not finite.
        """
        widths = (own_BD.shape[-1], semantic_BD.shape[-1], statistics_BS.shape[-1])
        if widths != (self.width, self.width, self.num_statistics):
            raise DataError(
                f"vectors and statistics of widths {widths}: expected {(self.width, self.width, self.num_statistics)}"
            )
        if not bool(torch.isfinite(statistics_BS).all()):
            raise DataError("statistics hold NaN or infinity: give log(1 + events), not log(events)")
        joined = torch.cat([own_BD, semantic_BD, statistics_BS], -1)
        return torch.sigmoid(self.out(F.gelu(self.hidden(joined)))).squeeze(-1)

    def forward(self, own_BD: Tensor, semantic_BD: Tensor, statistics_BS: Tensor) -> tuple[Tensor, Tensor]:
        """(mixed vectors [B, D], the gate [B]); raises what ``gate`` does."""
        gate_B = self.gate(own_BD, semantic_BD, statistics_BS).to(own_BD.dtype)
        return torch.lerp(own_BD, semantic_BD, gate_B[..., None]), gate_B

    def alignment(self, own_BD: Tensor, semantic_BD: Tensor, gate_B: Tensor, temperature: float = 0.1) -> Tensor:
        """Mean over distinct items of gate · InfoNCE(own, semantic), a scalar; the others of the batch are negatives.

        The gate is a constant here: otherwise it would learn to be 0.
        """
        logits_BB = F.normalize(own_BD, dim=1) @ F.normalize(semantic_BD, dim=1).T / temperature
        loss_B = F.cross_entropy(logits_BB, torch.arange(len(logits_BB), device=logits_BB.device), reduction="none")
        return (gate_B.detach() * loss_B).mean()
