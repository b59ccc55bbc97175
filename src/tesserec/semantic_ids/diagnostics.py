"""How tables of Semantic IDs differ, and how much their codes can tell apart: on anyone's codes.

``overlap`` is the diagnosis of DRQ (https://arxiv.org/abs/2606.01844): two codes that noise can confuse count as one in
part. Each is a pure function of codes, of vectors where it says so, and of counts.

Dimensions: N items · L levels · C codes of a level · D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tesserec.errors import DataError
from tesserec.semantic_ids.table import content_codes
from tesserec.types import SemanticIds

__all__ = [
    "Churn",
    "CodeOverlap",
    "check_popularity",
    "churn",
    "code_vectors",
    "common_items",
    "nearest_distance",
    "overlap",
    "popularity_shares",
]


@dataclass(frozen=True)
class Churn:
    """What changed between two tables, as shares in [0, 1] of the items that both have."""

    num_items: int
    """Items in both tables."""
    codes: tuple[float, ...]
    """At each level, the share of items whose code changed (without the digit)."""
    prefixes: tuple[float, ...]
    """At each depth from 1, the share of items whose first ``depth`` codes changed; the last is that of tuples."""
    whole: float
    """The share of items whose tuple changed, the collision digit included."""


@dataclass(frozen=True)
class CodeOverlap:
    """How many codes a level has in effect: ``effective_capacity`` ≤ ``used_capacity`` ≤ the codebook's size."""

    expected_overlap: float
    """O = Σ_ij π_i π_j o_ij, with use π and confusion o: 1 where all codes are one, Σ π² where none is confused."""
    effective_capacity: float
    """1 / O."""
    used_capacity: float
    """1 / Σ π²: what would be in effect if no code were confused with another."""
    noise: float
    """Standard deviation, in each dimension, of the noise that confuses codes. The figures mean nothing without it."""


def churn(old: SemanticIds, new: SemanticIds, old_item_N: Tensor | None = None) -> Churn:
    """How many items have other codes in ``new`` than in ``old``.

    ``old_item_N`` is the index in ``old`` of each item of ``new``, −1 for later ones; without it, ``new`` has the items
    of ``old`` first. Raises ``DataError`` for tables of different levels or without a common item.
    """
    before_ML, after_ML, rows_M = _common_codes(old, new, old_item_N)
    if not len(rows_M):
        raise DataError("the two tables have no item in common: there is no churn to measure")
    same_ML = before_ML == after_ML
    kept_ML = same_ML.long().cumprod(1).double()
    num_levels = before_ML.shape[1]
    whole_M = kept_ML[:, -1]
    if old.has_digit and new.has_digit:
        old_M = common_items(len(old), len(new), old_item_N)[rows_M]
        whole_M = whole_M * (old.codes_NL[old_M, -1] == new.codes_NL[rows_M, -1])
    return Churn(
        num_items=len(rows_M),
        codes=tuple(float(1 - same_ML[:, i].double().mean()) for i in range(num_levels)),
        prefixes=tuple(float(1 - kept_ML[:, i].mean()) for i in range(num_levels)),
        whole=float(1 - whole_M.mean()),
    )


def common_items(num_old: int, num_new: int, old_item_N: Tensor | None = None) -> Tensor:
    """The index in the old table of each item of the new one, −1 for later items, [N] int64.

    Raises ``DataError`` for indices beyond the old table or given twice.
    """
    if old_item_N is None:
        index_N = torch.arange(num_new)
        return torch.where(index_N < num_old, index_N, -1)
    if old_item_N.shape != (num_new,):
        raise DataError(f"old_item_N has shape {tuple(old_item_N.shape)}, expected ({num_new},): one index an item")
    known = old_item_N[old_item_N >= 0]
    num_repeats = len(known) - len(torch.unique(known))
    if len(known) and (int(known.max()) >= num_old or num_repeats):
        raise DataError(
            f"old_item_N reaches to {int(known.max())} and has {num_repeats} repeats: "
            f"expected distinct indices below {num_old}, −1 for later items"
        )
    return old_item_N


def popularity_shares(semantic_ids: SemanticIds, popularity_N: Tensor) -> list[Tensor]:
    """At each level (without the digit), the share of all events that are of items with each code, [C] float64.

    Raises ``DataError`` for counts that are not one an item, finite and at least 0, or are all 0.
    """
    popularity_N = check_popularity(popularity_N, len(semantic_ids))
    if not float(popularity_N.sum()):
        raise DataError("popularity_N is 0 for all items: give the counts of the training events")
    codes_NL = content_codes(semantic_ids)
    sizes = semantic_ids.codebook_sizes
    weighted = [
        torch.zeros(sizes[level], dtype=torch.float64).index_add_(0, codes_NL[:, level], popularity_N)
        for level in range(codes_NL.shape[1])
    ]
    return [shares_C / shares_C.sum() for shares_C in weighted]


def check_popularity(popularity_N: Tensor, num_items: int) -> Tensor:
    """``popularity_N`` as float64; raises ``DataError`` where it is not a finite count of at least 0 an item."""
    if popularity_N.shape != (num_items,):
        raise DataError(f"popularity_N has shape {tuple(popularity_N.shape)}, expected ({num_items},): a count an item")
    if not bool((torch.isfinite(popularity_N) & (popularity_N >= 0)).all()):
        raise DataError("popularity_N holds NaN, infinity or counts below 0: give the counts of the training events")
    return popularity_N.double()


def overlap(usage_C: Tensor, codebook_CD: Tensor, noise: float | None = None) -> CodeOverlap:
    """DRQ's expected overlap of the codes of one level under Gaussian noise of standard deviation ``noise``.

    ``usage_C`` are counts of items or events. Codes are confused by exp(−‖e_i − e_j‖² / 8 noise²), the Bhattacharyya
    coefficient. Without ``noise`` it is a tenth of ``nearest_distance``. Raises ``DataError`` for counts and vectors
    that do not fit together, no use at all and noise that is not above 0.
    """
    if codebook_CD.ndim != 2 or usage_C.shape != codebook_CD.shape[:1]:
        raise DataError(
            f"usage_C has shape {tuple(usage_C.shape)}, codebook_CD {tuple(codebook_CD.shape)}: "
            "expected a count for each code vector"
        )
    if not bool(torch.isfinite(codebook_CD).all()):
        raise DataError("codebook_CD holds NaN or infinity: remove or replace those code vectors")
    usage_C = check_popularity(usage_C, len(codebook_CD))
    if not float(usage_C.sum()):
        raise DataError("no code is in use: usage_C is 0 everywhere")
    used_PD, shares_P = codebook_CD[usage_C > 0].double(), usage_C[usage_C > 0] / usage_C.sum()
    noise = 0.1 * nearest_distance(used_PD) if noise is None else noise
    if not noise > 0:
        raise DataError(f"noise = {noise}: expected a standard deviation above 0")
    confused_PP = torch.exp(-torch.cdist(used_PD, used_PD).square() / (8 * noise**2))
    expected = float(shares_P @ confused_PP @ shares_P)
    return CodeOverlap(expected, 1 / expected, float(1 / shares_P.square().sum()), noise)


def nearest_distance(points_ND: Tensor) -> float:
    """The mean distance of a point to its nearest other one; 1 for a single point, which has none."""
    if len(points_ND) < 2:
        return 1.0
    distances_NN = torch.cdist(points_ND.double(), points_ND.double()).fill_diagonal_(torch.inf)
    return float(distances_NN.min(1).values.mean())


def code_vectors(code_N: Tensor, vectors_ND: Tensor, codebook_size: int) -> Tensor:
    """The mean vector of the items of each code, [C, D] float64: a codebook for codes that came without one.

    Codes without items are zero. Raises ``DataError`` where codes and vectors are not equally many.
    """
    if len(code_N) != len(vectors_ND):
        raise DataError(f"{len(code_N)} codes for {len(vectors_ND)} vectors: give one vector an item")
    sums_CD = torch.zeros(codebook_size, vectors_ND.shape[1], dtype=torch.float64)
    sums_CD.index_add_(0, code_N, vectors_ND.double())
    return sums_CD / torch.bincount(code_N, minlength=codebook_size).clamp(min=1)[:, None]


def _common_codes(old: SemanticIds, new: SemanticIds, old_item_N: Tensor | None) -> Sequence[Tensor]:
    """Content codes before and after of the M items in both, [M, L] each, and their rows in ``new`` [M]."""
    before_NL, after_NL = content_codes(old), content_codes(new)
    if before_NL.shape[1] != after_NL.shape[1]:
        raise DataError(
            f"tables of {before_NL.shape[1]} and {after_NL.shape[1]} levels (without the digit) cannot be compared: "
            "use tables of equally many"
        )
    old_N = common_items(len(old), len(new), old_item_N)
    rows_M = (old_N >= 0).nonzero().squeeze(1)
    return before_NL[old_N[rows_M]], after_NL[rows_M], rows_M
