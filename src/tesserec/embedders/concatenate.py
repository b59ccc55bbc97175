"""Several embedders as one: text beside behaviour beside vectors of the user's own.

Paper: none; joining views of an item before quantizing them is common practice.
Adds: vectors of several sources side by side, each with a weight.
Differs: weights are shares of the similarity, not factors of the vectors, so that they mean the same for any source.
Checked: tests/embedders/test_concatenate.py (cosines by hand).

Each source is scaled to unit length and by the square root of its weight, so that the cosine of two items that have
every source is the weighted mean of the sources' cosines. Dimensions: N items · D features.
"""

from collections.abc import Sequence
from typing import Annotated

import torch

from tesserec.config import Field, component
from tesserec.embedders.linear import unit_rows
from tesserec.errors import RecipeError
from tesserec.types import Catalog, ComponentState, Embedder, Interactions, ItemEmbeddings

__all__ = ["Concatenate"]


@component
class Concatenate:
    """Item vectors of several sources side by side."""

    sources: tuple[Embedder, ...]
    """The embedders, at least one."""
    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Share of each source in the similarity of two items, up to a common factor; equal where not given."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise RecipeError("Concatenate has no sources: name at least one embedder")
        if self.weights is not None and len(self.weights) != len(self.sources):
            raise RecipeError(f"{len(self.weights)} weights for {len(self.sources)} sources: give one each")

    def embed(self, catalog: Catalog, train: Interactions | None = None) -> ItemEmbeddings:
        """Vectors [N, D₁ + D₂ + …] of unit length.

        An item that lacks a source has zeros there and is as long as the others; one that lacks all is marked missing.
        """
        return self._joined([source.embed(catalog, train) for source in self.sources])

    def embed_new(self, catalog: Catalog) -> ItemEmbeddings:
        """Vectors of later items, from each source's ``embed_new``."""
        return self._joined([source.embed_new(catalog) for source in self.sources])

    def state(self) -> ComponentState:
        """The states of the sources, under their numbers."""
        return ComponentState.merged(*(s.state().under(str(i)) for i, s in enumerate(self.sources)))

    def restore(self, state: ComponentState) -> None:
        """The inverse of ``state``."""
        for i, source in enumerate(self.sources):
            source.restore(state.part(str(i)))

    def _joined(self, parts: Sequence[ItemEmbeddings]) -> ItemEmbeddings:
        weights = self.weights or (1.0,) * len(parts)
        blocks = [unit_rows(p.vectors_ND) * weight**0.5 for p, weight in zip(parts, weights, strict=True)]
        vectors_ND = unit_rows(torch.cat(blocks, 1))
        name = f"Concatenate({', '.join(p.source for p in parts)})"
        return ItemEmbeddings(vectors_ND, name, ~vectors_ND.any(1))
