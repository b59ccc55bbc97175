"""A static trie over code tuples, as arrays: the constraint of every search.

Paper: "Vectorizing the Trie", arXiv 2602.22647 (STATIC), for children in compressed rows read for all beams at once.
Adds: the legal continuations of any number of prefixes in a few gathers, on any device; numbers in the smallest type
    that holds them; for each prefix, where its items begin and end, from which filters close prefixes.
Differs: tables of the first levels hold the codes of each node's children, not a cell for every code of the codebook.
Checked: tests/decoding/test_trie.py (a dictionary trie, hypothesis); tests/prove (0 mistakes in 10⁷ results).

Dimensions: B requests · M beams · C children · N items · L levels.
Depth 0 is the root; nodes of depth l + 1 are numbered from 0 in lexicographic order of their prefixes. The nodes of
depth L are the leaves, one a distinct tuple. An item's place is its position in the order of leaves, in which the items
below any node are neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tesserec.errors import DataError, ResourceError
from tesserec.types import SemanticIds

__all__ = ["Trie"]

MAX_DENSE = 2**24
"""Children of all nodes of one depth, padded to the same number, that are kept as a table."""

MAX_ITEMS = 2**31 - 1
"""Nodes and places are counted in int32."""


@dataclass(frozen=True, eq=False)
class Trie:
    """The prefixes of all distinct code tuples; build it with ``Trie.build``."""

    child_offsets: tuple[Tensor, ...]
    """For each depth l < L, where the children of each node start among those of depth l + 1: [nodes + 1] int32."""
    child_codes: tuple[Tensor, ...]
    """For each depth l < L, the code that leads to each node of depth l + 1: uint8, int16 or int32."""
    item_bounds: tuple[Tensor, ...]
    """For each depth 0 … L, the place of each node's first item, and the number of items: [nodes + 1] int32."""
    items: Tensor
    """The item at each place, int32; those of one leaf in the order in which they are proposed."""
    leaf_N: Tensor
    """The leaf of each item, int32; −1 for an item that was taken out."""
    order: tuple[int, ...]
    """For each depth l < L, the level of the Semantic ID whose code is chosen there: 0, 1, … from left to right."""
    codebook_sizes: tuple[int, ...]
    """Codes of each level."""

    @classmethod
    def build(
        cls, semantic_ids: SemanticIds, popularity_N: Tensor | None = None, order: Sequence[int] | None = None
    ) -> Trie:
        """The trie of a table; items of one bucket are ordered by ``popularity_N``, most first, then by index.

        With ``order``, a permutation of the levels, the codes are filled in that order instead of from left to right.
        Raises ``ResourceError`` for more than 2³¹ − 1 items, ``DataError`` for a popularity that is not a number an
        item, and ``ValueError`` for another ``order``.
        """
        if len(semantic_ids) > MAX_ITEMS:
            raise ResourceError(f"{len(semantic_ids)} items in one trie, at most {MAX_ITEMS}: split the catalog")
        if popularity_N is not None:
            _check_popularity(popularity_N, len(semantic_ids))
        order = tuple(range(semantic_ids.num_levels)) if order is None else tuple(order)
        if sorted(order) != list(range(semantic_ids.num_levels)):
            raise ValueError(f"order = {order}: give each of the levels 0 … {semantic_ids.num_levels - 1} once")
        sizes = semantic_ids.codebook_sizes
        columns = [semantic_ids.codes_NL[:, level].to(smallest_type(sizes[level])) for level in order]
        items = lexicographic_order(columns, [sizes[level] for level in order], popularity_N)
        return cls.of_sorted((column[items] for column in columns), sizes, items, len(semantic_ids), order)

    @classmethod
    def of_sorted(  # what a sorted table is made of
        cls, columns: Iterable[Tensor], sizes: tuple[int, ...], items: Tensor, num_items: int, order: tuple[int, ...]
    ) -> Trie:
        """The trie of ``items`` whose codes, a column a depth, are in lexicographic order of tuples already."""
        offsets, codes, bounds = [], [], [torch.tensor([0, len(items)], dtype=torch.int32)]
        differs = torch.zeros(len(items), dtype=torch.bool)
        differs[:1] = True
        number = differs
        for column in columns:
            differs[1:] |= column[1:] != column[:-1]
            first = differs.nonzero().squeeze(1)
            number = torch.from_numpy(np.cumsum(differs.numpy(), dtype=np.int32)) - 1  # node of the item at each place
            children = F.pad(number, (0, 1)).index_select(0, bounds[-1][:-1])  # padded: a trie without items
            offsets.append(F.pad(children, (0, 1), value=len(first)))
            codes.append(column.index_select(0, first))
            bounds.append(F.pad(first.int(), (0, 1), value=len(items)))
        leaf_N = torch.full((num_items,), -1, dtype=torch.int32)
        leaf_N[items] = number
        return cls(tuple(offsets), tuple(codes), tuple(bounds), items.int(), leaf_N, order, sizes)

    @property
    def num_levels(self) -> int:
        """Length of a code tuple."""
        return len(self.child_codes)

    @property
    def num_items(self) -> int:
        """Number of items, those that were taken out counted too."""
        return len(self.leaf_N)

    @property
    def device(self) -> torch.device:
        """Where the arrays are."""
        return self.leaf_N.device

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays, without ``dense_rows``, at most 2²⁴ numbers a depth, which a search makes of them."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    @cached_property
    def max_branching(self) -> tuple[int, ...]:
        """For each depth l < L, the most children that a node has."""
        return tuple(int(offsets.diff().max()) if len(offsets) > 1 else 0 for offsets in self.child_offsets)

    @cached_property
    def paths_NL(self) -> Tensor:
        """The node of each item at depths 1 … L, int64: for catalogs of which that many numbers fit."""
        return self.paths(self.leaf_N.long())

    def require_items(self) -> None:
        """Raise ``DataError`` where there is no item, and so nothing to find."""
        if not len(self.items):
            raise DataError("the trie has no items: add some with with_items, or build it of a table that has")

    def num_nodes(self, depth: int) -> int:
        """Number of distinct prefixes of length ``depth``, 0 ≤ depth ≤ L."""
        return len(self.item_bounds[depth]) - 1

    def to(self, device: torch.device | str) -> Trie:
        """The same trie with its arrays on ``device``."""
        return Trie.of_tensors({name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """All arrays by name, the inverse of ``of_tensors``."""
        rows = (
            *((f"child_offsets.{depth}", tensor) for depth, tensor in enumerate(self.child_offsets)),
            *((f"child_codes.{depth}", tensor) for depth, tensor in enumerate(self.child_codes)),
            *((f"item_bounds.{depth}", tensor) for depth, tensor in enumerate(self.item_bounds)),
        )
        return {**dict(rows), "items": self.items, "leaf_N": self.leaf_N, **self._shape()}

    def _shape(self) -> dict[str, Tensor]:
        return {"order": torch.tensor(self.order), "codebook_sizes": torch.tensor(self.codebook_sizes)}

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor]) -> Trie:
        """The trie of arrays that ``tensors`` named."""
        levels = range(sum(name.startswith("child_codes.") for name in tensors))
        return cls(
            tuple(tensors[f"child_offsets.{depth}"] for depth in levels),
            tuple(tensors[f"child_codes.{depth}"] for depth in levels),
            tuple(tensors[f"item_bounds.{depth}"] for depth in (*levels, len(levels))),
            tensors["items"],
            tensors["leaf_N"],
            tuple(tensors["order"].tolist()),
            tuple(tensors["codebook_sizes"].tolist()),
        )

    def children(self, level: int, nodes_BM: Tensor) -> tuple[Tensor, Tensor]:
        """(nodes of depth ``level`` + 1 [..., C], their codes [..., C]) below nodes of depth ``level`` [...], int64.

        C is ``max_branching[level]``; both are −1 past a node's last child, and everywhere below node −1.
        """
        # In int32 to the end: a step of many beams and children is bound by memory. Node −1 is a last one without any.
        parents = torch.where(nodes_BM < 0, self.num_nodes(level), nodes_BM).flatten()
        first = self.child_offsets[level].index_select(0, parents)[:, None]
        children = self._positions[level] + first
        rows = self.dense_rows[level]
        if rows is not None:
            codes = rows.index_select(0, parents)
            children.masked_fill_(codes < 0, -1)
        else:
            ends = self.child_offsets[level].index_select(0, (parents + 1).clamp_(max=self.num_nodes(level)))
            nothing = children >= ends[:, None]
            places = children.clamp(max=len(self.child_codes[level]) - 1).flatten()
            codes = self.child_codes[level].index_select(0, places).view_as(children).int().masked_fill_(nothing, -1)
            children.masked_fill_(nothing, -1)
        shape = (*nodes_BM.shape, children.shape[1])
        return children.long().view(shape), codes.long().view(shape)

    @cached_property
    def _positions(self) -> tuple[Tensor, ...]:
        """For each depth l < L, 0 … C − 1."""
        return tuple(torch.arange(most, dtype=torch.int32, device=self.device) for most in self.max_branching)

    @cached_property
    def dense_rows(self) -> tuple[Tensor | None, ...]:
        """For each depth l < L with few enough nodes, the codes of each node's children, padded by −1: [nodes + 1, C].

        The last row is −1: that of no node.
        """
        return tuple(self._dense_rows(level) for level in range(self.num_levels))

    def _dense_rows(self, level: int) -> Tensor | None:
        if self.num_nodes(level) * self.max_branching[level] > MAX_DENSE:
            return None
        counts = self.child_offsets[level].diff().long()
        owner = torch.arange(len(counts), device=self.device).repeat_interleave(counts)
        place = torch.arange(len(owner), device=self.device) - self.child_offsets[level][owner]
        wider = torch.int16 if self.child_codes[level].dtype == torch.uint8 else torch.int32
        rows = torch.full((len(counts) + 1, self.max_branching[level]), -1, dtype=wider, device=self.device)
        rows[owner, place] = self.child_codes[level].to(wider)
        return rows

    def ancestors(self, depth: int, nodes: Tensor) -> list[Tensor]:
        """The nodes of depths 0 … ``depth`` on the way to nodes of ``depth`` (int64, ≥ 0), int64, the root's first."""
        path = [nodes]
        for offsets in reversed(self.child_offsets[:depth]):
            path.append(torch.searchsorted(offsets, path[-1].int(), right=True) - 1)
        return path[::-1]

    def paths(self, leaves: Tensor) -> Tensor:
        """The nodes at depths 1 … L on the way to leaves [...], int64 [..., L]; −1 for leaf −1."""
        nodes = torch.stack(self.ancestors(self.num_levels, leaves.clamp(min=0))[1:], -1)
        return nodes.masked_fill(leaves[..., None] < 0, -1)

    def codes_of(self, leaves: Tensor) -> Tensor:
        """The code tuples of leaves [...], in the order of the levels, int64 [..., L]; −1 for leaf −1."""
        paths = self.paths(leaves)
        chosen = [codes[paths[..., depth].clamp(min=0)].long() for depth, codes in enumerate(self.child_codes)]
        return torch.stack([chosen[self.order.index(level)] for level in range(self.num_levels)], -1).masked_fill(
            leaves[..., None] < 0, -1
        )

    def places_of(self, leaves_Y: Tensor) -> tuple[Tensor, Tensor]:
        """(index into Y, place) of every item of leaves ≥ 0, one leaf after the other, int64."""
        first_Y = self.item_bounds[-1][leaves_Y].long()
        count_Y = self.item_bounds[-1][leaves_Y + 1] - first_Y
        shift_Y = first_Y - (count_Y.cumsum(0) - count_Y)
        leaf_X = torch.arange(len(leaves_Y), device=leaves_Y.device).repeat_interleave(count_Y)
        return leaf_X, torch.arange(len(leaf_X), device=leaves_Y.device) + shift_Y[leaf_X]

    def find(self, depth: int, codes_XL: Tensor) -> tuple[Tensor, Tensor]:
        """(nodes of ``depth`` with the first ``depth`` codes of each row, −1 where there is none; where it would be).

        The second says before which node of ``depth`` a prefix that does not exist belongs, and repeats the node where
        it does. Codes are int64 of at least ``depth`` columns.
        """
        place_X = codes_XL.new_zeros(len(codes_XL))
        if not len(self.items):
            return (place_X - 1 if depth else place_X), place_X
        exists_X = torch.ones(len(codes_XL), dtype=torch.bool, device=codes_XL.device)
        for level in range(depth):
            offsets = self.child_offsets[level]
            low_X = offsets[place_X].long()
            end_X = torch.where(exists_X, offsets[(place_X + 1).clamp(max=len(offsets) - 1)].long(), low_X)
            place_X = self._first_not_below(level, codes_XL[:, level], low_X, end_X)
            at_X = place_X.clamp(max=len(self.child_codes[level]) - 1)
            exists_X &= (place_X < end_X) & (self.child_codes[level][at_X] == codes_XL[:, level])
        return place_X.masked_fill(~exists_X, -1), place_X

    def _first_not_below(self, level: int, code_X: Tensor, low_X: Tensor, end_X: Tensor) -> Tensor:
        """The first node in [low, end) whose code is not below ``code_X``, by bisection; end where there is none."""
        high_X = end_X
        for _ in range(max(1, self.max_branching[level]).bit_length()):
            middle_X = (low_X + high_X) // 2
            below_X = self.child_codes[level][middle_X.clamp(max=len(self.child_codes[level]) - 1)] < code_X
            below_X &= low_X < high_X
            low_X = torch.where(below_X, middle_X + 1, low_X)
            high_X = torch.where(below_X, high_X, middle_X)
        return low_X

    def node_of(self, prefix: Sequence[int]) -> int:
        """The node of a prefix; raises ``DataError`` where no item has it."""
        if len(prefix) > self.num_levels:
            raise DataError(f"a prefix of {len(prefix)} codes, expected at most {self.num_levels}: items have no more")
        node = int(self.find(len(prefix), torch.tensor([list(prefix)], dtype=torch.int64, device=self.device))[0])
        if node < 0:
            raise DataError(f"no item's codes begin with {tuple(prefix)}: give a prefix of a Semantic ID in the table")
        return node


def _check_popularity(popularity_N: Tensor, num_items: int) -> None:
    if popularity_N.shape != (num_items,):
        raise DataError(
            f"popularity_N has shape {tuple(popularity_N.shape)}, expected ({num_items},): give one number an item"
        )
    if bool(popularity_N.isnan().any()):
        item = int(popularity_N.isnan().nonzero()[0])
        raise DataError(f"the popularity of item {item} is NaN: give 0 where it is not known")


def lexicographic_order(columns: Sequence[Tensor], sizes: Sequence[int], popularity_N: Tensor | None = None) -> Tensor:
    """Items by their codes, a column [N] a depth, then by ``popularity_N``, most first, then by index: int64 [N]."""
    order = None if popularity_N is None else torch.argsort(popularity_N, descending=True, stable=True)
    end = len(columns)
    while end:
        # As many columns as one number of 63 bits holds are sorted at once, the last ones first.
        start = end - 1
        while start and math.prod(sizes[start - 1 : end]) < 2**63:
            start -= 1
        key_N = columns[start].long()
        for depth in range(start + 1, end):
            key_N = key_N * sizes[depth] + columns[depth]
        found = torch.argsort(key_N if order is None else key_N[order], stable=True)
        order = found if order is None else order[found]
        end = start
    assert order is not None, "a table has at least one level"
    return order


def smallest_type(size: int) -> torch.dtype:
    """The smallest integer type that holds 0 … ``size`` − 1."""
    if size <= 2**8:
        return torch.uint8
    return torch.int16 if size <= 2**15 else torch.int32
