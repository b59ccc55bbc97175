"""The Grafana dashboard of the service: ``python -m tools.dashboard`` writes deploy/grafana.json from the panels below.

``missing`` compares it with a scrape: a panel that asks for a metric or label that the service does not have is a bug.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["FILE", "dashboard", "expressions", "missing", "written"]

FILE = Path(__file__).resolve().parent.parent / "deploy" / "grafana.json"
NAMESPACE = '{namespace=~"$namespace"}'
WIDTH, HEIGHT, PER_ROW = 8, 7, 3


@dataclass(frozen=True)
class Panel:
    """A plot: each query with what its lines are called."""

    title: str
    queries: Mapping[str, str]
    unit: str = "short"


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{NAMESPACE}[$__rate_interval]))"


def _quantiles(metric: str, by: str = "", namespace: str = NAMESPACE) -> dict[str, str]:
    names = f"le, {by}" if by else "le"
    label = f" {{{{{by}}}}}" if by else ""
    rate = f"sum by ({names}) (rate({metric}_bucket{namespace}[$__rate_interval]))"
    return {f"p{round(100 * q)}{label}": f"histogram_quantile({q}, {rate})" for q in (0.5, 0.99)}


ROWS: dict[str, tuple[Panel, ...]] = {
    "Is it well": (
        Panel("Requests", {"{{status}}": "sum by (status) (rate(tesserec_requests_total[$__rate_interval]))"}, "reqps"),
        Panel(
            "Failed share",
            {
                "5xx": '(sum(rate(tesserec_requests_total{status=~"5.."}[$__rate_interval])) or vector(0))'
                " / sum(rate(tesserec_requests_total[$__rate_interval]))"
            },
            "percentunit",
        ),
        Panel(
            "Refused (429)", {"{{reason}}": "sum by (reason) (rate(tesserec_refused_total[$__rate_interval]))"}, "reqps"
        ),
        Panel("Latency, with HTTP", _quantiles("tesserec_request_seconds", namespace=""), "s"),
        Panel("In flight", {"requests": "tesserec_in_flight"}),
        Panel("Store", {"up {{namespace}}": f"tesserec_store_up{NAMESPACE}"}),
    ),
    "Recommendations": (
        Panel("By rung", {"{{rung}}": _rate("tesserec_answers_total", "rung")}, "reqps"),
        Panel("By arm", {"{{arm}}": _rate("tesserec_answers_total", "arm")}, "reqps"),
        Panel("By scenario", {"{{scenario}}": _rate("tesserec_answers_total", "scenario")}, "reqps"),
        Panel("Latency, without HTTP", _quantiles("tesserec_answer_seconds"), "s"),
        Panel("Stages", _quantiles("tesserec_stage_seconds", "stage"), "s"),
        Panel(
            "Later than their deadline",
            {"{{namespace}}": _rate("tesserec_deadline_misses_total", "namespace")},
            "reqps",
        ),
        Panel(
            "Rungs abandoned", {"{{rung}} {{reason}}": _rate("tesserec_rung_failures_total", "rung, reason")}, "reqps"
        ),
        Panel("Circuit breakers (1 open)", {"{{namespace}} {{rung}}": f"tesserec_breaker{NAMESPACE}"}),
        Panel("Waiting for the model", {"{{namespace}}": f"tesserec_queue_depth{NAMESPACE}"}),
        Panel("Requests in a batch", _quantiles("tesserec_batch_requests", "rung")),
        Panel("Items shown", {"{{namespace}}": _rate("tesserec_impressions_total", "namespace")}, "short"),
    ),
    "Events and items": (
        Panel("Events", {"{{outcome}}": _rate("tesserec_events_total", "outcome")}, "short"),
        Panel("Commits", _quantiles("tesserec_commit_seconds"), "s"),
        Panel("Writes in a commit", _quantiles("tesserec_commit_writes")),
        Panel("Deleted users in versions", {"{{namespace}}": f"tesserec_erasing_users{NAMESPACE}"}),
        Panel("Table revision", {"{{namespace}}": f"tesserec_table_revision{NAMESPACE}"}),
        Panel(
            "Items",
            {"{{namespace}}": f"tesserec_items{NAMESPACE}", "{{namespace}} cold": f"tesserec_cold_items{NAMESPACE}"},
        ),
    ),
    "Models and process": (
        Panel("Versions", {"{{namespace}} {{arm}} {{model_version}}": f"tesserec_model_info{NAMESPACE}"}),
        Panel("Swaps in an hour", {"{{kind}}": f"sum by (kind) (increase(tesserec_swaps_total{NAMESPACE}[1h]))"}),
        Panel("Memory", {"resident": "process_resident_memory_bytes"}, "bytes"),
        Panel("Processor", {"cores": "rate(process_cpu_seconds_total[$__rate_interval])"}),
        Panel("Open files", {"files": "process_open_fds", "limit": "process_max_fds"}),
    ),
}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it; it asks for the Prometheus data source on import."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": _place(top, 0, 24, 1)}
        )
        for i, panel in enumerate(row):
            place = _place(top + 1 + i // PER_ROW * HEIGHT, i % PER_ROW * WIDTH, WIDTH, HEIGHT)
            panels.append(_panel(panel, place))
        top += 1 + -(-len(row) // PER_ROW) * HEIGHT
    for number, shown in enumerate(panels, 1):
        shown["id"] = number
    return {
        "__inputs": [{"name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource", "pluginId": "prometheus"}],
        "title": "tesserec",
        "uid": "tesserec",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_variable()]},
        "panels": panels,
    }


def _place(y: int, x: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


SOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": query, "legendFormat": legend}
        for i, (legend, query) in enumerate(panel.queries.items())
    ]
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


def _variable() -> dict[str, Any]:
    query = "label_values(tesserec_store_up, namespace)"
    return {
        "name": "namespace",
        "type": "query",
        "datasource": SOURCE,
        "query": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def expressions(board: Mapping[str, Any]) -> Iterator[str]:
    """Every query of a dashboard: those of its panels and of its variables."""
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in board["templating"]["list"]:
        yield variable["query"]


def missing(board: Mapping[str, Any], scrape: str) -> list[str]:
    """What a dashboard asks for and a scrape does not have: ``metric`` or ``label of metric``, in order."""
    labels: dict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(scrape):
        for sample in family.samples:
            labels[sample.name].update(sample.labels)
    wrong: set[str] = set()
    for query in expressions(board):
        metrics = re.findall(r"\b(?:tesserec|process)_\w+", query)
        wrong.update(metric for metric in metrics if metric not in labels)
        asked = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query)
        asked += [name.strip() for group in re.findall(r"by \(([^)]*)\)", query) for name in group.split(",")]
        asked += re.findall(r"label_values\(\w+, (\w+)\)", query)
        wrong.update(
            f"{label} of {metric}"
            for label in asked
            for metric in metrics
            if metric in labels and label not in labels[metric]
        )
    return sorted(wrong)


def written() -> str:
    """The text of deploy/grafana.json."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
