"""Residual quantization, the part every quantizer of this folder shares.

    residual_0 = x
    code_l = argmin_c ‖residual_l − codebook_l[c]‖²
    residual_{l+1} = residual_l − codebook_l[code_l]

Dimensions: N items · D features · L levels · C codes of a level. All vectors are float32.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from tesserec.config import Field
from tesserec.errors import DataError, RecipeError
from tesserec.types import ComponentState, as_numpy

__all__ = [
    "ROWS_AT_ONCE",
    "Assign",
    "CodebookSize",
    "check_features",
    "decode",
    "encode",
    "explained_share",
    "fingerprint",
    "k_means",
    "level_sizes",
    "lloyd",
    "nearest",
    "sample",
]

Size = Annotated[int, Field(gt=0)]
CodebookSize = Size | tuple[Size, ...]
"""Codes a level: one number for all levels, or one a level."""

Assign = Callable[[Tensor, Tensor], Tensor]
"""From points [N, D] and a codebook [C, D] to the code of each point, [N] int64; ``nearest`` is the plain one."""

Points = np.ndarray[Any, np.dtype[Any]]

_DISTANCES_AT_ONCE = 1 << 19
"""Distances held in memory while encoding (2 MB, which caches hold)."""

ROWS_AT_ONCE = 1 << 11
"""Items encoded at once: what is computed on the way to their codes is held for no more of them."""

LARGEST = 1e15
"""Of a feature: the squares of a million times a thousand of them still add up in float32."""

_FAR = 1000
"""Squared distance from zero over variance, from which on points are shifted before products are taken of them."""

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
    """``features_ND`` as float32; raises ``DataError`` where it is empty or not ``num_features`` wide, and for NaN,
    infinity and values beyond ``LARGEST``, whose squares would not add up.
    """
    if features_ND.ndim != 2 or not features_ND.numel():
        raise DataError(f"features have shape {tuple(features_ND.shape)}: expected [items, features], at least 1 × 1")
    if num_features is not None and features_ND.shape[1] != num_features:
        raise DataError(
            f"features have {features_ND.shape[1]} columns, the codebooks were fitted on {num_features}: "
            "embed these items with the embedder of the fit"
        )
    features_ND = features_ND.detach().to(torch.float32)
    least, most = torch.aminmax(features_ND)  # NaN stays in both, and no mask of N × D is needed
    if not (float(least) >= -LARGEST and float(most) <= LARGEST):
        row = int((~(features_ND.abs() <= LARGEST)).any(1).nonzero()[0])
        raise DataError(
            f"features of item {row} hold NaN, infinity or more than {LARGEST:.0e}: remove, replace or scale them "
            "before quantizing"
        )
    return features_ND


def nearest(points_ND: Tensor, codebook_CD: Tensor) -> Tensor:
    """The row of ``codebook_CD`` closest to each point, [N] int64; the lowest where two are equally close."""
    return nearest_of(codebook_CD)(points_ND)


def nearest_of(codebook_CD: Tensor) -> Callable[[Tensor], Tensor]:
    """``nearest`` for a codebook, of which nothing is worked out again from call to call; not for several threads."""
    codebook_CD = codebook_CD.detach()
    offset_D = _offset(codebook_CD)
    shifted_CD = codebook_CD if offset_D is None else codebook_CD - offset_D
    half_norms_C = shifted_CD.square().sum(1) / 2
    rows = max(1, _DISTANCES_AT_ONCE // len(codebook_CD))
    scores_RC = codebook_CD.new_empty(0, len(codebook_CD))  # written over and over: new memory takes time

    def find(points_ND: Tensor) -> Tensor:
        nonlocal scores_RC
        points_ND = points_ND.detach() if offset_D is None else points_ND.detach() - offset_D
        if len(scores_RC) < min(rows, len(points_ND)):
            scores_RC = scores_RC.new_empty(min(rows, len(points_ND)), len(codebook_CD))
        found = []
        for part in torch.split(points_ND, rows):
            # argmin ‖x − c‖² = argmin ‖c‖²/2 − x·c
            torch.addmm(half_norms_C, part, shifted_CD.T, alpha=-1, out=scores_RC[: len(part)])
            found.append(_argmin(scores_RC[: len(part)]))
        return torch.cat(found)

    return find


def _offset(points_ND: Tensor) -> Tensor | None:
    """The mean of points that lie together so far from zero that float32 would lose their differences; else None."""
    var_D, mean_D = torch.var_mean(points_ND, 0, correction=0)  # no temporary of all points
    return mean_D if bool(mean_D.square().sum() > _FAR * var_D.sum()) and len(points_ND) > 1 else None


def _argmin(scores_NC: Tensor) -> Tensor:
    if scores_NC.device.type != "cpu":
        return scores_NC.argmin(1)
    return torch.from_numpy(as_numpy(scores_NC.float()).argmin(1))  # NumPy's is five times as fast as torch's


def encode(points_ND: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """Codes [N, L] int64 of ``points_ND``, each the nearest at its level to what the levels before left over.

    Needs little memory beside its input and output, however many points there are.
    """
    codes_NL = torch.empty(len(points_ND), len(codebooks), dtype=torch.int64, device=points_ND.device)
    find = [nearest_of(codebook_CD) for codebook_CD in codebooks]
    rest_RD, chosen_RD = (points_ND.new_empty(min(ROWS_AT_ONCE, len(points_ND)), points_ND.shape[1]) for _ in range(2))
    for points_BD, codes_BL in zip(
        torch.split(points_ND, ROWS_AT_ONCE), torch.split(codes_NL, ROWS_AT_ONCE), strict=True
    ):
        residual_BD = points_BD
        for level in range(len(codebooks)):
            if level:
                size = len(points_BD)
                torch.index_select(codebooks[level - 1], 0, codes_BL[:, level - 1], out=chosen_RD[:size])
                residual_BD = torch.sub(residual_BD, chosen_RD[:size], out=rest_RD[:size])
            codes_BL[:, level] = find[level](residual_BD)
    return codes_NL


def decode(codes_NL: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """The sum of the code vectors of each tuple, [N, D]; fewer columns than levels reconstruct from a prefix."""
    levels = codes_NL.shape[1] if codes_NL.ndim == 2 else 0
    if not 0 < levels <= len(codebooks):
        raise DataError(
            f"codes have shape {tuple(codes_NL.shape)}, expected [items, levels] with 1 to {len(codebooks)} levels"
        )
    for level in range(levels):
        least, most = torch.aminmax(codes_NL[:, level]) if len(codes_NL) else (0, 0)
        if int(least) < 0 or int(most) >= len(codebooks[level]):
            raise DataError(
                f"codes of level {level + 1} reach from {int(least)} to {int(most)}: the codebook has "
                f"{len(codebooks[level])}, decode with the quantizer that made them"
            )
    total_ND = codebooks[0][codes_NL[:, 0]]
    for level in range(1, levels):
        total_ND = total_ND + codebooks[level][codes_NL[:, level]]
    return total_ND


def sample(points_ND: Tensor, limit: int, seed: int) -> Tensor:
    """``limit`` of the points, drawn at random without repeats; all of them, in their order, where they are no more."""
    if len(points_ND) <= limit:
        return points_ND
    order = torch.randperm(len(points_ND), generator=torch.Generator().manual_seed(seed))
    return points_ND[order[:limit].to(points_ND.device)]


def k_means(
    points_ND: Tensor,
    size: int,
    seed: int,
    *,
    points_per_code: int = 256,
    num_iterations: int = 25,
    assign: Assign = nearest,
) -> Tensor:
    """At most ``size`` centroids of ``points_ND``, [C, D], from at most ``points_per_code`` · ``size`` sampled points.

    Where the sample holds no more than ``size`` distinct points, these are the centroids, in lexicographic order of
    their bytes: C is then their number, and every one of them is met exactly. The number of threads does not matter:
    each step adds up in the same order with any.
    """
    points_ND = sample(points_ND, points_per_code * size, seed) + 0.0  # + 0.0: −0 and 0 are one point
    offset_D = _offset(points_ND)
    if offset_D is not None:
        centroids_CD = _k_means(points_ND - offset_D, size, seed, num_iterations, assign)
        return centroids_CD + offset_D
    return _k_means(points_ND, size, seed, num_iterations, assign)


def _k_means(points_ND: Tensor, size: int, seed: int, num_iterations: int, assign: Assign) -> Tensor:
    points = np.ascontiguousarray(as_numpy(points_ND))
    rng, num_start = np.random.default_rng(seed), _START_POINTS_PER_CODE * size
    # k-means++ on a part of the points: errors are several percent below those of a random start
    some = _distinct(points[rng.permutation(len(points))[:num_start]])
    if len(some) <= size:
        distinct = _distinct(points)
        if len(distinct) <= size:
            return torch.from_numpy(distinct)
        some = distinct[rng.permutation(len(distinct))[:num_start]]
    from sklearn.cluster import kmeans_plusplus  # a second to import, and rarely needed

    with threadpool_limits(1, user_api="blas"):  # of small products, threads only wait for each other
        start, _ = kmeans_plusplus(some, size, random_state=seed)
    return lloyd(torch.from_numpy(points), torch.from_numpy(start), num_iterations, assign)


def _distinct(points: Points) -> Points:
    """The distinct rows, in lexicographic order of their bytes."""
    rows = np.unique(points.view(f"V{points.itemsize * points.shape[1]}"))
    return rows.view(points.dtype).reshape(-1, points.shape[1])


def lloyd(points_ND: Tensor, start_CD: Tensor, num_iterations: int, assign: Assign = nearest) -> Tensor:
    """Centroids [C, D] after ``num_iterations`` rounds of k-means from ``start_CD``, fewer where no code changes."""
    centroids_CD, before_N = start_CD, None
    for _ in range(num_iterations):
        codes_N = assign(points_ND, centroids_CD)
        if before_N is not None and torch.equal(codes_N, before_N):
            break
        centroids_CD, before_N = _means(points_ND, codes_N, centroids_CD), codes_N
    return centroids_CD


def _means(points_ND: Tensor, codes_N: Tensor, centroids_CD: Tensor) -> Tensor:
    """The mean of each code's points; codes without any move to the points that are furthest from their centroid."""
    counts_C = torch.bincount(codes_N, minlength=len(centroids_CD))
    means_CD = torch.zeros_like(centroids_CD).index_add_(0, codes_N, points_ND) / counts_C.clamp(min=1)[:, None]
    unused = (counts_C == 0).nonzero().squeeze(1)
    if len(unused):
        errors_N = (points_ND - centroids_CD[codes_N]).square().sum(1)
        means_CD[unused] = points_ND[errors_N.topk(len(unused)).indices]
    return means_CD


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
