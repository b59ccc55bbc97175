"""When items had their first events: in training on a log, those of the future may count less as negatives.

Dimensions: S states · N items; the nodes of a level are those of the trie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tesserec.decoding.trie import Trie
from tesserec.types import NEVER

__all__ = ["Beginnings", "Future"]


@dataclass(frozen=True, eq=False)
class Beginnings:
    """Of a log and a tree."""

    items_N: Tensor
    """See ``Interactions.first_times``."""
    nodes: Sequence[Tensor]
    """Of each level, the first of the items below each node."""

    @classmethod
    def of(cls, first_N: Tensor, trie: Trie) -> Beginnings:
        """Of the times of the first events of all items."""
        nodes = [
            torch.full((trie.num_nodes(level + 1),), NEVER).scatter_reduce(0, path_N.long(), first_N, "amin")
            for level, path_N in enumerate(trie.paths_NL.T)
        ]
        return cls(first_N, nodes)


@dataclass(frozen=True, eq=False)
class Future:
    """What had not begun when that came which follows each state."""

    beginnings: Beginnings
    time_S: Tensor
    """When it came."""
    discount: float
    """What is taken off the logits of what had not begun."""

    def take(self, states: Tensor) -> Future:
        """Of some of the states."""
        return Future(self.beginnings, self.time_S[states], self.discount)

    def of_items(self, states: Tensor, items: Tensor) -> Tensor:
        """What is added to the logits of items at states; shapes broadcast."""
        return (self.beginnings.items_N[items] > self.time_S[states]) * -self.discount

    def of_nodes(self, level: int, states: Tensor, nodes: Tensor) -> Tensor:
        """What is added to the logits of nodes of depth ``level`` + 1 at states; shapes broadcast."""
        return (self.beginnings.nodes[level][nodes] > self.time_S[states]) * -self.discount
