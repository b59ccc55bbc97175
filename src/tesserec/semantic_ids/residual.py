"""Residual quantization, the part every quantizer of this folder shares.

    residual_0 = x
    code_l = argmin_c ‖residual_l − codebook_l[c]‖²
    residual_{l+1} = residual_l − codebook_l[code_l]

Dimensions: N items · D features · L levels · C codes of a level. All vectors are float32.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated

import faiss
import numpy as np
import torch
from sklearn.cluster import kmeans_plusplus
from torch import Tensor

from tesserec.config import Field
from tesserec.errors import DataError, RecipeError
from tesserec.types import ComponentState, as_numpy

__all__ = [
    "CodebookSize",
    "check_features",
    "decode",
    "encode",
    "explained_share",
    "fingerprint",
    "k_means",
    "level_sizes",
    "nearest",
]

Size = Annotated[int, Field(gt=0)]
CodebookSize = Size | tuple[Size, ...]
"""Codes a level: one number for all levels, or one a level."""

_DISTANCES_AT_ONCE = 1 << 22
"""Distances held in memory while encoding (16 MB)."""

_START_POINTS_PER_CODE = 16


def level_sizes(num_levels: int, codebook_size: int | tuple[int, ...]) -> tuple[int, ...]:
    """Codes at each of ``num_levels`` levels; raises ``RecipeError`` where a tuple has another length."""
    if isinstance(codebook_size, int):
        return (codebook_size,) * num_levels
    if len(codebook_size) != num_levels:
        raise RecipeError(
            f"codebook_size has {len(codebook_size)} sizes for {num_levels} levels: give one a level, or one number"
        )
    return codebook_size


def check_features(features_ND: Tensor, num_features: int | None = None) -> Tensor:
    """``features_ND`` as float32; raises ``DataError`` where it is empty, not finite or not ``num_features`` wide."""
    if features_ND.ndim != 2 or not features_ND.numel():
        raise DataError(f"features have shape {tuple(features_ND.shape)}: expected [items, features], at least 1 × 1")
    if num_features is not None and features_ND.shape[1] != num_features:
        raise DataError(
            f"features have {features_ND.shape[1]} columns, the codebooks were fitted on {num_features}: "
            "embed these items with the embedder of the fit"
        )
    finite_N = torch.isfinite(features_ND).all(1)
    if not bool(finite_N.all()):
        row = int((~finite_N).nonzero()[0])
        raise DataError(f"features of item {row} hold NaN or infinity: remove or replace them before quantizing")
    return features_ND.detach().to(torch.float32)


def nearest(points_ND: Tensor, codebook_CD: Tensor) -> Tensor:
    """The row of ``codebook_CD`` closest to each point, [N] int64; the lowest where two are equally close."""
    half_norms_C = codebook_CD.square().sum(1) / 2
    rows = max(1, _DISTANCES_AT_ONCE // len(codebook_CD))
    # argmin ‖x − c‖² = argmin ‖c‖²/2 − x·c
    found = [
        torch.addmm(half_norms_C, part, codebook_CD.T, alpha=-1).argmin(1) for part in torch.split(points_ND, rows)
    ]
    return torch.cat(found)


def encode(points_ND: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """Codes [N, L] int64 of ``points_ND``, each the nearest at its level to what the levels before left over."""
    residual_ND = points_ND
    codes = []
    for codebook_CD in codebooks:
        codes.append(nearest(residual_ND, codebook_CD))
        residual_ND = residual_ND - codebook_CD[codes[-1]]
    return torch.stack(codes, 1)


def decode(codes_NL: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """The sum of the code vectors of each tuple, [N, D]; fewer columns than levels reconstruct from a prefix."""
    levels = codes_NL.shape[1] if codes_NL.ndim == 2 else 0
    if not 0 < levels <= len(codebooks):
        raise DataError(
            f"codes have shape {tuple(codes_NL.shape)}, expected [items, levels] with 1 to {len(codebooks)} levels"
        )
    total_ND = codebooks[0][codes_NL[:, 0]]
    for level in range(1, levels):
        total_ND = total_ND + codebooks[level][codes_NL[:, level]]
    return total_ND


def k_means(points_ND: Tensor, size: int, seed: int, *, points_per_code: int = 256, num_iterations: int = 25) -> Tensor:
    """At most ``size`` centroids of ``points_ND``, [C, D], from at most ``points_per_code`` · ``size`` sampled points.

    Where the sample holds no more than ``size`` distinct points, these are the centroids, in lexicographic order of
    their bytes: C is then their number, and every one of them is met exactly.
    """
    limit = points_per_code * size
    if len(points_ND) > limit:
        generator = torch.Generator().manual_seed(seed)
        points_ND = points_ND[torch.randperm(len(points_ND), generator=generator)[:limit]]
    points = np.ascontiguousarray(as_numpy(points_ND + 0.0))  # + 0.0: −0 and 0 are one point
    distinct = np.unique(points.view(f"V{points.itemsize * points.shape[1]}")).view(points.dtype)
    distinct = distinct.reshape(-1, points.shape[1])
    if len(distinct) <= size:
        return torch.from_numpy(distinct)
    # k-means++ on a part of the points: errors are several percent below faiss's own random start
    some = np.random.default_rng(seed).permutation(len(distinct))[: _START_POINTS_PER_CODE * size]
    start, _ = kmeans_plusplus(distinct[some], size, random_state=seed)
    solver = faiss.Kmeans(
        points.shape[1], size, niter=num_iterations, seed=seed, min_points_per_centroid=1, max_points_per_centroid=limit
    )
    solver.train(points, init_centroids=start)
    return torch.from_numpy(np.array(solver.centroids))


def fingerprint(state: ComponentState) -> str:
    """SHA-256 (hex) of a quantizer's tensors and metadata: equal where, and only where, they are."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(np.ascontiguousarray(as_numpy(tensor)).tobytes())
    for name, text in sorted(state.metadata.items()):
        digest.update(f"{name} {text!r}\n".encode())
    return digest.hexdigest()


def explained_share(features_ND: Tensor, reconstructed_ND: Tensor) -> float:
    """R²: the share of the features' variance around their mean that a reconstruction explains, at most 1."""
    error = (features_ND - reconstructed_ND).square().sum()
    spread = (features_ND - features_ND.mean(0)).square().sum()
    return float(1 - error / torch.clamp(spread, min=1e-12))
