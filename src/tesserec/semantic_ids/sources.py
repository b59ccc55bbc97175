"""Networks for vectors of several sources: an encoder and a decoder each, and a word on what is missing.

The features of an item are blocks side by side, one a source; a block of zeros is a source that the item lacks.
``tesserec.embedders.Concatenate`` makes such features.

Dimensions: B batch · D features · M sources · Z latent features.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tesserec.errors import DataError

__all__ = ["SourceDecoder", "SourceEncoder", "check_widths", "layers", "presence"]


def layers(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    found: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        found += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*found[:-1])


def check_widths(source_widths: Sequence[int], num_features: int) -> None:
    """Raises ``DataError`` where the sources do not make up the features."""
    if source_widths and sum(source_widths) != num_features:
        raise DataError(
            f"source_widths {list(source_widths)} add up to {sum(source_widths)}, the features have {num_features} "
            "columns: give the width of each source of the embedder"
        )


def presence(features_BD: Tensor, source_widths: Sequence[int]) -> Tensor:
    """Which sources each item has, [B, M] bool."""
    return torch.stack([block.any(1) for block in torch.split(features_BD, list(source_widths), 1)], 1)


class SourceEncoder(nn.Module):
    """An encoder a source, and a linear layer that joins what they make with which of them are there."""

    def __init__(self, source_widths: Sequence[int], hidden_sizes: Sequence[int], num_latents: int) -> None:
        super().__init__()
        self.widths = list(source_widths)
        self.parts = nn.ModuleList([layers([width, *hidden_sizes, num_latents]) for width in source_widths])
        self.joined = nn.Linear(len(source_widths) * (num_latents + 1), num_latents)

    def forward(self, inputs_BD: Tensor, present_BM: Tensor) -> Tensor:
        """Latents [B, Z]; what a missing source would have said is replaced by zeros."""
        blocks = torch.split(inputs_BD, self.widths, 1)
        said = [
            part(block) * present_BM[:, m : m + 1]
            for m, (part, block) in enumerate(zip(self.parts, blocks, strict=True))
        ]
        latents_BZ: Tensor = self.joined(torch.cat([*said, present_BM.to(inputs_BD.dtype)], 1))
        return latents_BZ


class SourceDecoder(nn.Module):
    """A decoder a source, from the same latents."""

    def __init__(self, source_widths: Sequence[int], hidden_sizes: Sequence[int], num_latents: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList([layers([num_latents, *hidden_sizes[::-1], width]) for width in source_widths])

    def forward(self, latents_BZ: Tensor) -> Tensor:
        """Features [B, D] of all sources."""
        return torch.cat([part(latents_BZ) for part in self.parts], 1)
