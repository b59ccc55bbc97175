"""``LoadedModel``: a bundle ready to answer, with the cheaper ways to answer that stand behind it.

It is immutable: items that arrive make a new one, and the one before goes on answering for who holds it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from tesserec.bundle import Bundle, Content
from tesserec.data.append import append_catalog
from tesserec.data.requests import history_requests
from tesserec.data.splits import has_repeats
from tesserec.errors import DataError
from tesserec.pipeline import extended_content, fit_context, restored
from tesserec.recipe import Recipe, parse_recipe
from tesserec.retrievers.popularity import Popularity
from tesserec.serving.pasts import Past, Question, Reader, requests_of
from tesserec.serving.records import Event
from tesserec.serving.rungs import Answers, Rung, counted, grown_rungs, of_first_items, restored_for, rungs_of
from tesserec.serving.segments import SegmentPopularity
from tesserec.types import (
    PAD,
    Candidates,
    Catalog,
    Requests,
    TakesNewItems,
    Vocabulary,
    as_numpy,
    silent,
)

__all__ = ["Answer", "LoadedModel"]

_CHUNK = 512
"""Popular items that are looked at at once."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The list of one request, best first."""

    items: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A bundle in memory; item ids are strings. Build it with ``load``."""

    version: str
    """Of the bundle."""
    recipe: Recipe
    catalog: Catalog
    """The items that it can answer with, those added since the fit at the end."""
    num_fitted: int
    """Items before this number were known to the fit."""
    content: Content
    reader: Reader
    """How it reads events."""
    answers: Mapping[Rung, Answers]
    """Rung → what answers, from the top; the lowest is always ``popularity``."""
    fitted: Fitted
    """What else is remembered of the fit."""

    @classmethod
    def load(cls, folder: Path, version: str) -> LoadedModel:
        """The bundle in ``folder``, warm; raises ``BundleError`` that names a file that is missing or damaged."""
        bundle = Bundle.open(folder)
        recipe, events = parse_recipe(bundle.manifest.recipe), bundle.interactions
        catalog = _with_text_ids(bundle.catalog)
        derived = folder / "derived" if os.access(folder, os.W_OK) else None
        context = dataclasses.replace(fit_context(recipe, bundle.content, silent), derived_folder=derived)
        retriever = restored(recipe.retriever, bundle.serving, catalog, context)
        excludes = recipe.split.exclude_history
        newcomers = counted(Popularity(), events, catalog)
        model = cls(
            version=version,
            recipe=recipe,
            catalog=catalog,
            num_fitted=len(events.items),
            content=bundle.content,
            reader=Reader.of(events),
            answers=rungs_of(retriever, newcomers, events, catalog, bundle.content),
            fitted=Fitted(_as_text(events.users), not has_repeats(events) if excludes is None else excludes, newcomers),
        )
        model.warm_up()
        return model

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The rungs that this model has, from the top; a retriever that counts has none above its own."""
        return tuple(self.answers)

    @property
    def codebook_version(self) -> str | None:
        """Of the codes that the retriever was fitted on; None where it has none."""
        return None if self.content.semantic_ids is None else self.content.semantic_ids.codebook_version

    @property
    def exclude_history(self) -> bool:
        """Whether answers leave out what a user had, unless a request says otherwise; not where people buy again."""
        return self.fitted.exclude_history

    @cached_property
    def index(self) -> dict[str, int]:
        """Item id → dense index."""
        return {str(item): number for number, item in enumerate(self.catalog.items.ids.to_pylist())}

    def read(self, events: Sequence[Event], then: Sequence[str] = (), user_id: str | None = None) -> Past:
        """A user's events (oldest first), and the items ``then`` after them, as this model reads them.

        Items and kinds of events that it does not know are left out and named in the result.
        """
        user = -1 if user_id is None else self.fitted.users.position(user_id)
        return self.reader.read(self.index, events, then, user)

    def answer(self, rung: Rung, requests: Requests, k: int) -> Candidates:
        """The ``k`` best items that the filters allow; whoever has no positive event gets what is popular.

        Raises ``DataError`` for a rung that this model does not have.
        """
        if rung not in self.answers:
            raise DataError(f"this model has no rung {rung!r}: it has {', '.join(self.rungs)}")
        known_B = requests.history.positives().lengths > 0
        if bool(known_B.all()) and len(requests):
            return self._retrieved(rung, requests, k)
        if not bool(known_B.any()):
            return self.fitted.newcomers.retrieve(requests, k)
        rows = [known_B.nonzero().squeeze(1), (~known_B).nonzero().squeeze(1)]
        found = [
            self._retrieved(rung, requests.take(rows[0]), k),
            self.fitted.newcomers.retrieve(requests.take(rows[1]), k),
        ]
        order = torch.cat(rows).argsort()
        both = Candidates.concatenate([Candidates(part.items_BK, part.scores_BK) for part in found])
        return Candidates(both.items_BK[order], both.scores_BK[order])

    def answer_all(self, rung: Rung, questions: Sequence[Question]) -> list[Answer]:
        """The lists of questions that share ``k``, ``available_N`` and ``exclude_history``, in order."""
        found = self.answer(rung, requests_of(questions), questions[0].k)
        sizes = (found.items_BK != PAD).sum(1).tolist()
        rows = zip(found.items_BK.tolist(), found.scores_BK.tolist(), sizes, strict=True)
        return [Answer(tuple(items[:size]), tuple(scores[:size])) for items, scores, size in rows]

    def popular(self, question: Question) -> Answer:
        """What the lowest rung answers, without torch: for a caller that must not wait."""
        items, scores = self._newcomers_order if question.past.is_empty else self._popular_order
        allowed_N = question.available_N.numpy()
        banned = set(question.excluded) | (set(question.past.items) if question.exclude_history else set())
        picks: list[int] = []
        for start in range(0, len(items), _CHUNK):
            chunk = items[start : start + _CHUNK]
            for place in np.flatnonzero(allowed_N[chunk]).tolist():
                if int(chunk[place]) not in banned:
                    picks.append(start + place)
                    if len(picks) == question.k:
                        return Answer(tuple(items[picks].tolist()), tuple(scores[picks].tolist()))
        return Answer(tuple(items[picks].tolist()), tuple(scores[picks].tolist()))

    def with_items(self, new: Catalog) -> LoadedModel:
        """A model that also knows the items of ``new`` that this one lacks, warm; this one stays as it is.

        They get vectors and codes from what was fitted. A retriever that can only answer with items of its fit goes on
        doing so, and its counted rungs answer with all. Raises ``DataError`` where a new item's row cannot be used.
        """
        catalog = append_catalog(self.catalog, _with_text_ids(new))
        if len(catalog) == len(self.catalog):
            return self
        content = extended_content(self.recipe, self.content, catalog)
        context = fit_context(self.recipe, content, silent)
        answers = grown_rungs(self.answers, catalog, content, context)
        newcomers = restored_for(self.fitted.newcomers, catalog, context)
        fitted = dataclasses.replace(self.fitted, newcomers=newcomers)
        model = dataclasses.replace(self, catalog=catalog, content=content, answers=answers, fitted=fitted)
        model.warm_up()
        return model

    def warm_up(self) -> None:
        """Answer once from each rung, so that what is computed at the first answer is there before requests are."""
        if len(self.catalog):
            for rung in self.rungs:
                self.answer(rung, history_requests([[0]]), 1)
        # Reading these is what makes them.
        assert len(self.index) == len(self._popular_order[0]) == len(self._newcomers_order[0])

    def codes_of(self, index: int) -> tuple[int, ...] | None:
        """The code tuple of the item at a dense index; None where the model has no codes."""
        codes = self.content.semantic_ids
        return None if codes is None else tuple(codes.codes_NL[index].tolist())

    def similar(self, index: int, k: int, mask: Tensor) -> list[tuple[int, float]]:
        """The ``k`` items of ``mask`` (bool [N]) most like the item at ``index``, as (index, score), best first.

        The score is the cosine of content vectors; in a model without vectors, what the retriever proposes after a
        history of the item alone.
        """
        if self._unit_ND is None:
            requests = history_requests([[index]], exclude_history=True, available_N=mask)
            found = self.answer(self.rungs[0], requests, k)
        else:
            cosine_N = (self._unit_ND @ self._unit_ND[index]).masked_fill(~mask, -torch.inf)
            cosine_N[index] = -torch.inf
            best = cosine_N.topk(min(k, len(cosine_N)))
            found = Candidates(best.indices.masked_fill(best.values == -torch.inf, PAD)[None], best.values[None])
        pairs = zip(found.items_BK[0].tolist(), found.scores_BK[0].tolist(), strict=True)
        return [(item, score) for item, score in pairs if item != PAD]

    @cached_property
    def _popular_order(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        return _in_order(cast("Popularity", self.answers["popularity"]))

    @cached_property
    def _newcomers_order(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        return _in_order(self.fitted.newcomers)

    @cached_property
    def _unit_ND(self) -> Tensor | None:
        vectors = self.content.embeddings
        return None if vectors is None else F.normalize(vectors.vectors_ND, dim=1)

    def _retrieved(self, rung: Rung, requests: Requests, k: int) -> Candidates:
        answers = self.answers[rung]
        if isinstance(answers, SegmentPopularity | TakesNewItems) or self.num_fitted == len(self.catalog):
            return answers.retrieve(requests, k)
        return answers.retrieve(of_first_items(requests, self.num_fitted), k)


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a loaded model remembers of its fit beside the retriever."""

    users: Vocabulary
    exclude_history: bool
    newcomers: Popularity
    """Of all events: what answers who has no positive event, as in ``Recommender``."""


def _in_order(popularity: Popularity) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """All items from the most popular on, of equals the lower first, and their scores."""
    scores_N = as_numpy(popularity.score_all(history_requests([[]]))[0])
    items = np.argsort(-scores_N, kind="stable")
    return items, scores_N[items]


def _with_text_ids(catalog: Catalog) -> Catalog:
    frame = catalog.frame
    if "item_id" in frame.columns:
        frame = frame.with_columns(pl.col("item_id").cast(pl.String))
    return Catalog(_as_text(catalog.items), frame, catalog.available_N)


def _as_text(vocabulary: Vocabulary) -> Vocabulary:
    return Vocabulary(vocabulary.ids.cast(pa.large_string()))
