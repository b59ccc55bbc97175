"""What the gate asks: what users did after a time, and how two bundles answer it, compared by item ids.

A question is asked for a user: "what comes next?" after everything before the first step (a basket, or one event) in
which they did something positive after that time. Its answers are the items of the step, whichever bundle knows them.

Dimensions: B questions · K items of a list.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tesserec.bundle import Contents
from tesserec.evaluation.metrics import METRICS, rank_relevant
from tesserec.serving.loaded_model import LoadedModel
from tesserec.serving.pasts import Past, Question, Reader, requests_of
from tesserec.serving.records import Event, Store, StoredEvent
from tesserec.types import PAD, Candidates, Ragged, Requests, Retriever, Vocabulary

__all__ = ["Asked", "Side", "last_times", "ndcg_of", "overlaps_of", "pages", "questions_after"]

_PAGE = 10_000
_BATCH = 256
"""Questions that are answered at a time."""
_HISTORY = 1000
"""Events of a user that are read."""
_K = 20
"""Items that are asked for, so that ties beyond the tenth place are seen."""


@dataclass(frozen=True)
class Asked:
    """Questions and their answers, one a user."""

    since: int
    """They are of events after this time, seconds since 1970."""
    users: list[str] = field(default_factory=list)
    pasts: list[list[Event]] = field(default_factory=list)
    targets: list[list[str]] = field(default_factory=list)
    """Distinct item ids, at least one a question."""

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True, eq=False)
class Side:
    """A retriever, and how it reads users and items."""

    retriever: Retriever
    index: Mapping[str, int]
    """Item id → dense index, of the items that it was fitted with."""
    users: Vocabulary
    reader: Reader

    @classmethod
    def of(cls, contents: Contents, retriever: Retriever) -> Side:
        """``retriever``, over the users and items that the bundle was fitted with."""
        log = contents.interactions
        index = {str(item): number for number, item in enumerate(log.items.ids.to_pylist())}
        return cls(retriever, index, log.users, Reader.of(log))

    def read(self, user: str, past: Sequence[Event]) -> Past:
        """What it makes of a user's events."""
        return self.reader.read(self.index, past, user=int(self.users.find([user])[0]))


def pages(store: Store) -> Iterator[list[StoredEvent]]:
    """Every event of the store in order of arrival, some thousand at a time."""
    sequence = 0
    while page := store.events_after(sequence, _PAGE):
        yield page
        sequence = page[-1].sequence


def last_times(store: Store) -> dict[str, float]:
    """User → the time of the last thing that they did, seconds since 1970."""
    times: dict[str, float] = {}
    for page in pages(store):
        for stored in page:
            event = stored.event
            times[event.user_id] = max(event.time, times.get(event.user_id, event.time))
    return times


def questions_after(
    store: Store, times: Mapping[str, float], since: int, reader: Reader, *, num_questions: int, seed: int
) -> Asked:
    """At most so many questions about events after ``since`` (whole seconds), of users drawn with ``seed``.

    ``times`` is ``last_times``; ``reader`` says what is positive. Who did nothing positive before is not asked about.
    """
    asked = Asked(since)
    users = sorted(user for user, time in times.items() if int(time) > since)
    random.Random(seed).shuffle(users)
    for user in users:
        question = _question(store.history(user, _HISTORY), since, reader)
        if question is not None:
            asked.users.append(user)
            asked.pasts.append(question[0])
            asked.targets.append(question[1])
        if len(asked) == num_questions:
            break
    return asked


def _question(events: list[Event], since: int, reader: Reader) -> tuple[list[Event], list[str]] | None:
    """(what came before the first positive step after ``since``, its positive items); None where there is none."""
    everything = {event.item_id: 0 for event in events}
    read = [(event, reader.read(everything, [event])) for event in events]
    positive = [any(past.positive) for _, past in read]
    first = next((n for n, e in enumerate(events) if positive[n] and int(e.time) > since), None)
    if first is None:
        return None
    steps = _steps(events)
    start = steps.index(steps[first])
    targets = [e.item_id for n, e in enumerate(events) if steps[n] == steps[first] and positive[n]]
    return (events[:start], list(dict.fromkeys(targets))) if any(positive[:start]) else None


def _steps(events: Sequence[Event]) -> list[int]:
    """The step of each event: every kind counts, since a return in a basket does not divide it."""
    everything = {event.item_id: 0 for event in events}
    kinds = tuple({event.kind for event in events})
    return list(Reader(kinds, kinds, timed=True).read(everything, events).steps)


def ndcg_of(side: Side, asked: Asked, exclude_history: bool) -> Tensor:
    """NDCG@10 of each question at item level, [B] in [0, 1]; an item that the side does not know is not found."""
    unknown = len(side.index)
    relevant = []
    for targets in asked.targets:
        known = [side.index[item] for item in targets if item in side.index]
        relevant.append([*known, *range(unknown, unknown + len(targets) - len(known))])
    pasts = [side.read(user, past) for user, past in zip(asked.users, asked.pasts, strict=True)]
    found = _answers(lambda requests: side.retriever.retrieve(requests, _K), pasts, unknown, exclude_history)
    return METRICS["ndcg"](rank_relevant(Candidates.concatenate(found), Ragged.of(relevant)), 10)


def overlaps_of(new: LoadedModel, old: LoadedModel, histories: Mapping[str, list[Event]], k: int) -> Tensor:
    """The Jaccard similarity of the first ``k`` items that the two answer each user with, [B] in [0, 1].

    Users of whom either reads nothing positive are left out.
    """
    both = []
    for user, events in histories.items():
        pasts = [model.read(events, user_id=user) for model in (new, old)]
        if not any(past.is_empty for past in pasts):
            both.append(pasts)
    lists = [_lists(model, [pasts[side] for pasts in both], k) for side, model in enumerate((new, old))]
    return torch.tensor([len(a & b) / max(len(a | b), 1) for a, b in zip(*lists, strict=True)])


def _lists(model: LoadedModel, pasts: Sequence[Past], k: int) -> list[set[str]]:
    ids = model.catalog.items.ids.to_pylist()
    top = model.rungs[0]
    found = _answers(lambda requests: model.answer(top, requests, k), pasts, len(ids), model.exclude_history)
    return [{str(ids[item]) for item in row if item != PAD} for part in found for row in part.items_BK.tolist()]


def _answers(
    ask: Callable[[Requests], Candidates], pasts: Sequence[Past], num_items: int, exclude_history: bool
) -> list[Candidates]:
    all_N = torch.ones(num_items, dtype=torch.bool)
    questions = [Question(past, _K, all_N, exclude_history=exclude_history) for past in pasts]
    return [ask(requests_of(questions[at : at + _BATCH])) for at in range(0, len(questions), _BATCH)]
