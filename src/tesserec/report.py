"""One HTML page about a trained system: what it is worth, how it was trained, its codes, and what it tells real users.

The page is one file without external resources. Its numbers are those of the evaluation reports, which it also carries
as JSON (``<script type="application/json" id="data">``); plots are SVG, drawn here; the tree of codes and the lists
of users are drawn in the browser from the same JSON.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch
from torch import Tensor

from tesserec.bundle import CODE_VERSION, Contents
from tesserec.evaluation.evaluate import compare
from tesserec.files import check_file, completed
from tesserec.pipeline import holdout_of
from tesserec.recipe import parse_recipe
from tesserec.recommender import Recommender
from tesserec.semantic_ids.report import diagnose
from tesserec.types import NO_TIME, PAD, Holdout, Progress, silent

__all__ = [
    "MAX_ITEMS",
    "Json",
    "json_for_html",
    "page_data",
    "page_environment",
    "render",
    "runs",
    "usage_plot",
    "write_page",
    "write_report",
]

MAX_ITEMS = 20_000
"""Items that a page carries, the most popular ones, so that it opens in any browser."""
NUM_USERS = 24
"""Real users whose lists are shown."""
NUM_EVENTS = 30
"""Events of a history that are shown, the latest."""
LIST_LENGTH = 10
NUM_NEIGHBOURS = 6

Json = dict[str, Any]


def write_report(recommender: Recommender, page: Path, progress: Progress = silent) -> None:
    """Write the page of a system to the file ``page``; its folder is made if need be.

    Raises ``DataError`` where ``page`` is a folder.
    """
    check_file(page)
    write_page(render(page_data(recommender, progress)), page)


def write_page(html: str, page: Path) -> None:
    """Write a page to the file ``page``, which appears when it is complete; its folder is made if need be."""
    with completed(page) as part:
        part.write_text(html, encoding="utf-8")


def page_data(recommender: Recommender, progress: Progress = silent) -> Json:
    """Everything that the page shows, as plain values."""
    contents = recommender.contents
    parts, holdout = holdout_of(contents)
    progress("report", 0, 3, "users")
    asked = _drawn(len(holdout), parse_recipe(contents.recipe).seed)
    shown = _shown_items(contents, holdout, asked)
    position_N = torch.full((len(contents.catalog),), -1)
    position_N[shown] = torch.arange(len(shown))
    progress("report", 1, 3, "items")
    items = _items(recommender, shown, position_N)
    progress("report", 2, 3, "codes")
    data = {
        "system": _system(contents),
        "protocol": dict(contents.reports[contents.method].protocol),
        "split": dataclasses.asdict(parts.report),
        "reports": {name: report.to_dict() for name, report in contents.reports.items()},
        "differences": _differences(contents),
        "training": {name: dataclasses.asdict(record) for name, record in contents.records.items()},
        "codes": _codes(contents),
        "items": items,
        "users": [_user(contents, holdout, row, position_N) for row in asked.tolist()],
    }
    progress("report", 3, 3)
    return data


def render(data: Json) -> str:
    """The page of ``page_data`` as HTML."""
    environment = page_environment()
    environment.filters |= {"day": _day, "cost": _cost}
    method = data["system"]["method"]
    k = max(int(name.removeprefix("ndcg")) for name in data["reports"][method]["metrics"] if name.startswith("ndcg"))
    best = _best_baseline(data, f"ndcg{k}")
    return environment.get_template("report.html.j2").render(
        data=data,
        embedded=json_for_html(data),
        method=method,
        k=k,
        plots=[interval_plot(data, metric) for metric in (f"ndcg{k}", f"recall{k}")],
        curves=[curve for name in data["training"] for curve in training_curves(data, name)],
        levels=[]
        if data["codes"] is None
        else [usage_plot(level["items_of_code"]) for level in data["codes"]["levels"]],
        best=best,
        test=None if best is None else data["differences"][f"ndcg{k}"][best],
    )


def page_environment() -> jinja2.Environment:
    """What finds and fills the templates of pages."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("tesserec"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def json_for_html(data: Json) -> str:
    """The data of a page as JSON inside its HTML; a title that holds "</script>" does not end the script element."""
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")


def interval_plot(data: Json, metric: str) -> Json:
    """Where the dots and intervals of one metric are drawn: a row a method, the best on top, in a box 460 wide."""
    left, right, row_height = 150.0, 400.0, 30
    found = {name: report["metrics"][metric] for name, report in data["reports"].items()}
    order = sorted(found, key=lambda name: -found[name]["mean"])
    largest = max(one["high"] for one in found.values())
    step = _tick_step(largest)
    ticks = [i * step for i in range(max(math.ceil(largest / step), 1) + 1)]

    def x(value: float) -> float:
        return round(left + value / ticks[-1] * (right - left), 1)

    rows = [
        {
            "method": name,
            "label": data["reports"][name]["label"],
            "y": 18 + row_height * i,
            "x": x(found[name]["mean"]),
            "low": x(found[name]["low"]),
            "high": x(found[name]["high"]),
            **{f"{key}_value": found[name][key] for key in ("mean", "low", "high")},
        }
        for i, name in enumerate(order)
    ]
    bottom = 18 + row_height * len(rows)
    return {"metric": metric, "rows": rows, "bottom": bottom, "ticks": [{"x": x(t), "text": f"{t:g}"} for t in ticks]}


def training_curves(data: Json, name: str) -> list[Json]:
    """The lines of loss and validation over seconds, each in a box of 300 × 120, for a method that has a log."""
    log = data["training"][name]["training_log"]
    curves = []
    for what in ("loss", "validation"):
        points = [(entry["seconds"], entry[what]) for entry in log if what in entry]
        if len(points) < 2:
            continue
        (first, *_), (last, *_) = points[0], points[-1]
        values = [value for _, value in points]
        low, high = min(values), max(values)
        width, height = max(last - first, 1e-9), max(high - low, 1e-9)
        path = " ".join(
            f"{40 + 250 * (second - first) / width:.1f},{100 - 85 * (value - low) / height:.1f}"
            for second, value in points
        )
        label = data["reports"][name]["label"]
        curves.append({"label": label, "what": what, "path": path, "low": low, "high": high, "seconds": last})
    return curves


def usage_plot(items_of_code: Sequence[int]) -> Json:
    """The outline of how many items have each code, the most used first, in a box of 300 × 80."""
    width, top = 300 / len(items_of_code), max(items_of_code)
    corners = [
        f"{start * width:.2f},{80 - 76 * n / top:.1f} {end * width:.2f},{80 - 76 * n / top:.1f}"
        for n, start, end in runs(items_of_code)
    ]
    return {"points": f"0,80 {' '.join(corners)} 300,80", "most": top}


def runs(counts: Sequence[float]) -> list[tuple[float, int, int]]:
    """Each count, the largest first, with the places from and to that have it: few, however many codes there are."""
    found, start = [], 0
    for count, number in sorted(Counter(counts).items(), reverse=True):
        found.append((count, start, start + number))
        start += number
    return found


def _tick_step(largest: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that makes three to six ticks."""
    power = 10.0 ** math.floor(math.log10(max(largest, 1e-6) / 3))
    return next(power * factor for factor in (1, 2, 5, 10) if largest / (power * factor) <= 5)


def _system(contents: Contents) -> Json:
    events = contents.interactions
    known = events.time_E[events.time_E != NO_TIME]
    codes = contents.content.semantic_ids
    return {
        "method": contents.method,
        "label": contents.reports[contents.method].label,
        "users": len(events.users),
        "items": len(contents.catalog),
        "events": len(events),
        "targets": int(events.is_positive_E.sum()),
        "first": int(known.min()) if len(known) else None,
        "last": int(known.max()) if len(known) else None,
        "recipe": dict(contents.recipe),
        "recipe_digest": contents.recipe_digest,
        "codebook_version": None if codes is None else codes.codebook_version,
        "table_revision": None if codes is None else codes.table_revision,
        "codebook_sizes": None if codes is None else list(codes.codebook_sizes),
        "version": CODE_VERSION,
        "list_length": LIST_LENGTH,
    }


def _differences(contents: Contents) -> Json:
    """Metric → baseline → the paired test of the retriever against it."""
    own = contents.reports[contents.method]
    others = {name: report for name, report in contents.reports.items() if name != contents.method}
    return {
        metric: {name: dataclasses.asdict(compare(own, other, metric)) for name, other in others.items()}
        for metric in own.metrics
        if metric.startswith(("ndcg", "recall"))
    }


def _best_baseline(data: Json, metric: str) -> str | None:
    baselines = [name for name in data["reports"] if name != data["system"]["method"]]
    return max(baselines, key=lambda name: data["reports"][name]["metrics"][metric]["mean"], default=None)


def _codes(contents: Contents) -> Json | None:
    semantic_ids, embeddings = contents.content.semantic_ids, contents.content.embeddings
    if semantic_ids is None:
        return None
    fitted = len(contents.interactions.items)
    if embeddings is not None:
        embeddings = dataclasses.replace(embeddings, vectors_ND=embeddings.vectors_ND[:fitted])
    table = dataclasses.replace(semantic_ids, codes_NL=semantic_ids.codes_NL[:fitted])
    found: Json = json.loads(diagnose(table, contents.interactions, embeddings).to_json())
    return found


def _drawn(number: int, seed: int) -> Tensor:
    """The questions whose users are shown: drawn, so that none is chosen for its answer."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(number, generator=generator)[:NUM_USERS].sort().values


def _shown_items(contents: Contents, holdout: Holdout, asked: Tensor) -> Tensor:
    """Dense indices of the items on the page, ascending: all, or the most popular and those of the users shown."""
    num_items = len(contents.catalog)
    counts_N = torch.zeros(num_items, dtype=torch.int64)
    counts_N[: len(contents.interactions.items)] = contents.interactions.item_counts()
    chosen_N = torch.zeros(num_items, dtype=torch.bool)
    chosen_N[torch.argsort(counts_N, descending=True, stable=True)[:MAX_ITEMS]] = True
    part = holdout.take(asked)
    chosen_N[part.requests.history.items] = True
    chosen_N[part.relevant.values] = True
    for report in contents.reports.values():
        if report.items_BK is not None:
            lists = report.items_BK[asked, :LIST_LENGTH].long()
            chosen_N[lists[lists != PAD]] = True
    return chosen_N.nonzero().squeeze(1)


def _items(recommender: Recommender, shown: Tensor, position_N: Tensor) -> Json:
    """Columns over the items shown; items are named by their position in them."""
    contents = recommender.contents
    catalog, events, codes = contents.catalog, contents.interactions, contents.content.semantic_ids
    counts_N = torch.bincount(events.item_E, minlength=len(catalog))
    lists_BK = contents.reports[contents.method].items_BK
    assert lists_BK is not None, "the evaluation keeps lists"
    top = lists_BK[:, :LIST_LENGTH].long()
    recommended_N = torch.bincount(top[top != PAD], minlength=len(catalog))
    ids = catalog.items.to_ids(shown)
    near = recommender.similar_items(ids, min(NUM_NEIGHBOURS, len(catalog) - 1))
    neighbours: list[list[int]] = [[] for _ in ids]
    sources = position_N[catalog.items.find(near["item_id"].to_list())].tolist()
    targets = position_N[catalog.items.find(near["similar_item_id"].to_list())].tolist()
    for source, target in zip(sources, targets, strict=True):
        if target >= 0:
            neighbours[source].append(target)
    return {
        "total": len(catalog),
        "ids": ids,
        "titles": [catalog.titles[item] for item in shown.tolist()],
        "codes": None if codes is None else codes.codes_NL[shown].tolist(),
        "events": counts_N[shown].tolist(),
        "recommended": recommended_N[shown].tolist(),
        "neighbours": neighbours,
    }


def _user(contents: Contents, holdout: Holdout, row: int, position_N: Tensor) -> Json:
    """One question: the history before it, what came next, and what each method proposed."""
    requests = holdout.requests
    assert requests.user_B is not None, "the requests of a split have users"
    past = requests.history.take(torch.tensor([row]))
    time = past.columns["time"].tolist()[-NUM_EVENTS:]
    positive = past.columns["positive"].tolist()[-NUM_EVENTS:]
    items = position_N[past.items[-NUM_EVENTS:]].tolist()
    return {
        "id": contents.interactions.users.to_ids(requests.user_B[row : row + 1])[0],
        "time": None if requests.time_B is None else int(requests.time_B[row]),
        "num_events": len(past.items),
        "history": [list(event) for event in zip(items, time, positive, strict=True)],
        "targets": position_N[holdout.relevant[row]].tolist(),
        "lists": {
            name: [int(position_N[item]) for item in report.items_BK[row, :LIST_LENGTH].tolist() if item != PAD]
            for name, report in contents.reports.items()
            if report.items_BK is not None
        },
    }


def _day(seconds: int | None) -> str:
    if seconds is None or seconds == NO_TIME:
        return "unknown"
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()


def _cost(costs: Mapping[str, float], name: str) -> str:
    if name not in costs:
        return "–"
    value = costs[name]
    if name == "peak_rss_bytes":
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:,.0f}" if name == "parameters" or value >= 100 else f"{value:.2f}"
