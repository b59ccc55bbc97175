"""The gate: may a new bundle take the place of the live one?

    integrity          every file is what its manifest says, and both bundles speak of the same ids and positive kinds
    quality            both bundles' *holdout* states answer what the shop's users did after the end of what either saw
    overlap            both *serving* states answer the same users of late: lists that share almost nothing are suspect

A bundle is refused where its NDCG@10 is worse than the live one's by more than the tolerance, or worse than popularity,
beyond what chance explains (a paired bootstrap over users), and where the overlap is too small. Where too few users did
anything since, the published reports are compared instead, and the report says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from tesserec.bundle import Bundle, Contents
from tesserec.config import Field, component
from tesserec.data.splits import Split
from tesserec.errors import DataError
from tesserec.evaluation.evaluate import compare
from tesserec.evaluation.intervals import paired
from tesserec.pipeline import holdout_of, holdout_retriever
from tesserec.retrievers.popularity import Popularity
from tesserec.serving.gate_questions import Asked, Side, last_times, ndcg_of, overlaps_of, questions_after
from tesserec.serving.loaded_model import LoadedModel
from tesserec.serving.records import Event, Store
from tesserec.types import NO_TIME, FitContext

__all__ = ["Comparison", "GateConfig", "GateReport", "gate"]

METRIC = "ndcg10"
HISTORY = 1000
"""Events of a user that are read."""


@component
class GateConfig:
    """What a bundle must be to go live."""

    tolerance: Annotated[float, Field(ge=0, le=1)] = 0.02
    """How much worse than the live bundle it may be: a share of the live one's NDCG@10."""
    min_overlap: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Mean Jaccard similarity of its lists with the live one's, at least."""
    list_length: Annotated[int, Field(ge=1)] = 20
    """Items of those lists, but at most a quarter of the catalog, so that lists can differ."""
    min_questions: Annotated[int, Field(ge=2)] = 50
    """Users to ask about, at least; with fewer the published reports are compared."""
    num_questions: Annotated[int, Field(ge=2)] = 1000
    """Users to ask about, at most."""
    num_lists: Annotated[int, Field(ge=1)] = 200
    """Users of late whose lists are compared, at most."""
    seed: int = 0
    """Draws the users and the resamples."""


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same questions, the candidate first."""

    against: str
    """``"live"`` or ``"popularity"``."""
    source: str
    """Where the questions are from: ``"store"``, or ``"published"`` for those of the reports."""
    candidate: float
    """Mean NDCG@10."""
    other: float
    difference: float
    low: float
    high: float
    p_value: float
    num_questions: int

    def __str__(self) -> str:
        return (
            f"NDCG@10 {self.candidate:.4f}, {self.against} {self.other:.4f}: {self.difference:+.4f} "
            f"({self.low:+.4f} to {self.high:+.4f}, {self.num_questions} questions, {self.source})"
        )


@dataclass(frozen=True)
class GateReport:
    """What the gate found."""

    candidate: str
    live: str | None
    """The bundle that it was compared with; None where nothing is live."""
    reasons: tuple[str, ...] = ()
    """Why it is refused; empty where it is accepted."""
    notes: tuple[str, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    overlap: float | None = None
    """Mean Jaccard similarity of lists with the live ones, in [0, 1]."""
    num_lists: int = 0

    @property
    def accepted(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"accepted": self.accepted, **dataclasses.asdict(self)}

    def text(self) -> str:
        """For a person to read."""
        lines = [f"{self.candidate}: {'accepted' if self.accepted else 'refused'}"]
        lines += [f"  refused: {reason}" for reason in self.reasons]
        lines += [f"  {comparison}" for comparison in self.comparisons]
        if self.overlap is not None:
            lines.append(f"  overlap with live: {self.overlap:.3f} over {self.num_lists} users")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def gate(
    candidate: Path,
    live: Path | None,
    store: Store,
    config: GateConfig | None = None,
    *,
    reading: AbstractContextManager[None] | None = None,
) -> GateReport:
    """Judge the bundle ``candidate`` against the one in ``live``, on what ``store`` knows.

    ``reading`` is held while the bundles are read. Raises ``BundleError`` that names a missing or damaged file.
    """
    config = config or GateConfig()
    with reading or nullcontext():
        new = _Judged.load(candidate)
        old = None if live is None else _Judged.load(live)
    if old is None:
        report = GateReport(str(candidate), None, notes=("nothing is live yet: there is nothing to compare with",))
        return _finished(report, config, _published(new, None)[0])
    report = GateReport(str(candidate), str(live), reasons=_mismatches(new.contents, old.contents))
    if report.reasons:
        return report
    times = last_times(store)
    late = sorted(times, key=lambda user: (-times[user], user))[: config.num_lists]
    histories = {user: store.history(user, HISTORY) for user in late}
    report = _with_overlap(report, new.model, old.model, histories, config)
    since = max(new.seen_until, old.seen_until)
    asked = Asked(since)
    if since != NO_TIME:  # without times nobody can say what a bundle has not seen
        asked = questions_after(
            store, times, since, old.model.reader, num_questions=config.num_questions, seed=config.seed
        )
    if len(asked) >= config.min_questions:
        return _finished(report, config, _on_store(new, old, asked, config))
    comparisons, notes = _published(new, old)
    few = f"{len(asked)} users did something positive after {_day(since)}, {config.min_questions} are asked for"
    report = dataclasses.replace(report, notes=(*report.notes, f"{few}: the published reports are compared", *notes))
    return _finished(report, config, comparisons)


@dataclass(frozen=True, eq=False)
class _Judged:
    """A bundle in memory."""

    contents: Contents
    model: LoadedModel
    """Its serving state."""
    parts: Split | None
    """Of its fit; None where so many users were erased that it cannot be made again."""

    @classmethod
    def load(cls, folder: Path) -> _Judged:
        contents = dataclasses.replace(Bundle.open(folder).contents(), derived_folder=None)
        try:
            parts = holdout_of(contents)[0]
        except DataError:
            parts = None
        return cls(contents, LoadedModel.load(folder, folder.name), parts)

    @property
    def seen_until(self) -> int:
        """The time of the last event that the holdout state was fitted on or chosen by, seconds; or ``NO_TIME``."""
        seen = self.contents.interactions if self.parts is None else self.parts.refit
        return int(seen.time_E.max()) if len(seen) else NO_TIME


def _mismatches(new: Contents, old: Contents) -> tuple[str, ...]:
    found = []
    for what in ("users", "items"):
        kinds = ["text" if getattr(c.interactions, what).is_text else "numbers" for c in (new, old)]
        if kinds[0] != kinds[1]:
            found.append(f"its ids of {what} are {kinds[0]}, the live ones {kinds[1]}")
    positive = [sorted(c.interactions.positive_kinds) for c in (new, old)]
    if positive[0] != positive[1]:
        found.append(f"its positive kinds are {positive[0]}, the live ones {positive[1]}")
    return tuple(found)


def _with_overlap(
    report: GateReport, new: LoadedModel, old: LoadedModel, histories: Mapping[str, list[Event]], config: GateConfig
) -> GateReport:
    length = min(config.list_length, max(1, min(len(new.catalog), len(old.catalog)) // 4))
    overlaps = overlaps_of(new, old, histories, length)
    if not len(overlaps):
        return dataclasses.replace(report, notes=(*report.notes, "no user has a history yet: lists are not compared"))
    overlap = float(overlaps.mean())
    report = dataclasses.replace(report, overlap=overlap, num_lists=len(overlaps))
    if overlap >= config.min_overlap:
        return report
    reason = f"its lists share {overlap:.3f} of their items with the live ones, {config.min_overlap} are asked for"
    return dataclasses.replace(report, reasons=(*report.reasons, reason))


def _on_store(new: _Judged, old: _Judged, asked: Asked, config: GateConfig) -> list[Comparison]:
    exclude = old.model.exclude_history
    sides = [Side.of(j.contents, holdout_retriever(j.contents)) for j in (new, old)]
    popular = Popularity()
    seen = new.contents.interactions if new.parts is None else new.parts.refit
    popular.fit(seen, new.contents.catalog, FitContext())
    values = [ndcg_of(side, asked, exclude) for side in (*sides, dataclasses.replace(sides[0], retriever=popular))]
    return [
        _compared(against, "store", values[0], other, config.seed)
        for against, other in (("live", values[1]), ("popularity", values[2]))
    ]


def _compared(against: str, source: str, first: torch.Tensor, second: torch.Tensor, seed: int) -> Comparison:
    found = paired(first, second, seed=seed)
    means = float(first.double().mean()), float(second.double().mean())
    return Comparison(against, source, *means, found.mean, found.low, found.high, found.p_value, len(first))


def _published(new: _Judged, old: _Judged | None) -> tuple[list[Comparison], list[str]]:
    """What the reports in the bundles say, as far as they answer the same questions."""
    mine = new.contents.reports[new.contents.method]
    others = {} if old is None else {"live": old.contents.reports[old.contents.method]}
    popular = new.contents.reports.get("popularity")
    if popular is not None and popular is not mine:
        others["popularity"] = popular
    comparisons, notes = [], []
    for against, other in others.items():
        try:
            found = compare(mine, other, METRIC)
        except DataError as error:
            notes.append(f"the published figures cannot be compared with {against}: {error}")
            continue
        means = found.first_mean, found.second_mean
        comparisons.append(
            Comparison(
                against, "published", *means, found.difference, found.low, found.high, found.p_value, found.num_requests
            )
        )
    return comparisons, notes


def _finished(report: GateReport, config: GateConfig, comparisons: Iterable[Comparison]) -> GateReport:
    reasons = list(report.reasons)
    for found in comparisons:
        allowed = config.tolerance * found.other if found.against == "live" else 0.0
        if found.high < -allowed:
            reasons.append(f"it is worse than {found.against} by more than chance: {found}")
    return dataclasses.replace(report, reasons=tuple(reasons), comparisons=tuple(comparisons))


def _day(time: int) -> str:
    return "a time that nobody knows" if time == NO_TIME else f"{np.datetime64(time, 's')} UTC"
