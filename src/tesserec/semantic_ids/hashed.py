"""Hashed codes: the floor below every tokenizer.

Paper: none; what a way to tokenize must beat, as random codes are in TIGER (arXiv 2305.05065).
Adds: codes drawn at random from a hash of the vector: near vectors have nothing in common.
Differs: from no paper.
Checked: tests/semantic_ids/test_hashed.py (the hash by hand; even use; like vectors share no more codes than others).

Dimensions: N items · D features · L levels.
"""

import hashlib
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from tesserec.config import Field, component
from tesserec.errors import DataError, NotFittedError
from tesserec.semantic_ids import residual
from tesserec.types import ComponentState, SideInformation, as_numpy

__all__ = ["HashedCodes"]

_BYTES = 8
"""Of the hash that decide a code: remainders of so many are even."""


@component
class HashedCodes:
    """Code tuples that say nothing of the vectors, but that equal vectors have equal ones."""

    num_levels: Annotated[int, Field(gt=0)] = 3
    """Codes of an item, before the collision digit."""
    codebook_size: residual.CodebookSize = 256
    """Codes at each level: one number for all, or one a level."""

    def __post_init__(self) -> None:
        self._sizes = residual.level_sizes(self.num_levels, self.codebook_size)
        self._mean_D = torch.empty(0)
        self._seed = 0

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes at each level."""
        return self._sizes

    def fit(self, features_ND: Tensor, side: SideInformation) -> None:
        """Keep the seed and the mean of ``features_ND`` [N, D].

        Raises ``DataError`` where features are empty or not finite.
        """
        self._mean_D = residual.check_features(features_ND).mean(0)
        self._seed = side.seed

    def encode(self, features_ND: Tensor) -> Tensor:
        """Codes [N, L] int64."""
        features_ND = residual.check_features(features_ND, len(self._fitted())) + 0.0  # −0 and 0 are one vector
        salt = self._seed.to_bytes(_BYTES, "little")
        hashes = [
            hashlib.shake_256(salt + row.tobytes()).digest(_BYTES * len(self._sizes))
            for row in np.ascontiguousarray(as_numpy(features_ND))
        ]
        numbers_NL = np.frombuffer(b"".join(hashes), dtype="<u8").reshape(len(hashes), len(self._sizes))
        return torch.from_numpy((numbers_NL % np.array(self._sizes, dtype=np.uint64)).astype(np.int64))

    def decode(self, codes_NL: Tensor) -> Tensor:
        """The mean of the fitted features for every tuple, [N, D]: codes know no better."""
        if codes_NL.ndim != 2 or not 0 < codes_NL.shape[1] <= len(self._sizes):
            raise DataError(
                f"codes have shape {tuple(codes_NL.shape)}, expected [items, levels] with 1 to "
                f"{len(self._sizes)} levels"
            )
        return self._fitted().expand(len(codes_NL), -1).clone()

    def state(self) -> ComponentState:
        """``mean`` [D], and the seed."""
        return ComponentState({"mean": self._fitted()}, {"seed": str(self._seed)})

    def restore(self, state: ComponentState) -> None:
        """The inverse of ``state``."""
        self._mean_D, self._seed = state.tensors["mean"], int(state.metadata["seed"])

    def _fitted(self) -> Tensor:
        if not len(self._mean_D):
            raise NotFittedError("HashedCodes has no seed yet: call fit or restore first")
        return self._mean_D
