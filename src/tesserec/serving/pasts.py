"""What a model reads of a user: stored events as dense rows, and rows put together as ``Requests``.

Events of one session, or of one time where either has no session, are one step, as in ``Interactions.step_E``, so that
a served history is read as one that was fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tesserec.serving.records import Event
from tesserec.types import NO_TIME, Filters, History, Interactions, Ragged, Requests

__all__ = ["Past", "Question", "Reader", "requests_of"]

NEVER_POSITIVE = frozenset({"return", "impression"})
"""Kinds that a model which was fitted without kinds does not read: the others count as what it was fitted on."""


@dataclass(frozen=True, slots=True)
class Past:
    """A user's events as a model reads them, oldest first."""

    items: tuple[int, ...] = ()
    times: tuple[int, ...] = ()
    """Whole seconds, ``NO_TIME`` where unknown."""
    steps: tuple[int, ...] = ()
    positive: tuple[bool, ...] = ()
    kinds: tuple[int, ...] = ()
    """Codes of the bundle's kinds; 0 where it has none."""
    user: int = -1
    """Dense index of the user in the bundle; −1 where it does not know them."""
    unknown_items: tuple[str, ...] = ()
    """Items that were left out because the model has no place for them, each once."""
    unknown_kinds: tuple[str, ...] = ()
    """Kinds of events that were left out because the model was not fitted on them, each once."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to recommend from: no event that is a positive one."""
        return not any(self.positive)


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A past and what must not be answered; ``available_N`` is the same object for questions of one filter."""

    past: Past
    k: int
    available_N: Tensor
    """Items that may be shown, bool [N]."""
    excluded: tuple[int, ...] = ()
    exclude_history: bool = False


@dataclass(frozen=True)
class Reader:
    """How the events of a bundle read: their kinds, and whether they have times."""

    kinds: tuple[str, ...]
    positive_kinds: tuple[str, ...]
    timed: bool

    @classmethod
    def of(cls, events: Interactions) -> Reader:
        """As ``events`` were."""
        timed = bool((events.time_E != NO_TIME).any())
        return cls(events.kinds if events.kind_E is not None else (), events.positive_kinds, timed)

    def read(self, index: Mapping[str, int], events: Sequence[Event], then: Sequence[str] = (), user: int = -1) -> Past:
        """The events whose item ``index`` has, then the items ``then``, which are steps of their own without a time."""
        known = [event for event in events if event.item_id in index and self._reads(event.kind)]
        after = [index[item] for item in then if item in index]
        steps = self._steps(known)
        first = steps[-1] + 1 if steps else 0
        return Past(
            (*(index[event.item_id] for event in known), *after),
            (*(self._time(event) for event in known), *[NO_TIME] * len(after)),
            (*steps, *range(first, first + len(after))),
            (*(self._is_positive(event.kind) for event in known), *[True] * len(after)),
            (*(self.kinds.index(event.kind) if self.kinds else 0 for event in known), *[self._usual] * len(after)),
            user,
            tuple(dict.fromkeys(i for i in (*(event.item_id for event in events), *then) if i not in index)),
            tuple(dict.fromkeys(event.kind for event in events if not self._reads(event.kind))),
        )

    @property
    def _usual(self) -> int:
        """The kind of an item of which only the id is told: the first positive one."""
        return min((self.kinds.index(kind) for kind in self.positive_kinds), default=0)

    def _reads(self, kind: str) -> bool:
        return kind in self.kinds if self.kinds else kind not in NEVER_POSITIVE

    def _is_positive(self, kind: str) -> bool:
        return not self.positive_kinds or kind in self.positive_kinds

    def _time(self, event: Event) -> int:
        return int(event.time) if self.timed else NO_TIME

    def _steps(self, events: Sequence[Event]) -> list[int]:
        steps = [0] if events else []
        for before, event in pairwise(events):
            if before.session is not None and event.session is not None:
                together = before.session == event.session
            else:
                together = self.timed and self._time(before) == self._time(event)
            steps.append(steps[-1] + (not together))
        return steps


def requests_of(questions: Sequence[Question]) -> Requests:
    """Questions that share ``available_N`` and ``exclude_history`` as one batch, in order."""
    pasts = [question.past for question in questions]
    rows = Ragged.of([past.items for past in pasts])
    columns = {
        "time": torch.tensor([time for past in pasts for time in past.times], dtype=torch.int64),
        "step": torch.tensor([step for past in pasts for step in past.steps], dtype=torch.int64),
        "positive": torch.tensor([flag for past in pasts for flag in past.positive], dtype=torch.bool),
        "kind": torch.tensor([kind for past in pasts for kind in past.kinds], dtype=torch.int64),
    }
    excluded = Ragged.of([question.excluded for question in questions])
    filters = Filters(
        questions[0].exclude_history,
        excluded if len(excluded.values) else None,
        questions[0].available_N,
    )
    user_B = torch.tensor([past.user for past in pasts], dtype=torch.int64)
    return Requests(History(rows.offsets, rows.values, columns), user_B=user_B, filters=filters)
