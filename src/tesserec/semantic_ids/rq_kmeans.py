"""Residual k-means: coarse-to-fine codes without gradients.

Paper: OneRec, https://arxiv.org/abs/2502.18965 (residual k-means as an item tokenizer)
Adds: k-means on what the levels before left over, level by level.
Differs: nearest-centroid assignment, not a balanced one, so that later items are coded like the first; codebooks of
    256 (OneRec: 8192); k-means sees a sample of points, faiss's default of 256 a code. ``BalancedResidualKMeans`` is
    the balanced one.
Checked: tests/semantic_ids/test_rq_kmeans.py (brute force: no other code of a level reconstructs better; a planted
    hierarchy comes back exactly; errors level by level against scikit-learn).
"""

from typing import Annotated

from torch import Tensor

from tesserec.config import Field, component
from tesserec.errors import NotFittedError
from tesserec.semantic_ids import residual
from tesserec.types import ComponentState, SideInformation

__all__ = ["ResidualKMeans"]


@component
class ResidualKMeans:
    """Code tuples of vectors by k-means on residuals.

    A level whose residuals take fewer distinct values than its codebook size gets one code for each value instead
    (``codebook_sizes`` says how many after the fit), so a small catalog has small codebooks rather than dead codes.
    Equal vectors have equal codes at every level: only a collision digit tells such items apart.
    """

    num_levels: Annotated[int, Field(gt=0)] = 3
    """Codes of an item, before the collision digit."""
    codebook_size: residual.CodebookSize = 256
    """Codes at each level: one number for all, or one a level."""
    points_per_code: Annotated[int, Field(gt=0)] = 256
    """Points sampled for k-means, for each code of the level."""
    num_iterations: Annotated[int, Field(gt=0)] = 25
    """Rounds of k-means."""

    def __post_init__(self) -> None:
        self._sizes = residual.level_sizes(self.num_levels, self.codebook_size)
        self._codebooks: tuple[Tensor, ...] = ()

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes at each level: as configured before ``fit``, as found after it."""
        return tuple(len(c) for c in self._codebooks) or self._sizes

    def fit(self, features_ND: Tensor, side: SideInformation) -> None:
        """Learn the codebooks from ``features_ND`` [N, D]; same seed, same codebooks.

        Raises ``DataError`` where features are empty or not finite.
        """
        features_ND = residual.check_features(features_ND)
        codebooks: list[Tensor] = []
        for level, size in enumerate(self._sizes):
            # only what k-means samples is ever coded: the fit of a large catalog costs as much as that of a small one
            rest_ND = residual.sample(features_ND, self.points_per_code * size, side.seed + level)
            for codebook_CD in codebooks:
                rest_ND = rest_ND - codebook_CD[residual.nearest(rest_ND, codebook_CD)]
            codebooks.append(
                residual.k_means(
                    rest_ND,
                    size,
                    side.seed + level,
                    points_per_code=self.points_per_code,
                    num_iterations=self.num_iterations,
                )
            )
            side.progress("residual k-means", level + 1, self.num_levels)
        self._codebooks = tuple(codebooks)

    def encode(self, features_ND: Tensor) -> Tensor:
        """Codes [N, L] int64, each the nearest of its level to what the levels before left over."""
        codebooks = self._fitted()
        return residual.encode(residual.check_features(features_ND, codebooks[0].shape[1]), codebooks)

    def decode(self, codes_NL: Tensor) -> Tensor:
        """Reconstructed features [N, D]; codes of fewer levels reconstruct from that prefix."""
        return residual.decode(codes_NL, self._fitted())

    def state(self) -> ComponentState:
        """The codebooks, ``codebook_0`` … [C, D] float32."""
        return ComponentState({f"codebook_{level}": c for level, c in enumerate(self._fitted())})

    def restore(self, state: ComponentState) -> None:
        """The inverse of ``state``."""
        self._codebooks = tuple(state.tensors[f"codebook_{level}"] for level in range(self.num_levels))

    def _fitted(self) -> tuple[Tensor, ...]:
        if not self._codebooks:
            raise NotFittedError(f"{type(self).__name__} has no codebooks yet: call fit or restore first")
        return self._codebooks
