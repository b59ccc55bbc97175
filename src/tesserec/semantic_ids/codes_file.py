"""Codes of the user's own, from a file: for tokenizers trained elsewhere.

Three layouts are read. Parquet or CSV with ``item_id`` and either a list column ``codes`` (Parquet) or columns
``code_0``, ``code_1``, …; JSON of the form ``{"item id": [3, 14, 15], …}``. Items that are not in the
catalog are skipped. A table with the codes of several tokenizers, one a row, is read with ``where``.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import torch
from torch import Tensor

from tesserec.config import Field, component, did_you_mean
from tesserec.errors import DataError
from tesserec.types import Vocabulary

__all__ = ["CodesFile"]

LARGEST_CODE = 1 << 24
"""What is counted for a level has an entry for each code up to its largest, so that a stray number takes all memory."""
ORDINARY_CODE = 1 << 18
"""The largest code that is accepted of few items, as many as the largest vocabularies of language models have."""
CODES_PER_ITEM = 4
"""Of many items larger codes are accepted, up to so many for each."""


@component
class CodesFile:
    """Code tuples of all items of a catalog, read from a file."""

    path: Path
    """A ``.parquet``, ``.csv``, ``.tsv`` or ``.json`` file."""
    codebook_sizes: tuple[Annotated[int, Field(gt=0)], ...] | None = None
    """Codes at each level; one more than the largest code of the catalog's items where this is not given.

    Without it codes are at most ``ORDINARY_CODE`` or ``CODES_PER_ITEM`` times the rows of the file, whichever is more:
    a larger one is a stray number, such as an item id, and no code that the items share.
    """
    where: dict[str, str] = field(default_factory=dict)
    """Column → the value, as text, of the rows to read; all rows where this is empty. Not for JSON."""

    def items(self) -> Vocabulary:
        """The items of the file, in its order; raises ``DataError`` where one is in several rows, or no rows are left.

        For codes that come without a catalog.
        """
        ids, _ = self._table()
        if not ids:
            raise DataError(f"{self.path} holds no items: give at least one row")
        if None in ids:
            raise DataError(f"{self.path}: item_id is null in row {ids.index(None)}: give every row an item")
        if len(set(ids)) < len(ids):
            twice = next(item for item, number in Counter(ids).items() if number > 1)
            raise DataError(
                f"{self.path} has {len(ids)} rows of {len(set(ids))} items, item {twice!r} for one is in several: keep "
                'one row an item, or choose rows by another column (where = { column = "value" } in a recipe, '
                "FILE:column=value on the command line)"
            )
        return Vocabulary.of(ids)

    def read(self, items: Vocabulary) -> tuple[Tensor, tuple[int, ...], str]:
        """(codes [N, L] int64 in the order of ``items``, codebook sizes, a hash of ids and codes).

        Raises ``DataError`` for items without codes, twice in the file, or with codes that are not equally many
        integers from 0 to ``LARGEST_CODE``, or to what the items can use where no ``codebook_sizes`` are given.
        """
        ids, rows = self._table()
        position = items.find(ids).tolist()
        first: dict[int, int] = {}
        for row, item in enumerate(position):
            if item >= 0 and first.setdefault(item, row) != row:
                raise DataError(f"{self.path}: item {ids[row]!r} is in rows {first[item]} and {row}: keep one of them")
        missing = [item for item in range(len(items)) if item not in first]
        if missing:
            name = items.to_ids(torch.tensor(missing[:1]))[0]
            raise DataError(
                f"{self.path} has no codes for {len(missing)} of {len(items)} items, the first is {name!r}: add them"
            )
        largest = self._largest(len(ids))
        codes = [
            self._checked(ids[first[item]], rows[first[item]], rows[first[0]], largest) for item in range(len(items))
        ]
        codes_NL = torch.tensor(codes, dtype=torch.int64)
        sizes = self.codebook_sizes or tuple((codes_NL.max(0).values + 1).tolist())
        named = json.dumps([sizes, items.ids.to_pylist(), codes])
        return codes_NL, sizes, hashlib.sha256(named.encode()).hexdigest()

    def _table(self) -> tuple[list[Any], Sequence[Any]]:
        """Ids and, for each, what the file has for its codes."""
        readers = {".parquet": _read_parquet, ".csv": _read_csv, ".tsv": _read_tsv, ".json": None}
        if self.path.suffix not in readers:
            raise DataError(f"{self.path}: codes are read from {', '.join(readers)} files")
        if not self.path.exists():
            raise DataError(f"there is no file {self.path}: give the path of a file with the codes of the items")
        reader = readers[self.path.suffix]
        if reader is None:
            if self.where:
                raise DataError(f"{self.path} is JSON, which has no columns to choose rows by: leave out {self.where}")
            try:
                content = json.loads(self.path.read_text(encoding="utf-8"), object_pairs_hook=tuple)
            except ValueError as error:
                raise DataError(f"{self.path} is not readable as JSON: {error}") from None
            return self._pairs(content)
        try:
            frame = reader(self.path)
        except (pl.exceptions.PolarsError, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"{self.path} is not readable as {self.path.suffix[1:].upper()}: {reason}") from None
        return self._columns(frame)

    def _check_ids(self, ids: pl.Series) -> None:
        """Raise ``DataError`` for ids that are neither strings nor whole numbers, which may be floats."""
        texts = (pl.String, pl.Categorical, pl.Enum, pl.Null)  # nulls are refused by their row
        if not (ids.dtype in texts or ids.dtype.is_integer() or ids.dtype.is_float()):
            raise DataError(
                f"{self.path}: column item_id has type {ids.dtype}: ids must be strings or integers, cast the column"
            )
        if not ids.dtype.is_float():
            return
        broken = ((ids != ids.floor()) | ~ids.is_finite()).fill_null(False)
        if broken.any():
            row = int(broken.arg_max() or 0)
            raise DataError(
                f"{self.path}: column item_id is {ids[row]} in row {row}, not a whole number: give integers or strings"
            )

    def _pairs(self, content: Any) -> tuple[list[Any], Sequence[Any]]:
        """Ids and codes of a JSON object, which is given as pairs, so that none that is there twice is lost."""
        if not isinstance(content, tuple):
            raise DataError(f'{self.path} must hold an object such as {{"item id": [3, 14, 15]}}')
        ids = [item for item, _ in content]
        if len(set(ids)) < len(ids):
            twice, number = Counter(ids).most_common(1)[0]
            raise DataError(f"{self.path} has the codes of item {twice!r} {number} times: keep one of them")
        return ids, [codes for _, codes in content]

    def _columns(self, frame: pl.DataFrame) -> tuple[list[Any], Sequence[Any]]:
        numbered = sorted((c for c in frame.columns if re.fullmatch(r"code_\d+", c)), key=lambda c: int(c[5:]))
        if "item_id" not in frame.columns or not ("codes" in frame.columns or numbered):
            raise DataError(
                f"{self.path} has columns {frame.columns}: expected item_id and either codes or code_0, code_1, …"
            )
        absent = [f"code_{i}" for i, name in enumerate(numbered) if name != f"code_{i}"]
        if absent and "codes" not in frame.columns:
            raise DataError(
                f"{self.path} has the codes {', '.join(numbered)}: expected code_0, code_1, … without a gap, and "
                f"{absent[0]} is not there"
            )
        self._check_ids(frame["item_id"])
        frame = self._chosen(frame)
        ids = frame["item_id"].to_list()
        return ids, frame["codes"].to_list() if "codes" in frame.columns else frame.select(numbered).rows()

    def _chosen(self, frame: pl.DataFrame) -> pl.DataFrame:
        for column, value in self.where.items():
            if column not in frame.columns:
                raise DataError(f"{self.path} has no column {column!r}{did_you_mean(column, frame.columns)}")
            texts = frame[column].cast(pl.String)
            frame = frame.filter(texts == value)
            if not len(frame):
                known = texts.drop_nulls().unique(maintain_order=True).head(20).to_list()
                raise DataError(f"{self.path} has no row with {column} = {value!r}{did_you_mean(value, known)}")
        return frame

    def _largest(self, num_rows: int) -> int:
        """The largest code that is accepted in a file of so many rows."""
        return LARGEST_CODE if self.codebook_sizes else min(LARGEST_CODE, max(ORDINARY_CODE, CODES_PER_ITEM * num_rows))

    def _checked(self, item: Any, codes: Any, example: Any, largest: int) -> list[int]:
        if not isinstance(codes, list | tuple) or not codes:
            raise DataError(f"{self.path}: the codes of item {item!r} are {codes!r}: expected a list of integers")
        if any(type(c) is not int or c < 0 for c in codes):
            raise DataError(f"{self.path}: the codes of item {item!r} are {list(codes)}: expected integers from 0")
        if max(codes) > largest:
            remedy = "" if largest == LARGEST_CODE else ", or codebook_sizes in a recipe where there are so many"
            raise DataError(
                f"{self.path}: the codes of item {item!r} are {list(codes)}: codes number the entries of a level from "
                f"0, expected at most {largest} in a file of so many items; give your codes new numbers{remedy}"
            )
        if len(codes) != len(example):
            raise DataError(
                f"{self.path}: item {item!r} has {len(codes)} codes, the first item {len(example)}: all need as many"
            )
        return list(codes)


def _read_parquet(path: Path) -> pl.DataFrame:
    return pl.read_parquet(path)


def _read_csv(path: Path) -> pl.DataFrame:
    return pl.read_csv(path)


def _read_tsv(path: Path) -> pl.DataFrame:
    return pl.read_csv(path, separator="\t")
