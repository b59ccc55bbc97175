"""Event logs: any table → ``Interactions``, and the k-core filter.

Events are sorted by user, time, order; equal ones keep the order of the file. Where a file has no ``order`` column
the row number takes its place. A user with an event without a time is sorted by ``order`` alone.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from tesserec.data.columns import (
    encode_ids,
    positions,
    read_groups,
    read_labels,
    read_numbers,
    read_seconds,
    read_whole,
)
from tesserec.data.ordering import sorted_rows
from tesserec.data.tables import Source, Table, advice, match_columns, open_table
from tesserec.errors import DataError, UnknownIdError
from tesserec.types import NO_TIME, Interactions, Vocabulary

__all__ = ["EVENT_COLUMNS", "k_core", "read_events", "shuffle_ties"]

Array = npt.NDArray[Any]

EVENT_COLUMNS: dict[str, tuple[str, ...]] = {
    "user_id": ("user", "uid", "customer_id", "customer", "visitor_id", "reviewer_id", "member_id"),
    "item_id": ("item", "iid", "product_id", "product", "asin", "parent_asin", "movie_id", "article_id", "venue_id"),
    "timestamp": ("datetime", "date", "time", "unixtime", "unix_review_time", "event_time", "ts"),
    "order": ("pos", "position"),
    "value": ("rating", "weight", "quantity", "overall", "stars"),
    "kind": ("behavior", "behaviour", "event", "event_type"),
    "domain": (),
    "session": ("session_id", "invoice", "invoice_no", "basket", "basket_id", "order_id"),
    "impression_id": ("impression",),
}
"""Our column names and the other names that are understood, compared without case and punctuation."""


def read_events(
    source: Source,
    *,
    columns: Mapping[str, str | None] | None = None,
    positive_kinds: Sequence[str] = (),
    items: Vocabulary | None = None,
    users: Vocabulary | None = None,
    unknown_items: Literal["error", "drop"] = "error",
) -> Interactions:
    """The events of a file or frame (see ``tesserec.data.tables`` for the formats), sorted.

    ``columns`` maps our names (the keys of ``EVENT_COLUMNS``) to the table's where aliases do not, or to None to
    leave one out. ``user_id``, ``item_id`` and one of ``timestamp`` and ``order`` must exist; times may be null only
    beside ``order``. Users and items are numbered in the order of their sorted ids, or as in ``users`` and ``items``.
    Events of items that are not in ``items`` are an error, or dropped with a warning that counts them. Only events of
    ``positive_kinds`` are ever targets (all, where it is empty).

    Raises ``DataError`` (with row, column and remedy) for whatever cannot be used, ``UnknownIdError`` for unknown ids.
    """
    table = open_table(source)
    names = _event_columns(table, columns)
    user_E, users_found = _indices(table, names["user_id"], users)
    item_E, items_found = _indices(table, names["item_id"], items)
    raw: dict[str, Array | None] = {"user_E": user_E, "item_E": item_E}
    del user_E, item_E
    raw["time_E"], raw["order_E"] = _times(table, names)
    extra = _extra_columns(table, names, raw)
    _check_kinds(table, extra.get("kinds"), tuple(positive_kinds))
    dropped = _drop_unknown(table, names, raw, unknown_items)
    has_order = raw["order_E"] is not None
    tensors = _sort(raw, len(users_found))
    extra |= {"has_order": has_order, "positive_kinds": tuple(positive_kinds)}
    events = Interactions(users_found, items_found, **tensors, **extra)
    return compact(events, users=users is None, items=False) if dropped else events


def _event_columns(table: Table, columns: Mapping[str, str | None] | None) -> dict[str, str]:
    names = match_columns(table, EVENT_COLUMNS, columns, "columns")
    has = f"{table.name} has the columns {', '.join(table.names)}"
    for ours in ("user_id", "item_id"):
        if ours not in names:
            raise DataError(f"{has}: none is {ours}; {advice(ours, '...', 'columns')}")
    if not {"timestamp", "order"} & set(names):
        raise DataError(
            f"{has}: neither timestamp nor order is among them, and without one there is no order of events; "
            f"{advice('timestamp', '...', 'columns')}"
        )
    return names


def _indices(table: Table, name: str, vocabulary: Vocabulary | None) -> tuple[npt.NDArray[np.int32], Vocabulary]:
    codes_E, ids = encode_ids(table, name)
    if not len(codes_E):
        raise DataError(f"{table.name} holds no events: give at least one row")
    if vocabulary is None:
        return codes_E, Vocabulary(ids)
    return positions(ids, vocabulary)[codes_E], vocabulary


def _times(table: Table, names: Mapping[str, str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    order = read_whole(table, names["order"]) if "order" in names else None
    if "timestamp" not in names:
        assert order is not None
        return np.full(len(order), NO_TIME, np.int64), order
    seconds = read_seconds(table, names["timestamp"])
    if order is None and seconds.min() == NO_TIME:
        raise DataError(
            f"{table.name}: column {names['timestamp']} is null in row {int(np.argmin(seconds))}: "
            "give each event a time, drop the row, or add an order column"
        )
    return seconds, order


def _extra_columns(table: Table, names: Mapping[str, str], raw: dict[str, Array | None]) -> dict[str, Any]:
    """Put the optional columns into ``raw``; returns the names of their codes."""
    extra: dict[str, Any] = {}
    if "value" in names:
        raw["value_E"] = read_numbers(table, names["value"])
    for ours, plural in (("kind", "kinds"), ("domain", "domains")):
        if ours in names:
            raw[f"{ours}_E"], extra[plural] = read_labels(table, names[ours])
    for ours, column in (("session", "session_E"), ("impression_id", "impression_E")):
        if ours in names:
            raw[column] = read_groups(table, names[ours])
    return extra


def _check_kinds(table: Table, kinds: tuple[str, ...] | None, positive_kinds: tuple[str, ...]) -> None:
    if positive_kinds and kinds is None:
        raise DataError(f"{table.name} has no kind column, so no event is one of positive_kinds {list(positive_kinds)}")
    absent = sorted(set(positive_kinds) - set(kinds or ()))
    if absent:
        raise DataError(f"positive_kinds {absent} do not occur in {table.name}: its kinds are {list(kinds or ())}")


def _drop_unknown(
    table: Table, names: Mapping[str, str], raw: dict[str, Array | None], unknown_items: Literal["error", "drop"]
) -> int:
    """Remove the rows of unknown items from ``raw``, or refuse them; returns how many were removed."""
    user_E, item_E = raw["user_E"], raw["item_E"]
    assert user_E is not None
    assert item_E is not None
    if user_E.min() < 0:
        row = int(np.argmin(user_E))
        value = table.read(names["user_id"])[row].as_py()
        raise UnknownIdError(f"{table.name}: row {row} is of user {value!r}, who is not among the users given")
    known_E = item_E >= 0
    count = int(len(known_E) - known_E.sum())
    if not count:
        return 0
    if unknown_items == "error":
        row = int(np.argmin(known_E))
        value = table.read(names["item_id"])[row].as_py()
        raise UnknownIdError(
            f"{table.name}: {count} events are of items not in the catalog, the first in row {row}: {value!r}; "
            'add them to the catalog, or drop the events with unknown_items = "drop" (under [data] in a recipe)'
        )
    if count == len(known_E):
        raise DataError(f"{table.name}: none of the {count} events is of an item in the catalog: compare their ids")
    warnings.warn(
        f"{table.name}: {count} of {len(known_E)} events dropped: their items are not in the catalog", stacklevel=3
    )
    for name, column in raw.items():
        raw[name] = None if column is None else column[known_E]
    return count


def _sort(raw: dict[str, Array | None], num_users: int) -> dict[str, Any]:
    """The columns of ``raw`` (emptied, to free memory) in order of user, time, order, as tensors."""
    user_E, time_E, order_E = raw["user_E"], raw["time_E"], raw["order_E"]
    assert user_E is not None
    assert time_E is not None
    pa.default_memory_pool().release_unused()
    rows_E = sorted_rows(user_E, time_E, order_E, num_users)
    del user_E, time_E, order_E
    tensors: dict[str, Tensor] = {}
    for name in list(raw):
        column = raw.pop(name)
        if column is not None:
            tensors[name] = torch.from_numpy(column[rows_E])
        del column
    tensors.setdefault("order_E", torch.from_numpy(rows_E.astype(np.int64)))
    return tensors


def compact(interactions: Interactions, *, users: bool = True, items: bool = True) -> Interactions:
    """The same events with vocabularies of only those users or items that occur, in the same order."""
    changes: dict[str, Any] = {}
    for wanted, ids_name, column in ((users, "users", "user_E"), (items, "items", "item_E")):
        if wanted:
            vocabulary: Vocabulary = getattr(interactions, ids_name)
            codes_E: Tensor = getattr(interactions, column)
            present = torch.bincount(codes_E, minlength=len(vocabulary)) > 0
            ranks = (present.cumsum(0) - 1).to(torch.int32)
            changes[ids_name] = Vocabulary(vocabulary.ids.filter(pa.array(present.numpy())))
            changes[column] = ranks[codes_E.long()]
    return dataclasses.replace(interactions, **changes)


def k_core(interactions: Interactions, min_user_events: int = 5, min_item_events: int = 5) -> Interactions:
    """The largest part of the log in which every user and item has at least so many events that may be targets.

    Signals (returns) of the users and items that remain are kept but not counted. Vocabularies shrink to what remains:
    bring the catalog along with ``tesserec.data.align_catalog``. Raises ``DataError`` where nothing remains.
    """
    user_E, item_E = interactions.user_E.long(), interactions.item_E.long()
    positive_E = interactions.is_positive_E
    keep_E = torch.ones(len(interactions), dtype=torch.bool)
    while True:
        counted_E = keep_E & positive_E
        enough_U = torch.bincount(user_E[counted_E], minlength=len(interactions.users)) >= min_user_events
        enough_N = torch.bincount(item_E[counted_E], minlength=len(interactions.items)) >= min_item_events
        next_E = keep_E & enough_U[user_E] & enough_N[item_E]
        if bool((next_E == keep_E).all()):
            break
        keep_E = next_E
    if not bool(keep_E.any()):
        raise DataError(f"no event is left with {min_user_events} a user and {min_item_events} an item: ask for fewer")
    return compact(interactions.select(keep_E))


def shuffle_ties(interactions: Interactions, seed: int) -> Interactions:
    """The log with the ``order`` of each user's events of one time (and session) drawn at random.

    What an accuracy owes to a tie-break, alphabetical order within a day for example, is gone from it.
    """
    log = interactions
    apart = (log.user_E.diff() != 0) | (log.time_E.diff() != 0) | (log.time_E[1:] == NO_TIME)
    if log.session_E is not None:
        apart |= log.session_E.diff() != 0
    run_E = torch.cat([torch.zeros(1, dtype=torch.int64), apart.long().cumsum(0)])
    drawn_E = torch.randperm(len(log), generator=torch.Generator().manual_seed(seed))
    rows_E = torch.from_numpy(np.lexsort((drawn_E.numpy(), run_E.numpy())))
    columns: dict[str, Any] = {n: column[rows_E] for n, column in log.columns().items() if n != "order_E"}
    return dataclasses.replace(log, **columns)
