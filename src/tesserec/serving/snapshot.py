"""``CatalogSnapshot``: what there is to show at one revision of the items, for one loaded model.

Dimensions: N items.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

import polars as pl
import torch
from torch import Tensor

from tesserec.serving.attributes import attribute_frame, described
from tesserec.serving.filters import compile_filter
from tesserec.types import Catalog, Vocabulary

__all__ = ["CatalogSnapshot", "ItemTable", "Titles"]

_MAX_KEPT = 64
T = TypeVar("T")


class _Kept(Generic[T]):
    """The values of the texts that were asked for last; the same object for the same text, in all threads."""

    def __init__(self) -> None:
        self._values: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, text: str, make: Callable[[str], T]) -> T:
        with self._lock:
            if text not in self._values:
                self._values[text] = make(text)
            self._values.move_to_end(text)
            if len(self._values) > _MAX_KEPT:
                self._values.popitem(last=False)
            return self._values[text]


class Titles(Sequence[str]):
    """What to call each item: its title, else its text, else its id. Looked up when asked, since few are."""

    def __init__(self, frame: pl.DataFrame) -> None:
        names = [name for name in ("title", "text") if frame.schema.get(name) == pl.String]
        self._columns = [frame[name] for name in (*names, "item_id")]

    def __len__(self) -> int:
        return len(self._columns[-1])

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return next((str(value) for column in self._columns if (value := column[index])), "")


class ItemTable:
    """The attributes of all items: snapshots between which only stock changed share one, with what was computed."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame
        self.titles = Titles(frame)
        self._truths: _Kept[Tensor] = _Kept()

    def truth(self, text: str) -> Tensor:
        """For which items a filter holds, bool [N]; raises ``FilterError``."""
        return self._truths.get(text, self._evaluated)

    def _evaluated(self, text: str) -> Tensor:
        truth = self.frame.select(compile_filter(text, self.frame.schema).alias("truth"))["truth"]
        return truth.to_torch() if len(truth) else torch.zeros(0, dtype=torch.bool)


@dataclass(frozen=True, eq=False)
class CatalogSnapshot:
    """The items at one revision; it never changes, and its tensors must not be written to."""

    items: Vocabulary
    """In the model's dense order: those of its bundle, then those added since."""
    table: ItemTable
    available_N: Tensor
    """Which may be shown now, bool: available and not deleted."""
    deleted_N: Tensor
    """Which were deleted, bool: never shown, searched or described."""
    revision: int
    """The store's table revision: what was put up to it counts, and nothing after it."""
    num_fitted: int
    """Items before this number were known to the fit; those after are cold."""
    positions: Mapping[str, int]
    """Item id → dense index; may hold later items, whose indices are beyond this snapshot."""
    _masks: _Kept[Tensor] = field(default_factory=_Kept, init=False)
    _fitted_masks: _Kept[Tensor] = field(default_factory=_Kept, init=False)

    @classmethod
    def of(cls, catalog: Catalog, num_fitted: int | None = None) -> CatalogSnapshot:
        """A catalog as it is, at revision 0; all items are taken for fitted where ``num_fitted`` is None."""
        frame = attribute_frame(catalog)
        available_N = torch.ones(len(catalog), dtype=torch.bool) if catalog.available_N is None else catalog.available_N
        positions = {item_id: index for index, item_id in enumerate(frame["item_id"])}
        num_fitted = len(catalog) if num_fitted is None else num_fitted
        deleted_N = torch.zeros(len(catalog), dtype=torch.bool)
        return cls(catalog.items, ItemTable(frame), available_N, deleted_N, 0, num_fitted, positions)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def frame(self) -> pl.DataFrame:
        """One row an item: ``item_id`` and attributes; those of a deleted item are null."""
        return self.table.frame

    @property
    def titles(self) -> Titles:
        """What to call each item: its title, else its text, else its id; a sequence that is cheap to ask for few."""
        return self.table.titles

    def holds(self, filter_text: str) -> Tensor:
        """For which items an expression holds, available or not, bool [N]; raises ``FilterError``."""
        return self.table.truth(filter_text)

    def mask(self, filter_text: str | None, *, cold: bool = True) -> Tensor:
        """Which items may be shown under a filter, bool [N]; the same object for the same text.

        Without ``cold`` those added since the fit may not. Raises ``FilterError``.
        """
        if not cold and self.num_fitted < len(self):
            key = "" if filter_text is None else f"={filter_text}"
            return self._fitted_masks.get(key, lambda _: self._fitted_only(self.mask(filter_text)))
        if filter_text is None:
            return self.available_N
        return self._masks.get(filter_text, lambda text: self.available_N & self.holds(text))

    def _fitted_only(self, mask_N: Tensor) -> Tensor:
        fitted_N = mask_N.clone()
        fitted_N[self.num_fitted :] = False
        return fitted_N

    def index(self, item_id: str) -> int | None:
        """The dense index of an item, deleted ones included, since histories hold them; None where unknown."""
        index = self.positions.get(item_id)
        return index if index is not None and index < len(self.items) else None

    def is_legal(self, item_id: str, filter_text: str | None) -> bool:
        """Whether an item may be shown under a filter; raises ``FilterError``."""
        index = self.index(item_id)
        return index is not None and bool(self.mask(filter_text)[index])

    def attributes(self, index: int) -> dict[str, Any]:
        """What an item has, ready for JSON (times as ISO 8601), without a ``text`` that was made of the rest."""
        return described(self.frame, index)
