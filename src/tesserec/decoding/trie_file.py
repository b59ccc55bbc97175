"""A trie on disk: built once for a table, memory-mapped afterwards.

Paper: none.
Adds: a derived file with a note of what it was made of, and its SHA-256: one that is missing, damaged or of another
    table is made again.
Differs: nothing.
Checked: tests/decoding/test_trie_file.py (maps the file, notices another table and damage).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tesserec.decoding.trie import Trie
from tesserec.types import SemanticIds, as_numpy

__all__ = ["kept_trie", "load_trie", "save_trie"]

FORMAT = 2
MIN_ITEMS = 200_000
"""A trie of fewer items is built faster than it is read and checked."""


def save_trie(path: Path, trie: Trie, made_of: str = "") -> None:
    """Write the arrays with a note of what they were ``made_of``, and their SHA-256 beside them.

    Each appears as a whole, also where several processes write.
    """
    partial, sum_partial = _partial(path), _partial(_sum(path))
    try:
        save_file(trie.tensors(), partial, _note(made_of))
        sum_partial.write_text(_sha256(partial), encoding="utf-8")
        partial.replace(path)
        sum_partial.replace(_sum(path))
    finally:
        partial.unlink(missing_ok=True)
        sum_partial.unlink(missing_ok=True)


def load_trie(path: Path, made_of: str = "") -> Trie | None:
    """The trie, its arrays mapped into memory; None where the file is missing, damaged or made of something else."""
    if not (path.is_file() and _sum(path).is_file()) or _sum(path).read_bytes() != _sha256(path).encode():
        return None
    with safe_open(path, framework="pt") as file:
        # Asked of the file that is open: another process may have put another one in its place since.
        if file.metadata() != _note(made_of):
            return None
        return Trie.of_tensors({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def kept_trie(folder: Path | None, semantic_ids: SemanticIds, popularity_N: Tensor | None = None) -> Trie:
    """``Trie.build``, kept in ``folder`` for the next time where one is given and the table is large.

    The folder is made where it is missing. Raises ``OSError`` where it cannot be written.
    """
    if folder is None or len(semantic_ids) < MIN_ITEMS:
        return Trie.build(semantic_ids, popularity_N)
    path, made_of = folder / "trie.safetensors", _fingerprint(semantic_ids, popularity_N)
    trie = load_trie(path, made_of)
    if trie is None:
        trie = Trie.build(semantic_ids, popularity_N)
        folder.mkdir(parents=True, exist_ok=True)
        save_trie(path, trie, made_of)
    return trie


def _fingerprint(semantic_ids: SemanticIds, popularity_N: Tensor | None) -> str:
    """SHA-256 of everything that a trie depends on."""
    digest = hashlib.sha256(f"{semantic_ids.codebook_sizes} {len(semantic_ids)}".encode())
    for part in (semantic_ids.codes_NL, popularity_N):
        digest.update(b"none" if part is None else f"{part.dtype}".encode())
        digest.update(b"" if part is None else np.ascontiguousarray(as_numpy(part)).data)
    return digest.hexdigest()


def _note(made_of: str) -> dict[str, str]:
    return {"made_of": f"format {FORMAT} {made_of}"}  # one entry: the library writes several in no order


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sum(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.partial")
