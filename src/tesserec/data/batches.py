"""Histories as rectangular windows: the batches that sequence models read.

B windows · T positions, right-aligned: padding is on the left and the last event is at T − 1. Events of one step (a
basket) happened together: their order carries nothing, and a step is predicted as a set from the steps before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tesserec.types import NO_TIME, PAD, History, Interactions

__all__ = [
    "Windows",
    "batches_of_like_length",
    "history_of",
    "next_step_labels",
    "shuffled_batches",
    "step_starts",
    "training_windows",
    "windows_of",
]

SECONDS_A_DAY = 86_400


@dataclass(frozen=True, eq=False)
class Windows:
    """Pieces of histories, [B, T] each, T the longest of them.

    What is kept is where each piece lies; its columns are cut from the history when they are first asked for, so that
    the windows of a large log cost 24 bytes each, and only a batch is ever rectangular.
    """

    history: History
    start_B: Tensor
    """Where each window starts among the history's events, int64."""
    end_B: Tensor
    """Where it ends, exclusive."""
    fresh_from_B: Tensor
    """From where on its events are to be learnt here: no other window shows more before them."""

    def __len__(self) -> int:
        return len(self.start_B)

    @property
    def lengths_B(self) -> Tensor:
        """Events of each window."""
        return self.end_B - self.start_B

    def take(self, rows: Tensor) -> Windows:
        """The windows at indices ``rows``."""
        return Windows(self.history, self.start_B[rows], self.end_B[rows], self.fresh_from_B[rows])

    @cached_property
    def items_BT(self) -> Tensor:
        """Dense item indices, ``PAD`` where there is no event."""
        return self._column(self.history.items, PAD)

    @cached_property
    def valid_BT(self) -> Tensor:
        """Where there is an event."""
        return self._positions_BT >= self.start_B[:, None]

    @cached_property
    def steps_BT(self) -> Tensor:
        """Steps counted back from the window's last one: 0 for the last basket, 1 for the one before."""
        step_BT = self._positions_BT
        if "step" in self.history.columns:
            step_BT = self._column(self.history.columns["step"], 0)
        changed_BT = torch.ones_like(self.valid_BT)
        changed_BT[:, 1:] = (step_BT.diff(dim=1) != 0) | ~self.valid_BT[:, :-1]
        number_BT = (changed_BT & self.valid_BT).long().cumsum(1)
        return (number_BT[:, -1:] - number_BT).masked_fill(~self.valid_BT, 0)

    @cached_property
    def times_BT(self) -> Tensor:
        """Seconds since 1970 UTC, int64; ``NO_TIME`` where unknown and where there is no event."""
        times = self.history.columns.get("time")
        return torch.full_like(self._positions_BT, NO_TIME) if times is None else self._column(times, NO_TIME)

    @cached_property
    def days_BT(self) -> Tensor:
        """Days from the event to the window's last event, float32; 0 where times are unknown."""
        if "time" not in self.history.columns:
            return torch.zeros(self.valid_BT.shape)
        time_BT = self.times_BT
        return ((time_BT[:, -1:] - time_BT).clamp(min=0).float() / SECONDS_A_DAY).masked_fill(time_BT < 0, 0.0)

    @cached_property
    def gaps_BT(self) -> Tensor:
        """Days from the step before to each event's step, float32: −1 for a window's first, NaN at unknown times."""
        start_BT = step_starts(self)
        before_BT = (start_BT - 1).clamp(min=0)
        first_BT = (start_BT == 0) | ~self.valid_BT.gather(1, before_BT)
        then_BT, now_BT = self.times_BT.gather(1, before_BT), self.times_BT.gather(1, start_BT)
        known_BT = (then_BT != NO_TIME) & (now_BT != NO_TIME)
        gaps_BT = torch.where(known_BT, (now_BT - then_BT).clamp(min=0).float() / SECONDS_A_DAY, torch.nan)
        return gaps_BT.masked_fill(first_BT, -1.0)

    @cached_property
    def kinds_BT(self) -> Tensor:
        """Kind codes, int64; 0 where there are no kinds."""
        kinds = self.history.columns.get("kind")
        return torch.zeros_like(self._positions_BT) if kinds is None else self._column(kinds, 0)

    @cached_property
    def fresh_BT(self) -> Tensor:
        """Whether the event is to be learnt here: it is a positive one, and from ``fresh_from_B`` on."""
        fresh_BT = self.valid_BT & (self._positions_BT >= self.fresh_from_B[:, None])
        positive = self.history.columns.get("positive")
        return fresh_BT if positive is None else fresh_BT & self._column(positive, 0).bool()

    @cached_property
    def _positions_BT(self) -> Tensor:
        """Where each position lies among the history's events, right-aligned."""
        width = max(int(self.lengths_B.max()), 1) if len(self) else 1
        return self.end_B[:, None] - width + torch.arange(width)

    def _column(self, values: Tensor, padding: int) -> Tensor:
        if not len(values):
            return torch.full_like(self._positions_BT, padding)
        found_BT = values[self._positions_BT.clamp(min=0)].to(torch.int64)
        return found_BT.masked_fill_(~self.valid_BT, padding)


def history_of(train: Interactions) -> History:
    """The whole log as one history a user (also users without events), with the columns that windows use."""
    columns = {"time": train.time_E, "step": train.step_E, "positive": train.is_positive_E}
    if train.kind_E is not None:
        columns["kind"] = train.kind_E.long()
    return History(train.user_offsets, train.item_E.long(), columns)


def windows_of(history: History, max_length: int) -> Windows:
    """The last ``max_length`` events of each history; none of them is fresh."""
    ends = history.offsets[1:]
    return Windows(history, torch.maximum(history.offsets[:-1], ends - max_length), ends, ends)


def training_windows(history: History, max_length: int) -> Windows:
    """Windows that cover each history; each event is fresh in just one of them, the one that shows most before it.

    A history of at most ``max_length`` events is one window; a longer one is cut
    from its end, and windows overlap by half.
    """
    stride = max(max_length // 2, 1)
    number_B = torch.where(
        history.lengths > 0, 1 + ((history.lengths - max_length).clamp(min=0) + stride - 1) // stride, 0
    )
    row_W = torch.repeat_interleave(torch.arange(len(history)), number_B)
    nth_W = torch.arange(len(row_W)) - torch.repeat_interleave(number_B.cumsum(0) - number_B, number_B)
    end_W = history.offsets[row_W + 1] - nth_W * stride
    start_W = torch.maximum(history.offsets[row_W], end_W - max_length)
    is_oldest_W = nth_W == number_B[row_W] - 1
    return Windows(history, start_W, end_W, torch.where(is_oldest_W, start_W, end_W - stride))


def next_step_labels(windows: Windows) -> tuple[Tensor, Tensor]:
    """(positions, items): a pair for each fresh event that has a step before it in its window.

    ``positions`` are flat indices b * T + t of the last event of the step before; ``items`` are what followed.
    """
    width = windows.items_BT.shape[1]
    source_BT = step_starts(windows) - 1
    wanted_BT = windows.fresh_BT & windows.valid_BT & (source_BT >= 0)
    wanted_BT &= windows.valid_BT.gather(1, source_BT.clamp(min=0))
    rows, columns = wanted_BT.nonzero(as_tuple=True)
    return rows * width + source_BT[rows, columns], windows.items_BT[rows, columns]


def shuffled_batches(windows: Windows, batch_size: int, generator: torch.Generator) -> Iterator[Windows]:
    """All windows once in a random order, in batches of like length (sorted inside runs of 32 batches)."""
    for rows in batches_of_like_length(windows.lengths_B, batch_size, generator):
        yield windows.take(rows)


def batches_of_like_length(lengths: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The indices of all ``lengths`` once in a random order, in batches; sorted by length in runs of 32 batches."""
    order = torch.randperm(len(lengths), generator=generator)
    batches: list[Tensor] = []
    for run in torch.split(order, 32 * batch_size):
        batches += torch.split(run[torch.argsort(lengths[run], stable=True)], batch_size)
    for index in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[index]


def step_starts(windows: Windows) -> Tensor:
    """The column where each event's step begins, [B, T]."""
    columns = torch.arange(windows.items_BT.shape[1]).expand_as(windows.items_BT)
    begins_BT = torch.ones_like(windows.fresh_BT)
    same_BT = (windows.steps_BT.diff(dim=1) == 0) & windows.valid_BT[:, :-1]
    begins_BT[:, 1:] = ~same_BT
    return torch.where(begins_BT, columns, 0).cummax(1).values
