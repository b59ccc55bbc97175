"""Which events train, which choose, which test: the protocols that every accuracy figure names.

All but ``cold_items`` give each user at most one validation and one test request. Only events that may be targets
(``Interactions.positives``) are asked for; the others stay in training and histories as signals. A basket is the
events of one session, or of one timestamp where they have no session: a session wins, so two invoices of one minute
are two baskets and an invoice that spans two minutes is one.

* ``global_time``: T1 and T2 are quantiles of the times of positive events, or numbers. Train before T1, validate in
  [T1, T2), test from T2. A request stands just before the user's first positive event in the window; its history is
  everything strictly before that time, its targets the distinct positive items of that event's basket within the
  window.
* ``last_out``: the last positive event of each user tests, the one before validates, what precedes it trains. Users
  with fewer than three positive events only train.
* ``last_out_other_day``: the same training; only requests whose target's time differs from that of the event before it.
* ``user_ratio``: the last share of each user's positive events tests (all of them targets of one request), the share
  before validates; at least one event each, and one must remain to train.
* ``cold_items``: a seeded share of items is withheld altogether for validation, another for testing. A user who had
  some of them is asked for those of the last basket that has any, just before it; the history has no withheld item.

Rows without a time take no part in ``global_time`` and ``last_out_other_day``. Signals after a user's last target are
in no part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from tesserec.config import Field, component
from tesserec.errors import DataError
from tesserec.types import NO_TIME, Interactions

__all__ = ["Parts", "Protocol", "Questions", "SplitConfig", "divide"]

Protocol = Literal["global_time", "last_out", "last_out_other_day", "user_ratio", "cold_items"]
Share = Annotated[float, Field(gt=0, lt=1)]

_TIMED = ("global_time", "last_out_other_day")


@component
class SplitConfig:
    """How to split a log."""

    protocol: Protocol = "global_time"
    """One of the protocols above."""
    quantiles: tuple[Share, Share] = (0.8, 0.9)
    """``global_time``: the quantiles of event times that are T1 and T2."""
    t1: int | None = None
    """``global_time``: T1 itself, seconds since 1970; together with ``t2`` it replaces the quantiles."""
    t2: int | None = None
    """``global_time``: T2 itself, later than ``t1``."""
    shares: tuple[Share, Share] = (0.1, 0.1)
    """``user_ratio``: the shares of each user's events that validate and test."""
    cold_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """``cold_items``: the share of items withheld for validation, and again for testing."""
    exclude_history: bool | None = None
    """Whether answers leave out what the user had; None: where no user of the log has an item twice."""
    seed: int = 0
    """``cold_items``: draws the withheld items."""

    def __post_init__(self) -> None:
        if (self.t1 is None) != (self.t2 is None) or (
            self.t1 is not None and self.t2 is not None and self.t1 >= self.t2
        ):
            raise ValueError(f"t1 = {self.t1} and t2 = {self.t2}: give both, t1 the earlier, or neither")
        if self.quantiles[0] >= self.quantiles[1]:
            raise ValueError(f"quantiles = {self.quantiles}: the first must be smaller than the second")
        if sum(self.shares) >= 1:
            raise ValueError(f"shares = {self.shares}: they must leave something to train")


@dataclass(frozen=True)
class Questions:
    """Requests and targets as positions in a log."""

    end_B: Tensor
    """Where each history ends (exclusive), absolute."""
    at_B: Tensor
    """The event that the request stands before."""
    target_P: Tensor
    """Positions of the target events, ascending."""
    row_P: Tensor
    """The request of each target event."""
    tied_B: Tensor
    """Whether ``order`` alone decided."""


@dataclass(frozen=True)
class Parts:
    """Which events of a log train, and what is asked of the others."""

    log: Interactions
    """The events that take part."""
    train_E: Tensor
    """Whether each event trains, bool."""
    refit_E: Tensor
    """Whether each event is of training or validation, bool."""
    validation: Questions
    test: Questions
    withheld: tuple[Tensor | None, Tensor | None] = (None, None)
    """Events that histories of validation and test must not have, [E] bool."""
    t1: int | None = None
    t2: int | None = None


def divide(interactions: Interactions, config: SplitConfig) -> Parts:
    """The parts of a log by ``config.protocol``; raises ``DataError`` where it has no times but needs them."""
    log = _timed(interactions, config.protocol) if config.protocol in _TIMED else interactions
    return _PROTOCOLS[config.protocol](log, config)


def _timed(interactions: Interactions, protocol: str) -> Interactions:
    """The events with a time, in order of user, time, order."""
    timed_E = interactions.time_E != NO_TIME
    if not bool(timed_E.any()):
        raise DataError(f"{protocol} needs times and this log has none: use last_out or user_ratio")
    if bool(timed_E.all()):
        return interactions
    log = interactions.select(timed_E)
    order = np.lexsort((log.order_E.numpy(), log.time_E.numpy(), log.user_E.numpy()))
    return log.select(torch.from_numpy(order))


def _global_time(log: Interactions, config: SplitConfig) -> Parts:
    t1, t2 = config.t1, config.t2
    if t1 is None or t2 is None:
        times = log.positives().time_E.numpy()
        if not len(times):
            raise DataError(
                f"no event is of a positive kind {list(log.positive_kinds)}, so global_time has no quantiles"
            )
        t1, t2 = (int(t) for t in np.quantile(times, config.quantiles, method="higher"))
    end = int(log.time_E.max()) + 1
    validation, test = _window(log, t1, t2), _window(log, t2, max(end, t2))
    return Parts(log, log.time_E < t1, log.time_E < t2, validation, test, t1=t1, t2=t2)


def _window(log: Interactions, start: int, end: int) -> Questions:
    """One request a user with a positive event in [start, end), before the first of them; targets are its basket."""
    inside = (log.is_positive_E & (log.time_E >= start) & (log.time_E < end)).nonzero().squeeze(1)
    at_B, row_P = _first_of_users(log, inside)
    same_time_P = log.time_E[inside] == log.time_E[at_B][row_P]
    basket_P = same_time_P
    if log.session_E is not None:
        session_P, own_P = log.session_E[inside], log.session_E[at_B][row_P]
        basket_P = torch.where(own_P >= 0, session_P == own_P, same_time_P & (session_P < 0))
    tied_B = torch.zeros(len(at_B), dtype=torch.bool)
    tied_B[row_P[same_time_P & ~basket_P]] = True
    same_time = (log.user_E.diff() == 0) & (log.time_E.diff() == 0)
    return Questions(_run_starts(same_time)[at_B], at_B, inside[basket_P], row_P[basket_P], tied_B)


def _first_of_users(log: Interactions, positions: Tensor) -> tuple[Tensor, Tensor]:
    """(the first of ascending event positions of each user, the number of its user among these for each position)."""
    user_P = log.user_E[positions]
    first_P = torch.ones(len(positions), dtype=torch.bool)
    first_P[1:] = user_P.diff() != 0
    return positions[first_P], first_P.long().cumsum(0) - 1


def _run_starts(joined: Tensor) -> Tensor:
    """The position where each event's run starts; ``joined`` tells which events, from the second on, continue one."""
    positions = torch.arange(len(joined) + 1)
    starts = positions.clone()
    starts[1:][joined] = 0
    return starts.cummax(0).values


def _last_out(log: Interactions, config: SplitConfig) -> Parts:
    ones_U = torch.ones(len(log.users), dtype=torch.int64)
    return _by_position(log, ones_U, ones_U)


def _user_ratio(log: Interactions, config: SplitConfig) -> Parts:
    counts_U = torch.bincount(log.positives().user_E, minlength=len(log.users))
    validation_U, test_U = ((counts_U.double() * share + 1e-9).long().clamp(min=1) for share in config.shares)
    return _by_position(log, validation_U, test_U)


def _last_out_other_day(log: Interactions, config: SplitConfig) -> Parts:
    parts = _last_out(log, config)
    validation, test = (_other_day(log, questions) for questions in (parts.validation, parts.test))
    return dataclasses.replace(parts, validation=validation, test=test)


def _other_day(log: Interactions, questions: Questions) -> Questions:
    """The questions (one target each) whose target's time differs from that of the event before it."""
    at_B = questions.at_B
    keep = log.time_E[at_B] != log.time_E[at_B - 1]
    rows = torch.arange(int(keep.sum()))
    return Questions(questions.end_B[keep], at_B[keep], questions.target_P[keep], rows, questions.tied_B[keep])


def _by_position(log: Interactions, validation_U: Tensor, test_U: Tensor) -> Parts:
    """The last ``test_U`` positive events of each user test, the ``validation_U`` before them validate."""
    positive = log.is_positive_E.nonzero().squeeze(1)
    user_P = log.user_E[positive].long()
    counts_U = torch.bincount(user_P, minlength=len(log.users))
    ends_U = counts_U.cumsum(0)
    users = (counts_U - validation_U - test_U >= 1).nonzero().squeeze(1)
    first_test = ends_U[users] - test_U[users]
    cut1_B, cut2_B = positive[first_test - validation_U[users]], positive[first_test]
    cuts_U = log.user_offsets[1:].repeat(2, 1)
    cuts_U[0, users], cuts_U[1, users] = cut1_B, cut2_B
    row_U = torch.full((len(log.users),), -1)
    row_U[users] = torch.arange(len(users))
    row_P = row_U[user_P]
    in_validation = (row_P >= 0) & (positive >= cuts_U[0, user_P]) & (positive < cuts_U[1, user_P])
    in_test = (row_P >= 0) & (positive >= cuts_U[1, user_P])
    tied1_B, tied2_B = _tied(log, cut1_B), _tied(log, cut2_B)
    validation = Questions(cut1_B, cut1_B, positive[in_validation], row_P[in_validation], tied1_B | tied2_B)
    test = Questions(cut2_B, cut2_B, positive[in_test], row_P[in_test], tied2_B)
    position_E, user_E = torch.arange(len(log)), log.user_E.long()
    return Parts(log, position_E < cuts_U[0, user_E], position_E < cuts_U[1, user_E], validation, test)


def _tied(log: Interactions, cut_B: Tensor) -> Tensor:
    """Whether the events on both sides of each cut (within a user) have one and the same time."""
    time_B = log.time_E[cut_B]
    return (time_B == log.time_E[cut_B - 1]) & (time_B != NO_TIME)


def _cold_items(log: Interactions, config: SplitConfig) -> Parts:
    items = torch.unique(log.positives().item_E.long())
    count = max(1, round(config.cold_share * len(items)))
    if len(items) <= 2 * count:
        raise DataError(f"cold_items cannot withhold 2 x {count} of {len(items)} items and train: give more items")
    shuffled = items[torch.randperm(len(items), generator=torch.Generator().manual_seed(config.seed))]
    for_test_N = torch.zeros(len(log.items), dtype=torch.bool)
    for_test_N[shuffled[:count]] = True
    for_validation_N = torch.zeros_like(for_test_N)
    for_validation_N[shuffled[count : 2 * count]] = True
    item_E = log.item_E.long()
    either_E, test_E = (for_validation_N | for_test_N)[item_E], for_test_N[item_E]
    validation, test = _cold_questions(log, for_validation_N[item_E]), _cold_questions(log, test_E)
    return Parts(log, ~either_E, ~test_E, validation, test, (either_E, test_E))


def _cold_questions(log: Interactions, cold_E: Tensor) -> Questions:
    """One request a user before the last basket that has a cold item; targets are its cold items."""
    cold_P = (log.is_positive_E & cold_E).nonzero().squeeze(1)
    first_P, row_P = _first_of_users(log, cold_P)
    counts_B = torch.bincount(row_P, minlength=len(first_P))
    last_B = cold_P[counts_B.cumsum(0) - 1]
    end_B = _run_starts(log.step_E.diff() == 0)[last_B]
    in_basket = cold_P >= end_B[row_P]
    return Questions(end_B, last_B, cold_P[in_basket], row_P[in_basket], torch.zeros(len(end_B), dtype=torch.bool))


_PROTOCOLS: dict[Protocol, Callable[[Interactions, SplitConfig], Parts]] = {
    "global_time": _global_time,
    "last_out": _last_out,
    "last_out_other_day": _last_out_other_day,
    "user_ratio": _user_ratio,
    "cold_items": _cold_items,
}
