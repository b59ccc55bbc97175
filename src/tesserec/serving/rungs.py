"""The rungs of a model: the ways to answer a request, from the best to the cheapest.

    rung                 answers with
    generative           the retriever as it was fitted
    dense                Mosaic's dense head alone; it shares the network
    cooccurrence         what followed the last items of the history, counted
    segment_popularity   what users of the same first code had
    popularity           what is popular

A counted rung is the retriever's own part, or counted of the bundle's events.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, Protocol, TypeVar, cast

import torch

from tesserec.bundle import Content
from tesserec.config import fresh
from tesserec.retrievers.cooccurrence import Cooccurrence
from tesserec.retrievers.mosaic import Mosaic
from tesserec.retrievers.popularity import Popularity
from tesserec.serving.segments import SegmentPopularity, segments_of
from tesserec.types import (
    Candidates,
    Catalog,
    Filters,
    FitContext,
    History,
    Interactions,
    Ragged,
    Requests,
    Retriever,
    TakesNewItems,
)

__all__ = ["RUNGS", "Answers", "Rung", "counted", "grown_rungs", "of_first_items", "restored_for", "rungs_of"]

Rung = Literal["generative", "dense", "cooccurrence", "segment_popularity", "popularity"]
RUNGS: tuple[Rung, ...] = ("generative", "dense", "cooccurrence", "segment_popularity", "popularity")
"""From the top."""

Counter = TypeVar("Counter", Cooccurrence, Popularity)
Restored = TypeVar("Restored", bound=Retriever)


class Answers(Protocol):
    """What answers on a rung."""

    def retrieve(self, requests: Requests, k: int) -> Candidates:
        """As of ``Retriever``."""


def rungs_of(
    retriever: Retriever, popularity: Popularity, events: Interactions, catalog: Catalog, content: Content
) -> dict[Rung, Answers]:
    """What answers on each rung; counts that the retriever does not have are made of ``events``."""
    if isinstance(retriever, Popularity):
        return {"popularity": retriever}
    rungs: dict[Rung, Answers] = {}
    if isinstance(retriever, Cooccurrence):
        rungs["cooccurrence"] = retriever
    elif isinstance(retriever, Mosaic):
        rungs |= {"generative": retriever, "dense": retriever.answering("dense")}
        rungs["cooccurrence"] = retriever.cooccurrence
    else:
        rungs |= {"generative": retriever, "cooccurrence": counted(Cooccurrence(), events, catalog)}
    segment_N = segments_of(catalog, content)
    if segment_N is not None:
        rungs["segment_popularity"] = SegmentPopularity.fitted(events, segment_N, popularity.share_N())
    return {**rungs, "popularity": popularity}


def counted(counter: Counter, events: Interactions, catalog: Catalog) -> Counter:
    """The counter, fitted on ``events``."""
    counter.fit(events, catalog, FitContext())
    return counter


def grown_rungs(
    answers: Mapping[Rung, Answers], catalog: Catalog, content: Content, context: FitContext
) -> dict[Rung, Answers]:
    """New retrievers for a larger catalog, in place of those that take new items."""
    new: dict[Rung, Answers] = {}
    for rung, old in reversed(list(answers.items())):
        if isinstance(old, SegmentPopularity):
            segment_N = segments_of(catalog, content)
            assert segment_N is not None, "a catalog that grows keeps its codes and domains"
            new[rung] = old.grown(segment_N, cast("Popularity", new["popularity"]).share_N())
        elif isinstance(old, Mosaic) and rung == "dense":
            continue  # a view of the generative rung
        elif isinstance(old, Retriever) and isinstance(old, TakesNewItems):
            new[rung] = restored_for(old, catalog, context)
        else:
            new[rung] = old
    top = new.get("generative")
    if isinstance(top, Mosaic):
        new |= {"dense": top.answering("dense"), "cooccurrence": top.cooccurrence}
    return {rung: new[rung] for rung in answers}


def restored_for(old: Restored, catalog: Catalog, context: FitContext) -> Restored:
    """The same, fitted as ``old`` was, for a larger catalog."""
    made = fresh(old)
    made.restore(old.state(), catalog, context)
    return made


def of_first_items(requests: Requests, number: int) -> Requests:
    """The requests in terms of the first ``number`` items: the others are neither read nor answered."""
    history, filters = requests.history, requests.filters
    keep = history.items < number
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), keep.long().cumsum(0)])
    first = History(ends[history.offsets], history.items[keep], {k: v[keep] for k, v in history.columns.items()})
    excluded = None if filters.excluded is None else _ragged_below(filters.excluded, number)
    available_N = None if filters.available_N is None else filters.available_N[:number]
    allowed = None if filters.allowed is None else _ragged_below(filters.allowed, number)
    only = Filters(filters.exclude_history, excluded, available_N, allowed)
    return dataclasses.replace(requests, history=first, filters=only)


def _ragged_below(rows: Ragged, number: int) -> Ragged:
    keep = rows.values < number
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), keep.long().cumsum(0)])
    return Ragged(ends[rows.offsets], rows.values[keep])
