"""Answers put together: of many questions at once, and of two questions as one list."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from tesserec.serving.batcher import Answered
from tesserec.serving.ladder import Climbed
from tesserec.serving.loaded_model import Answer, LoadedModel
from tesserec.serving.pasts import Question

__all__ = ["answered_by_top_rungs", "with_cold"]


def answered_by_top_rungs(models: Sequence[LoadedModel], questions: Sequence[Question]) -> list[Climbed]:
    """The answers of each question's model, those that can be put together together."""
    groups: dict[tuple[int, int, bool, int], list[int]] = {}
    found: dict[int, Climbed] = {}
    for place, (model, question) in enumerate(zip(models, questions, strict=True)):
        if question.past.is_empty:
            found[place] = Climbed("popularity", Answered(model.popular(question), 0.0, 0.0, 1))
        else:
            key = (id(model), id(question.available_N), question.exclude_history, question.k)
            groups.setdefault(key, []).append(place)
    for places in groups.values():
        model = models[places[0]]
        started = time.perf_counter()
        answers = model.answer_all(model.rungs[0], [questions[place] for place in places])
        model_ms = 1e3 * (time.perf_counter() - started)
        for place, answer in zip(places, answers, strict=True):
            found[place] = Climbed(model.rungs[0], Answered(answer, 0.0, model_ms, len(places)))
    return [found[place] for place in range(len(questions))]


def with_cold(climbed: Climbed, cold: Climbed) -> Climbed:
    """An answer with further items from the same model, by score; those of another rung go below the others.

    Scores of two rungs have nothing to do with each other.
    """
    first, more = climbed.answered.answer, cold.answered.answer
    pairs = dict(zip(first.items, first.scores, strict=True))
    added = [(item, score) for item, score in zip(more.items, more.scores, strict=True) if item not in pairs]
    if cold.rung != climbed.rung and first.scores:
        lowest = first.scores[-1]
        added = [(item, lowest - rank) for rank, (item, _) in enumerate(added, 1)]
    ordered = sorted([*pairs.items(), *added], key=lambda pair: -pair[1])
    answer = Answer(tuple(item for item, _ in ordered), tuple(score for _, score in ordered))
    return dataclasses.replace(climbed, answered=dataclasses.replace(climbed.answered, answer=answer))
