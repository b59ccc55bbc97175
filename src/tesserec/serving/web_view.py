"""What the page shows of Semantic IDs: tiles in the colours of an item's codes, and the tree level by level.

Colours are those of the reports: items that begin alike look alike. The first code gives the hue, each further one
shifts it less and less.

Dimensions: N items · L levels.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from tesserec.errors import DataError
from tesserec.semantic_ids.browse import branches, members
from tesserec.serving.loaded_model import LoadedModel
from tesserec.serving.snapshot import CatalogSnapshot
from tesserec.types import SemanticIds

__all__ = ["Branch", "Leaf", "Palette", "Tree", "palette_of", "read_prefix", "tree_of"]

NUM_COLUMNS = 90
"""Items in the strip at the top of a page."""
NUM_TITLES = 3
"""Of a branch that are shown."""
NUM_LEAVES = 200
"""Items below a whole prefix that are shown."""


class Palette:
    """The colours of a table of Semantic IDs, as SVG fills."""

    def __init__(self, semantic_ids: SemanticIds | None) -> None:
        self.semantic_ids = semantic_ids
        first = torch.empty(0) if semantic_ids is None else torch.unique(semantic_ids.codes_NL[:, 0])
        self._rank = {int(code): rank for rank, code in enumerate(first.tolist())}
        self.strip = self._strip()
        """A column of fills for each of some items, spread over the table, in the order of their codes."""

    def tiles(self, codes: Sequence[int]) -> list[str]:
        """A fill for each code of a prefix."""
        return [self._fill(codes, level) for level in range(len(codes))]

    def of_item(self, index: int | None) -> list[str]:
        """A fill for each code of an item; none where it has no codes."""
        if self.semantic_ids is None or index is None or index >= len(self.semantic_ids.codes_NL):
            return []
        return self.tiles(self.semantic_ids.codes_NL[index].tolist())

    def _fill(self, codes: Sequence[int], level: int) -> str:
        assert self.semantic_ids is not None
        sizes = self.semantic_ids.codebook_sizes
        hue = 360 * self._rank.get(codes[0], 0) / max(len(self._rank), 1)
        hue += sum((codes[i] / sizes[i] - 0.5) * 90 / i for i in range(1, level + 1))
        light = 0.06 * math.sin(codes[level] * 2.4) if level else 0.0
        return f"oklch(calc(var(--tile-l) + {light:.3f}) {0.085 - 0.008 * level:.3f} {hue:.0f})"

    def _strip(self) -> list[list[str]]:
        if self.semantic_ids is None or not len(self.semantic_ids.codes_NL):
            return []
        codes_NL = self.semantic_ids.codes_NL
        some = codes_NL[torch.linspace(0, len(codes_NL) - 1, min(NUM_COLUMNS, len(codes_NL))).long()].tolist()
        return [self.tiles(codes) for codes in sorted(some)]


_PALETTES: weakref.WeakKeyDictionary[LoadedModel, Palette] = weakref.WeakKeyDictionary()


def palette_of(model: LoadedModel) -> Palette:
    """The colours of a model, computed once for as long as the model is there."""
    palette = _PALETTES.get(model)
    if palette is None:
        palette = _PALETTES[model] = Palette(model.content.semantic_ids)
    return palette


@dataclass(frozen=True)
class Branch:
    """What follows a prefix under one code."""

    codes: tuple[int, ...]
    fills: list[str]
    num_items: int
    titles: list[str]


@dataclass(frozen=True)
class Leaf:
    """An item below a whole prefix."""

    item_id: str
    title: str
    fills: list[str]
    available: bool
    cold: bool


@dataclass(frozen=True)
class Tree:
    """One level of the tree: branches, or items where no code follows."""

    prefix: tuple[int, ...]
    fills: list[str]
    num_items: int
    """Below the prefix; deleted ones are not counted."""
    branches: list[Branch] = field(default_factory=list)
    leaves: list[Leaf] = field(default_factory=list)


def read_prefix(text: str) -> tuple[int, ...]:
    """The prefix written as ``3.17``; raises ``DataError``."""
    parts = text.split(".") if text else []
    if not all(part.isascii() and part.isdigit() and len(part) <= 9 for part in parts):
        raise DataError(f"the prefix {text!r}: expected codes joined by dots, such as 3.17")
    return tuple(int(part) for part in parts)


def tree_of(model: LoadedModel, snapshot: CatalogSnapshot, prefix: tuple[int, ...]) -> Tree | None:
    """What is below a prefix, the largest branches first; None where the model has no codes.

    Raises ``DataError`` for a prefix that no item has.
    """
    palette, semantic_ids = palette_of(model), model.content.semantic_ids
    if semantic_ids is None:
        return None
    shown_N = ~snapshot.deleted_N
    found = [index for index in members(semantic_ids, prefix).tolist() if index < len(snapshot) and shown_N[index]]
    below = branches(semantic_ids, prefix) if found else []
    if not below:
        leaves = [_leaf(palette, snapshot, index) for index in found[:NUM_LEAVES]]
        return Tree(prefix, palette.tiles(prefix), len(found), leaves=leaves)
    rows = [_branch(palette, snapshot, one.codes, [i for i in one.items if shown_N[i]]) for one in below]
    shown = sorted((row for row in rows if row.num_items), key=lambda row: (-row.num_items, row.codes))
    return Tree(prefix, palette.tiles(prefix), len(found), branches=shown)


def _branch(palette: Palette, snapshot: CatalogSnapshot, codes: tuple[int, ...], items: list[int]) -> Branch:
    titles = [snapshot.titles[index] for index in items[:NUM_TITLES]]
    return Branch(codes, palette.tiles(codes), len(items), titles)


def _leaf(palette: Palette, snapshot: CatalogSnapshot, index: int) -> Leaf:
    return Leaf(
        item_id=str(snapshot.items.ids[index].as_py()),
        title=snapshot.titles[index],
        fills=palette.of_item(index),
        available=bool(snapshot.available_N[index]),
        cold=index >= snapshot.num_fitted,
    )
