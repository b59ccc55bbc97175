"""``Report``: what an evaluation found, with per-request values, intervals, slices and the protocol it followed.

JSON holds everything but the per-request tables, which go to Parquet. Figures depend on lists, holdout and seed only:
the same evaluation gives the same report, its costs excepted.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from tesserec.errors import DataError
from tesserec.evaluation.intervals import Estimate
from tesserec.types import as_numpy

__all__ = ["FORMAT", "Report", "Slice"]

FORMAT = 1
"""Version of the JSON format."""

_ITEMS = "items"


@dataclass(frozen=True)
class Slice:
    """The metrics over a part of the requests, or over a part of their relevant items."""

    num_requests: int
    """Requests that have a value in this slice."""
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True, eq=False)
class Report:
    """What an evaluation found.

    A metric's name is ``METRICS``' with its k appended, ``ndcg10``; likewise for aggregates, ``coverage10``.
    """

    label: str
    """What was judged: a column of the table."""
    protocol: Mapping[str, str | int | bool]
    """What the figures mean: split, seen items, refit, ties, number of requests and ``holdout``, a digest of the
    questions and their answers. Two reports are compared only where all of it is equal."""
    metrics: Mapping[str, Estimate]
    """Mean and 95 % bootstrap interval over requests."""
    slices: Mapping[str, Slice] = field(default_factory=dict)
    """By ``items:head|tail|cold``, ``targets:repeated|new``, ``history:…`` and ``domain:…``."""
    aggregates: Mapping[str, Estimate] = field(default_factory=dict)
    """Coverage, Gini, novelty and popularity lift of all lists together."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """What is known of ``train_s``, ``retrieve_s_per_1000``, ``parameters``, ``peak_rss_bytes``."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """Counts that a reader must know: lists that were missing, items that filters removed."""
    values: Mapping[str, Tensor] = field(default_factory=dict)
    """Metric → value of each request, [B] float32, NaN where undefined; empty when read from JSON alone."""
    items_BK: Tensor | None = None
    """The first items of each list, dense indices, int32, ``PAD`` at the end."""

    @property
    def num_requests(self) -> int:
        """Requests that were judged."""
        return int(self.protocol["num_requests"])

    def values_of(self, metric: str) -> Tensor:
        """The per-request values of ``metric``; raises ``DataError`` with the nearest name where it is not there."""
        if not self.values:
            raise DataError(
                f'report "{self.label}" has no per-request values: read its Parquet table too, or evaluate again'
            )
        if metric not in self.values:
            near = difflib.get_close_matches(metric, self.values, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(self.values)}"
            raise DataError(f'report "{self.label}" has no metric {metric}; {hint}')
        return self.values[metric]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the per-request tables as plain values; NaN as None."""
        return {
            "format": FORMAT,
            "label": self.label,
            "protocol": dict(self.protocol),
            "metrics": _plain(self.metrics),
            "slices": {
                name: {"num_requests": part.num_requests, "metrics": _plain(part.metrics)}
                for name, part in self.slices.items()
            },
            "aggregates": _plain(self.aggregates),
            "costs": dict(self.costs),
            "notes": dict(self.notes),
        }

    def to_json(self) -> str:
        """``to_dict`` as JSON text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Report:
        """The inverse of ``to_json``; raises ``DataError`` for text that is no report of this format."""
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"not a report: the text is not JSON ({error}); give the file that to_json wrote") from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            version = found.get("format") if isinstance(found, dict) else None
            raise DataError(f"not a report of format {FORMAT} (found {version}): evaluate again with this version")
        return Report(
            label=found["label"],
            protocol=found["protocol"],
            metrics=_estimates(found["metrics"]),
            slices={k: Slice(v["num_requests"], _estimates(v["metrics"])) for k, v in found["slices"].items()},
            aggregates=_estimates(found["aggregates"]),
            costs=found["costs"],
            notes=found["notes"],
        )

    def write_values(self, path: Path) -> None:
        """Per-request values, and the items where they are kept, as a Parquet table with one row a request."""
        columns: dict[str, Any] = {name: as_numpy(values) for name, values in self.values.items()}
        if self.items_BK is not None:
            columns[_ITEMS] = as_numpy(self.items_BK)
        pl.DataFrame(columns).write_parquet(path)

    def with_values(self, path: Path) -> Report:
        """This report with the table that ``write_values`` wrote; raises ``DataError`` for one of another length."""
        frame = pl.read_parquet(path)
        if len(frame) != self.num_requests:
            raise DataError(
                f'{path} has {len(frame)} rows, report "{self.label}" {self.num_requests} requests: '
                "give the table that was written beside this report"
            )
        values = {
            name: torch.from_numpy(frame[name].to_numpy(writable=True)) for name in frame.columns if name != _ITEMS
        }
        items = torch.from_numpy(frame[_ITEMS].to_numpy(writable=True)) if _ITEMS in frame.columns else None
        return replace(self, values=values, items_BK=items)


def _plain(found: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {
        name: {key: None if math.isnan(value) else value for key, value in asdict(one).items()}
        for name, one in found.items()
    }


def _estimates(found: Mapping[str, Mapping[str, float | None]]) -> dict[str, Estimate]:
    return {
        name: Estimate(**{key: math.nan if value is None else value for key, value in one.items()})
        for name, one in found.items()
    }
