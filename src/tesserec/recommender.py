"""``Recommender``: a trained system in Python.

    recommender = Recommender.fit("events.parquet", "items.parquet", out="bundle")
    recommender.recommend(users=["u1", "u2"], k=10)          a Polars frame: user_id, item_id, score, rank, note
    Recommender.load("bundle").similar_items(["i7"], k=5)

A request is asked at the time of the last event known, so that "recent" means the same today and in a year. Who has no
history gets the popular items of that moment, and the column ``note`` says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import torch
from torch import Tensor

from tesserec.bundle import CODE_VERSION, Bundle, Contents, check_place, data_digest, publish
from tesserec.data.append import append_catalog, append_events
from tesserec.data.catalog import catalog_of, read_catalog
from tesserec.data.interactions import read_events
from tesserec.data.requests import history_requests, user_requests
from tesserec.data.splits import has_repeats
from tesserec.data.tables import Source
from tesserec.errors import BundleError, DataError, RecipeError
from tesserec.pipeline import (
    Tell,
    extended_content,
    fit,
    quiet,
    read_data,
    serving_context,
    serving_retriever,
    update,
)
from tesserec.recipe import DataConfig, Recipe, default_recipe, parse_recipe, read_recipe
from tesserec.retrievers.popularity import Popularity
from tesserec.types import (
    PAD,
    Candidates,
    Catalog,
    FitContext,
    Id,
    Interactions,
    Progress,
    Ragged,
    Requests,
    Retriever,
    TakesNewItems,
    as_numpy,
    silent,
)

__all__ = ["NO_HISTORY", "Recommender", "work_folder_of"]

NO_HISTORY = "no history: popular items of the moment"
"""The ``note`` of a recommendation to somebody of whom nothing is known."""

_BATCH = 256


class Recommender:
    """A fitted system that recommends, finds similar items and takes new ones.

    Made by ``fit`` or ``load``. Ids are the user's own, everywhere.
    """

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.retriever: Retriever = serving_retriever(contents)
        self._popular = _popularity(contents)

    @cached_property
    def exclude_history(self) -> bool:
        """Whether answers leave out what a user had, unless a call says otherwise; not where people buy again."""
        excluded = parse_recipe(self.contents.recipe).split.exclude_history
        return not has_repeats(self.contents.interactions) if excluded is None else excluded

    @classmethod
    def fit(
        cls,
        events: Source | None = None,
        items: Source | None = None,
        *,
        recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
        out: str | Path | None = None,
        again: bool = False,
        progress: Progress = silent,
        tell: Tell = quiet,
    ) -> Recommender:
        """Fit a system on ``events`` (and ``items``): files or frames, or what the recipe's ``[data]`` names.

        ``recipe`` is a TOML file, its tables, or a ``Recipe``; without one, Mosaic is fitted with its defaults. With
        ``out`` the system is written there as a bundle: a run that was stopped goes on when it is called again, and a
        bundle of the same recipe and data that is there already is loaded, unless ``again`` is set. Raises a
        ``TesserecError`` that says what to change where recipe or data cannot be used.
        """
        folder = _checked_place(out)
        given = None if recipe is None else _recipe(recipe)
        interactions, catalog = read_data(DataConfig() if given is None else given.data, events, items)
        chosen = given or default_recipe(catalog)
        if folder is not None and not again and _is_there(folder, chosen, interactions, catalog, tell):
            tell(f"{folder} holds this recipe fitted on this data already")
            return cls.load(folder)
        work_folder = None if folder is None else work_folder_of(folder)
        contents = fit(chosen, interactions, catalog, work_folder=work_folder, progress=progress, tell=tell)
        return cls(_published(contents, folder))

    @classmethod
    def load(cls, folder: str | Path) -> Recommender:
        """The system in a bundle; raises ``BundleError`` that names a file that is missing or damaged."""
        return cls(Bundle.open(Path(folder)).contents())

    def save(self, folder: str | Path) -> None:
        """Write the system as a bundle; an earlier bundle of that place is replaced when the new one is complete."""
        publish(Path(folder), self.contents)

    def updated(
        self,
        events: Source,
        items: Source | None = None,
        *,
        out: str | Path | None = None,
        progress: Progress = silent,
        tell: Tell = quiet,
    ) -> Recommender:
        """The system with later events: trained on from where it was, and judged on what it had not seen.

        Of ``events`` those after the last one known are taken; ``items`` has the rows of items that are new. Raises
        ``DataError`` where nothing is later, or events are of items that nobody described.
        """
        folder = _checked_place(out)
        interactions, catalog = self._with_later(events, items)
        work_folder = None if folder is None else work_folder_of(folder)
        contents = update(self.contents, interactions, catalog, work_folder=work_folder, progress=progress, tell=tell)
        return Recommender(_published(contents, folder))

    def recommend(
        self,
        users: Sequence[Id] | None = None,
        histories: Sequence[Sequence[Id]] | None = None,
        *,
        k: int = 10,
        exclude_history: bool | None = None,
        exclude: Sequence[Id] = (),
        available: Sequence[Id] | None = None,
        explain: bool = False,
    ) -> pl.DataFrame:
        """The ``k`` best items for each user, or after each history (item ids, oldest first).

        Columns ``user_id`` (the number of the history, from 0, where histories are given), ``item_id``, ``score``
        (higher is better, comparable within a list only), ``rank`` (from 1) and ``note`` (null, or ``NO_HISTORY``).
        ``exclude_history`` leaves out what the user had; ``exclude`` are items for nobody, ``available`` the only ones
        allowed. ``explain`` adds ``title`` and the retriever's evidence. Raises ``UnknownIdError`` for unknown ids.
        """
        if (users is None) == (histories is None):
            raise DataError("give either users or histories: one of them, not both")
        if k < 1:
            raise DataError(f"k = {k}: ask for at least one item")
        excludes = self.exclude_history if exclude_history is None else exclude_history
        if users is not None:
            indices_B = self.contents.interactions.users.index(users, "user")
            requests = user_requests(self.contents.interactions, indices_B, exclude_history=excludes)
            labels = self.contents.interactions.users.ids.take(pa.array(as_numpy(indices_B)))
        else:
            assert histories is not None
            rows = [self.contents.catalog.items.index(history, "item").tolist() for history in histories]
            requests = history_requests(rows, exclude_history=excludes)
            labels = pa.array(range(len(rows)), pa.int64())
        requests = self._filtered(requests, exclude, available)
        return self._frame(requests, labels, k, explain)

    def recommend_all(
        self,
        users: Sequence[Id] | None = None,
        *,
        k: int = 10,
        exclude_history: bool | None = None,
        exclude: Sequence[Id] = (),
        explain: bool = False,
        batch_size: int = 1024,
        progress: Progress = silent,
    ) -> Iterator[pl.DataFrame]:
        """``recommend`` for many users (all, where none are named), one frame a batch, so that none is too large."""
        chosen = self.contents.interactions.users.ids.to_pylist() if users is None else list(users)
        for start in range(0, len(chosen), batch_size):
            batch = chosen[start : start + batch_size]
            yield self.recommend(batch, k=k, exclude_history=exclude_history, exclude=exclude, explain=explain)
            progress("recommend", min(start + batch_size, len(chosen)), len(chosen))

    def similar_items(self, items: Sequence[Id], k: int = 10) -> pl.DataFrame:
        """The ``k`` items most like each of ``items``: columns ``item_id``, ``similar_item_id``, ``score``, ``rank``.

        Likeness is the cosine of content vectors, in [−1, 1]; in a system without vectors, it is what the retriever
        proposes after a history of the item alone.
        """
        catalog, embeddings = self.contents.catalog, self.contents.content.embeddings
        chosen_B = catalog.items.index(items, "item")
        if embeddings is None:
            requests = history_requests([[item] for item in chosen_B.tolist()], exclude_history=True)
            found = self.retriever.retrieve(requests, k)
        else:
            unit_ND = torch.nn.functional.normalize(embeddings.vectors_ND, dim=1)
            found = _nearest(unit_ND, chosen_B, min(k, len(catalog) - 1))
        labels = catalog.items.ids.take(pa.array(as_numpy(chosen_B)))
        return _listed(found, labels, catalog).rename({"user_id": "item_id", "item_id": "similar_item_id"})

    def add_items(self, items: Source) -> pl.DataFrame:
        """Take new items: they get vectors and codes from what was fitted, and can be recommended at once.

        ``items`` is a file or frame of rows like the catalog's. Returns ``item_id`` and ``codes``. Nothing is trained;
        ``codebook_version`` stays and ``table_revision`` grows. Raises ``RecipeError`` where the retriever can only
        answer with items of its fit, ``DataError`` for items that are known already.
        """
        catalog, new = self.contents.catalog, read_catalog(items)
        recipe = parse_recipe(self.contents.recipe)
        if not isinstance(self.retriever, TakesNewItems):
            raise RecipeError(
                f"{type(self.retriever).__name__} answers only with items of its fit: fit again with the new items, "
                "or use a retriever that reads content or codes, such as tesserec.retrievers.mosaic:Mosaic, or SASRec "
                "and HSTU with keys"
            )
        known = catalog.items.find(new.items.ids.to_pylist()) >= 0
        if bool(known.any()):
            example = new.items.to_ids(known.nonzero()[0])[0]
            raise DataError(
                f"{int(known.sum())} of {len(new)} items are known already, {example!r} for one: leave them out"
            )
        extended = append_catalog(catalog, new)
        content = extended_content(recipe, self.contents.content, extended)
        num_fitted = len(self.contents.interactions.items)
        contents = dataclasses.replace(self.contents, catalog=extended, content=content, num_fitted_items=num_fitted)
        self.retriever.add_items(extended, serving_context(contents))
        self.contents, self._popular = contents, _popularity(contents)
        added = pl.DataFrame({"item_id": pl.Series(extended.items.ids[len(catalog) :])})
        if content.semantic_ids is None:
            return added
        return added.with_columns(codes=pl.Series(content.semantic_ids.codes_NL[len(catalog) :].tolist()))

    def history_of(self, user: Id) -> list[Id]:
        """The item ids of all that a user did, oldest first; raises ``UnknownIdError``."""
        events = self.contents.interactions
        index = int(events.users.index([user], "user")[0])
        return events.items.to_ids(events.item_E[events.user_offsets[index] : events.user_offsets[index + 1]])

    def _with_later(self, events: Source, items: Source | None) -> tuple[Interactions, Catalog]:
        """The log and catalog with what is new in ``events`` and ``items``."""
        config = parse_recipe(self.contents.recipe).data
        catalog = self.contents.catalog
        if items is not None:
            catalog = append_catalog(catalog, read_catalog(items, columns=config.item_columns))
        only_ids = catalog.frame.columns == ["item_id"]
        new = read_events(
            events,
            columns=config.columns,
            items=None if only_ids else catalog.items,
            unknown_items=config.unknown_items,
        )
        old = dataclasses.replace(self.contents.interactions, items=self.contents.catalog.items)
        interactions = append_events(old, new)
        return interactions, append_catalog(catalog, catalog_of(interactions)) if only_ids else catalog

    def _filtered(self, requests: Requests, exclude: Sequence[Id], available: Sequence[Id] | None) -> Requests:
        items, available_N = self.contents.catalog.items, self.contents.catalog.available_N
        if available is not None:
            allowed_N = torch.zeros(len(items), dtype=torch.bool)
            allowed_N[items.index(available, "item")] = True
            available_N = allowed_N if available_N is None else allowed_N & available_N
        excluded = None
        if exclude:
            excluded = Ragged.of([items.index(exclude, "item").tolist()] * len(requests))
        filters = dataclasses.replace(requests.filters, available_N=available_N, excluded=excluded)
        return dataclasses.replace(requests, filters=filters)

    def _frame(self, requests: Requests, labels: pa.Array, k: int, explain: bool) -> pl.DataFrame:
        known_B = requests.history.positives().lengths > 0
        none = torch.zeros(0, dtype=torch.int64)
        # No request at all first: its columns are those of every batch, also of one that holds newcomers only.
        empty = self.retriever.retrieve(requests.take(none), k)
        frames = [_listed(empty, labels[:0], self.contents.catalog, none, explain).with_columns(_NO_NOTE)]
        for retriever, rows, note in ((self.retriever, known_B, None), (self._popular, ~known_B, NO_HISTORY)):
            chosen = rows.nonzero().squeeze(1)
            for at in torch.split(chosen, _BATCH) if len(chosen) else []:
                found = retriever.retrieve(requests.take(at), k)
                frame = _listed(found, labels.take(pa.array(as_numpy(at))), self.contents.catalog, at, explain)
                frames.append(frame.with_columns(note=pl.lit(note, pl.String)))
        together = pl.concat(frames, how="diagonal_relaxed").sort("_row", "rank").drop("_row")
        return together.select("user_id", "item_id", "score", "rank", "note", pl.exclude(_COLUMNS))


_COLUMNS = ("user_id", "item_id", "score", "rank", "note")
_NO_NOTE = pl.lit(None, pl.String).alias("note")


def work_folder_of(folder: Path) -> Path:
    """Where a fit keeps finished stages until the bundle in ``folder`` is complete."""
    return folder.with_name(f"{folder.name}.work")


def _popularity(contents: Contents) -> Popularity:
    popular = Popularity()
    popular.fit(contents.interactions, contents.catalog, FitContext())
    return popular


def _checked_place(out: str | Path | None) -> Path | None:
    if out is None:
        return None
    check_place(Path(out))
    return Path(out)


def _is_there(folder: Path, recipe: Recipe, interactions: Interactions, catalog: Catalog, tell: Tell) -> bool:
    if not (folder / "manifest.json").is_file():
        return False
    try:
        manifest = Bundle.open(folder).manifest
    except BundleError as error:
        tell(f"fitting again: {error}")
        return False
    wanted = (recipe.digest(), data_digest(interactions, catalog), CODE_VERSION)
    return wanted == (manifest.recipe_digest, manifest.data_digest, manifest.versions["tesserec"])


def _recipe(recipe: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    return parse_recipe(recipe) if isinstance(recipe, Mapping) else read_recipe(Path(recipe))


def _published(contents: Contents, folder: Path | None) -> Contents:
    return contents if folder is None else publish(folder, contents).contents()


def _nearest(unit_ND: Tensor, chosen_B: Tensor, k: int) -> Candidates:
    """The ``k`` largest cosines of each chosen row with the others."""
    parts = []
    for rows in torch.split(chosen_B, _BATCH):
        cosine_BN = unit_ND[rows] @ unit_ND.T
        cosine_BN[torch.arange(len(rows)), rows] = -torch.inf
        best = cosine_BN.topk(k, dim=1)
        parts.append(Candidates(best.indices, best.values))
    return Candidates.concatenate(parts)


def _listed(
    found: Candidates, labels: pa.Array, catalog: Catalog, rows: Tensor | None = None, explain: bool = False
) -> pl.DataFrame:
    """One row a recommended item; ``labels`` names the lists, and ``rows`` numbers them in the column ``_row``."""
    filled_BK = found.items_BK != PAD
    row_R, column_R = (as_numpy(index) for index in filled_BK.nonzero(as_tuple=True))
    item_R = as_numpy(found.items_BK[filled_BK])
    columns: dict[str, Any] = {
        "user_id": pl.Series(labels.take(pa.array(row_R))),
        "item_id": pl.Series(catalog.items.ids.take(pa.array(item_R))),
        "score": as_numpy(found.scores_BK[filled_BK].float()),
        "rank": (column_R + 1).astype("int32"),
    }
    if rows is not None:
        columns["_row"] = as_numpy(rows)[row_R]
    if explain:
        columns["title"] = pl.Series([catalog.titles[item] for item in item_R], dtype=pl.String)
        if found.source_BK is not None:
            names = [found.sources[s] if s >= 0 else None for s in found.source_BK[filled_BK].tolist()]
            columns["source"] = pl.Series(names, dtype=pl.String)
        columns |= {name: as_numpy(v[filled_BK]) for name, v in found.trace.items() if v.shape == filled_BK.shape}
    return pl.DataFrame(columns)
