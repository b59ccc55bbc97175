"""One HTML page about a table of Semantic IDs: how its codes are used, what they mean, and its tree of items.

The page is one file without external resources, and carries its numbers as JSON (``<script type="application/json"
id="data">``): every number that it writes out is looked up there by its path. Plots are SVG, drawn here; the map of
tiles, the tree and an item's neighbours are drawn in the browser from the same JSON.

Dimensions: N items · C codes of a level · D features.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from tesserec.bundle import CODE_VERSION
from tesserec.files import check_file
from tesserec.report import MAX_ITEMS, Json, json_for_html, page_environment, runs, usage_plot, write_page
from tesserec.semantic_ids.browse import Branch, branches, words_of_groups
from tesserec.semantic_ids.diagnostics import nearest_distance, overlap
from tesserec.semantic_ids.report import diagnose
from tesserec.semantic_ids.table import content_codes
from tesserec.sids import Sids
from tesserec.types import Progress, silent

__all__ = ["page_data", "render", "write_sids_page"]

MAX_GROUPS = 400
"""First codes that the map of tiles shows, the largest."""
MAX_CHILDREN = 100
"""Second codes within each, likewise."""
MAX_LABELS = 32
"""Codes of the first map that have a label."""
NUM_POPULAR = 8
"""First codes in the table of those with most events."""
LEAST_NOISE = 1e-9
"""Noise of the overlap where each code has a twin with the same vector: only twins are confused."""
TOP_SHARE = 0.1
"""The most popular codes whose share of the events is told."""

Form = Callable[[Any], str]

FORMS: dict[str, Form] = {
    "count": lambda value: f"{value:,}",
    "share": lambda value: f"{100 * value:.1f} %",
    "number": lambda value: f"{value:,.1f}",
    "fine": lambda value: f"{value:.3f}",
    "text": str,
}
"""How a number of the JSON is written on the page."""


def write_sids_page(sids: Sids, page: Path, progress: Progress = silent) -> Json:
    """Write the page of a table to the file ``page``, whose folder is made if need be; returns what it shows.

    Raises ``DataError`` where no such file can be written.
    """
    check_file(page)
    data = page_data(sids, progress)
    write_page(render(data), page)
    return data


def page_data(sids: Sids, progress: Progress = silent) -> Json:
    """Everything that the page shows, as plain values."""
    progress("report", 0, 3, "diagnostics")
    found = diagnose(sids.semantic_ids, sids.interactions, sids.content.embeddings, sids.quantizer)
    codes: Json = json.loads(found.to_json())
    vectors = sids.code_vectors()
    progress("report", 1, 3, "codes")
    maps = [_map(sids, level, of, vectors_CD) for level, (of, vectors_CD) in enumerate(vectors)]
    progress("report", 2, 3, "items")
    data = {
        "system": _system(sids, maps),
        "codes": codes,
        "buckets": _buckets(codes["bucket_sizes"]),
        "overlap": _overlap(sids, vectors),
        "popularity": _popularity(codes["levels"]),
        "maps": maps,
        "groups": _groups(sids),
        "items": _items(sids),
    }
    progress("report", 3, 3)
    return data


def render(data: Json) -> str:
    """The page of ``page_data`` as HTML."""
    environment = page_environment()

    def figure(path: str, form: str) -> Markup:
        value: Any = data
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        return Markup('<span data-figure="{}">{}</span>').format(path, "–" if value is None else FORMS[form](value))

    return environment.get_template("sids.html.j2").render(
        data=data,
        embedded=json_for_html(data),
        figure=figure,
        usage=[usage_plot(level["items_of_code"]) for level in data["codes"]["levels"]],
        curves=[
            concentration_plot(level["items_of_code"], level["events_of_code"]) for level in data["codes"]["levels"]
        ],
        bars=bucket_plot(data["buckets"]),
        maps=[map_plot(one, data["system"]["first_codes"]) for one in data["maps"]],
        coherence=coherence_plot(data["codes"]["coherence"]),
        popular=_most_popular(data["groups"]),
        named=[group for group in data["groups"] if group["words"]][:6],
    )


def concentration_plot(items_of_code: Sequence[int], events_of_code: Sequence[float] | None) -> Json:
    """Over the codes, those that have most first, the share of all that they have so far: paths in a 300 × 130 box."""

    def path(counts: Sequence[float]) -> str:
        total, reached = max(sum(counts), 1e-12), 0.0
        points = ["46.0,110.0"]
        for count, start, end in runs(counts):
            reached += count * (end - start)
            points.append(f"{46 + 244 * end / len(counts):.1f},{110 - 100 * reached / total:.1f}")
        return " ".join(points)

    return {"items": path(items_of_code), "events": None if events_of_code is None else path(events_of_code)}


def bucket_plot(buckets: Sequence[Json]) -> Json:
    """Bars of the share of items in buckets of each size, in a box 460 wide."""
    largest = max(bucket["items_share"] for bucket in buckets)
    width = 440 / len(buckets)
    bars = [
        {
            **bucket,
            "x": round(10 + width * i, 1),
            "width": round(min(width - 8, 60), 1),
            "height": round(max(120 * bucket["items_share"] / largest, 1), 1),
        }
        for i, bucket in enumerate(buckets)
    ]
    return {"bars": bars}


def coherence_plot(coherence: Sequence[Json]) -> Json:
    """Two lines over the depth, within a prefix and at random, for cosine and for neighbours, in boxes of 460 × 140."""
    found = {}
    for what, within, random in (
        ("cosine", "cosine_within", "cosine_random"),
        ("neighbours", "neighbours_share", "random_share"),
    ):
        shown = [one for one in coherence if one[within] is not None and one[random] is not None]
        if not shown:
            continue
        top = max(max(one[within], one[random]) for one in shown)
        place = [
            {
                "depth": one["depth"],
                "index": coherence.index(one),
                "x": round(60 + 310 * (one["depth"] - 1) / max(len(coherence) - 1, 1), 1),
                "within": round(115 - 90 * max(one[within], 0) / max(top, 1e-9), 1),
                "random": round(115 - 90 * max(one[random], 0) / max(top, 1e-9), 1),
            }
            for one in shown
        ]
        found[what] = {"points": place, "within": within, "random": random}
    return found


def map_plot(one: Json, first_codes: Sequence[int]) -> Json:
    """Where the codes of a level are drawn: the first, with labels, in a box of 1040 × 460, others of 500 × 300."""
    points, first = one["points"], one["level"] == 1
    width, height = (1040, 460) if first else (500, 300)
    low_x, low_y = (min(p[axis] for p in points) for axis in "xy")
    scale_x, scale_y = (max(max(p[axis] for p in points) - low, 1e-9) for axis, low in (("x", low_x), ("y", low_y)))
    most = max(p["items"] for p in points)
    hues = {code: 360 * rank / len(first_codes) for rank, code in enumerate(first_codes)}
    dots = [
        {
            **p,
            "cx": round(50 + (width - 100) * (p["x"] - low_x) / scale_x, 1),
            "cy": round(height - 24 - (height - 56) * (p["y"] - low_y) / scale_y, 1),
            "r": round(3 + (15 if first else 9) * math.sqrt(p["items"] / most), 1),
            "hue": round(hues[p["code"]]) if first else None,
        }
        for p in points
    ]
    return {"width": width, "height": height, "dots": dots, "labels": _labels(dots, width) if first else []}


def _labels(dots: Sequence[Json], box_width: float) -> list[Json]:
    """The words of the largest codes, each where it covers no other label and stays in the box."""
    boxes: list[tuple[float, float, float, float]] = []
    labels: list[Json] = []
    for dot in sorted(dots, key=lambda dot: -dot["items"]):
        if not dot["words"] or len(labels) == MAX_LABELS:
            continue
        text = " ".join(dot["words"][:2])
        width = 9.0 * len(text)
        x = min(max(dot["cx"], width / 2 + 4), box_width - 4 - width / 2)
        y = max(dot["cy"] - dot["r"] - 4, 16)
        box = (x - width / 2, y - 15, x + width / 2, y + 5)
        if all(box[2] < b[0] or box[0] > b[2] or box[3] < b[1] or box[1] > b[3] for b in boxes):
            boxes.append(box)
            labels.append({"text": text, "x": round(x, 1), "y": round(y, 1)})
    return labels


def _most_popular(groups: Sequence[Json]) -> list[int]:
    """The positions of the groups with most events; none without events."""
    order = [i for i, group in enumerate(groups) if group["events"] is not None]
    return sorted(order, key=lambda i: -groups[i]["events"])[:NUM_POPULAR]


def _system(sids: Sids, maps: Sequence[Json]) -> Json:
    table, log = sids.semantic_ids, sids.interactions
    section = {} if sids.recipe is None else sids.recipe.get("semantic_ids", {})
    return {
        "name": sids.name,
        "items": len(table),
        "events": None if log is None else len(log),
        "users": None if log is None else len(log.users),
        "codebook_sizes": list(table.codebook_sizes),
        "num_levels": content_codes(table).shape[1],
        "first_codes": _first_codes(sids, maps),
        "codebook_version": table.codebook_version,
        "table_revision": table.table_revision,
        "quantizer": section.get("class", "").rpartition(":")[2] or None,
        "embeddings": None if sids.content.embeddings is None else sids.content.embeddings.source,
        "recipe": {} if sids.recipe is None else {k: v for k, v in sids.recipe.items() if k in _SHOWN},
        "version": CODE_VERSION,
    }


_SHOWN = ("seed", "split", "embedder", "semantic_ids")


def _first_codes(sids: Sids, maps: Sequence[Json]) -> list[int]:
    """The first codes in use, in the order of their hues: around the middle of their map, or by number without one."""
    if not maps:
        used: list[int] = torch.unique(sids.semantic_ids.codes_NL[:, 0]).tolist()
        return used
    points = maps[0]["points"]
    return [p["code"] for p in sorted(points, key=lambda p: (math.atan2(p["y"], p["x"]), p["code"]))]


def _buckets(sizes: dict[str, int]) -> list[Json]:
    """Buckets of 1, 2, 3, 4, 5–8, 9–16, … items: their number, and the share of the items that are in them."""
    total = sum(int(size) * number for size, number in sizes.items())
    bins: dict[tuple[int, int], list[int]] = {}
    for text, number in sizes.items():
        size = int(text)
        high = size if size <= 4 else 1 << (size - 1).bit_length()
        one = bins.setdefault((size if size <= 4 else high // 2 + 1, high), [0, 0])
        one[0] += number
        one[1] += size * number
    return [
        {"low": low, "high": high, "buckets": buckets, "items": items, "items_share": items / total}
        for (low, high), (buckets, items) in sorted(bins.items())
    ]


def _overlap(sids: Sids, vectors: Sequence[tuple[str, Tensor]]) -> list[Json] | None:
    """DRQ's figures of each level, with noise of a tenth of the distance of neighbours; None without code vectors."""
    if not vectors:
        return None
    codes_NL = content_codes(sids.semantic_ids)
    found = []
    for level, (_, vectors_CD) in enumerate(vectors):
        usage_C = torch.bincount(codes_NL[:, level], minlength=len(vectors_CD))
        noise = max(0.1 * nearest_distance(vectors_CD[usage_C > 0]), LEAST_NOISE)
        found.append(dataclasses.asdict(overlap(usage_C, vectors_CD, noise)))
    return found


def _popularity(levels: Sequence[Json]) -> list[Json] | None:
    """Of the most popular codes of each level, a tenth of those in use: their share of the events and of the items."""
    if levels[0]["events_of_code"] is None:
        return None
    found = []
    for level in levels:
        number = max(1, round(TOP_SHARE * level["num_used"]))
        pairs = sorted(zip(level["events_of_code"], level["items_of_code"], strict=True), reverse=True)[:number]
        items = sum(level["items_of_code"])
        found.append(
            {
                "codes": number,
                "events_share": sum(events for events, _ in pairs),
                "items_share": sum(one for _, one in pairs) / items,
                "largest_share": pairs[0][0],
            }
        )
    return found


def _map(sids: Sids, level: int, of: str, vectors_CD: Tensor) -> Json:
    """The codes in use of one level in the plane of their two main components."""
    code_N = sids.semantic_ids.codes_NL[:, level]
    counts_C = torch.bincount(code_N, minlength=len(vectors_CD))
    used = counts_C.nonzero().squeeze(1)
    places_C2, explained = _plane(vectors_CD[used])
    events_C = None
    if sids.events_N is not None:
        events_C = torch.zeros(len(vectors_CD), dtype=torch.int64).index_add_(0, code_N, sids.events_N)
    words = words_of_groups(sids.catalog.titles, code_N.tolist()) if _has_titles(sids) else {}
    points = [
        {
            "code": code,
            "x": x,
            "y": y,
            "items": int(counts_C[code]),
            "events": None if events_C is None else int(events_C[code]),
            "words": words.get(code, []),
        }
        for code, (x, y) in zip(used.tolist(), places_C2.tolist(), strict=True)
    ]
    return {"level": level + 1, "of": of, "explained": explained, "points": points}


def _plane(vectors_CD: Tensor) -> tuple[Tensor, list[float]]:
    """The two main components of vectors, [C, 2], and the share of the variance that each explains."""
    centred_CD = vectors_CD - vectors_CD.mean(0)
    left_CK, strength_K, _ = torch.linalg.svd(centred_CD, full_matrices=False)
    places_CK = torch.nn.functional.pad(left_CK * strength_K, (0, 2))[:, :2]
    largest_2 = places_CK.abs().argmax(0)
    signs_2 = torch.where(places_CK[largest_2, torch.arange(2)] < 0, -1.0, 1.0)  # a component has no sign of its own
    shares_K = torch.nn.functional.pad(strength_K.square() / strength_K.square().sum().clamp(min=1e-12), (0, 2))
    return (places_CK * signs_2).round(decimals=5), shares_K[:2].tolist()


def _groups(sids: Sids) -> list[Json]:
    """The largest first codes, each with its second codes: what the map of tiles is drawn from."""
    table, events_N = sids.semantic_ids, sids.events_N
    words = words_of_groups(sids.catalog.titles, table.codes_NL[:, 0].tolist()) if _has_titles(sids) else {}
    groups = []
    for first in branches(table, (), events_N)[:MAX_GROUPS]:
        below = branches(table, first.codes, events_N)[:MAX_CHILDREN]
        groups.append(
            {
                "code": first.codes[0],
                "items": len(first.items),
                "events": None if events_N is None else int(events_N[first.items].sum()),
                "words": words.get(first.codes[0], []),
                "titles": [sids.catalog.titles[i] for i in first.items[:3]],
                "children": [_child(branch) for branch in below],
            }
        )
    return groups


def _child(branch: Branch) -> list[int]:
    return [branch.codes[-1], len(branch.items)]


def _items(sids: Sids) -> Json:
    """Columns over the items shown; items are named by their position in them."""
    table, counts_N = sids.semantic_ids, sids.events_N
    popularity_N = torch.zeros(len(table), dtype=torch.int64) if counts_N is None else counts_N
    shown = torch.argsort(popularity_N, descending=True, stable=True)[:MAX_ITEMS].sort().values
    return {
        "total": len(table),
        "ids": sids.catalog.items.to_ids(shown),
        "titles": [sids.catalog.titles[item] for item in shown.tolist()],
        "codes": table.codes_NL[shown].tolist(),
        "events": popularity_N[shown].tolist(),
    }


def _has_titles(sids: Sids) -> bool:
    return any(sids.catalog.texts) or "title" in sids.catalog.frame.columns
