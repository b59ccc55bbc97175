"""A trie on disk: built once for a table, memory-mapped afterwards.

Paper: none.
Adds: a derived file and a note of what it was made of and of its SHA-256: one that is missing, damaged or of another
    table is made again.
Differs: nothing.
Checked: tests/decoding/test_trie_file.py (maps the file, notices another table and damage).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tesserec.decoding.trie import Trie
from tesserec.types import SemanticIds, as_numpy

__all__ = ["kept_trie", "load_trie", "save_trie"]

FORMAT = 1
MIN_ITEMS = 200_000
"""A trie of fewer items is built faster than it is read and checked."""


def save_trie(path: Path, trie: Trie, made_of: str = "") -> None:
    """Write the arrays, and a note beside them that says what they were ``made_of``; each appears as a whole."""
    partial, note = _partial(path), path.with_suffix(".json")
    save_file(trie.tensors(), partial)
    _partial(note).write_text(json.dumps(_note(partial, made_of)), encoding="utf-8")
    partial.replace(path)
    _partial(note).replace(note)


def load_trie(path: Path, made_of: str = "") -> Trie | None:
    """The trie, its arrays mapped into memory; None where the file is missing, damaged or made of something else."""
    note = path.with_suffix(".json")
    if not (path.is_file() and note.is_file()):
        return None
    if note.read_bytes() != json.dumps(_note(path, made_of)).encode():
        return None
    with safe_open(path, framework="pt") as file:
        return Trie.of_tensors({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def kept_trie(folder: Path | None, semantic_ids: SemanticIds, popularity_N: Tensor | None = None) -> Trie:
    """``Trie.build``, kept in ``folder`` for the next time where one is given and the table is large."""
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


def _note(path: Path, made_of: str) -> dict[str, str | int]:
    with path.open("rb") as file:
        return {"format": FORMAT, "made_of": made_of, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
