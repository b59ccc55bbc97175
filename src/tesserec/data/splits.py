"""A log in parts for training, choosing and judging, with a report of what was done and a check that nothing leaks.

How the parts are cut is the protocol's business: see ``tesserec.data.protocols``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tesserec.data.leaks import check_leaks, in_history
from tesserec.data.protocols import Questions, SplitConfig, divide
from tesserec.data.requests import requests_before
from tesserec.errors import DataError
from tesserec.types import Holdout, Interactions, Ragged

__all__ = ["HoldoutReport", "PartReport", "Split", "SplitConfig", "SplitReport", "has_repeats", "split"]


@dataclass(frozen=True)
class PartReport:
    """How much is in a part that trains."""

    users: int
    items: int
    events: int


@dataclass(frozen=True)
class HoldoutReport:
    """How much is asked, and how sound the questions are."""

    requests: int
    targets: int
    empty_histories: int
    """Requests of users who did nothing before."""
    unseen_targets: int
    """Targets whose item is not in the training part (``train``; ``refit`` for the test)."""
    tie_share: float
    """Share of requests whose targets were told from events of the same time by ``order`` alone, in [0, 1]."""
    targets_already_had: int
    """Targets that the history has; with ``exclude_history`` no answer can hold them."""


@dataclass(frozen=True)
class SplitReport:
    """What a split did, for the report page and the JSON beside an exported split."""

    protocol: str
    exclude_history: bool
    """Whether answers leave out what the user had, as configured or as the data has it."""
    t1: int | None
    """Seconds since 1970 (``global_time``)."""
    t2: int | None
    train: PartReport
    refit: PartReport
    validation: HoldoutReport
    test: HoldoutReport
    events_without_time: int
    """Rows left out because the protocol needs times."""
    events_in_no_part: int
    """Rows that are in no part: those of test targets and after them."""


@dataclass(frozen=True, eq=False)
class Split:
    """A log in parts: ``train`` fits, ``validation`` chooses, ``test`` judges; ``refit`` is train + validation."""

    config: SplitConfig
    train: Interactions
    validation: Holdout
    test: Holdout
    refit: Interactions
    report: SplitReport

    @property
    def name(self) -> str:
        """The protocol, as in the names of figures."""
        return self.config.protocol


def split(interactions: Interactions, config: SplitConfig | None = None) -> Split:
    """Split a log by ``config``; the result has passed ``check_leaks``.

    Raises ``DataError`` where the log has no times and the protocol needs them, or where a part would be empty.
    """
    config = config or SplitConfig()
    parts = divide(interactions, config)
    log = parts.log
    exclude = not has_repeats(log) if config.exclude_history is None else config.exclude_history
    train, refit = log.select(parts.train_E), log.select(parts.refit_E)
    if not len(train):
        raise DataError(f"{config.protocol} leaves no event to train on: give more events, or later t1 and t2")
    holdouts = []
    for name, questions, withheld_E, seen in (
        ("validation", parts.validation, parts.withheld[0], train),
        ("test", parts.test, parts.withheld[1], refit),
    ):
        if not len(questions.at_B):
            raise DataError(f"{config.protocol} leaves no {name} request: {_remedy(config.protocol)}")
        holdout = _holdout(log, questions, withheld_E, exclude)
        holdouts.append((holdout, _holdout_report(holdout, questions, seen)))
    report = SplitReport(
        config.protocol,
        exclude,
        parts.t1,
        parts.t2,
        _part_report(train),
        _part_report(refit),
        holdouts[0][1],
        holdouts[1][1],
        len(interactions) - len(log),
        len(log) - len(refit),
    )
    result = Split(config, train, holdouts[0][0], holdouts[1][0], refit, report)
    check_leaks(result)
    return result


def _remedy(protocol: str) -> str:
    if protocol == "global_time":
        return "choose t1 and t2 within the times of the log, or other quantiles"
    return "users need three positive events, at different times where the protocol says so"


def has_repeats(log: Interactions) -> bool:
    """Whether at least 1 % of positive events repeat an item that their user had: a few doubled rows do not count."""
    events = log.positives()
    pairs = events.user_E.long() * len(log.items) + events.item_E
    return len(pairs) - len(torch.unique(pairs)) >= max(0.01 * len(pairs), 1)


def _holdout(log: Interactions, questions: Questions, withheld_E: Tensor | None, exclude_history: bool) -> Holdout:
    user_B, time_B = log.user_E[questions.at_B].long(), log.time_E[questions.at_B]
    target_P, end_B = log.item_E[questions.target_P].long(), questions.end_B
    if withheld_E is not None:
        kept = torch.cat([torch.zeros(1, dtype=torch.int64), (~withheld_E).long().cumsum(0)])
        log, end_B = log.select(~withheld_E), kept[end_B]
    requests = requests_before(log, end_B, user_B=user_B, time_B=time_B, exclude_history=exclude_history)
    pairs = torch.unique(questions.row_P * len(log.items) + target_P)
    counts_B = torch.bincount(pairs // len(log.items), minlength=len(requests))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts_B.cumsum(0)])
    return Holdout(requests, Ragged(offsets, pairs % len(log.items)))


def _part_report(events: Interactions) -> PartReport:
    users = int((events.user_offsets.diff() > 0).sum())
    return PartReport(users, int((events.item_counts() > 0).sum()), len(events))


def _holdout_report(holdout: Holdout, questions: Questions, seen: Interactions) -> HoldoutReport:
    return HoldoutReport(
        requests=len(holdout),
        targets=len(holdout.relevant.values),
        empty_histories=int((holdout.requests.history.lengths == 0).sum()),
        unseen_targets=int((seen.item_counts()[holdout.relevant.values] == 0).sum()),
        tie_share=float(questions.tied_B.double().mean()),
        targets_already_had=int(in_history(holdout).sum()),
    )
