"""Why items are in a slate, in statements that can be checked by asking again.

* *History*: what an item's score loses when one thing is taken out of the history, all its occurrences. The model is
  asked again without it, by the call that answers requests, with the items of the slate as the only ones allowed. A
  score does not depend on which other items may be shown: each source of evidence is normalised before filters. So
  whoever takes the thing out of the history and asks for a list finds the item with its score less the stated change.
* *Path*: the item's codes in the order in which they are generated, each with its log-probability given those before.
  They add up to what the generative head says of the item; an item that shares its codes with others has the same.
* *Sources*: what each source of evidence put into the model's score; they add up to it.
* *Removed*: what would have been in the list if nothing were forbidden, and which rule took it.

A history of one thing alone gets no statement on it: without it, the answer is what is popular, whose scores are on a
scale of their own.

Dimensions: V variants of the history · X items of the slate · L levels · H history events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tesserec.decoding.frontier import Distribution, Frontier, Generation
from tesserec.serving.loaded_model import LoadedModel
from tesserec.serving.rungs import Rung
from tesserec.serving.schemas import Explanation, Moved, RecommendRequest, Removed, Step
from tesserec.serving.slate import Slate
from tesserec.serving.snapshot import CatalogSnapshot
from tesserec.types import PAD, Candidates, Filters, History, Ragged, Requests

__all__ = ["MAX_NAMED", "Generates", "code_paths", "explanations", "removed_items"]

MAX_NAMED = 30
"""Distinct things of a history that are taken out in turn, the last ones."""


@runtime_checkable
class Generates(Protocol):
    """A retriever with a generative head."""

    def generation(self, requests: Requests) -> Generation[Any]:
        """The requests as read by it."""


def explanations(
    model: LoadedModel, rung: Rung, requests: Requests, *, slate: Slate, snapshot: CatalogSnapshot
) -> list[Explanation]:
    """For each item of a slate, why it is there; ``requests`` is the one that ``rung`` of ``model`` answered.

    Of ``history`` the largest changes come first, and what changes nothing is left out.
    """
    assert len(requests) == 1, "one request at a time"
    items = [placed.item for placed in slate.items]
    if not items:
        return []
    named, variants = _without_each(requests, items)
    found = model.answer(rung, variants, len(items))
    scores = [_by_item(row) for row in zip(found.items_BK.tolist(), found.scores_BK.tolist(), strict=True)]
    paths = _paths(model, rung, requests, items)
    return [
        Explanation(
            history=_moved(placed.item, named, scores, snapshot),
            path=path,
            sources=_sources(found, placed.item),
            rules=[str(move) for move in placed.moves],
        )
        for placed, path in zip(slate.items, paths, strict=True)
    ]


def removed_items(
    model: LoadedModel,
    rung: Rung,
    requests: Requests,
    *,
    asked: RecommendRequest,
    slate: Slate,
    snapshot: CatalogSnapshot,
) -> list[Removed]:
    """What ``rung`` would have answered without any filter and is not in the slate, best first, with the rule.

    Rules, the first that holds: ``deleted``, ``unavailable``, ``history``, ``exclude``, ``filter``, ``cold_share`` (0),
    ``query``; then those of ``tesserec.serving.slate``, also for items that another rule had lifted into the list.
    """
    free = Requests(requests.history, requests.time_B, requests.user_B)
    best = [item for item in model.answer(rung, free, asked.k).items_BK[0].tolist() if item != PAD]
    taken = {one.item: one.rule for one in slate.removed}
    rules = {item: _forbidden_by(item, requests, asked, snapshot) or taken.get(item) for item in best} | {
        item: rule for item, rule in taken.items() if item not in best
    }
    shown = {placed.item for placed in slate.items}
    gone = {item: rule for item, rule in rules.items() if rule is not None and item not in shown}
    ids = _ids(snapshot, list(gone))
    return [Removed(item_id=item_id, rule=rule) for item_id, rule in zip(ids, gone.values(), strict=True)]


def code_paths(read: Generation[Any], items: Sequence[int]) -> Tensor:
    """The log-probability of each code on the way to each item, [X, L]; ``read`` is of one request."""
    trie = read.trie
    frontier = Frontier(read.step, read.cache, trie, 1, None, Distribution(), None)
    nodes_XL = trie.paths(trie.leaf_N[torch.tensor(items, device=trie.device)].long())
    levels = []
    for level in range(trie.num_levels):
        log_probs_MC = frontier.expand()[0]
        # A beam an item, after the root.
        beam_X = torch.arange(len(items), device=trie.device) if level else torch.zeros_like(nodes_XL[:, 0])
        is_next_XC = frontier.children_BX.view_as(log_probs_MC)[beam_X] == nodes_XL[:, level, None]
        place_X = is_next_XC.long().argmax(1)
        levels.append(log_probs_MC[beam_X, place_X])
        picks_X = beam_X * log_probs_MC.shape[1] + place_X
        frontier.keep(picks_X[None], frontier.log_probs_BM[:, beam_X] + levels[-1])
    return torch.stack(levels, 1).cpu()


def _without_each(requests: Requests, items: Sequence[int]) -> tuple[list[int], Requests]:
    """(the things that are taken out in turn, the request as it is and then without each of them)."""
    history = requests.history
    positive_H = history.columns.get("positive", torch.ones_like(history.items, dtype=torch.bool))
    last = list(dict.fromkeys(reversed(history.items.tolist())))[:MAX_NAMED]
    named = [item for item in last if bool((positive_H & (history.items != item)).any())]
    keeps = [torch.ones_like(history.items, dtype=torch.bool), *(history.items != item for item in named)]
    lengths_V = torch.tensor([0, *(int(keep.sum()) for keep in keeps)])
    where = torch.cat([keep.nonzero().squeeze(1) for keep in keeps])
    columns = {name: column[where] for name, column in history.columns.items()}
    many = History(lengths_V.cumsum(0), history.items[where], columns)
    allowed = Ragged.of([items] * len(keeps))
    time_V, user_V = (
        None if column is None else column.expand(len(keeps)) for column in (requests.time_B, requests.user_B)
    )
    return named, Requests(many, time_V, user_V, Filters(allowed=allowed))


def _by_item(row: tuple[list[int], list[float]]) -> dict[int, float]:
    return {item: score for item, score in zip(*row, strict=True) if item != PAD}


def _moved(
    item: int, named: Sequence[int], scores: Sequence[Mapping[int, float]], snapshot: CatalogSnapshot
) -> list[Moved]:
    """What the score of ``item`` loses without each of ``named``, where the model scores it without."""
    full, *without = scores
    changes = {
        thing: full[item] - those[item]
        for thing, those in zip(named, without, strict=True)
        if item in full and item in those and full[item] != those[item]
    }
    ordered = sorted(changes, key=lambda thing: -abs(changes[thing]))
    return [
        Moved(item_id=item_id, title=snapshot.titles[thing], change=changes[thing])
        for thing, item_id in zip(ordered, _ids(snapshot, ordered), strict=True)
    ]


def _sources(found: Candidates, item: int) -> dict[str, float]:
    """What each source says of ``item`` in the first list."""
    at = (found.items_BK[0] == item).nonzero().flatten().tolist()
    return {name: float(found.trace[name][0, at[0]]) for name in found.sources if at and name in found.trace}


def _paths(model: LoadedModel, rung: Rung, requests: Requests, items: Sequence[int]) -> list[list[Step]]:
    """The code path of each item, with log-probabilities where a generative head answered."""
    retriever: object = model.answers.get("generative")
    known = bool(requests.history.positives().lengths > 0)
    if rung == "generative" and known and isinstance(retriever, Generates):
        read = retriever.generation(Requests(requests.history, requests.time_B, requests.user_B))
        log_probs_XL = code_paths(read, items).tolist()
        codes_XL = read.trie.codes_of(read.trie.leaf_N[torch.tensor(items)].long())[:, list(read.trie.order)].tolist()
        return [
            [Step(code=code, log_probability=p) for code, p in zip(*row, strict=True)]
            for row in zip(codes_XL, log_probs_XL, strict=True)
        ]
    return [[Step(code=code, log_probability=None) for code in model.codes_of(item) or ()] for item in items]


def _forbidden_by(item: int, requests: Requests, asked: RecommendRequest, snapshot: CatalogSnapshot) -> str | None:
    """The rule that forbids an item to this request; None where it is legal."""
    filters = requests.filters
    if item >= len(snapshot.deleted_N) or snapshot.deleted_N[item]:
        return "deleted"
    if not snapshot.available_N[item]:
        return "unavailable"
    if filters.exclude_history and bool((requests.history.items == item).any()):
        return "history"
    if _ids(snapshot, [item])[0] in asked.exclude:
        return "exclude"
    if asked.filter is not None and not snapshot.holds(asked.filter)[item]:
        return "filter"
    if asked.cold_share == 0 and item >= snapshot.num_fitted:
        return "cold_share"
    found = [filters.available_N is None or bool(filters.available_N[item])]
    found.append(filters.allowed is None or bool((filters.allowed.values == item).any()))
    return None if all(found) else "query"


def _ids(snapshot: CatalogSnapshot, items: Sequence[int]) -> list[str]:
    return [str(item_id) for item_id in snapshot.items.to_ids(torch.tensor(items, dtype=torch.int64))]
