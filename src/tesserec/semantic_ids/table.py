"""The table of Semantic IDs: pure functions from table to table, and the table on disk.

Dimensions: N items · M new items · L levels.

The *collision digit* is a last level that numbers the items of one bucket 0, 1, 2, …, the most popular first. It has no
meaning beyond that. Its size is the smallest power of two above the largest bucket, at least 16, so that at first every
bucket has room for a later item. Codebooks, sizes and digit make up the ``codebook_version``; adding or removing items
changes the ``table_revision`` only.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tesserec.errors import DataError, VersionMismatchError
from tesserec.types import SemanticIds, Vocabulary, as_numpy

__all__ = [
    "Collisions",
    "add_items",
    "bucket_places",
    "build_semantic_ids",
    "content_codes",
    "groups",
    "is_semantic_ids",
    "load_semantic_ids",
    "remove_items",
    "save_semantic_ids",
    "table_version",
]

Collisions = Literal["digit", "bucket"]
"""What to do with items of one code tuple: append a digit that tells them apart, or leave them in their bucket."""

_SMALLEST_DIGIT = 16
_METADATA_KEY = b"tesserec.semantic_ids"
_FORMAT = 1
_LARGEST_KEY = 1 << 62


def build_semantic_ids(
    codes_NL: Tensor,
    codebook_sizes: Sequence[int],
    fingerprint: str,
    collisions: Collisions = "digit",
    popularity_N: Tensor | None = None,
) -> SemanticIds:
    """The table of ``codes_NL`` [N, L] from codebooks whose content hash is ``fingerprint``.

    ``popularity_N`` (any counts; higher is more popular) orders the digits inside a bucket; ties and items without
    counts follow the item index. Raises ``DataError`` for codes outside their codebook.
    """
    sizes = tuple(codebook_sizes)
    table = SemanticIds(codes_NL.long(), sizes, table_version(fingerprint, sizes, False))
    if collisions == "bucket":
        return table
    if popularity_N is not None and popularity_N.shape != (len(table),):
        raise DataError(
            f"popularity_N has shape {tuple(popularity_N.shape)}, expected ({len(table)},): a count an item"
        )
    digits_N = bucket_places(table.codes_NL, sizes, popularity_N)
    largest = int(digits_N.max()) + 1 if len(table) else 0
    sizes = (*sizes, max(_SMALLEST_DIGIT, 1 << largest.bit_length()))
    codes_NL = torch.cat([table.codes_NL, digits_N[:, None]], 1)
    return SemanticIds(codes_NL, sizes, table_version(fingerprint, sizes, True), has_digit=True)


def content_codes(semantic_ids: SemanticIds) -> Tensor:
    """The codes that came from content, [N, L], without the collision digit."""
    return semantic_ids.codes_NL[:, :-1] if semantic_ids.has_digit else semantic_ids.codes_NL


def groups(codes_NL: Tensor, sizes: Sequence[int]) -> Tensor:
    """The number of each item's code tuple among the distinct ones in lexicographic order, [N] int64."""
    group_N, num_keys = torch.zeros(len(codes_NL), dtype=torch.int64), 1
    for level, size in enumerate(sizes):
        if num_keys * size > _LARGEST_KEY:
            group_N, num_keys = torch.unique(group_N, return_inverse=True)[1], len(group_N)
        group_N, num_keys = group_N * size + codes_NL[:, level], num_keys * size
    numbers_N: Tensor = torch.unique(group_N, return_inverse=True)[1]
    return numbers_N


def bucket_places(codes_NL: Tensor, sizes: Sequence[int], popularity_N: Tensor | None = None) -> Tensor:
    """The place of each item among those of its code tuple, [N] int64 from 0: most popular first, then in order."""
    bucket_N, index_N = groups(codes_NL, sizes), np.arange(len(codes_NL))
    popularity = np.zeros(len(bucket_N)) if popularity_N is None else as_numpy(popularity_N.double())
    order = torch.from_numpy(np.lexsort((index_N, -popularity, as_numpy(bucket_N))))
    counts = torch.bincount(bucket_N)
    starts = counts.cumsum(0) - counts
    places_N = torch.empty_like(bucket_N)
    places_N[order] = torch.arange(len(bucket_N)) - starts[bucket_N[order]]
    return places_N


def add_items(semantic_ids: SemanticIds, new_codes_ML: Tensor) -> SemanticIds:
    """The table with M further items at its end, given their codes [M, L] from the same codebooks (without digit).

    Each takes the lowest free digit of its bucket, in the order given. The version stays and the revision grows by one
    (not at all for no items). Raises ``DataError`` for a full bucket, and for codes of another length or range.
    """
    if not len(new_codes_ML):
        return semantic_ids
    sizes = semantic_ids.codebook_sizes[:-1] if semantic_ids.has_digit else semantic_ids.codebook_sizes
    new_ML = SemanticIds(new_codes_ML.long(), sizes, semantic_ids.codebook_version).codes_NL
    if semantic_ids.has_digit:
        new_ML = torch.cat([new_ML, _free_digits(semantic_ids, new_ML)[:, None]], 1)
    return dataclasses.replace(
        semantic_ids,
        codes_NL=torch.cat([semantic_ids.codes_NL, new_ML]),
        table_revision=semantic_ids.table_revision + 1,
    )


def remove_items(semantic_ids: SemanticIds, items: Tensor) -> SemanticIds:
    """The table without the items at indices ``items`` (int64); the others keep their codes and their order.

    The revision grows by one (not at all for no items). A later item may take a freed digit, and with it what a model
    learned of the item before. Raises ``DataError`` for an index that is not in the table.
    """
    if not len(items):
        return semantic_ids
    if int(items.min()) < 0 or int(items.max()) >= len(semantic_ids):
        raise DataError(
            f"items to remove reach from {int(items.min())} to {int(items.max())}: legal: 0 to {len(semantic_ids) - 1}"
        )
    keep_N = torch.ones(len(semantic_ids), dtype=torch.bool)
    keep_N[items] = False
    return dataclasses.replace(
        semantic_ids, codes_NL=semantic_ids.codes_NL[keep_N], table_revision=semantic_ids.table_revision + 1
    )


def save_semantic_ids(path: Path, semantic_ids: SemanticIds, items: Vocabulary) -> None:
    """Write the table as Parquet: ``item_id``, ``codes`` (a list an item), and versions in the file's metadata."""
    if len(items) != len(semantic_ids):
        raise DataError(
            f"{len(semantic_ids)} Semantic IDs for {len(items)} items: save them with the catalog they are of"
        )
    about = {
        "format": _FORMAT,
        "codebook_sizes": semantic_ids.codebook_sizes,
        "codebook_version": semantic_ids.codebook_version,
        "table_revision": semantic_ids.table_revision,
        "has_digit": semantic_ids.has_digit,
    }
    flat = pa.array(as_numpy(semantic_ids.codes_NL.to(torch.int32)).reshape(-1))
    codes = pa.FixedSizeListArray.from_arrays(flat, semantic_ids.num_levels)
    table = pa.table({"item_id": items.ids, "codes": codes})
    pq.write_table(table.replace_schema_metadata({_METADATA_KEY: json.dumps(about).encode()}), path)


def is_semantic_ids(path: Path) -> bool:
    """Whether ``save_semantic_ids`` wrote a file; raises ``DataError`` where it is not readable as Parquet."""
    try:
        return _METADATA_KEY in (pq.read_schema(path).metadata or {})
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not readable as Parquet: {error}") from None


def load_semantic_ids(path: Path, items: Vocabulary, codebook_version: str | None = None) -> SemanticIds:
    """The table that ``save_semantic_ids`` wrote for these ``items``, in their order.

    Raises ``DataError`` where the file is of another kind or of other items, and ``VersionMismatchError`` where its
    codebooks are not those of ``codebook_version``.
    """
    table = pq.read_table(path)
    about = _metadata(path, table.schema.metadata or {})
    if codebook_version is not None and about["codebook_version"] != codebook_version:
        raise VersionMismatchError(
            f"{path} has codebook version {about['codebook_version']}, the model was trained on {codebook_version}: "
            "use the table of that training, or fit again"
        )
    _check_items(path, table["item_id"].combine_chunks(), items)
    sizes = tuple(about["codebook_sizes"])
    flat = table["codes"].combine_chunks().flatten().to_numpy()
    codes_NL = torch.from_numpy(flat.astype(np.int64)).reshape(len(table), len(sizes))
    return SemanticIds(codes_NL, sizes, about["codebook_version"], about["table_revision"], about["has_digit"])


def table_version(fingerprint: str, sizes: tuple[int, ...], has_digit: bool) -> str:
    """The ``codebook_version`` of codebooks with this content hash, of these sizes (digit included), 16 hex digits."""
    named = json.dumps({"codebooks": fingerprint, "sizes": sizes, "digit": has_digit}, sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def _free_digits(semantic_ids: SemanticIds, new_ML: Tensor) -> Tensor:
    """The lowest digit that is free in the bucket of each new item, [M] int64."""
    num_old, capacity = len(semantic_ids), semantic_ids.codebook_sizes[-1]
    bucket = groups(torch.cat([content_codes(semantic_ids), new_ML]), semantic_ids.codebook_sizes[:-1])
    old, new = bucket[:num_old], bucket[num_old:].tolist()
    taken: dict[int, set[int]] = {b: set() for b in new}
    met = torch.isin(old, bucket[num_old:]).nonzero().squeeze(1)
    for b, digit in zip(old[met].tolist(), semantic_ids.codes_NL[met, -1].tolist(), strict=True):
        taken[b].add(digit)
    digits = []
    for row, b in enumerate(new):
        digit = next((d for d in range(capacity) if d not in taken[b]), None)
        if digit is None:
            raise DataError(
                f"new item {row}: the bucket {tuple(new_ML[row].tolist())} is full, all {capacity} digits are taken: "
                "give it other codes, or build the Semantic IDs anew with all items"
            )
        taken[b].add(digit)
        digits.append(digit)
    return torch.tensor(digits, dtype=torch.int64)


def _metadata(path: Path, metadata: dict[bytes, bytes]) -> dict[str, Any]:
    if _METADATA_KEY not in metadata:
        raise DataError(f"{path} is not a table of Semantic IDs: read codes of your own with CodesFile")
    about: dict[str, Any] = json.loads(metadata[_METADATA_KEY])
    if about["format"] != _FORMAT:
        raise DataError(
            f"{path} has format {about['format']}, this version of tesserec reads {_FORMAT}: update tesserec"
        )
    return about


def _check_items(path: Path, found: pa.Array, items: Vocabulary) -> None:
    if len(found) != len(items):
        raise DataError(f"{path} holds {len(found)} items, the catalog {len(items)}: load it with the catalog it is of")
    if found.equals(items.ids):
        return
    pairs = zip(found.to_pylist(), items.ids.to_pylist(), strict=True)
    row, (theirs, ours) = next((row, pair) for row, pair in enumerate(pairs) if pair[0] != pair[1])
    raise DataError(f"{path} has item {theirs!r} in row {row}, the catalog {ours!r}: load it with the catalog it is of")
