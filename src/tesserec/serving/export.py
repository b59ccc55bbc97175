"""What a store knows, as a log and a catalog that a system can be fitted on.

Users and items of the bundle that is live keep their places, new ones come after them. Events that it could not read
are left out and counted: those of kinds that it was not fitted on, of items that nobody described, with a time to come.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import torch

from tesserec.bundle import Contents
from tesserec.data.append import append_catalog, append_ids
from tesserec.data.interactions import read_events
from tesserec.errors import ServiceError
from tesserec.serving.attributes import AttributeTypes, as_catalog, attribute_frame
from tesserec.serving.gate_questions import pages
from tesserec.serving.pasts import Reader
from tesserec.serving.records import Item, Store, StoredEvent
from tesserec.types import Catalog, Interactions, Vocabulary

__all__ = ["Exported", "export", "last_sequence"]


@dataclass(frozen=True, eq=False)
class Exported:
    """A log and its catalog, and what was left out."""

    interactions: Interactions
    catalog: Catalog
    num_new_items: int
    notes: tuple[str, ...]


def last_sequence(store: Store) -> int:
    """The place of the last event that the store took; 0 where it has none."""
    last = 0
    for page in pages(store):
        last = page[-1].sequence
    return last


def export(store: Store, contents: Contents, *, sequence: int, until_s: float) -> Exported:
    """The store's events up to ``sequence`` and the time ``until_s``, and all items, over those of ``contents``.

    Raises ``ServiceError`` where no event is left.
    """
    new = _new_items(store, contents.catalog)
    catalog = contents.catalog if new is None else append_catalog(contents.catalog, new)
    old = contents.interactions
    described = dict.fromkeys(map(str, catalog.items.ids.to_pylist()), 0)
    frame, left_out = _events(store, _Limits(old, Reader.of(old), described, sequence, until_s))
    if not len(frame):
        raise ServiceError("the store has no event that the live bundle can read: there is nothing to fit on")
    notes = tuple(f"{number} events were left out: {why}" for why, number in sorted(left_out.items()))
    log = _log(frame, old, catalog)
    return Exported(log, catalog, len(catalog) - len(contents.catalog), notes)


def _new_items(store: Store, catalog: Catalog) -> Catalog | None:
    """Items that the catalog lacks, as far as their ids are of its type; None where there are none."""
    items = [revised.item for revised in store.items_after(0) if not revised.item.deleted]
    known = catalog.items.find([item.item_id for item in items]) >= 0
    new = [i for i, k in zip(items, known.tolist(), strict=True) if not k and _fits(i.item_id, catalog.items)]
    if not new:
        return None
    types = AttributeTypes(attribute_frame(catalog).schema)
    rows = types.frame([(item.item_id, item.attributes) for item in new])
    if catalog.frame.columns == ["item_id"]:
        rows = rows.select("item_id")
    made = as_catalog(rows, catalog.frame.schema)
    return _of_type(made, catalog, new)


def _of_type(made: Catalog, catalog: Catalog, new: Sequence[Item]) -> Catalog:
    """The new items with ids of the catalog's type, and their availability where it knows of any."""
    items, frame = made.items, made.frame
    if not catalog.items.is_text:
        items = Vocabulary(items.ids.cast(pa.int64()))
    if "item_id" in catalog.frame.columns:
        frame = frame.with_columns(pl.Series("item_id", items.ids))
    else:
        frame = frame.drop("item_id")
    available = [item.available for item in new]
    return Catalog(items, frame, None if all(available) else torch.tensor(available))


def _fits(name: str, vocabulary: Vocabulary) -> bool:
    """Whether an id of the service can be one of ``vocabulary``'s type, and come back as the same text."""
    if vocabulary.is_text:
        return True
    return name.lstrip("-").isascii() and name.lstrip("-").isdigit() and len(name) < 19 and str(int(name)) == name


@dataclass(frozen=True, eq=False)
class _Limits:
    """Which events are read."""

    log: Interactions
    """What the live bundle was fitted on."""
    reader: Reader
    items: Mapping[str, int]
    """Items that somebody described."""
    sequence: int
    until_s: float

    def unread(self, stored: StoredEvent) -> str | None:
        """Why an event is not read, "" for one that arrived after the others, None for one that is."""
        event = stored.event
        if stored.sequence > self.sequence:
            return ""
        if event.time > self.until_s:
            return "their time is still to come"
        if event.item_id not in self.items:
            return "nobody described their items"
        if not _fits(event.user_id, self.log.users):
            return "their users' ids are no numbers, as the live bundle's are"
        known = self.reader.read(self.items, [event]).items
        return None if known else f"the live bundle knows no kind {event.kind!r}"


def _events(store: Store, limits: _Limits) -> tuple[pl.DataFrame, Counter[str]]:
    """Our columns of the events that are read, in order of arrival, and how many were not, by why."""
    left_out: Counter[str] = Counter()
    parts = []
    for page in pages(store):
        kept = []
        for stored in page:
            why = limits.unread(stored)
            if why is None:
                kept.append(stored)
            elif why:
                left_out[why] += 1
        parts.append(_frame(kept, limits.log))
    return (pl.concat(parts) if parts else pl.DataFrame()), left_out


def _frame(page: Sequence[StoredEvent], log: Interactions) -> pl.DataFrame:
    events = [stored.event for stored in page]
    columns: dict[str, Any] = {
        "user_id": _ids([event.user_id for event in events], log.users),
        "item_id": _ids([event.item_id for event in events], log.items),
    }
    if Reader.of(log).timed:
        columns["timestamp"] = pl.Series([event.time for event in events], dtype=pl.Float64)
    if log.has_order or not Reader.of(log).timed:
        columns["order"] = pl.Series([stored.sequence for stored in page], dtype=pl.Int64)
    if log.kind_E is not None:
        columns["kind"] = pl.Series([event.kind for event in events], dtype=pl.String)
    if log.value_E is not None:
        columns["value"] = pl.Series([1.0 if e.value is None else e.value for e in events], dtype=pl.Float64)
    if log.session_E is not None:
        columns["session"] = pl.Series([event.session for event in events], dtype=pl.String)
    return pl.DataFrame(columns)


def _ids(names: Sequence[str], vocabulary: Vocabulary) -> pl.Series:
    return pl.Series(names, dtype=pl.String) if vocabulary.is_text else pl.Series(map(int, names), dtype=pl.Int64)


def _log(frame: pl.DataFrame, old: Interactions, catalog: Catalog) -> Interactions:
    """The events over the users of ``old`` (and new ones) and the items of ``catalog``, with the kinds of ``old``."""
    found = Vocabulary(frame["user_id"].unique().sort().to_arrow().cast(old.users.ids.type))
    users = append_ids(old.users, found)
    log = read_events(frame, users=users, items=catalog.items)
    changes: dict[str, Any] = {"has_order": old.has_order, "positive_kinds": old.positive_kinds}
    if log.kind_E is not None:
        places = torch.tensor([old.kinds.index(kind) for kind in log.kinds], dtype=log.kind_E.dtype)
        changes |= {"kind_E": places[log.kind_E.long()], "kinds": old.kinds}
    return dataclasses.replace(log, **changes)
