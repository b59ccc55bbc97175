"""The check that no training event knows a target; a split that fails it is never used.

What it holds against each other are the parts as they are, not the way they were made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tesserec.data.requests import ranges
from tesserec.errors import LeakError
from tesserec.types import NO_TIME, Holdout, Interactions

if TYPE_CHECKING:
    from tesserec.data.splits import Split

__all__ = ["check_leaks", "in_history"]


def check_leaks(split: Split) -> None:
    """Raises ``LeakError``, which names the first event, user or item at fault, where a part knows what it must not.

    Checked: nobody is asked twice; histories do not reach the request's time (``global_time``), nor hold its targets
    where the log has no repeats; training ends before T1, refitting before T2, and the windows hold their requests
    (``global_time``); withheld items are in no training part (``cold_items``); elsewhere the training events of
    whoever is asked are the first of the request's history.
    """
    for name, holdout in (("validation", split.validation), ("test", split.test)):
        _asked_once(name, holdout, split)
        if split.report.exclude_history and split.config.exclude_history is None:
            _answers_not_in_history(name, holdout, split)
        if split.name == "global_time":
            _history_before_request(name, holdout, split)
        if split.name == "cold_items":
            _targets_withheld(name, holdout, split.train, "train", split)
        else:
            _train_is_history(name, holdout, split.train, "train", split)
    if split.name == "cold_items":
        _targets_withheld("test", split.test, split.refit, "refit", split)
    else:
        _train_is_history("test", split.test, split.refit, "refit", split)
    if split.name == "global_time":
        _within_windows(split)


def _users(holdout: Holdout) -> Tensor:
    assert holdout.requests.user_B is not None, "the requests of a split have users"
    return holdout.requests.user_B


def _times(holdout: Holdout) -> Tensor:
    assert holdout.requests.time_B is not None, "the requests of a split have times"
    return holdout.requests.time_B


def _user(split: Split, index: Tensor) -> object:
    return split.train.users.ids[int(index)].as_py()


def _item(split: Split, index: Tensor) -> object:
    return split.train.items.ids[int(index)].as_py()


def _asked_once(name: str, holdout: Holdout, split: Split) -> None:
    users, counts = torch.unique(_users(holdout), return_counts=True)
    if bool((counts > 1).any()):
        user = _user(split, users[counts > 1][0])
        raise LeakError(
            f"user {user!r} has {int(counts.max())} {name} requests, one is allowed: the later knows the former"
        )


def in_history(holdout: Holdout) -> Tensor:
    """Whether the request's user had the target before, for each of ``holdout.relevant.values``."""
    relevant, had = holdout.relevant, holdout.requests.history.positives()
    num_items = 1 + max(int(values.max()) if len(values) else 0 for values in (relevant.values, had.items))
    return torch.isin(relevant.rows * num_items + relevant.values, had.rows * num_items + had.items)


def _answers_not_in_history(name: str, holdout: Holdout, split: Split) -> None:
    known = in_history(holdout)
    if bool(known.any()):
        at = int(known.nonzero()[0])
        user = _user(split, _users(holdout)[holdout.relevant.rows[at]])
        item = _item(split, holdout.relevant.values[at])
        raise LeakError(f"the history of user {user!r} has the {name} target {item!r}, though nobody has an item twice")


def _history_before_request(name: str, holdout: Holdout, split: Split) -> None:
    history = holdout.requests.history
    late_H = history.columns["time"] >= _times(holdout)[history.rows]
    if bool(late_H.any()):
        at = int(late_H.nonzero()[0])
        user = _user(split, _users(holdout)[history.rows[at]])
        time = int(history.columns["time"][at])
        raise LeakError(f"the {name} history of user {user!r} has an event of time {time}, not before the request")


def _targets_withheld(name: str, holdout: Holdout, events: Interactions, part: str, split: Split) -> None:
    known = events.item_counts()[holdout.relevant.values] > 0
    if bool(known.any()):
        item = _item(split, holdout.relevant.values[known][0])
        raise LeakError(f"item {item!r} is withheld for {name}, but {part} has events of it")


def _train_is_history(name: str, holdout: Holdout, events: Interactions, part: str, split: Split) -> None:
    user_B, history = _users(holdout), holdout.requests.history
    counts_B = events.user_offsets.diff()[user_B]
    longer_B = counts_B > history.lengths
    if bool(longer_B.any()):
        at = int(longer_B.nonzero()[0])
        raise LeakError(
            f"{part} has {int(counts_B[at])} events of user {_user(split, user_B[at])!r}, "
            f"but only {int(history.lengths[at])} precede the {name} request"
        )
    start_B = events.user_offsets[user_B]
    rows = torch.repeat_interleave(torch.arange(len(user_B)), counts_B)
    in_events = ranges(start_B, start_B + counts_B)[1]
    in_history = ranges(history.offsets[:-1], history.offsets[:-1] + counts_B)[1]
    differ = events.item_E[in_events].long() != history.items[in_history]
    differ |= events.time_E[in_events] != history.columns["time"][in_history]
    if bool(differ.any()):
        user = _user(split, user_B[rows[differ][0]])
        raise LeakError(f"the {part} events of user {user!r} are not the first of the history of the {name} request")


def _within_windows(split: Split) -> None:
    t1, t2 = split.report.t1, split.report.t2
    assert t1 is not None
    assert t2 is not None
    for part, events, limit in (("train", split.train, t1), ("refit", split.refit, t2)):
        wrong_E = (events.time_E >= limit) | (events.time_E == NO_TIME)
        if bool(wrong_E.any()):
            at = int(wrong_E.nonzero()[0])
            user, time = _user(split, events.user_E[at]), int(events.time_E[at])
            raise LeakError(f"{part} has an event of user {user!r} at time {time}, not before {limit}")
    times = _times(split.validation)
    if int(times.min()) < t1 or int(times.max()) >= t2:
        raise LeakError(f"validation requests lie in [{int(times.min())}, {int(times.max())}], outside [{t1}, {t2})")
    if int(_times(split.test).min()) < t2:
        raise LeakError(f"a test request of time {int(_times(split.test).min())} lies before {t2}")
