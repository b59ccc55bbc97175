"""Product quantization, plain and optimised: flat codes, one for each part of the vector.

Paper: Jégou, Douze and Schmid 2011, https://doi.org/10.1109/TPAMI.2010.57; Ge et al. 2013 (OPQ, non-parametric),
    https://doi.org/10.1109/CVPR.2013.379
Adds: levels that do not build on each other: the code of a level is the nearest in its own slice of the features.
    ``num_rotations`` above 0 first learns the rotation after which the slices are best coded (OPQ).
Differs: features are centred, so that a prefix of codes reconstructs the mean where it says nothing; slices may differ
    by one feature; k-means is this folder's, not faiss's, so that few distinct values give few codes.
Checked: tests/semantic_ids/test_product_quantization.py (brute force: no other code of a slice reconstructs better;
    error against faiss; a planted rotation is found; OPQ's error is below PQ's; no rotations give PQ exactly).

Dimensions: N items · D features · L levels · C codes of a level.
"""

from typing import Annotated

import torch
from torch import Tensor

from tesserec.config import Field, component
from tesserec.errors import DataError, NotFittedError
from tesserec.semantic_ids import residual
from tesserec.types import ComponentState, SideInformation

__all__ = ["ProductQuantization"]


@component
class ProductQuantization:
    """Code tuples of vectors, each code for a slice of the (rotated) features.

    A slice with fewer distinct values than its codebook size gets one code for each value, as in ``ResidualKMeans``:
    one code where its columns are constant. Equal vectors have equal codes.
    """

    num_levels: Annotated[int, Field(gt=0)] = 4
    """Slices, and codes of an item, before the collision digit."""
    codebook_size: residual.CodebookSize = 256
    """Codes at each level: one number for all, or one a level."""
    num_rotations: Annotated[int, Field(ge=0)] = 0
    """Rounds in which OPQ learns its rotation (about 20 are enough); 0 is plain product quantization."""
    points_per_code: Annotated[int, Field(gt=0)] = 256
    """Points sampled for k-means and the rotation, for each code of the level."""
    num_iterations: Annotated[int, Field(gt=0)] = 25
    """Rounds of k-means, before the first rotation and after the last."""

    def __post_init__(self) -> None:
        self._sizes = residual.level_sizes(self.num_levels, self.codebook_size)
        self._mean_D = self._rotation_DD = torch.empty(0)
        self._codebooks: tuple[Tensor, ...] = ()

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes at each level: as configured before ``fit``, as found after it."""
        return tuple(len(c) for c in self._codebooks) or self._sizes

    def fit(self, features_ND: Tensor, side: SideInformation) -> None:
        """Learn rotation and codebooks from ``features_ND`` [N, D]; same seed, same result.

        Raises ``DataError`` where features are empty, not finite or fewer than the levels.
        """
        features_ND = residual.check_features(features_ND)
        num_features = features_ND.shape[1]
        if num_features < self.num_levels:
            raise DataError(
                f"features have {num_features} columns for {self.num_levels} levels: a level needs one at least"
            )
        self._mean_D = features_ND.mean(0, dtype=torch.float64).float()
        self._rotation_DD = torch.eye(num_features)
        points_ND = residual.sample(features_ND, self.points_per_code * max(self._sizes), side.seed) - self._mean_D
        codebooks = []
        for level, (part_ND, size) in enumerate(zip(self._slices(points_ND), self._sizes, strict=True)):
            codebooks.append(
                residual.k_means(
                    part_ND,
                    size,
                    side.seed + level,
                    points_per_code=self.points_per_code,
                    num_iterations=self.num_iterations,
                )
            )
            side.progress("product quantization", level + 1, self.num_levels)
        self._codebooks = tuple(codebooks)
        self._rotate(points_ND, side)

    def encode(self, features_ND: Tensor) -> Tensor:
        """Codes [N, L] int64, each the nearest of its level to its slice."""
        self._fitted()
        features_ND = residual.check_features(features_ND, len(self._mean_D))
        found = [self._nearest(part_ND - self._mean_D) for part_ND in torch.split(features_ND, residual.ROWS_AT_ONCE)]
        return torch.cat(found)

    def decode(self, codes_NL: Tensor) -> Tensor:
        """Reconstructed features [N, D]; codes of fewer levels reconstruct the mean in the other slices."""
        self._fitted()
        return self._code_vectors(codes_NL) @ self._rotation_DD.T + self._mean_D

    def state(self) -> ComponentState:
        """The codebooks, ``codebook_0`` … [C, D / L], ``mean`` [D] and ``rotation`` [D, D], all float32."""
        tensors = {f"codebook_{level}": c for level, c in enumerate(self._fitted())}
        return ComponentState({**tensors, "mean": self._mean_D, "rotation": self._rotation_DD})

    def restore(self, state: ComponentState) -> None:
        """The inverse of ``state``."""
        self._codebooks = tuple(state.tensors[f"codebook_{level}"] for level in range(self.num_levels))
        self._mean_D, self._rotation_DD = state.tensors["mean"], state.tensors["rotation"]

    def _rotate(self, points_ND: Tensor, side: SideInformation) -> None:
        """Turn the features towards their code vectors, then move these: the error of the points cannot grow."""
        for turn in range(self.num_rotations):
            quantized_ND = self._code_vectors(self._nearest(points_ND))
            # the orthogonal R that minimizes ‖XR − Y‖² is U Vᵀ of the SVD of XᵀY (Procrustes)
            left_DD, _, right_DD = torch.linalg.svd(points_ND.T @ quantized_ND)
            self._rotation_DD = left_DD @ right_DD
            rounds = 1 if turn + 1 < self.num_rotations else self.num_iterations
            self._codebooks = tuple(
                residual.lloyd(part_ND, codebook_CD, rounds)
                for part_ND, codebook_CD in zip(self._slices(points_ND), self._codebooks, strict=True)
            )
            side.progress("rotations", turn + 1, self.num_rotations)

    def _slices(self, centred_ND: Tensor) -> list[Tensor]:
        return list(torch.tensor_split(centred_ND @ self._rotation_DD, self.num_levels, dim=1))

    def _nearest(self, centred_ND: Tensor) -> Tensor:
        slices = zip(self._slices(centred_ND), self._codebooks, strict=True)
        return torch.stack([residual.nearest(part_ND, codebook_CD) for part_ND, codebook_CD in slices], 1)

    def _code_vectors(self, codes_NL: Tensor) -> Tensor:
        """The vectors of the codes side by side [N, D], zero where there is no code."""
        levels = codes_NL.shape[1] if codes_NL.ndim == 2 else 0
        if not 0 < levels <= self.num_levels:
            raise DataError(
                f"codes have shape {tuple(codes_NL.shape)}, expected [items, levels] with 1 to {self.num_levels} levels"
            )
        vectors = [codebook_CD[codes_N] for codebook_CD, codes_N in zip(self._codebooks, codes_NL.T, strict=False)]
        vectors += [c.new_zeros(len(codes_NL), c.shape[1]) for c in self._codebooks[levels:]]
        return torch.cat(vectors, 1)

    def _fitted(self) -> tuple[Tensor, ...]:
        if not self._codebooks:
            raise NotFittedError("ProductQuantization has no codebooks yet: call fit or restore first")
        return self._codebooks
