"""``LiveCatalog``: what a loaded model may show, kept as the store says.

The items of the bundle come first; what the store says of an item takes the place of what the bundle said. Items that
the bundle does not know become part of a new model, which takes the place of the one before together with its snapshot,
at once. What an item was called when it joined the model is what its vectors and codes are made of, until the service
loads a bundle again; attributes, filters and search follow every change.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import polars as pl
import torch
from torch import Tensor

from tesserec.errors import DataError
from tesserec.serving.attributes import AttributeTypes, appended, as_catalog, patched
from tesserec.serving.records import Item, Revised, Value
from tesserec.serving.search_index import SearchIndex
from tesserec.serving.snapshot import CatalogSnapshot, ItemTable
from tesserec.types import Catalog

__all__ = ["CatalogSnapshot", "ItemStore", "Live", "LiveCatalog", "Model"]

LOGGER = logging.getLogger(__name__)


class Model(Protocol):
    """What a live catalog asks of a loaded model; item ids are strings."""

    @property
    def catalog(self) -> Catalog:
        """Its items, in dense order."""

    @property
    def num_fitted(self) -> int:
        """Items before this number were known to the fit."""

    def with_items(self, new: Catalog) -> Self:
        """A model with these items after its own; this one stays as it is."""


class ItemStore(Protocol):
    """What a live catalog asks of a store."""

    def items_after(self, revision: int) -> list[Revised]:
        """Items whose latest change came after ``revision``, by revision."""


ModelT = TypeVar("ModelT", bound=Model)


class Live(NamedTuple, Generic[ModelT]):
    """A model and what it may show: they belong together."""

    model: ModelT
    catalog: CatalogSnapshot


class LiveCatalog(Generic[ModelT]):
    """The current model and snapshot. All methods may be called from any thread."""

    def __init__(self, model: ModelT, store: ItemStore) -> None:
        snapshot = CatalogSnapshot.of(model.catalog, model.num_fitted)
        self._store = store
        self._types = AttributeTypes(snapshot.frame.schema)
        self._positions = dict(snapshot.positions)
        self._live = Live(model, snapshot)
        self._digests: dict[int, bytes] = {}
        self._index = SearchIndex()
        self._index.put(_searchable(snapshot.frame, range(len(snapshot))))
        self._refreshing, self._counting = threading.Lock(), threading.Lock()
        self._asked = self._served = 0
        self.refresh()

    @property
    def snapshot(self) -> Live[ModelT]:
        """The model and its snapshot: take both at once, and use them for a whole request."""
        return self._live

    def refresh(self) -> int:
        """Take over what the store holds; the revision of the snapshot, which has every write done before the call.

        Callers at the same time share one reading of the store.
        """
        with self._counting:
            self._asked += 1
            mine = self._asked
        with self._refreshing:
            if self._served < mine:
                serving = self._asked
                changes = self._store.items_after(self._live.catalog.revision)
                if changes:
                    self._take(changes)
                self._served = serving
            return self._live.catalog.revision

    def check_item(self, attributes: Mapping[str, Value]) -> None:
        """Whether an item with these attributes can be kept: ask before it is written.

        Raises ``DataError`` that names an attribute of another type than other items have it. The first value of a new
        attribute settles its type.
        """
        self._types.check(attributes)

    def patched(self, item_id: str, attributes: Mapping[str, Value], available: bool | None) -> Item:
        """The item with some attributes changed (null removes one) and, unless None, another availability.

        Raises ``DataError`` for an item that is not known or deleted, and as ``check_item``. Between the call and the
        refresh after the write of what it returns, nothing else may write the item.
        """
        snapshot = self._live.catalog
        index = snapshot.index(item_id)
        if index is None or snapshot.deleted_N[index]:
            raise DataError(f"there is no item {item_id!r}: put it as a whole")
        merged = snapshot.attributes(index) | dict(attributes)
        merged = {name: value for name, value in merged.items() if value is not None}
        self.check_item(merged)
        return Item(item_id, merged, bool(snapshot.available_N[index]) if available is None else available)

    def _take(self, changes: Sequence[Revised]) -> None:
        model, now = self._live
        known = [change.item for change in changes if change.item.item_id in self._positions]
        new = [c.item for c in changes if c.item.item_id not in self._positions and not c.item.deleted]
        indices = [self._positions[item.item_id] for item in known]
        changed = {i: item for i, item in zip(indices, known, strict=True) if self._digests.get(i) != _digest(item)}
        frame = patched(now.frame, list(changed), self._rows(list(changed.values()))) if changed else now.frame
        if new:  # what may fail comes first: nothing is taken over by half
            model, new = self._joined(model, new)
            frame = appended(frame, self._rows(new)) if new else frame
        assert len(model.catalog) == len(frame), "a model has new items after its own"
        added = dict(zip(range(len(now), len(frame)), new, strict=True))
        self._index.put(_searchable(frame, [*changed, *added]))
        self._index.remove(index for index, item in changed.items() if item.deleted)
        self._digests.update((index, _digest(item)) for index, item in (changed | added).items())
        self._positions.update((item.item_id, index) for index, item in added.items())
        items = dict(zip(indices, known, strict=True)) | added
        self._live = Live(model, self._next(model, frame, items, changes[-1].revision))

    def _joined(self, model: ModelT, new: list[Item]) -> tuple[ModelT, list[Item]]:
        """A model with the items that it has a place for, and these: one that has none does not hold up the others."""
        try:
            return model.with_items(as_catalog(self._rows(new), model.catalog.frame.schema)), new
        except DataError as error:
            if len(new) == 1:
                LOGGER.error("item %r is kept, and cannot be shown: %s", new[0].item_id, error)
                return model, []
        half = len(new) // 2
        model, first = self._joined(model, new[:half])
        model, second = self._joined(model, new[half:])
        return model, first + second

    def _next(self, model: ModelT, frame: pl.DataFrame, items: Mapping[int, Item], revision: int) -> CatalogSnapshot:
        """The snapshot after the present one: with these attributes, and what is said of the items at some indices."""
        now = self._live.catalog
        more = torch.zeros(len(frame) - len(now), dtype=torch.bool)
        available_N, deleted_N = torch.cat([now.available_N, more]), torch.cat([now.deleted_N, more])
        places = torch.tensor(list(items), dtype=torch.int64)
        deleted_N[places] = torch.tensor([item.deleted for item in items.values()], dtype=torch.bool)
        shown = [item.available and not item.deleted for item in items.values()]
        available_N[places] = torch.tensor(shown, dtype=torch.bool)
        table = now.table if frame is now.frame else ItemTable(frame)
        return dataclasses.replace(
            now,
            items=model.catalog.items,
            table=table,
            available_N=available_N,
            deleted_N=deleted_N,
            revision=revision,
            positions=self._positions,
        )

    def _rows(self, items: Sequence[Item]) -> pl.DataFrame:
        return self._types.frame([(item.item_id, {} if item.deleted else item.attributes) for item in items])

    def search(self, words: str, limit: int, mask: Tensor) -> list[tuple[int, float]]:
        """The best ``limit`` items of ``mask`` (bool [N]) for any text, as (index, score), best first."""
        return self._index.search(words, limit, mask)

    def close(self) -> None:
        """Let go of the search index; snapshots stay usable."""
        self._index.close()


def _digest(item: Item) -> bytes:
    """Equal where attributes are, so that a change of stock costs no comparison of columns."""
    told = json.dumps([item.deleted, dict(item.attributes)], sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=16).digest()


def _searchable(frame: pl.DataFrame, indices: Sequence[int]) -> Iterator[tuple[int, str, str]]:
    """(index, title, text) of some rows."""
    names = [name for name in ("title", "text") if frame.schema.get(name) == pl.String]
    texts = frame.select("item_id", *names)[list(indices)].fill_null("")
    blank = [""] * len(texts)
    title, text = (texts[name].to_list() if name in names else blank for name in ("title", "text"))
    return zip(indices, title, text, strict=True)
