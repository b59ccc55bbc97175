"""What filters leave of a trie: no beam enters a prefix below which nothing is allowed.

Paper: none; counts of set bits as in succinct bit vectors (rank), for all beams at once.
Adds: a mask over all items takes effect by one gather: a prefix is open where items below it are left, told by two
    counts; exclusions and allow-lists of a request are sorted keys, whose cost does not grow with the catalog.
Differs: counts for every eighth place, and flags as bytes between: as small as it has to be, and no bit is unpacked.
Checked: tests/decoding/test_trie_mask.py (brute force, hypothesis); tests/prove (0 mistakes in 10⁷ results).

Dimensions: B requests · M beams · C children · N items · X exclusions.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserec.decoding.top_k import allowed_keys, available_items, check_flags, check_items, excluded_keys
from tesserec.decoding.trie import Trie
from tesserec.errors import DataError
from tesserec.types import PAD, Requests

__all__ = ["Availability", "TrieMask", "contains"]

ONES = 0x0101010101010101
"""A one in each byte: times eight flags, its highest byte is their sum."""
MAX_OPEN_NODES = 2**18
"""Nodes of one depth that are looked at when a mask is made, and not when a beam comes by."""


@dataclass(frozen=True, eq=False)
class Availability:
    """Which items may be shown to anybody, with counts; build it once for all requests with ``Availability.of``."""

    trie: Trie
    """Of which the places are."""
    available_N: Tensor
    """A flag an item, bool."""
    words: Tensor
    """The flags in the order of places, eight a word and one a byte, int64; the first is the lowest byte."""
    before: Tensor
    """Available items before each word, int32."""
    open_nodes: tuple[Tensor | None, ...]
    """For each depth 1 … L with few enough nodes, whether items below each node are available, bool."""

    @classmethod
    def of(cls, trie: Trie, available_N: Tensor) -> Availability:
        """Of a flag an item, bool [N], on the trie's device. Raises ``DataError`` for anything else."""
        check_flags(available_N, trie.num_items)
        flags = available_N.index_select(0, trie.items).view(torch.uint8)
        words = F.pad(flags, (0, 8 - len(flags) % 8)).view(torch.int64)
        counts = ((words * ONES) >> 56).int()
        found = cls(trie, available_N, words, counts.cumsum(0, dtype=torch.int32) - counts, ())
        small = (bounds if len(bounds) <= MAX_OPEN_NODES else None for bounds in trie.item_bounds[1:])
        opened = (None if bounds is None else found.count(bounds).diff() > 0 for bounds in small)
        return dataclasses.replace(found, open_nodes=tuple(opened))

    @property
    def flags(self) -> Tensor:
        """Whether the item at each place is available, bool (padded)."""
        return self.words.view(torch.bool)

    def count(self, places: Tensor) -> Tensor:
        """Available items before each place."""
        places = places.long()
        word = places >> 3
        earlier = (1 << ((places & 7) << 3)) - 1
        return self.before[word] + (((self.words[word] & earlier) * ONES) >> 56)


@dataclass(frozen=True, eq=False)
class TrieMask:
    """Which nodes lead to an item that the filters of each request allow; build it with ``TrieMask.of``."""

    trie: Trie
    num_requests: int
    availability: Availability | None
    """Of items for everybody; None: all are available."""
    excluded: Tensor
    """``request · items + item`` of what requests exclude: ascending, distinct, int64."""
    allowed: Tensor | None
    """The same of what their allow-lists leave; None: requests have no allow-lists."""
    keys: tuple[Tensor, ...]
    """For each depth 1 … L, ``request · nodes + node``, ascending, of the nodes that exclusions close; where there are
    allow-lists, of the nodes that are open."""

    @classmethod
    def of(cls, trie: Trie, requests: Requests, availability: Availability | None = None) -> TrieMask:
        """The mask of ``requests.filters``; time and memory grow with the exclusions, not with B · N.

        ``availability`` is that of ``filters.available_N``, where it is at hand: many requests share one, and it takes
        the filter's place. Raises ``DataError`` for filters, or an availability, of another catalogue or trie.
        """
        if availability is not None and availability.trie.items is not trie.items:
            raise DataError("the availability is of another trie: make it with Availability.of(trie, available_N)")
        if availability is None and requests.filters.available_N is not None:
            availability = Availability.of(trie, available_items(requests, trie.num_items).to(trie.device))
        excluded = excluded_keys(requests, trie.num_items).to(trie.device)
        allowed = allowed_keys(requests, trie.num_items)
        allowed = None if allowed is None else allowed.to(trie.device)
        return cls(trie, len(requests), availability, excluded, allowed, ())._closed()

    def excluding(self, rows_X: Tensor, items_X: Tensor) -> TrieMask:
        """The same mask, with these items taken from these requests too: what a slate already holds.

        ``PAD`` takes nothing. Raises ``DataError`` for other items that are none, and for rows of no request.
        """
        if rows_X.ndim != 1 or rows_X.shape != items_X.shape:
            shapes = f"{tuple(rows_X.shape)} and {tuple(items_X.shape)}"
            raise DataError(f"rows_X and items_X have shapes {shapes}: give the request of each item, both [X]")
        given_X = items_X != PAD
        rows_X, items_X = rows_X[given_X].to(self.trie.device), items_X[given_X].to(self.trie.device).long()
        check_items(items_X, self.trie.num_items, "items_X")
        if bool(((rows_X < 0) | (rows_X >= self.num_requests)).any()):
            raise DataError(f"rows_X = {rows_X.tolist()}: the mask is of requests 0 to {self.num_requests - 1}")
        excluded = torch.unique(torch.cat([self.excluded, rows_X * self.trie.num_items + items_X]))
        return dataclasses.replace(self, excluded=excluded)._closed()

    def check(self, trie: Trie, num_requests: int) -> None:
        """Raise ``DataError`` where the mask is of another trie, or of another number of requests."""
        if self.trie.items is not trie.items:
            raise DataError("the mask is of another trie: make it anew, with TrieMask.of(trie, requests)")
        if self.num_requests != num_requests:
            raise DataError(
                f"the mask is of {self.num_requests} requests, the search of {num_requests}: make both of the same"
            )

    def _closed(self) -> TrieMask:
        """The mask with the keys of its nodes."""
        trie, excluded, allowed = self.trie, self.excluded, self.allowed
        if allowed is not None:
            row_X, item_X = _split(allowed, trie.num_items)
            left = self._available(item_X) & ~contains(excluded, allowed)
            keys = self._nodes_of(row_X[left], item_X[left], only_full=False)
            return dataclasses.replace(self, allowed=allowed[left], keys=keys)
        row_X, item_X = _split(excluded, trie.num_items)
        left = self._available(item_X)
        return dataclasses.replace(self, keys=self._nodes_of(row_X[left], item_X[left], only_full=True))

    def allows(self, level: int, children_BMC: Tensor) -> Tensor:
        """Whether nodes of depth ``level`` + 1 [B, ...] lead to an allowed item: bool; false for −1."""
        open_BMC = children_BMC >= 0
        if self.allowed is None and self.availability is not None:
            nodes, open_nodes = children_BMC.clamp(min=0), self.availability.open_nodes[level]
            open_BMC &= self._left(level, nodes) > 0 if open_nodes is None else open_nodes[nodes]
        if self.allowed is None and not len(self.keys[level]):
            return open_BMC
        rows = torch.arange(len(children_BMC), device=children_BMC.device).view(-1, *[1] * (children_BMC.ndim - 1))
        listed = contains(self.keys[level], rows * self.trie.num_nodes(level + 1) + children_BMC)
        return open_BMC & (~listed if self.allowed is None else listed)

    def allows_places(self, row_X: Tensor, place_X: Tensor) -> Tensor:
        """Whether each request of ``row_X`` may get the item at each place, bool [X]."""
        keys = row_X * self.trie.num_items + self.trie.items[place_X]
        if self.allowed is not None:
            return contains(self.allowed, keys)
        legal_X = ~contains(self.excluded, keys)
        return legal_X if self.availability is None else legal_X & self.availability.flags[place_X]

    def _available(self, item_X: Tensor) -> Tensor:
        """Whether items may be shown to anybody, bool [X]."""
        leaf_X = self.trie.leaf_N[item_X].long()
        if self.availability is None:
            return leaf_X >= 0
        return (leaf_X >= 0) & self.availability.available_N[item_X]

    def _left(self, level: int, nodes: Tensor) -> Tensor:
        """Available items below nodes of depth ``level`` + 1."""
        first, end = (self.trie.item_bounds[level + 1][nodes + shift] for shift in (0, 1))
        counts = self.availability
        return end - first if counts is None else counts.count(end) - counts.count(first)

    def _nodes_of(self, row_X: Tensor, item_X: Tensor, only_full: bool) -> tuple[Tensor, ...]:
        """For each depth 1 … L, the keys of the nodes above distinct items; or of those above as many as are left."""
        found = []
        for level, node_X in enumerate(self.trie.ancestors(self.trie.num_levels, self.trie.leaf_N[item_X].long())[1:]):
            size = self.trie.num_nodes(level + 1)
            keys, counts = torch.unique(row_X * size + node_X, return_counts=True)
            found.append(keys[counts == self._left(level, keys % size)] if only_full else keys)
        return tuple(found)


def contains(sorted_keys: Tensor, keys: Tensor) -> Tensor:
    """Whether each of ``keys`` is among ``sorted_keys`` (1-d, ascending): bool, in the shape of ``keys``."""
    if not len(sorted_keys):
        return torch.zeros_like(keys, dtype=torch.bool)
    position = torch.searchsorted(sorted_keys, keys).clamp_(max=len(sorted_keys) - 1)
    return sorted_keys[position] == keys


def _split(keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return keys // size, keys % size
