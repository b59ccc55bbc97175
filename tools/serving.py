"""The generated part of docs/reliability.md: what the harnesses of the service found, beside what was aimed at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["PAGE", "section"]

PAGE = "docs/reliability.md"
AIMS = {
    "kills": "1,000",
    "kills_postgres": "200",
    "events_lost": "0",
    "events_lost_postgres": "0",
    "events_twice": "0",
    "events_twice_postgres": "0",
    "restart_s": "≤ 10 s",
    "restart_s_postgres": "≤ 10 s",
    "swap.failed": "0",
    "swap.mixed": "0",
    "swap.p99_ratio": "≤ 1.5",
    "swap.rss_bytes_per_swap": "flat",
    "fuzz.cases": "100,000",
    "fuzz.failures": "0",
    "saturation_per_s": "",
    "goodput_3x": "≥ 0.9",
    "http_ms.p50": "≤ 1 ms",
    "http_ms.p99": "≤ 3 ms",
    "byte_flips": "0",
    "illegal": "0",
}
"""Figures with an aim, in the order of the table; the others come after them."""

Figure = Mapping[str, Any]


def section(figures: Mapping[str, Figure]) -> str:
    """The table, and how each was measured; says which were not."""
    own = {name.removeprefix("serving."): figure for name, figure in figures.items() if name.startswith("serving.")}
    if not own:
        return "Nothing is recorded yet: the scripts in `benchmarks/serving` and `benchmarks/reliability` measure it."
    order = [*(name for name in AIMS if name in own), *sorted(name for name in own if name not in AIMS)]
    lines = ["| figure | aim | measured | date | commit |", "|---|---|--:|---|---|"]
    for name in order:
        one = own[name]
        aim = AIMS.get(name, "")
        lines.append(f"| `{name}` | {aim} | {_shown(one)} | {one['date'][:10]} | `{one['commit']}` |")
    missing = [f"`{name}`" for name in AIMS if name not in own]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    lines += ["", "How each was measured:", ""]
    for name in order:
        lines.append(f"* `{name}`: {own[name]['protocol']}. `{own[name]['command']}`, {own[name]['machine']}.")
    return "\n".join(lines)


def _shown(figure: Figure) -> str:
    value, unit = figure["value"], figure["unit"]
    number = f"{int(value):,}" if float(value).is_integer() else f"{value:,.3g}"
    bounds = "" if figure["low"] is None else f" ({figure['low']:.3g} to {figure['high']:.3g})"
    return f"{number} {unit}{bounds}"
