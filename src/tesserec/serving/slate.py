"""The slate: of the candidates of one request, what is shown, in which order, and which rule had a say in it.

Rules act in this order, each on what the one before left; a rule that is not asked for does nothing:

1. ``boosts``: the weight of every boost whose expression holds is added to an item's score.
2. ``rotate``: for each time that the item was shown lately and nothing was done with it, so much is taken off.
3. ``cold_share`` 0: items added since the fit are left out, also where the list gets shorter than asked for.
4. ``diversity``: all that is left is ordered by MMR; scores become those of ``tesserec.rerankers.mmr``.
5. ``cold_share`` above 0, a floor: at least ⌈share · k⌉ places go to items added since the fit, the first of that
   order, or as many as there are among the candidates; they take the places of the last of the others.
6. ``sample``: the slate is drawn instead of cut off, each item with a probability in proportion to
   exp(score / temperature), at most 1. The floor of ``cold_share`` holds in every draw: where fewer than it would be
   drawn on average, exactly the floor is drawn of the items added since the fit, and the rest of the others.

The score of an item is the model's plus what the rules changed, and the slate is sorted by it. Sampling comes after all
that changes scores, and only sorts what it drew, so that an item's propensity is exactly its probability to be in the
slate, given candidates and rules. ``diversity`` and ``sample`` exclude each other: what is drawn would have to depend
on what was drawn before.

Dimensions: X candidates · R boosts · N items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import polars as pl
import torch
from torch import Tensor

from tesserec.bundle import Content
from tesserec.errors import DataError
from tesserec.rerankers.mmr import MMR
from tesserec.rerankers.systematic_sampling import draw, inclusion_probabilities
from tesserec.serving.filters import compile_filter
from tesserec.serving.schemas import Boost, RecommendRequest
from tesserec.serving.snapshot import CatalogSnapshot
from tesserec.types import PAD, Candidates, Filters, History, Requests, Vocabulary

__all__ = ["Move", "Placed", "Slate", "Taken", "arrange"]


@dataclass(frozen=True, slots=True)
class Move:
    """What a rule did to an item."""

    rule: str
    """The field of the request, and which boost."""
    change: float
    """What it added to the score."""
    places: int = 0
    """How many places it went up by, other than by its score; below 0 down."""

    def __str__(self) -> str:
        parts = [f"{self.change:+.4g}"] if self.change else []
        if self.places:
            parts.append(f"{'up' if self.places > 0 else 'down'} {abs(self.places)}")
        return f"{self.rule}: {', '.join(parts) or 'no change'}"


@dataclass(frozen=True, slots=True)
class Placed:
    """One item of a slate."""

    item: int
    """Dense index."""
    score: float
    """The model's score plus the changes of ``moves``."""
    propensity: float | None
    """Exact probability to be in the slate, where it was sampled."""
    cold: bool
    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """An item that would have been shown but for a rule."""

    item: int
    rule: str


@dataclass(frozen=True, slots=True)
class Slate:
    """What is shown, best first, and what rules took out of it."""

    items: tuple[Placed, ...]
    removed: tuple[Taken, ...]
    """Items that were among the first k before a rule and not after it, nor in the slate; the last such rule."""


@dataclass(eq=False)
class _State:
    """Candidates on their way through the rules, best first; X shrinks as they are left out."""

    k: int
    items_X: Tensor
    scores_X: Tensor
    cold_X: Tensor
    moves: dict[int, list[Move]] = field(default_factory=dict)
    """By item."""
    tops: list[tuple[str, list[int]]] = field(default_factory=list)
    """After each rule, the first k items."""

    def moved(self, item: int, move: Move) -> None:
        self.moves.setdefault(item, []).append(move)

    def keep(self, picks: Tensor, scores: Tensor | None = None) -> None:
        """Go on with the candidates at ``picks``, in that order."""
        self.items_X, self.cold_X = self.items_X[picks], self.cold_X[picks]
        self.scores_X = self.scores_X[picks] if scores is None else scores

    def mark(self, rule: str) -> None:
        """Note what is on top after ``rule``."""
        self.tops.append((rule, self.items_X[: self.k].tolist()))


def arrange(
    candidates: Candidates,
    snapshot: CatalogSnapshot,
    request: RecommendRequest,
    *,
    shown: Mapping[str, int],
    content: Content,
    generator: torch.Generator,
) -> Slate:
    """The slate of one request: min(``request.k``, candidates) of its candidates, after its rules.

    ``candidates`` are those of one request, all of them legal, and more than k where rules are to have a choice: rules
    see nothing else. ``shown`` counts by item id how often the user was shown an item lately without a reaction. The
    slate is shorter than k only with ``cold_share`` 0, or where there are fewer candidates. Raises ``DataError`` where
    ``diversity`` and ``sample`` are both asked for, where diversity has nothing to compare, and for a boost whose
    expression does not fit the catalog.
    """
    if len(candidates) != 1:
        raise DataError(f"candidates of {len(candidates)} requests: arrange one slate at a time")
    if request.diversity and request.sample is not None:
        raise DataError(
            f"diversity = {request.diversity} and sample = {request.sample}: probabilities of a slate are exact only "
            "where items do not depend on each other; leave one of them out"
        )
    state = _begun(candidates, snapshot, request.k)
    if request.boosts:
        _boost(state, snapshot.frame, request.boosts)
    if request.rotate and shown:
        _rotate(state, snapshot.items, request.rotate, shown)
    if request.cold_share == 0:
        state.keep((~state.cold_X).nonzero().squeeze(1))
        state.mark("cold_share")
    if request.diversity and len(state.items_X):
        _diversify(state, request.diversity, content, needed=len(state.items_X) if request.cold_share else request.k)
    floor = min(math.ceil((request.cold_share or 0) * request.k - 1e-9), int(state.cold_X.sum()))
    propensities = None
    if request.sample is not None:
        propensities = _sample(state, request.sample, floor, generator)
    else:
        _fill(state, floor)
    return _finished(state, propensities)


def _begun(candidates: Candidates, snapshot: CatalogSnapshot, k: int) -> _State:
    here_X = candidates.items_BK[0] != PAD
    items_X = candidates.items_BK[0][here_X]
    # In double precision, so that the model's score and the changes of rules add up to what is said.
    state = _State(k, items_X, candidates.scores_BK[0][here_X].double(), items_X >= snapshot.num_fitted)
    state.mark("model")
    return state


def _boost(state: _State, frame: pl.DataFrame, boosts: Sequence[Boost]) -> None:
    holds = [compile_filter(boost.when, frame.schema).alias(str(n)) for n, boost in enumerate(boosts)]
    read = {name for expression in holds for name in expression.meta.root_names()}
    rows = frame.select(read)[state.items_X.numpy()]
    holds_XR = torch.from_numpy(rows.select(holds).to_numpy().copy())
    for boost, holds_X in zip(boosts, holds_XR.T, strict=True):
        state.scores_X = state.scores_X + boost.weight * holds_X
        for item in state.items_X[holds_X].tolist():
            state.moved(item, Move(f"boosts: {boost.when}", boost.weight))
    _sort(state, "boosts")


def _rotate(state: _State, items: Vocabulary, rotate: float, shown: Mapping[str, int]) -> None:
    times = [shown.get(str(item_id), 0) for item_id in items.to_ids(state.items_X)]
    state.scores_X = state.scores_X - rotate * torch.tensor(times, dtype=torch.float64)
    for item, count in zip(state.items_X.tolist(), times, strict=True):
        if count:
            state.moved(item, Move(f"rotate: shown {count} times", -rotate * count))
    _sort(state, "rotate")


def _sort(state: _State, rule: str) -> None:
    scores_X, order_X = state.scores_X.sort(descending=True, stable=True)
    state.keep(order_X, scores_X)
    state.mark(rule)


def _diversify(state: _State, diversity: float, content: Content, needed: int) -> None:
    vectors, codes = content.embeddings, content.semantic_ids
    mmr = MMR(diversity=diversity).prepare(
        None if vectors is None else vectors.vectors_ND, None if codes is None else codes.codes_NL
    )
    found = mmr.rerank(_NOBODY, Candidates(state.items_X[None], state.scores_X[None]), min(needed, len(state.items_X)))
    place = {item: x for x, item in enumerate(state.items_X.tolist())}
    picks = torch.tensor([place[item] for item in found.items_BK[0].tolist()])
    changes = (found.scores_BK[0] - state.scores_X[picks]).tolist()
    for now, (before, change) in enumerate(zip(picks.tolist(), changes, strict=True)):
        if change or before != now:
            state.moved(int(state.items_X[before]), Move("diversity", change, before - now))
    state.keep(picks, found.scores_BK[0])
    state.mark("diversity")


def _fill(state: _State, floor: int) -> None:
    """Cut the list to k, with at least ``floor`` cold items; what is left keeps its order."""
    reserved_X = state.cold_X & (state.cold_X.cumsum(0) <= floor)
    # Reserved ones first, then the others as they come.
    first_X = (~reserved_X).long().argsort(stable=True)[: state.k]
    picks = first_X.sort().values
    _take(state, picks, "cold_share")


def _sample(state: _State, temperature: float, floor: int, generator: torch.Generator) -> list[float]:
    """Draw the slate; the probability of each item of it."""
    inclusion_X = inclusion_probabilities(state.scores_X, state.k, temperature)
    if float(inclusion_X[state.cold_X].sum()) < floor:
        for group_X, size in ((state.cold_X, floor), (~state.cold_X, state.k - floor)):
            inclusion_X[group_X] = inclusion_probabilities(state.scores_X[group_X], size, temperature)
    picks = draw(inclusion_X, generator, state.cold_X if floor else None)
    _take(state, picks, "sample")
    return list(inclusion_X[picks].tolist())


def _take(state: _State, picks: Tensor, rule: str) -> None:
    """Show the candidates at ``picks`` (ascending), and note which of them come from behind the first k."""
    for now, before in enumerate(picks.tolist()):
        if before >= state.k:
            state.moved(int(state.items_X[before]), Move(rule, 0.0, before - now))
    state.keep(picks)
    state.mark(rule)


def _finished(state: _State, propensities: list[float] | None) -> Slate:
    taken: dict[int, str] = {}
    for (_, before), (rule, now) in pairwise(state.tops):
        taken |= dict.fromkeys(set(before) - set(now), rule)
    items = state.items_X.tolist()
    asked = {item: taken[item] for _, top in state.tops for item in top if item in taken.keys() - set(items)}
    told: list[float | None] = [None] * len(items) if propensities is None else list(propensities)
    rows = zip(items, state.scores_X.tolist(), told, state.cold_X.tolist(), strict=True)
    placed = tuple(Placed(item, score, p, cold, tuple(state.moves.get(item, ()))) for item, score, p, cold in rows)
    return Slate(placed, tuple(Taken(item, rule) for item, rule in asked.items()))


_NOBODY = Requests(
    History(torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)),
    filters=Filters(),
)
