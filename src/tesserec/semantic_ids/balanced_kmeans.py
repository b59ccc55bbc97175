"""Balanced residual k-means: no code of a level may hold more than its share of the items.

Paper: OneRec, https://arxiv.org/abs/2502.18965 (balanced k-means, level by level)
Adds: a capacity for each code to ``ResidualKMeans``, in the rounds of k-means and in the codes of the fitted items.
Differs: items ask for their nearest code with room and a code keeps the nearest of those that ask, where OneRec fills
    one code after the other, which leaves the last ones what is left over; later items get their nearest code, full or
    not, so that an item's code does not depend on what else was added.
Checked: tests/semantic_ids/test_balanced_kmeans.py (by hand; capacity of every level; Gini below plain on skewed data;
    room for everything gives ResidualKMeans exactly).

Dimensions: N items · D features · L levels · C codes of a level.
"""

import math
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from tesserec.config import Field, component
from tesserec.errors import DataError, NotFittedError
from tesserec.semantic_ids import residual
from tesserec.semantic_ids.rq_kmeans import ResidualKMeans
from tesserec.types import ComponentState, SideInformation

__all__ = ["BalancedResidualKMeans", "nearest_with_room"]


@component
class BalancedResidualKMeans(ResidualKMeans):
    """Code tuples of vectors by k-means on residuals, in which the codes of a level are used alike.

    ``fit_codes_NL`` are the balanced codes of the fitted items; ``encode`` gives any item its nearest codes, which for
    ``moved_shares`` of the fitted items are others. Equal vectors may get different codes in the fit: a code that is
    full takes no more copies.
    """

    capacity_ratio: Annotated[float, Field(ge=1)] = 1.0
    """Items a code may hold, over the N / C it would hold if all were used alike; rounded up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fit_codes_NL: Tensor | None = None
        self._moved_shares: tuple[float, ...] = ()

    @property
    def fit_codes_NL(self) -> Tensor:
        """The balanced codes [N, L] of the items of the last fit; they are no part of the state."""
        if self._fit_codes_NL is None:
            raise NotFittedError("balanced codes are known after fit only: keep them in a table, encode gives others")
        return self._fit_codes_NL

    def fitted_codes(self, codes_NL: Tensor) -> Tensor:
        """``fit_codes_NL`` in the place of the nearest codes; raises ``DataError`` for those of other items."""
        if codes_NL.shape != self.fit_codes_NL.shape:
            given, expected = tuple(codes_NL.shape), tuple(self.fit_codes_NL.shape)
            raise DataError(f"codes have shape {given}, those of the fit {expected}: give the codes of its items")
        return self.fit_codes_NL

    @property
    def moved_shares(self) -> tuple[float, ...]:
        """The share of the fitted items, a level, whose code is not the nearest to what the levels before left over."""
        return self._moved_shares

    def fit(self, features_ND: Tensor, side: SideInformation) -> None:
        """Learn the codebooks from ``features_ND`` [N, D] and code these items; same seed, same codebooks.

        Raises ``DataError`` where features are empty or not finite.
        """
        rest_ND = residual.check_features(features_ND)
        assign = partial(nearest_with_room, capacity_ratio=self.capacity_ratio)
        codebooks, codes, moved_shares = [], [], []
        for level, size in enumerate(self._sizes):
            codebook_CD = residual.k_means(
                rest_ND,
                size,
                side.seed + level,
                points_per_code=self.points_per_code,
                num_iterations=self.num_iterations,
                assign=assign,
            )
            codes_N = assign(rest_ND, codebook_CD)
            moved_shares.append(float((codes_N != residual.nearest(rest_ND, codebook_CD)).double().mean()))
            rest_ND = rest_ND - codebook_CD[codes_N]
            codebooks.append(codebook_CD)
            codes.append(codes_N)
            note = f"{moved_shares[-1]:.1%} of the items are not at their nearest code"
            side.progress("balanced residual k-means", level + 1, self.num_levels, note)
        self._codebooks, self._fit_codes_NL = tuple(codebooks), torch.stack(codes, 1)
        self._moved_shares = tuple(moved_shares)

    def restore(self, state: ComponentState) -> None:
        """The inverse of ``state``, which holds what later items need: ``fit_codes_NL`` and its shares are gone."""
        super().restore(state)
        self._fit_codes_NL, self._moved_shares = None, ()


def nearest_with_room(points_ND: Tensor, codebook_CD: Tensor, capacity_ratio: float = 1.0) -> Tensor:
    """The code of each point, [N] int64, none of them with more than ⌈``capacity_ratio`` · N / C⌉ points.

    Points ask for their nearest code that has room; a code that too many ask for keeps the nearest of them, and the
    others ask again. Each round fills a code or is the last.
    """
    num_points, num_codes = len(points_ND), len(codebook_CD)
    codes_N = torch.empty(num_points, dtype=torch.int64)
    room_C = torch.full((num_codes,), math.ceil(capacity_ratio * num_points / num_codes))
    waiting_W = torch.arange(num_points)
    while len(waiting_W):
        with_room = room_C.nonzero().squeeze(1)
        asked_W = with_room[residual.nearest(points_ND[waiting_W], codebook_CD[with_room])]
        errors_W = (points_ND[waiting_W] - codebook_CD[asked_W]).square().sum(1)
        order = torch.argsort(errors_W, stable=True)
        order = order[torch.argsort(asked_W[order], stable=True)]  # by code, the nearest points first
        waiting_W, asked_W = waiting_W[order], asked_W[order]
        counts_C = torch.bincount(asked_W, minlength=num_codes)
        place_W = torch.arange(len(asked_W)) - (counts_C.cumsum(0) - counts_C)[asked_W]
        kept_W = place_W < room_C[asked_W]
        codes_N[waiting_W[kept_W]] = asked_W[kept_W]
        room_C -= torch.minimum(counts_C, room_C)
        waiting_W = waiting_W[~kept_W]
    return codes_N
