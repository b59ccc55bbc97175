"""Vectors of the user's own, from a file: for encoders that run elsewhere.

Paper: none; the way in for any encoder that is not here.
Adds: vectors from Parquet, safetensors or NumPy files, matched to the catalog by id.
Differs: from no paper.
Checked: tests/embedders/test_vectors_file.py (each layout gives the rows that were written).

Three layouts are read. Parquet with ``item_id`` and a list column ``vector``; safetensors with a tensor ``vectors``
[N, D]; ``.npy`` with an array [N, D]. Rows of the latter two belong to the ids of ``ids_path``, a text file of one id a
line, or to the items of the catalog in its order where it is not given. Items that are not in the catalog are skipped.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file
from torch import Tensor

from tesserec.config import Field, component
from tesserec.embedders.linear import unit_rows
from tesserec.errors import DataError
from tesserec.types import Catalog, ComponentState, Id, Interactions, ItemEmbeddings

__all__ = ["VectorsFile"]


@component
class VectorsFile:
    """Item vectors read from a file."""

    path: Path
    """A ``.parquet``, ``.safetensors`` or ``.npy`` file."""
    ids_path: Path | None = None
    """Ids of the rows of a ``.safetensors`` or ``.npy`` file, one a line."""
    num_features: Annotated[int, Field(gt=0)] | None = None
    """Features a vector must have; whatever the file has where this is not given."""
    missing: Literal["error", "zero"] = "error"
    """What becomes of items without a vector: refused, or a zero row that is marked missing."""
    unit_length: bool = True
    """Whether to scale each vector to length 1."""

    def embed(self, catalog: Catalog, train: Interactions | None = None) -> ItemEmbeddings:
        """Vectors [N, D] float32 in catalog order.

        Raises ``DataError`` for a file of another layout, vectors of unequal or unexpected width, NaN or infinity,
        ids that come twice, and items without a vector (see ``missing``).
        """
        ids, vectors_RD = self._rows(catalog)
        if self.num_features is not None and vectors_RD.shape[1] != self.num_features:
            raise DataError(f"{self.path} has vectors of {vectors_RD.shape[1]} features, expected {self.num_features}")
        finite_R = torch.isfinite(vectors_RD).all(1)
        if not bool(finite_R.all()):
            row = int((~finite_R).nonzero()[0])
            raise DataError(f"{self.path}: the vector of item {ids[row]!r} holds NaN or infinity: replace it")
        position_R = catalog.items.find(ids)
        self._check_distinct(ids, position_R)
        known_R = position_R >= 0
        vectors_ND = torch.zeros(len(catalog), vectors_RD.shape[1])
        vectors_ND[position_R[known_R]] = vectors_RD[known_R]
        missing_N = torch.ones(len(catalog), dtype=torch.bool)
        missing_N[position_R[known_R]] = False
        self._check_missing(catalog, missing_N)
        vectors_ND = unit_rows(vectors_ND) if self.unit_length else vectors_ND
        return ItemEmbeddings(vectors_ND, f"VectorsFile({self.path.name})", missing_N)

    def embed_new(self, catalog: Catalog) -> ItemEmbeddings:
        """Vectors of later items from the same file, which must hold them by then."""
        return self.embed(catalog)

    def state(self) -> ComponentState:
        """Nothing: the file is read again."""
        return ComponentState({})

    def restore(self, state: ComponentState) -> None:
        """The inverse of ``state``."""

    def _rows(self, catalog: Catalog) -> tuple[list[Id], Tensor]:
        if not self.path.exists():
            raise DataError(f"there is no file {self.path}: give the path of a file with the vectors of the items")
        if self.path.suffix == ".parquet":
            return self._parquet()
        if self.path.suffix == ".safetensors":
            tensors = load_file(self.path)
            if "vectors" not in tensors:
                raise DataError(f"{self.path} has the tensors {sorted(tensors)}: expected one of the name vectors")
            vectors_RD = tensors["vectors"]
        elif self.path.suffix == ".npy":
            vectors_RD = torch.from_numpy(np.load(self.path, allow_pickle=False))
        else:
            raise DataError(f"{self.path}: vectors are read from .parquet, .safetensors and .npy files")
        if vectors_RD.ndim != 2 or not vectors_RD.is_floating_point():
            raise DataError(
                f"{self.path} holds {vectors_RD.dtype} of shape {tuple(vectors_RD.shape)}: "
                "expected floats [items, features]"
            )
        ids = self._ids(catalog)
        if len(ids) != len(vectors_RD):
            whose = f"{self.ids_path} has {len(ids)} ids" if self.ids_path else f"the catalog has {len(ids)} items"
            raise DataError(f"{self.path} has {len(vectors_RD)} vectors but {whose}: give as many ids as vectors")
        return ids, vectors_RD.float()

    def _ids(self, catalog: Catalog) -> list[Id]:
        if self.ids_path is None:
            return list(catalog.items.ids.to_pylist())
        return list(self.ids_path.read_text(encoding="utf-8").splitlines())

    def _parquet(self) -> tuple[list[Id], Tensor]:
        frame = pl.read_parquet(self.path)
        if not {"item_id", "vector"} <= set(frame.columns):
            raise DataError(f"{self.path} has columns {frame.columns}: expected item_id and vector")
        ids, column = frame["item_id"].to_list(), frame["vector"].cast(pl.List(pl.Float32))
        widths = column.list.len()
        unequal = (widths.is_null() | (widths != widths.first())).arg_true()
        if len(unequal):
            row = unequal[0]
            raise DataError(
                f"{self.path}: item {ids[row]!r} has {widths[row] or 0} features, the first item {widths[0]}: "
                "give all vectors the same width"
            )
        flat = column.explode().fill_null(float("nan")).to_numpy()
        return ids, torch.from_numpy(flat.astype(np.float32)).reshape(len(frame), -1)

    def _check_distinct(self, ids: list[Id], position_R: Tensor) -> None:
        twice = torch.bincount(position_R[position_R >= 0]) > 1
        if bool(twice.any()):
            rows = (position_R == int(twice.nonzero()[0])).nonzero().squeeze(1).tolist()
            raise DataError(f"{self.path}: item {ids[rows[0]]!r} is in rows {rows[0]} and {rows[1]}: keep one of them")

    def _check_missing(self, catalog: Catalog, missing_N: Tensor) -> None:
        if self.missing == "error" and bool(missing_N.any()):
            name = catalog.items.to_ids(missing_N.nonzero()[0])[0]
            raise DataError(
                f"{self.path} has no vector for {int(missing_N.sum())} of {len(catalog)} items, the first is {name!r}: "
                'add them, or set missing = "zero"'
            )
