"""Semantic IDs without a retriever: made by a recipe, kept in a folder, or opened from wherever they are.

What ``write`` makes is the part of a bundle that has to do with items, in the same files:

    semantic_ids.parquet      the code tuple of each item, with versions
    codebooks.safetensors     the fitted quantizer, for the codes of new items; not for codes of the user's own
    embedder.safetensors      what the embedder needs to place new items
    embeddings.safetensors    vectors of the items
    catalog.parquet           ids, titles and attributes of the items, in the order of the codes
    users.parquet             ids of the users, and
    events.parquet            the events, dense
    recipe.json               the recipe

``open_sids`` reads such a folder, a bundle, a table that ``tesserec`` wrote, or a table of anybody's codes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from torch import Tensor

from tesserec.bundle import Bundle, Content, load_content, load_interactions, save_content, save_interactions, swap
from tesserec.data.append import append_catalog
from tesserec.data.catalog import align_catalog, read_catalog
from tesserec.data.interactions import read_events
from tesserec.data.splits import split
from tesserec.embedders.vectors_file import VectorsFile
from tesserec.errors import DataError, RecipeError, VersionMismatchError
from tesserec.files import check_parent
from tesserec.pipeline import extended_content, make_content, quantizer_of, training_block
from tesserec.recipe import Recipe, parse_recipe
from tesserec.semantic_ids.codes_file import CodesFile
from tesserec.semantic_ids.diagnostics import code_vectors
from tesserec.semantic_ids.expansion import ForeignItems
from tesserec.semantic_ids.residual import fingerprint
from tesserec.semantic_ids.retokenize import Retokenization, retokenize
from tesserec.semantic_ids.table import (
    build_semantic_ids,
    content_codes,
    is_semantic_ids,
    load_semantic_ids,
    save_semantic_ids,
    table_version,
)
from tesserec.types import Catalog, ComponentState, Interactions, Progress, Quantizer, SemanticIds, Vocabulary, silent

__all__ = [
    "Sids",
    "check_place",
    "content_changes",
    "extend_sids",
    "fit_sids",
    "is_plain",
    "open_sids",
    "with_labels_of",
    "write",
]

TABLE = "semantic_ids.parquet"


@dataclass(frozen=True)
class Sids:
    """A table of Semantic IDs and what is known of its items; the catalog and the events have the table's items."""

    name: str
    semantic_ids: SemanticIds
    catalog: Catalog
    interactions: Interactions | None = None
    content: Content = dataclasses.field(default_factory=Content)
    """Vectors and states, where there are any."""
    recipe: Mapping[str, Any] | None = None
    """The recipe that made them; None for a mere table."""
    is_plain: bool = False
    """Whether they were read from a file of anybody's codes."""

    @cached_property
    def quantizer(self) -> Quantizer | None:
        """The fitted quantizer; None for codes that came without one."""
        return None if self.recipe is None else quantizer_of(parse_recipe(self.recipe), self.content)

    @property
    def has_codebooks(self) -> bool:
        """Whether the ``codebook_version`` is one of codebooks; for codes that were read it is a hash of the codes."""
        return not self.is_plain if self.recipe is None else self.content.codebooks is not None

    @cached_property
    def events_N(self) -> Tensor | None:
        """Number of events of each item, [N] int64; None without events."""
        return None if self.interactions is None else self.interactions.item_counts()

    def code_vectors(self) -> list[tuple[str, Tensor]]:
        """For each level what its vectors are, "codebook" or "items", and the vectors themselves, [C, D] float64.

        With a quantizer what each code decodes to between the most frequent codes of the other levels: for residual
        and product codebooks that is the code's vector and a shift that all codes of the level share. Without one the
        mean vectors of the items of each code. Empty where there are neither.
        """
        codes_NL, sizes = content_codes(self.semantic_ids), self.semantic_ids.codebook_sizes
        if self.quantizer is not None:
            decoded = [self.quantizer.decode(one_CL).double() for one_CL in _each_code(codes_NL, sizes)]
            return [("codebook", vectors_CD) for vectors_CD in decoded]
        if self.content.embeddings is None:
            return []
        vectors_ND = self.content.embeddings.vectors_ND
        pairs = zip(codes_NL.unbind(1), sizes, strict=False)
        return [("items", code_vectors(code_N, vectors_ND, size)) for code_N, size in pairs]


def fit_sids(recipe: Recipe, interactions: Interactions, catalog: Catalog, progress: Progress = silent) -> Sids:
    """The Semantic IDs of a recipe, those that ``tesserec.pipeline.fit`` would use; no retriever is fitted.

    What learns from events learns from the training events of the recipe's split. Raises ``RecipeError`` where the
    recipe makes no Semantic IDs, and whatever embedder and quantizer raise.
    """
    if recipe.quantizer is None:
        raise RecipeError(
            "the recipe has no [semantic_ids], which is what is to be fitted: add one, such as "
            'class = "tesserec.semantic_ids.rq_kmeans:ResidualKMeans"'
        )
    with training_block(recipe.fit.num_threads):
        content = make_content(recipe, catalog, split(interactions, recipe.split).train, progress)
    assert content.semantic_ids is not None, "the recipe has a quantizer"
    return Sids("", content.semantic_ids, catalog, interactions, content, recipe.table())


def extend_sids(sids: Sids, later: Catalog) -> Sids:
    """The Semantic IDs with the items of ``later`` that they lack, coded by the frozen codebooks.

    The others stay as they are, which is warned of. Raises ``DataError`` for codes without a recipe, and where there
    is no item to add.
    """
    if sids.recipe is None:
        raise DataError(f"{sids.name} is a mere table: new items need what `tesserec sids fit` writes to a folder")
    catalog = append_catalog(sids.catalog, later)
    num_known = len(sids.catalog) + len(later) - len(catalog)
    if num_known == len(later):
        raise DataError(f"all {len(later)} items given are among the {len(catalog)} known: there is nothing to add")
    if num_known:
        warnings.warn(
            f"{num_known} of the {len(later)} items given are known already: their text and codes stay; fit again to "
            "change them",
            stacklevel=2,
        )
    content = extended_content(parse_recipe(sids.recipe), sids.content, catalog)
    assert content.semantic_ids is not None, "there were codes"
    _warn_of_foreign(sids, catalog, content)
    log = None if sids.interactions is None else dataclasses.replace(sids.interactions, items=catalog.items)
    return dataclasses.replace(
        sids, semantic_ids=content.semantic_ids, catalog=catalog, interactions=log, content=content
    )


def _warn_of_foreign(sids: Sids, catalog: Catalog, content: Content) -> None:
    """Warn of later items that the codebooks do not describe."""
    if sids.quantizer is None or content.embeddings is None:
        return
    num_fitted = len(sids.catalog)
    fitted_ND, later_MD = content.embeddings.vectors_ND[:num_fitted], content.embeddings.vectors_ND[num_fitted:]
    rows = ForeignItems().find(sids.quantizer, fitted_ND, later_MD).nonzero().squeeze(1)
    if len(rows):
        ids = catalog.items.ids.take(pa.array(rows.numpy() + num_fitted)).to_pylist()
        shown = ", ".join(map(repr, ids[:5])) + (", …" if len(ids) > 5 else "")
        usual = 100 * ForeignItems().quantile
        warnings.warn(
            f"{len(ids)} of the {len(later_MD)} new items are foreign to the codebooks, whose codes say less of them "
            f"than of {usual:.0f} % of the fitted ones: {shown}; fit again when they become many",
            stacklevel=3,
        )


def with_labels_of(sids: Sids, old: Sids) -> tuple[Sids, Retokenization]:
    """The Semantic IDs of a new fit with the codes of their levels renumbered so that most items keep those of ``old``.

    Buckets stay what they are; codebooks are renumbered with the codes. Raises ``DataError`` where the quantizer keeps
    no codebook a level, or ``old`` has other levels.
    """
    state, old_item_N = sids.content.codebooks, old.catalog.items.find(sids.catalog.items.ids.to_pylist())
    names = [name for name in ("codebook_{}", "codebooks.{}") if state is not None and name.format(0) in state.tensors]
    if not names:
        raise DataError(
            "codes are renumbered together with the codebook of their level, which this quantizer does not have: use "
            "residual k-means, RQ-VAE or DRQ, or leave out --like"
        )
    found = retokenize(old.semantic_ids, sids.semantic_ids, state, old_item_N=old_item_N, codebook_name=names[0])
    content = dataclasses.replace(sids.content, semantic_ids=found.semantic_ids, codebooks=found.state)
    return dataclasses.replace(sids, semantic_ids=found.semantic_ids, content=content), found


def check_place(place: Path) -> None:
    """Raise ``DataError`` where Semantic IDs must not be written, over anything but earlier ones, or cannot be."""
    check_parent(place)
    if place.suffix == ".parquet":
        if place.is_dir():
            raise DataError(f"{place} is a folder: choose another place, or name a folder without the ending .parquet")
    elif place.exists() and (
        not place.is_dir() or (any(place.iterdir()) and ((place / "manifest.json").exists() or not _is_folder(place)))
    ):
        raise DataError(f"{place} exists and is no folder of `tesserec sids fit`: choose another place")


def write(place: Path, sids: Sids) -> None:
    """Write the table alone, where ``place`` ends in .parquet, or the whole folder; what was there is replaced.

    Written beside and renamed. Raises ``DataError`` where ``place`` holds something else.
    """
    check_place(place)
    new = place.with_name(f".{place.name}.new-{os.getpid()}")
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix == ".parquet":
        save_semantic_ids(new, sids.semantic_ids, sids.catalog.items)
        new.replace(place)
        return
    new.mkdir()
    try:
        save_content(new, sids.content, sids.catalog.items)
        sids.catalog.frame.write_parquet(new / "catalog.parquet", compression="zstd")
        if sids.interactions is not None:
            users = pa.table({"user_id": sids.interactions.users.ids})
            pq.write_table(users, new / "users.parquet", compression="zstd")
            save_interactions(new / "events.parquet", sids.interactions)
        (new / "recipe.json").write_text(json.dumps(sids.recipe, indent=1), encoding="utf-8")
        swap(new, place)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def open_sids(
    place: str | Path,
    items: Path | None = None,
    events: Path | None = None,
    *,
    digit: bool = False,
    vectors: Path | None = None,
) -> Sids:
    """The Semantic IDs at ``place``: a bundle, a folder of ``write``, or a file of codes.

    ``FILE:column=value`` reads the rows of a file of several tokenizers' codes. ``items`` and ``events`` replace what
    is known of the items; ``digit`` says of a file of anybody's codes that the last one is a collision digit, and
    ``vectors`` is a file of its items' vectors, in a form that ``VectorsFile`` reads. Raises ``DataError`` for what
    cannot be used, ``BundleError`` for a damaged bundle, ``VersionMismatchError`` for codebooks of another table.
    """
    path, where = _place(str(place))
    if not path.exists():
        raise DataError(
            f"there is nothing at {path}: give a bundle, a folder of `tesserec sids fit` or a file of codes"
        )
    if path.is_dir():
        if digit or where:
            raise DataError(f"{path} is a folder, which knows its digit and its rows: leave out --digit and :column=…")
        sids = _opened_bundle(path) if (path / "manifest.json").is_file() else _opened_folder(path)
    else:
        sids = _opened_file(path, where, digit)
    if items is not None:
        sids = dataclasses.replace(sids, catalog=align_catalog(read_catalog(items), sids.catalog.items))
    if events is not None:
        log = read_events(events, items=sids.catalog.items, unknown_items="drop")
        sids = dataclasses.replace(sids, interactions=log)
    if vectors is not None:
        if sids.content.embeddings is not None:
            raise DataError(f"{path} has the vectors that its codes were made from: leave out --vectors {vectors}")
        sids = dataclasses.replace(sids, content=Content(VectorsFile(vectors).embed(sids.catalog), sids.semantic_ids))
    return sids


def is_plain(place: str | Path) -> bool:
    """Whether a file of anybody's codes is at ``place``, or nothing: what ``digit`` of ``open_sids`` is for."""
    path, _ = _place(str(place))
    return not path.is_dir() and not _is_table(path)


def content_changes(old: Sids, new: Sids) -> Tensor | None:
    """Whether each item of ``new`` has another content than in ``old``, bool; false for new items.

    Texts are compared where both catalogs have some, else vectors where one fitted embedder made both; None where
    there is nothing to compare.
    """
    old_N = old.catalog.items.find(new.catalog.items.ids.to_pylist())
    if any(old.catalog.texts) and any(new.catalog.texts):
        before, after = old.catalog.texts, new.catalog.texts
        pairs = zip(old_N.tolist(), after, strict=True)
        return torch.tensor([row >= 0 and before[row] != text for row, text in pairs])
    first, second = old.content, new.content
    if first.embedder is None or second.embedder is None or fingerprint(first.embedder) != fingerprint(second.embedder):
        return None
    assert first.embeddings is not None, "an embedder has made embeddings"
    assert second.embeddings is not None, "an embedder has made embeddings"
    differs_N = (first.embeddings.vectors_ND[old_N] != second.embeddings.vectors_ND).any(1)
    return differs_N & (old_N >= 0)


def _each_code(codes_NL: Tensor, sizes: Sequence[int]) -> Iterator[Tensor]:
    """For each level a tuple of each of its codes, [C, L], with the most frequent codes of all items elsewhere."""
    frequent_L = codes_NL.mode(0).values
    for level, size in zip(range(codes_NL.shape[1]), sizes, strict=False):
        one_CL = frequent_L.repeat(size, 1)
        one_CL[:, level] = torch.arange(size)
        yield one_CL


def _place(text: str) -> tuple[Path, dict[str, str]]:
    if not Path(text).exists() and "=" in text.rpartition(":")[2]:
        path, _, choice = text.rpartition(":")
        column, _, value = choice.partition("=")
        return Path(path), {column: value}
    return Path(text), {}


def _is_folder(path: Path) -> bool:
    return (path / TABLE).is_file() and (path / "recipe.json").is_file()


def _is_table(path: Path) -> bool:
    return path.suffix == ".parquet" and path.is_file() and is_semantic_ids(path)


def _opened_bundle(path: Path) -> Sids:
    bundle = Bundle.open(path)
    if bundle.content.semantic_ids is None:
        raise DataError(f"{path} is a bundle without Semantic IDs: give one whose recipe has [semantic_ids]")
    log = dataclasses.replace(bundle.interactions, items=bundle.catalog.items)  # those of the fit, then those added
    return Sids(path.name, bundle.content.semantic_ids, bundle.catalog, log, bundle.content, bundle.manifest.recipe)


def _opened_folder(path: Path) -> Sids:
    if not _is_folder(path):
        raise DataError(f"{path} is neither a bundle nor what `tesserec sids fit` writes: give one, or a file of codes")
    log = None
    try:
        items = _column(path / TABLE, "item_id")
        content = load_content(path, items)
        catalog = Catalog(items, pl.read_parquet(path / "catalog.parquet"))
        recipe = json.loads((path / "recipe.json").read_text(encoding="utf-8"))
        if (path / "events.parquet").is_file():
            log = load_interactions(path / "events.parquet", _column(path / "users.parquet", "user_id"), items)
    except (OSError, ValueError, KeyError, pl.exceptions.PolarsError, SafetensorError) as error:
        raise DataError(f"{path} is damaged ({_first_line(error)}): run `tesserec sids fit` again") from None
    assert content.semantic_ids is not None, "the table is there"
    _check_codebooks(path, content.semantic_ids, content.codebooks)
    return Sids(path.name, content.semantic_ids, catalog, log, content, recipe)


def _check_codebooks(path: Path, table: SemanticIds, codebooks: ComponentState | None) -> None:
    """Raise ``VersionMismatchError`` where the folder's table is of other codebooks than the folder's."""
    if codebooks is None:
        return
    version = table_version(fingerprint(codebooks), table.codebook_sizes, table.has_digit)
    if version != table.codebook_version:
        raise VersionMismatchError(
            f"{path}: {TABLE} has codebook version {table.codebook_version}, codebooks.safetensors makes {version}: "
            "put the codebooks of this table there, or run `tesserec sids fit` again"
        )


def _opened_file(path: Path, where: dict[str, str], digit: bool) -> Sids:
    is_table = _is_table(path)
    if is_table:
        if digit or where:
            raise DataError(f"{path} knows its digit and has one row an item: leave out --digit and :column=…")
        items = _column(path, "item_id")
        table = load_semantic_ids(path, items)
    else:
        source = CodesFile(path, where=where)
        items = source.items()
        codes_NL, sizes, content = source.read(items)
        if digit and len(sizes) == 1:
            raise DataError(f"{path} has one code an item, which cannot be a collision digit: leave out --digit")
        table = dataclasses.replace(build_semantic_ids(codes_NL, sizes, content, "bucket"), has_digit=digit)
    name = f"{path.stem} ({', '.join(where.values())})" if where else path.stem
    catalog = Catalog(items, pl.DataFrame({"item_id": pl.Series(items.ids)}))
    return Sids(name, table, catalog, is_plain=not is_table)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _column(path: Path, name: str) -> Vocabulary:
    return Vocabulary(pq.read_table(path, columns=[name])[name].combine_chunks())
