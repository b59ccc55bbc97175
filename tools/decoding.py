"""The generated part of docs/decoding.md: what the automaton costs as the catalogue grows, as a table and a plot."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PAGE", "section", "written"]

PAGE = "docs/decoding.md"
PLOT = "docs/decoding_growth.svg"
SIZES = ("10k", "100k", "1m", "10m")
COSTS = {
    "build_s": "built, s",
    "build_peak_bytes": "peak of building, MB",
    "automaton_bytes": "size, MB",
    "constraint_ms": "a step, ms",
    "constraint_masked_ms": "a step under a mask, ms",
    "mask_ms": "a new mask, ms",
}
"""Figures of benchmarks/decoding/automaton.py, and how a column says them."""
PLOTTED = ("constraint_ms", "constraint_masked_ms", "mask_ms")

Figure = Mapping[str, Any]


def section(figures: Mapping[str, Figure]) -> str:
    """The table, the plot and the rest of the figures in words; says so where nothing was measured."""
    rows = [size for size in SIZES if f"decoding.build_s.{size}" in figures]
    if not rows:
        return "`python -m benchmarks.decoding.automaton` measures it; nothing is recorded yet."
    lines = ["| items | " + " | ".join(COSTS.values()) + " |", "|---|" + "--:|" * len(COSTS)]
    for size in rows:
        cells = (_shown(name, figures[f"decoding.{name}.{size}"]["value"]) for name in COSTS)
        lines.append(f"| {size} | {' | '.join(cells)} |")
    first = figures[f"decoding.constraint_ms.{rows[0]}"]
    lines += ["", f"{first['dataset'][0].upper()}{first['dataset'][1:]}. One request, 50 beams; {first['machine']}."]
    lines += ["", f"![Cost against items]({Path(PLOT).name})", ""]
    others = [name for name in figures if name.startswith("decoding.") and name.split(".")[1] not in COSTS]
    lines += [_said(name, figures[name]) for name in others]
    return "\n".join(lines).rstrip()


def written(root: Path, figures: Mapping[str, Figure]) -> dict[Path, str]:
    """The plot, where there is something to draw."""
    sizes = [size for size in SIZES if all(f"decoding.{name}.{size}" in figures for name in PLOTTED)]
    return {root / PLOT: _svg(figures, sizes)} if sizes else {}


def _shown(name: str, value: float) -> str:
    return f"{value / 1e6:,.1f}" if name.endswith("bytes") else f"{value:.3g}"


def _said(name: str, figure: Figure) -> str:
    bounds = "" if figure["low"] is None else f" ({figure['low']:.3g} to {figure['high']:.3g})"
    against = "" if figure["against"] is None else f", against {figure['against']}"
    return f"* `{name}`: {figure['value']:.3g} {figure['unit']}{bounds}{against}. {figure['protocol']}"


def _svg(figures: Mapping[str, Figure], sizes: Sequence[str]) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context({"svg.hashsalt": "tesserec", "svg.fonttype": "none", "font.size": 9}):
        canvas = Canvas(figsize=(6.4, 3.2), layout="constrained")
        axes = canvas.add_subplot()
        for name in PLOTTED:
            lines = [figures[f"decoding.{name}.{size}"] for size in sizes]
            axes.plot(sizes, [line["value"] for line in lines], marker="o", label=COSTS[name])
            axes.fill_between(sizes, [line["low"] for line in lines], [line["high"] for line in lines], alpha=0.15)
        axes.set(yscale="log", xlabel="items in the catalogue", ylabel="milliseconds")
        axes.set_ylim(bottom=1e-3)
        axes.grid(visible=True, axis="y", alpha=0.3)
        axes.legend(frameon=False)
        file = io.StringIO()
        canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
