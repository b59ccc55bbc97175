"""``Asked``: one request for recommendations on its way through the stages, which all see one model and one snapshot.

Everything here blocks or computes; ``tesserec.serving.engine`` says where and when it runs.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tesserec.recommender import NO_HISTORY
from tesserec.serving.explain import explanations, removed_items
from tesserec.serving.ladder import Climbed
from tesserec.serving.live_catalog import LiveCatalog
from tesserec.serving.loaded_model import Answer, LoadedModel
from tesserec.serving.pasts import Past, Question, requests_of
from tesserec.serving.records import Event, Impression, new_id
from tesserec.serving.schemas import Explanation, Recommended, RecommendRequest, RecommendResponse, Removed
from tesserec.serving.slate import Placed, Slate, arrange
from tesserec.serving.snapshot import CatalogSnapshot
from tesserec.types import Candidates

__all__ = ["MAX_FOUND", "Asked", "times_shown"]

MAX_FOUND = 1000
"""Items that the words of a request find at most."""
MIN_CANDIDATES = 100
"""Candidates that rules choose from, at least."""
_NAMED = 5
"""Unknown items that a note names."""


@dataclass(eq=False)
class Asked:
    """A request, what answers it, and what the stages found out."""

    request: RecommendRequest
    live: LiveCatalog[LoadedModel]
    model: LoadedModel
    snapshot: CatalogSnapshot
    arm: str
    started: float = field(default_factory=time.perf_counter)
    notes: list[str] = field(default_factory=list)
    stages_ms: dict[str, float] = field(default_factory=dict)
    events: Sequence[Event] = ()

    @property
    def has_rules(self) -> bool:
        """Whether more has to be done with the candidates than to cut them off."""
        asked = self.request
        rules = (asked.boosts, asked.diversity, asked.rotate, asked.sample, asked.explain)
        return any(rules) or asked.cold_share is not None

    def mask(self) -> Tensor:
        """Which items may be shown, bool [N]; the same object for requests of one filter without words.

        Raises ``FilterError``.
        """
        mask_N = self.snapshot.mask(self.request.filter, cold=self.request.cold_share != 0)
        if self.request.query is None:
            return mask_N
        found_N = torch.zeros_like(mask_N)
        found_N[[index for index, _ in self.live.search(self.request.query, MAX_FOUND, mask_N)]] = True
        return found_N

    def question(self, mask_N: Tensor) -> Question:
        """What the model is asked; what it leaves out of the history becomes notes."""
        asked = self.request
        past = self.model.read(self.events, asked.history or (), asked.user_id)
        self._note(past)
        excluded = tuple(sorted({index for item in asked.exclude if (index := self.snapshot.index(item)) is not None}))
        excludes = self.model.exclude_history if asked.exclude_history is None else asked.exclude_history
        k = max(2 * asked.k, MIN_CANDIDATES) if self.has_rules else asked.k
        return Question(past, k, mask_N, excluded, excludes)

    def cold_question(self, question: Question) -> Question | None:
        """What is asked beside ``question`` where a share of the list is for items added since the fit."""
        share = self.request.cold_share
        if not share or self.snapshot.num_fitted == len(self.snapshot):
            return None
        cold_N = question.available_N.clone()
        cold_N[: self.snapshot.num_fitted] = False
        k = math.ceil(share * self.request.k)
        return Question(question.past, k, cold_N, question.excluded, question.exclude_history)

    def slate(self, answer: Answer, shown: Mapping[str, int]) -> Slate:
        """What is shown of an answer."""
        if not self.has_rules:
            first = self.snapshot.num_fitted
            pairs = zip(answer.items, answer.scores, strict=True)
            return Slate(tuple(Placed(item, score, None, item >= first, ()) for item, score in pairs), ())
        candidates = Candidates(
            torch.tensor([answer.items], dtype=torch.int64).view(1, -1),
            torch.tensor([answer.scores], dtype=torch.float64).view(1, -1),
        )
        generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "big"))
        return arrange(
            candidates, self.snapshot, self.request, shown=shown, content=self.model.content, generator=generator
        )

    def explained(self, climbed: Climbed, question: Question, slate: Slate) -> tuple[list[Explanation], list[Removed]]:
        """Why each item is there, and what rules took out."""
        requests = requests_of([question])
        return (
            explanations(self.model, climbed.rung, requests, slate=slate, snapshot=self.snapshot),
            removed_items(self.model, climbed.rung, requests, asked=self.request, slate=slate, snapshot=self.snapshot),
        )

    def response(
        self, climbed: Climbed, slate: Slate, explained: tuple[list[Explanation], list[Removed]] | None = None
    ) -> RecommendResponse:
        """The answer, with what its time was spent on."""
        if len(slate.items) < self.request.k:
            self.notes.append(_shorter(len(slate.items)))
        self.notes += [f"{rung} did not answer: {reason}" for rung, reason in climbed.fallen]
        # One by one: a list of twenty is looked up together at three to thirty times the cost.
        titles, ids = self.snapshot.titles, self.snapshot.items.ids
        items = [
            Recommended(
                item_id=ids[placed.item].as_py(),
                score=placed.score,
                rank=rank,
                title=titles[placed.item],
                propensity=placed.propensity,
                cold=placed.cold,
                explanation=None if explained is None else explained[0][rank - 1],
            )
            for rank, placed in enumerate(slate.items, 1)
        ]
        self.stages_ms |= {"queue": climbed.answered.queue_ms, "model": climbed.answered.model_ms}
        self.stages_ms["total"] = 1e3 * (time.perf_counter() - self.started)
        return RecommendResponse(
            response_id=new_id(128),
            user_id=self.request.user_id,
            items=items,
            rung=climbed.rung,
            arm=self.arm,
            stages_ms={name: round(ms, 3) for name, ms in self.stages_ms.items()},
            notes=self.notes,
            removed=None if explained is None else explained[1],
            model_version=self.model.version,
            codebook_version=self.model.codebook_version,
            table_revision=self.snapshot.revision,
        )

    def impression(self, response: RecommendResponse) -> Impression:
        """The answer as the store keeps it."""
        drawn = [item.propensity for item in response.items if item.propensity is not None]
        return Impression(
            response_id=response.response_id,
            time=time.time(),
            user_id=response.user_id,
            scenario=self.request.scenario,
            items=tuple(item.item_id for item in response.items),
            scores=tuple(item.score for item in response.items),
            propensities=tuple(drawn) if self.request.sample is not None else None,
            model_version=response.model_version,
            codebook_version=response.codebook_version,
            table_revision=response.table_revision,
            rung=response.rung,
            arm=response.arm,
        )

    def _note(self, past: Past) -> None:
        if past.unknown_items:
            named = ", ".join(past.unknown_items[:_NAMED])
            count = len(past.unknown_items)
            what = "1 item of the history is" if count == 1 else f"{count} items of the history are"
            self.notes.append(f"{what} not known and ignored: {named}")
        if past.unknown_kinds:
            self.notes.append(f"events of kinds that the model does not read: {', '.join(past.unknown_kinds)}")
        if past.is_empty:
            self.notes.append(NO_HISTORY)


def times_shown(impressions: Sequence[Impression], events: Sequence[Event]) -> dict[str, int]:
    """How often each item was shown without that the user did anything with it since."""
    reacted = {event.item_id: event.time for event in events}  # the last one counts: they are in order of time
    counts: dict[str, int] = {}
    for impression in impressions:
        for item in impression.items:
            if reacted.get(item, -math.inf) < impression.time:
                counts[item] = counts.get(item, 0) + 1
    return counts


def _shorter(found: int) -> str:
    """Why a list is shorter than asked for."""
    if not found:
        return "no items: none are allowed by the filter, the query and what is excluded"
    return f"{found} item{'s' if found > 1 else ''}: no more are allowed"
