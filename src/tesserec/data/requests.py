"""Requests from a log: histories as ragged rows, cut without a loop over users."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tesserec.types import NO_TIME, Filters, History, Interactions, Ragged, Requests

__all__ = ["history_requests", "ranges", "requests_before", "user_requests"]


def requests_before(
    interactions: Interactions,
    end_B: Tensor,
    *,
    user_B: Tensor | None = None,
    time_B: Tensor | None = None,
    exclude_history: bool = False,
    available_N: Tensor | None = None,
) -> Requests:
    """Requests whose histories are all events of a user before the absolute event positions ``end_B`` (int64,
    ascending or not).

    ``user_B`` and ``time_B`` (seconds) default to those of the events at ``end_B``: the questions "what is this
    event?". History columns: ``time``, ``step``, ``positive`` and, where the log has them, ``kind``, ``domain``,
    ``value``.
    """
    user_B = interactions.user_E[end_B].long() if user_B is None else user_B
    time_B = interactions.time_E[end_B] if time_B is None else time_B
    start_B = interactions.user_offsets[user_B]
    offsets, at_H = ranges(start_B, end_B)
    columns = {
        "time": interactions.time_E[at_H],
        "step": interactions.step_E[at_H],
        "positive": interactions.is_positive_E[at_H],
    }
    for name, column in (("kind", interactions.kind_E), ("domain", interactions.domain_E)):
        if column is not None:
            columns[name] = column[at_H].long()
    if interactions.value_E is not None:
        columns["value"] = interactions.value_E[at_H]
    history = History(offsets, interactions.item_E[at_H].long(), columns)
    return Requests(history, time_B, user_B, Filters(exclude_history, available_N=available_N))


def user_requests(
    interactions: Interactions,
    user_B: Tensor,
    *,
    exclude_history: bool = False,
    available_N: Tensor | None = None,
) -> Requests:
    """Requests "what next?" for the users at dense indices ``user_B`` (int64): their histories are all they did.

    They are asked at the time of the last event of the log (``NO_TIME`` where it has no times).
    """
    end_B = interactions.user_offsets[user_B + 1]
    now = int(interactions.time_E.max()) if len(interactions) else NO_TIME
    time_B = torch.full((len(user_B),), now, dtype=torch.int64)
    return requests_before(
        interactions,
        end_B,
        user_B=user_B,
        time_B=time_B,
        exclude_history=exclude_history,
        available_N=available_N,
    )


def history_requests(
    histories: Sequence[Sequence[int]],
    *,
    exclude_history: bool = False,
    available_N: Tensor | None = None,
) -> Requests:
    """Requests of nobody known, from rows of dense item indices, oldest first; each event is a step of its own."""
    rows = Ragged.of(histories)
    step_H = torch.arange(len(rows.values))
    history = History(
        rows.offsets, rows.values, {"step": step_H, "positive": torch.ones_like(step_H, dtype=torch.bool)}
    )
    return Requests(history, filters=Filters(exclude_history, available_N=available_N))


def ranges(start_B: Tensor, end_B: Tensor) -> tuple[Tensor, Tensor]:
    """(offsets [B + 1], positions start_b … end_b − 1 of every row, one after the other)."""
    lengths_B = end_B - start_B
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths_B.cumsum(0)])
    shift_B = start_B - offsets[:-1]
    return offsets, torch.arange(int(offsets[-1])) + torch.repeat_interleave(shift_B, lengths_B)
