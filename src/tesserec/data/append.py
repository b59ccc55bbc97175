"""A log with later events, and a catalog with later items: what a nightly run adds to what it knew.

Users and items keep their dense indices; new ones come after them. Only events after the last time of the old log are
taken, so that a file of new events and a file of all events give the same log.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from torch import Tensor

from tesserec.data.columns import positions
from tesserec.errors import DataError
from tesserec.types import NO_TIME, Catalog, Interactions, Vocabulary, as_numpy

__all__ = ["append_catalog", "append_events", "append_ids"]

_GROUPS = ("session_E", "impression_E")
_LABELS = (("kind_E", "kinds"), ("domain_E", "domains"))


def append_ids(old: Vocabulary, new: Vocabulary) -> Vocabulary:
    """The ids of ``old``, then those of ``new`` that it lacks; raises ``DataError`` where types differ."""
    if old.is_text and not new.is_text:  # a text file whose ids happen to be numbers
        new = Vocabulary(new.ids.cast(pa.large_string()))
    if old.ids.type != new.ids.type:
        raise DataError(f"the ids known are {old.ids.type}, the new ones {new.ids.type}: cast the new ones")
    added = pa.array(positions(new.ids, old) < 0)
    return Vocabulary(pa.concat_arrays([old.ids, new.ids.filter(added)]))


def append_catalog(old: Catalog, new: Catalog) -> Catalog:
    """The items of ``old`` as they are, then those of ``new`` that it lacks; attributes that one has not are null."""
    items = append_ids(old.items, new.items)
    added = torch.from_numpy(positions(new.items.ids, old.items)) < 0
    frame = pl.concat([old.frame, new.frame.filter(pl.Series(added.numpy()))], how="diagonal_relaxed")
    if old.available_N is None and new.available_N is None:
        return Catalog(items, frame)
    before, after = (
        torch.ones(len(c), dtype=torch.bool) if c.available_N is None else c.available_N for c in (old, new)
    )
    return Catalog(items, frame, torch.cat([before, after[added]]))


def append_events(old: Interactions, new: Interactions) -> Interactions:
    """The events of ``old`` and the later ones of ``new``, sorted, over the vocabularies of both.

    ``positive_kinds`` are those of ``old``. Raises ``DataError`` where times are missing, where the columns of the two
    logs differ, or where no event of ``new`` is later than all of ``old``.
    """
    if bool((old.time_E == NO_TIME).any()) or bool((new.time_E == NO_TIME).any()):
        raise DataError("events can only be added where all have a time: fit anew on the whole log")
    if set(old.columns()) != set(new.columns()):
        raise DataError(
            f"the new events have the columns {_names(new)}, those before {_names(old)}: give the same columns"
        )
    last = int(old.time_E.max())
    later = new.select(new.time_E > last)
    if not len(later):
        raise DataError(f"none of the {len(new)} events is later than the last one known, at {last} s: nothing to add")
    users, items = append_ids(old.users, later.users), append_ids(old.items, later.items)
    columns = later.columns()
    columns["user_E"] = _renumbered(columns["user_E"], later.users, users)
    columns["item_E"] = _renumbered(columns["item_E"], later.items, items)
    labels = _merge_labels(old, later, columns)
    for name in _GROUPS:
        if name in columns:
            start = int(getattr(old, name).max()) + 1
            columns[name] = torch.where(columns[name] < 0, columns[name], columns[name] + start)
    if not old.has_order:
        columns["order_E"] = columns["order_E"] + int(old.order_E.max()) + 1
    return _joined(old, columns, {"users": users, "items": items, **labels})


def _renumbered(codes_E: Tensor, source: Vocabulary, target: Vocabulary) -> Tensor:
    return torch.from_numpy(positions(source.ids, target))[codes_E.long()]


def _merge_labels(old: Interactions, later: Interactions, columns: dict[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Bring the label codes in ``columns`` onto the merged names, which are returned."""
    merged: dict[str, tuple[str, ...]] = {}
    for column, plural in _LABELS:
        if column in columns:
            theirs: tuple[str, ...] = getattr(later, plural)
            ours: tuple[str, ...] = getattr(old, plural)
            merged[plural] = (*ours, *(name for name in theirs if name not in ours))
            ranks = torch.tensor([merged[plural].index(name) for name in theirs], dtype=columns[column].dtype)
            columns[column] = ranks[columns[column].long()]
    return merged


def _joined(old: Interactions, columns: dict[str, Tensor], changes: dict[str, Any]) -> Interactions:
    both = {name: torch.cat([column, columns[name]]) for name, column in old.columns().items()}
    keys = (as_numpy(both["order_E"]), as_numpy(both["time_E"]), as_numpy(both["user_E"]))
    rows_E = torch.from_numpy(np.lexsort(keys))
    chosen: dict[str, Any] = {name: column[rows_E] for name, column in both.items()}
    return dataclasses.replace(old, **chosen, **changes)


def _names(interactions: Interactions) -> list[str]:
    return [name.removesuffix("_E") for name in interactions.columns()]
