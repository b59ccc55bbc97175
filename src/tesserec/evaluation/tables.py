"""Reports side by side, as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.table import Table

from tesserec.errors import DataError
from tesserec.evaluation.intervals import Estimate
from tesserec.evaluation.report import Report

__all__ = ["COSTS", "metrics_table", "slices_table"]

COSTS: Mapping[str, str] = {
    "train_s": "train s",
    "retrieve_s_per_1000": "s / 1,000 requests",
    "parameters": "parameters",
    "peak_rss_bytes": "peak MiB",
}
"""The costs that a table knows, and their headings."""


def metrics_table(reports: Sequence[Report], metrics: Sequence[str] | None = None) -> Table:
    """A row a report: mean and 95 % interval of each metric, the best mean in bold, and the costs that any report has.

    All metrics and aggregates that the first report has, where ``metrics`` is None. Raises ``DataError`` for no
    reports, or for a metric that none of them has.
    """
    _check(reports)
    names = [*reports[0].metrics, *reports[0].aggregates] if metrics is None else list(metrics)
    found = [{**r.metrics, **r.aggregates} for r in reports]
    columns = {name: [one.get(name) for one in found] for name in names}
    for name, column in columns.items():
        if not any(column):
            raise DataError(f"no report has the metric {name}: look at the names in report.metrics")
    costs = [name for name in COSTS if any(name in r.costs for r in reports)]
    table = Table(title=_title(reports))
    table.add_column("")
    for name in [*names, *(COSTS[cost] for cost in costs)]:
        table.add_column(name, justify="right")
    cells = [_cells(name, columns[name]) for name in names]
    for row, report in enumerate(reports):
        table.add_row(report.label, *(c[row] for c in cells), *(_cost(name, report.costs) for name in costs))
    return table


def slices_table(reports: Sequence[Report], metric: str = "ndcg10") -> Table:
    """A row a slice: its number of requests and each report's mean and interval of ``metric``, the best in bold.

    Raises ``DataError`` for no reports, or where no slice has the metric.
    """
    _check(reports)
    names = list(dict.fromkeys(name for r in reports for name in r.slices))
    table = Table(title=f"{metric} by slice")
    table.add_column("slice")
    table.add_column("requests", justify="right")
    for report in reports:
        table.add_column(report.label, justify="right")
    rows = {name: [r.slices[name].metrics.get(metric) if name in r.slices else None for r in reports] for name in names}
    if not any(any(row) for row in rows.values()):
        raise DataError(f"no report has slices of {metric}: slices are taken of recall and ndcg")
    for name, row in rows.items():
        sizes = {r.slices[name].num_requests for r in reports if name in r.slices}
        table.add_row(name, " / ".join(f"{size:,}" for size in sorted(sizes)), *_cells(metric, row))
    return table


def _check(reports: Sequence[Report]) -> None:
    if not reports:
        raise DataError("there is no report to show: give at least one")


def _title(reports: Sequence[Report]) -> str:
    protocol = reports[0].protocol
    refit = ", refit" if protocol["refit"] else ""
    return f"{protocol['split']}{refit}: {reports[0].num_requests:,} requests, seen items {protocol['seen_items']}"


def _cells(name: str, estimates: Sequence[Estimate | None]) -> list[str]:
    """Means and intervals, the best in bold: only accuracy has a best."""
    shown = [_text(one) for one in estimates]
    if name.startswith(("coverage", "gini", "novelty", "popularity")):
        return shown
    means = [-math.inf if one is None or math.isnan(one.mean) else one.mean for one in estimates]
    best = max(means)
    return [
        f"[bold]{text}[/bold]" if mean == best > -math.inf else text for text, mean in zip(shown, means, strict=True)
    ]


def _text(found: Estimate | None) -> str:
    if found is None or math.isnan(found.mean):
        return "–"
    return rf"{found.mean:.4f} \[{found.low:.4f}, {found.high:.4f}]"


def _cost(name: str, costs: Mapping[str, float]) -> str:
    if name not in costs:
        return "–"
    value = costs[name]
    if name == "peak_rss_bytes":
        return f"{value / 2**20:,.0f}"
    return f"{value:,.0f}" if name == "parameters" else f"{value:,.2f}"
