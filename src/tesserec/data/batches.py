"""Histories as rectangular windows: the batches that sequence models read.

B windows · T positions, right-aligned: padding is on the left and the last event is at T − 1. Events of one step (a
basket) happened together: their order carries nothing, and a step is predicted as a set from the steps before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tesserec.types import PAD, History, Interactions

__all__ = ["Windows", "history_of", "next_step_labels", "shuffled_batches", "training_windows", "windows_of"]


@dataclass(frozen=True)
class Windows:
    """The last events of histories, [B, T] each."""

    items_BT: Tensor
    """Dense item indices, ``PAD`` where there is no event."""
    steps_BT: Tensor
    """Steps counted back from the window's last one: 0 for the last basket, 1 for the one before."""
    days_BT: Tensor
    """Days from the event to the window's last event, float32; 0 where times are unknown."""
    kinds_BT: Tensor
    """Kind codes, int64; 0 where there are no kinds."""
    fresh_BT: Tensor
    """Whether the event is to be learnt here: it is a positive one, and no other window shows more before it."""

    @property
    def valid_BT(self) -> Tensor:
        """Where there is an event."""
        return self.items_BT != PAD

    def take(self, rows: Tensor) -> "Windows":
        """The windows at indices ``rows``, cut to the longest of them."""
        length = int((self.items_BT[rows] != PAD).sum(1).max()) if len(rows) else 0
        cut = slice(self.items_BT.shape[1] - max(length, 1), None)
        columns = (self.items_BT, self.steps_BT, self.days_BT, self.kinds_BT, self.fresh_BT)
        return Windows(*(column[rows][:, cut] for column in columns))

    def __len__(self) -> int:
        return len(self.items_BT)


def history_of(train: Interactions) -> History:
    """The whole log as one history a user (also users without events), with the columns that windows use."""
    columns = {"time": train.time_E, "step": train.step_E, "positive": train.is_positive_E}
    if train.kind_E is not None:
        columns["kind"] = train.kind_E.long()
    return History(train.user_offsets, train.item_E.long(), columns)


def windows_of(history: History, max_length: int) -> Windows:
    """The last ``max_length`` events of each history; none of them is fresh."""
    ends = history.offsets[1:]
    return _cut(history, torch.maximum(history.offsets[:-1], ends - max_length), ends, ends)


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
    return _cut(history, start_W, end_W, torch.where(is_oldest_W, start_W, end_W - stride))


def next_step_labels(windows: Windows) -> tuple[Tensor, Tensor]:
    """(positions, items): a pair for each fresh event that has a step before it in its window.

    ``positions`` are flat indices b * T + t of the last event of the step before; ``items`` are what followed.
    """
    width = windows.items_BT.shape[1]
    source_BT = _run_starts(windows) - 1
    wanted_BT = windows.fresh_BT & windows.valid_BT & (source_BT >= 0)
    wanted_BT &= windows.valid_BT.gather(1, source_BT.clamp(min=0))
    rows, columns = wanted_BT.nonzero(as_tuple=True)
    return rows * width + source_BT[rows, columns], windows.items_BT[rows, columns]


def shuffled_batches(windows: Windows, batch_size: int, generator: torch.Generator) -> Iterator[Windows]:
    """All windows once in a random order, in batches of like length (sorted inside runs of 32 batches)."""
    order = torch.randperm(len(windows), generator=generator)
    lengths = windows.valid_BT.sum(1)
    batches: list[Tensor] = []
    for run in torch.split(order, 32 * batch_size):
        batches += torch.split(run[torch.argsort(lengths[run], stable=True)], batch_size)
    for index in torch.randperm(len(batches), generator=generator).tolist():
        yield windows.take(batches[index])


def _cut(history: History, start_W: Tensor, end_W: Tensor, fresh_W: Tensor) -> Windows:
    """Right-aligned windows [start, end) of the history's events; events from ``fresh`` on are to be learnt."""
    length = int((end_W - start_W).max()) if len(start_W) else 0
    positions = end_W[:, None] - max(length, 1) + torch.arange(max(length, 1))
    valid_BT = positions >= start_W[:, None]
    safe_BT = positions.clamp(min=0)
    if not len(history.items):
        return _empty(len(start_W))

    def column(name: str, default: int) -> Tensor:
        values = history.columns.get(name)
        return torch.full_like(safe_BT, default) if values is None else values[safe_BT].to(torch.int64)

    step_BT = column("step", 0) if "step" in history.columns else safe_BT
    changed_BT = torch.ones_like(valid_BT)
    changed_BT[:, 1:] = (step_BT.diff(dim=1) != 0) | ~valid_BT[:, :-1]
    number_BT = (changed_BT & valid_BT).long().cumsum(1)
    time_BT = column("time", 0)
    days_BT = ((time_BT[:, -1:] - time_BT).clamp(min=0).float() / 86400).masked_fill(~valid_BT | (time_BT < 0), 0.0)
    return Windows(
        torch.where(valid_BT, history.items[safe_BT], PAD),
        (number_BT[:, -1:] - number_BT).masked_fill(~valid_BT, 0),
        days_BT,
        column("kind", 0).masked_fill(~valid_BT, 0),
        valid_BT & (positions >= fresh_W[:, None]) & (column("positive", 1) > 0),
    )


def _empty(rows: int) -> Windows:
    none = torch.full((rows, 1), PAD)
    zero = torch.zeros_like(none)
    return Windows(none, zero, zero.float(), zero, zero.bool())


def _run_starts(windows: Windows) -> Tensor:
    """The column where each event's step begins, [B, T]."""
    columns = torch.arange(windows.items_BT.shape[1]).expand_as(windows.items_BT)
    begins_BT = torch.ones_like(windows.fresh_BT)
    same_BT = (windows.steps_BT.diff(dim=1) == 0) & windows.valid_BT[:, :-1]
    begins_BT[:, 1:] = ~same_BT
    return torch.where(begins_BT, columns, 0).cummax(1).values
