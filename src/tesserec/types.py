"""The data that flows between stages, and the protocols of the stages.

Dimensions: B requests · K candidates · E events · H history events · N items · L levels · C codes a level · D features.
Every type is frozen, validated when built and batch-first. Ids outside are the user's own (strings or integers); inside
they are dense integers, and ``Vocabulary`` is where the two meet. Index tensors are int64, except the columns of
``Interactions``, which are stored as int32 to halve the memory of a large log.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from tesserec.errors import DataError, UnknownIdError

__all__ = [
    "NEVER",
    "NO_TIME",
    "PAD",
    "Candidates",
    "Catalog",
    "ComponentState",
    "Embedder",
    "Estimate",
    "Estimates",
    "Filters",
    "FitContext",
    "HasFittedCodes",
    "HasItemVectors",
    "HasTrainingLog",
    "History",
    "Holdout",
    "Interactions",
    "ItemEmbeddings",
    "Progress",
    "Quantizer",
    "Ragged",
    "Requests",
    "Reranker",
    "Retriever",
    "Scorer",
    "SemanticIds",
    "SideInformation",
    "TakesNewItems",
    "Vocabulary",
]

PAD = -1
"""The item index that means "no item": at the end of candidates that are fewer than K."""

NO_TIME = -1
"""The time of an event without one (seconds are never negative)."""

NEVER = 2**63 - 1
"""A time after all others: that of the first event of an item without events."""

Id = str | int


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The user's own ids, in dense order: position is the inside index.

    ``ids`` is an Arrow array of int64 or large_string, distinct, without nulls.
    """

    ids: pa.Array

    def __post_init__(self) -> None:
        if not (pa.types.is_int64(self.ids.type) or pa.types.is_large_string(self.ids.type)):
            raise DataError(f"ids must be int64 or large_string, not {self.ids.type}: cast the column first")
        if self.ids.null_count:
            raise DataError(f"{self.ids.null_count} ids are null: every id must be given")

    @classmethod
    def of(cls, ids: Sequence[Id]) -> Vocabulary:
        """A vocabulary of distinct ids, all strings or all integers."""
        kinds = {bool(isinstance(i, str)) for i in ids}
        if len(kinds) > 1:
            raise DataError("ids mix strings and integers: use one type for all of them")
        fractions = (i for i in ids if isinstance(i, float) and i % 1)  # also NaN and infinity
        if (fraction := next(fractions, None)) is not None:
            raise DataError(f"the id {fraction} is not a whole number: give integers or strings")
        vocabulary = cls(pa.array(list(ids), pa.large_string() if kinds == {True} else pa.int64()))
        if len(pc.unique(vocabulary.ids)) != len(ids):
            raise DataError("a vocabulary must hold distinct ids: drop the duplicates")
        return vocabulary

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_text(self) -> bool:
        """Whether ids are strings rather than integers."""
        return bool(pa.types.is_large_string(self.ids.type))

    @cached_property
    def _position(self) -> dict[Id, int]:
        return {value: position for position, value in enumerate(self.ids.to_pylist())}

    def find(self, ids: Sequence[Id]) -> Tensor:
        """Dense indices of ``ids`` (int64), −1 where unknown; "12" and 12 are the same id."""
        return torch.tensor([self.position(i) for i in ids], dtype=torch.int64)

    def position(self, value: Id) -> int:
        """Dense index of one id, −1 where it is unknown."""
        return self._position.get(self._own(value), -1)

    def index(self, ids: Sequence[Id], what: str = "id") -> Tensor:
        """Dense indices of ``ids``; raises ``UnknownIdError`` that names the first unknown one."""
        found = self.find(ids)
        if (found < 0).any():
            missing = ids[int((found < 0).nonzero()[0])]
            raise UnknownIdError(f"unknown {what} {missing!r}: the {len(self)} known ones look like {self.ids[0]}")
        return found

    def to_ids(self, indices: Tensor) -> list[Id]:
        """The user's ids at dense ``indices`` (1-d, none of them PAD)."""
        return list(self.ids.take(pa.array(indices.numpy())).to_pylist())

    def _own(self, value: Id) -> Id:
        if self.is_text:
            return str(value)
        if isinstance(value, float) and value % 1:  # a fraction, which int() would cut, NaN or infinity
            return value
        try:
            return int(value)
        except ValueError:
            return value


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different length: row i is ``values[offsets[i]:offsets[i + 1]]``."""

    offsets: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        _check_offsets(self.offsets, len(self.values))

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        """Rows of dense item indices."""
        lengths = torch.tensor([0, *(len(r) for r in rows)], dtype=torch.int64)
        flat = [value for row in rows for value in row]
        return cls(lengths.cumsum(0), torch.tensor(flat, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Tensor:
        return self.values[int(self.offsets[row]) : int(self.offsets[row + 1])]

    @property
    def lengths(self) -> Tensor:
        """Length of each row, [B] int64."""
        return self.offsets.diff()

    @property
    def rows(self) -> Tensor:
        """The row number of each value, [len(values)] int64."""
        return torch.repeat_interleave(torch.arange(len(self)), self.lengths)

    def take(self, rows: Tensor) -> Ragged:
        """The rows at indices ``rows`` (int64), in that order."""
        offsets, positions = _take_rows(self.offsets, rows)
        return Ragged(offsets, self.values[positions])


@dataclass(frozen=True, eq=False)
class Interactions:
    """An event log: columns of E events sorted by user, time, order.

    ``kind_E`` indexes ``kinds``; ``domain_E`` indexes ``domains``. Only events whose kind is in ``positive_kinds``
    (all, where there are no kinds) are ever targets; the others, returns for example, are signals.
    """

    users: Vocabulary
    items: Vocabulary
    user_E: Tensor
    """Dense user index, int32, ascending."""
    item_E: Tensor
    """Dense item index, int32."""
    time_E: Tensor
    """Seconds since 1970 UTC, int64, ``NO_TIME`` where unknown."""
    order_E: Tensor
    """Tie-break within equal times, int64: the file's own column, else the row number."""
    has_order: bool = False
    """Whether ``order_E`` came from the file rather than from row numbers."""
    value_E: Tensor | None = None
    """Weight, rating or quantity, float32."""
    kind_E: Tensor | None = None
    kinds: tuple[str, ...] = ()
    positive_kinds: tuple[str, ...] = ()
    domain_E: Tensor | None = None
    domains: tuple[str, ...] = ()
    session_E: Tensor | None = None
    """Dense basket or session number, int64; −1 where none."""
    impression_E: Tensor | None = None
    """Dense impression number, int64; −1 where none."""

    def __post_init__(self) -> None:
        for name, column in self.columns().items():
            if column.shape != self.user_E.shape:
                raise DataError(f"{name} has {tuple(column.shape)} rows, user_E {tuple(self.user_E.shape)}: align them")
        unknown = set(self.positive_kinds) - set(self.kinds)
        if unknown:
            raise DataError(f"positive_kinds {sorted(unknown)} are not among the kinds {list(self.kinds)}")
        if len(self.user_E) and bool((self.user_E.diff() < 0).any()):
            raise DataError("events must be sorted by user, time, order: build them with tesserec.data.read_events")

    def __len__(self) -> int:
        return len(self.user_E)

    def columns(self) -> dict[str, Tensor]:
        """The per-event columns that are present, by field name."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name.endswith("_E")}
        return {name: column for name, column in found.items() if column is not None}

    def select(self, where_E: Tensor) -> Interactions:
        """The events at a boolean mask or ascending indices, with the same vocabularies."""
        chosen: dict[str, Any] = {name: column[where_E] for name, column in self.columns().items()}
        return dataclasses.replace(self, **chosen)

    @cached_property
    def is_positive_E(self) -> Tensor:
        """Whether each event may be a target, bool."""
        if self.kind_E is None or not self.positive_kinds:
            return torch.ones(len(self), dtype=torch.bool)
        legal = torch.tensor([k in self.positive_kinds for k in self.kinds])
        return legal[self.kind_E.long()]

    def positives(self) -> Interactions:
        """Only the events that may be targets."""
        return self if bool(self.is_positive_E.all()) else self.select(self.is_positive_E)

    @cached_property
    def user_offsets(self) -> Tensor:
        """Where each user's events start, [number of users + 1] int64."""
        counts = torch.bincount(self.user_E, minlength=len(self.users))
        return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])

    @cached_property
    def step_E(self) -> Tensor:
        """The number of each event's step, int64 ascending over the log.

        Events of one step happened together (a basket): their order means nothing. They are neighbours of one user
        and one session, or of one time where either has no session.
        """
        if not len(self):
            return torch.zeros(0, dtype=torch.int64)
        changed = self.user_E.diff() != 0
        same = (self.time_E.diff() == 0) & (self.time_E[1:] != NO_TIME)
        if self.session_E is not None:
            both = (self.session_E[1:] >= 0) & (self.session_E[:-1] >= 0)
            same = torch.where(both, self.session_E.diff() == 0, same)
        return torch.cat([torch.zeros(1, dtype=torch.int64), (changed | ~same).long().cumsum(0)])

    def first_times(self) -> Tensor:
        """Time of each item's first event, [N] int64: ``NEVER`` without one, ``NO_TIME`` where one has no time."""
        return torch.full((len(self.items),), NEVER).scatter_reduce(0, self.item_E.long(), self.time_E, "amin")

    def item_counts(self) -> Tensor:
        """Number of events of each item, [N] int64."""
        return torch.bincount(self.item_E, minlength=len(self.items))


@dataclass(frozen=True, eq=False)
class Catalog:
    """The items: ``frame`` has one row an item, in vocabulary order, with whatever attributes the user gave.

    Columns that stages know: ``title``, ``text`` (what embedders read), ``domain``, ``price``; others are attributes.
    """

    items: Vocabulary
    frame: pl.DataFrame
    available_N: Tensor | None = None
    """Whether an item may be shown now, bool; all may where this is None."""

    def __post_init__(self) -> None:
        if len(self.frame) != len(self.items):
            raise DataError(
                f"the catalog frame has {len(self.frame)} rows for {len(self.items)} items: give one row each"
            )
        if self.available_N is not None and self.available_N.shape != (len(self.items),):
            raise DataError(f"available_N has shape {tuple(self.available_N.shape)}, expected ({len(self.items)},)")

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def texts(self) -> list[str]:
        """The text of each item, "" where it has none."""
        column = "text" if "text" in self.frame.columns else "title"
        if column not in self.frame.columns:
            return [""] * len(self)
        return list(self.frame[column].cast(pl.String).fill_null("").to_list())

    @cached_property
    def titles(self) -> list[str]:
        """What to call each item on a screen: its title, else its text, else its id."""
        ids = [str(i) for i in self.items.ids.to_pylist()]
        if "title" not in self.frame.columns:
            return [text or own for text, own in zip(self.texts, ids, strict=True)]
        return [t or own for t, own in zip(self.frame["title"].cast(pl.String).to_list(), ids, strict=True)]


@dataclass(frozen=True, eq=False)
class ItemEmbeddings:
    """Content or collaborative vectors of all items, [N, D] float32, and what produced them."""

    vectors_ND: Tensor
    source: str
    missing_N: Tensor | None = None
    """Items that had nothing to embed (their row is zero), bool."""

    def __post_init__(self) -> None:
        if self.vectors_ND.ndim != 2:
            raise DataError(f"vectors_ND has shape {tuple(self.vectors_ND.shape)}: expected [items, features]")
        if not bool(torch.isfinite(self.vectors_ND).all()):
            row = int((~torch.isfinite(self.vectors_ND)).any(1).nonzero()[0])
            raise DataError(f"vector of item {row} holds NaN or infinity: remove or replace it")


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """The code tuple of every item, [N, L]; several items that share one tuple are a bucket.

    ``codebook_version`` names codebooks and token space (models are bound to it); ``table_revision`` counts the
    additions and removals of items since (models are not).
    """

    codes_NL: Tensor
    codebook_sizes: tuple[int, ...]
    codebook_version: str
    table_revision: int = 0
    has_digit: bool = False
    """Whether the last level is a collision digit: it numbers the items of a bucket and says nothing of content."""

    def __post_init__(self) -> None:
        if self.codes_NL.ndim != 2 or self.codes_NL.shape[1] != len(self.codebook_sizes):
            raise DataError(
                f"codes_NL has shape {tuple(self.codes_NL.shape)}, expected [items, {len(self.codebook_sizes)}]"
            )
        if self.codes_NL.is_floating_point():
            raise DataError(f"codes_NL has type {self.codes_NL.dtype}: codes are integers")
        for level, size in enumerate(self.codebook_sizes):
            column = self.codes_NL[:, level]
            if len(column) and not (int(column.min()) >= 0 and int(column.max()) < size):
                raise DataError(
                    f"level {level} has codes in [{int(column.min())}, {int(column.max())}], legal: [0, {size - 1}]"
                )

    def __len__(self) -> int:
        return len(self.codes_NL)

    @property
    def num_levels(self) -> int:
        """Length of a code tuple."""
        return len(self.codebook_sizes)

    @property
    def num_content_levels(self) -> int:
        """The levels that say something of content: all but a collision digit."""
        return self.num_levels - int(self.has_digit)

    @cached_property
    def buckets(self) -> tuple[Tensor, Tensor, Ragged]:
        """(distinct tuples in lexicographic order [P, L], the tuple of each item [N], the items of each tuple)."""
        distinct_PL, inverse_N = torch.unique(self.codes_NL, dim=0, return_inverse=True)
        order = torch.argsort(inverse_N, stable=True)
        counts = torch.bincount(inverse_N, minlength=len(distinct_PL))
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        return distinct_PL, inverse_N, Ragged(offsets, order)

    def items_of(self, codes: Sequence[int]) -> Tensor:
        """Dense indices of the items with this code tuple or prefix, ascending (empty where there are none)."""
        prefix = torch.tensor(list(codes), dtype=self.codes_NL.dtype)
        return (self.codes_NL[:, : len(prefix)] == prefix).all(1).nonzero().squeeze(1)


@dataclass(frozen=True, eq=False)
class History:
    """What each request's user did before, oldest first; ragged over B requests and H events in all."""

    offsets: Tensor
    """[B + 1] int64."""
    items: Tensor
    """[H] int64 dense item indices."""
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """Per-event columns [H] that are known: ``time`` (s, int64), ``step`` (basket number, int64, ascending),
    ``positive`` (bool: false for signals such as returns), ``kind``, ``domain`` (int64 codes of the log), ``value``."""

    def __post_init__(self) -> None:
        _check_offsets(self.offsets, len(self.items))
        for name, column in self.columns.items():
            if column.shape != self.items.shape:
                raise DataError(
                    f"history column {name} has shape {tuple(column.shape)}, items {tuple(self.items.shape)}"
                )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """Events of each request, [B] int64."""
        return self.offsets.diff()

    @property
    def rows(self) -> Tensor:
        """The request of each event, [H] int64."""
        return torch.repeat_interleave(torch.arange(len(self)), self.lengths)

    def as_ragged(self) -> Ragged:
        """Only the items."""
        return Ragged(self.offsets, self.items)

    def positives(self) -> History:
        """Without the events that are signals only, such as returns."""
        keep = self.columns.get("positive")
        if keep is None or bool(keep.all()):
            return self
        kept = torch.cat([torch.zeros(1, dtype=torch.int64), keep.long().cumsum(0)])
        return History(kept[self.offsets], self.items[keep], {k: v[keep] for k, v in self.columns.items()})

    def take(self, rows: Tensor) -> History:
        """The histories of the requests at indices ``rows``."""
        offsets, positions = _take_rows(self.offsets, rows)
        return History(offsets, self.items[positions], {k: v[positions] for k, v in self.columns.items()})


@dataclass(frozen=True, eq=False)
class Filters:
    """What must not be recommended."""

    exclude_history: bool = False
    """Remove what the request's user already had."""
    excluded: Ragged | None = None
    """Further items to remove, a row a request."""
    available_N: Tensor | None = None
    """Items that may be shown at all, bool; None means all."""
    allowed: Ragged | None = None
    """The only items that a request may get, a row a request; None means that no request has such a list."""

    def take(self, rows: Tensor) -> Filters:
        """The filters of the requests at indices ``rows``."""
        excluded = None if self.excluded is None else self.excluded.take(rows)
        allowed = None if self.allowed is None else self.allowed.take(rows)
        return dataclasses.replace(self, excluded=excluded, allowed=allowed)


@dataclass(frozen=True, eq=False)
class Requests:
    """A batch of B questions: "what next for this history, at this time?"."""

    history: History
    time_B: Tensor | None = None
    """When the question is asked, seconds, int64."""
    user_B: Tensor | None = None
    """Dense user index, −1 where the user is not in the data."""
    filters: Filters = field(default_factory=Filters)
    query: tuple[str, ...] | None = None
    encoded: Any = None
    """Opaque: what an earlier stage computed for these requests, for a later stage to reuse."""

    def __post_init__(self) -> None:
        for name, column in (("time_B", self.time_B), ("user_B", self.user_B)):
            if column is not None and column.shape != (len(self),):
                raise DataError(f"{name} has shape {tuple(column.shape)}, expected ({len(self)},)")
        for name, rows in (("excluded", self.filters.excluded), ("allowed", self.filters.allowed)):
            if rows is not None and len(rows) != len(self):
                raise DataError(f"filters.{name} has {len(rows)} rows for {len(self)} requests")

    def __len__(self) -> int:
        return len(self.history)

    def take(self, rows: Tensor) -> Requests:
        """The requests at indices ``rows`` (int64)."""
        return Requests(
            self.history.take(rows),
            None if self.time_B is None else self.time_B[rows],
            None if self.user_B is None else self.user_B[rows],
            self.filters.take(rows),
            None if self.query is None else tuple(self.query[i] for i in rows.tolist()),
        )

    def batches(self, size: int) -> list[Tensor]:
        """Row indices of consecutive batches of at most ``size`` requests."""
        return list(torch.split(torch.arange(len(self)), size)) if len(self) else []


@dataclass(frozen=True, eq=False)
class Candidates:
    """Items for each request, best first; ``PAD`` and −inf fill the end."""

    items_BK: Tensor
    scores_BK: Tensor
    source_BK: Tensor | None = None
    """Which source proposed it, an index into ``sources``."""
    sources: tuple[str, ...] = ()
    trace: Mapping[str, Tensor] = field(default_factory=dict)
    """Optional evidence, each [B, K] or [B, K, ...]: code paths, log-probabilities."""

    def __post_init__(self) -> None:
        if self.items_BK.shape != self.scores_BK.shape or self.items_BK.ndim != 2:
            raise DataError(
                f"items_BK {tuple(self.items_BK.shape)} and scores_BK {tuple(self.scores_BK.shape)} must be [B, K]"
            )
        assert bool(((self.items_BK == PAD) == (self.scores_BK == -torch.inf)).all()), "PAD and -inf must go together"
        assert bool((self.scores_BK[:, 1:] <= self.scores_BK[:, :-1]).all()), "candidates must be sorted, best first"

    def __len__(self) -> int:
        return len(self.items_BK)

    def top(self, k: int) -> Candidates:
        """The first ``k`` of each list."""
        source = None if self.source_BK is None else self.source_BK[:, :k]
        trace = {name: values[:, :k] for name, values in self.trace.items()}
        return Candidates(self.items_BK[:, :k], self.scores_BK[:, :k], source, self.sources, trace)

    @staticmethod
    def concatenate(parts: Sequence[Candidates]) -> Candidates:
        """Batches of requests put together again, in order (of one K)."""
        first = parts[0]
        source = None
        if first.source_BK is not None:
            source = torch.cat([p.source_BK for p in parts if p.source_BK is not None])
        trace = {name: torch.cat([p.trace[name] for p in parts]) for name in first.trace}
        items_BK = torch.cat([p.items_BK for p in parts])
        return Candidates(items_BK, torch.cat([p.scores_BK for p in parts]), source, first.sources, trace)


@dataclass(frozen=True, eq=False)
class Holdout:
    """Withheld events as questions with answers: each request and its relevant items."""

    requests: Requests
    relevant: Ragged
    """Distinct target items of each request, at least one."""

    def __post_init__(self) -> None:
        if len(self.requests) != len(self.relevant):
            raise DataError(f"{len(self.requests)} requests but {len(self.relevant)} rows of relevant items")
        if len(self.relevant) and int(self.relevant.lengths.min()) == 0:
            raise DataError("a request without a relevant item cannot be judged: leave it out of the holdout")

    def __len__(self) -> int:
        return len(self.requests)

    def take(self, rows: Tensor) -> Holdout:
        """The questions at indices ``rows``."""
        return Holdout(self.requests.take(rows), self.relevant.take(rows))


class Progress(Protocol):
    """Told how far a long job is; ``tesserec.cli`` draws bars from it."""

    def __call__(self, task: str, done: float, total: float, note: str = "") -> None:
        """``done`` of ``total`` units of ``task`` are finished."""


def silent(task: str, done: float, total: float, note: str = "") -> None:
    """A ``Progress`` that shows nothing."""


@dataclass(frozen=True)
class FitContext:
    """What a ``fit`` may use beside the training events."""

    validation: Holdout | None = None
    embeddings: ItemEmbeddings | None = None
    semantic_ids: SemanticIds | None = None
    seed: int = 0
    device: str = "cpu"
    checkpoint_folder: Path | None = None
    """Where training writes checkpoints and resumes from; none are written where this is None."""
    derived_folder: Path | None = None
    """Where what follows from the rest may be kept between loads, such as a trie; None: nowhere."""
    warm_start: ComponentState | None = None
    """State of an earlier fit of the same component to start from."""
    deadline_s: float | None = None
    """Stop training after this many seconds (for comparisons at equal training time)."""
    progress: Progress = silent


@dataclass(frozen=True)
class ComponentState:
    """What a fitted component needs to be itself again: tensors and short strings, ready for safetensors."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def part(self, prefix: str) -> ComponentState:
        """The state of a nested component, stored with ``prefix.`` before its names."""
        start = f"{prefix}."
        tensors = {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}
        return ComponentState(
            tensors, {k.removeprefix(start): v for k, v in self.metadata.items() if k.startswith(start)}
        )

    def under(self, prefix: str) -> ComponentState:
        """The same state with ``prefix.`` before every name; the inverse of ``part``."""
        tensors = {f"{prefix}.{k}": v for k, v in self.tensors.items()}
        return ComponentState(tensors, {f"{prefix}.{k}": v for k, v in self.metadata.items()})

    @staticmethod
    def merged(*parts: ComponentState) -> ComponentState:
        """Several states with distinct names as one."""
        tensors = {k: v for p in parts for k, v in p.tensors.items()}
        return ComponentState(tensors, {k: v for p in parts for k, v in p.metadata.items()})


@dataclass(frozen=True)
class SideInformation:
    """What a quantizer may use beside the features: co-occurrence, collaborative vectors, categories."""

    tables: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    progress: Progress = silent
    train: Interactions | None = None
    """The training events that may be targets."""
    catalog: Catalog | None = None
    embed: Callable[[Catalog], ItemEmbeddings] | None = None
    """The embedder of the features, for other texts: vectors in their space."""
    item_N: Tensor | None = None
    """The item of each row of the features, int64; None where row ``i`` is item ``i``."""

    def items_of_rows(self, num_rows: int) -> Tensor:
        """The item of each of ``num_rows`` rows, int64; raises ``DataError`` where ``item_N`` has another number."""
        if self.item_N is None:
            return torch.arange(num_rows)
        if len(self.item_N) != num_rows:
            raise DataError(f"item_N names {len(self.item_N)} items for {num_rows} rows of features: give one a row")
        return self.item_N


@runtime_checkable
class Embedder(Protocol):
    """Turns a catalog into vectors."""

    def embed(self, catalog: Catalog, train: Interactions | None = None) -> ItemEmbeddings:
        """Vectors of all items; ``train`` is read by collaborative embedders only."""

    def embed_new(self, catalog: Catalog) -> ItemEmbeddings:
        """Vectors of later items in the space of the last ``embed`` or ``restore``: nothing is fitted again."""

    def state(self) -> ComponentState:
        """What ``embed_new`` needs."""

    def restore(self, state: ComponentState) -> None:
        """The inverse of ``state``."""


@runtime_checkable
class Quantizer(Protocol):
    """Turns vectors into code tuples; a component, so its hyper-parameters are its fields."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes at each level."""

    def fit(self, features_ND: Tensor, side: SideInformation) -> None:
        """Learn the codebooks."""

    def encode(self, features_ND: Tensor) -> Tensor:
        """Codes [N, L] int64, each the best at its level given those before it."""

    def decode(self, codes_NL: Tensor) -> Tensor:
        """Reconstructed features [N, D]."""

    def state(self) -> ComponentState:
        """Codebooks and whatever else ``encode`` needs."""

    def restore(self, state: ComponentState) -> None:
        """The inverse of ``state``."""


@runtime_checkable
class HasFittedCodes(Protocol):
    """A quantizer whose fit gives its items other codes than ``encode`` does, or one around such a quantizer."""

    def fitted_codes(self, codes_NL: Tensor) -> Tensor:
        """The codes [N, L] that the items of the last fit got in it, given those that ``encode`` gives them."""


@runtime_checkable
class Retriever(Protocol):
    """Proposes items for requests."""

    def fit(self, train: Interactions, catalog: Catalog, context: FitContext) -> None:
        """Learn from the events; leaves nothing half-done when it raises."""

    def retrieve(self, requests: Requests, k: int) -> Candidates:
        """At most ``k`` items a request that its filters allow, best first; never an item twice."""

    def state(self) -> ComponentState:
        """Everything ``retrieve`` needs that is not in settings, catalog, embeddings or Semantic IDs."""

    def restore(self, state: ComponentState, catalog: Catalog, context: FitContext) -> None:
        """The inverse of ``state``; ``context`` holds the embeddings and Semantic IDs of the fit."""


@runtime_checkable
class Reranker(Protocol):
    """Makes of a request's candidates what is shown."""

    def rerank(self, requests: Requests, candidates: Candidates, k: int) -> Candidates:
        """At most ``k`` of the candidates of each request, in a new order that their new scores follow."""


@runtime_checkable
class Scorer(Protocol):
    """A retriever that can score every item: evidence for a mixture."""

    def score_all(self, requests: Requests) -> Tensor:
        """Scores [B, N] float32 of all items, before filters; higher is better, −inf is never proposed."""


@dataclass(frozen=True)
class Estimate:
    """What a fit is expected to need on this machine."""

    seconds: float
    """Wall-clock seconds of the fit."""
    peak_bytes: int
    """Peak resident memory while fitting, the data at hand included."""


@runtime_checkable
class Estimates(Protocol):
    """A retriever that knows beforehand what a fit will need."""

    def estimate(self, train: Interactions, catalog: Catalog, context: FitContext) -> Estimate:
        """Time and memory of ``fit`` with the same arguments."""


@runtime_checkable
class HasTrainingLog(Protocol):
    """A fitted retriever that remembers how its training went."""

    @property
    def training_log(self) -> list[dict[str, float]]:
        """One entry an epoch: ``epoch``, ``loss``, ``seconds`` so far; ``validation`` (NDCG@10) where validated."""


@runtime_checkable
class HasItemVectors(Protocol):
    """A fitted retriever that has learnt a vector of every item."""

    def item_vectors(self) -> Tensor:
        """Vectors of all items, [N, D]."""


@runtime_checkable
class TakesNewItems(Protocol):
    """A fitted retriever that can answer with items appended to the catalog after the fit."""

    def add_items(self, catalog: Catalog, context: FitContext) -> None:
        """Make the items beyond the fitted ones answerable; ``catalog`` and ``context`` hold old and new items."""


def _check_offsets(offsets: Tensor, size: int) -> None:
    if offsets.ndim != 1 or not len(offsets) or int(offsets[0]) != 0 or int(offsets[-1]) != size:
        raise DataError(f"offsets must run from 0 to {size}, one more than there are rows")
    if bool((offsets.diff() < 0).any()):
        raise DataError("offsets must not decrease")


def _take_rows(offsets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets of the chosen rows, and the positions of their values in the original."""
    lengths = offsets.diff()[rows]
    new = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    starts = torch.repeat_interleave(offsets[:-1][rows] - new[:-1], lengths)
    return new, torch.arange(int(new[-1])) + starts


def as_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The tensor's memory as a NumPy array."""
    return np.asarray(tensor.detach().cpu().numpy())
