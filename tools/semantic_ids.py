"""docs/semantic-ids.md, "Which one should I use?", from the folder of runs that compare tokenizers.

Everything here is a function of ``benchmarks/results/semantic_ids`` and of the suite in ``benchmarks/semantic_ids``:
its grid says what was to be run, the first line of a method file what it is, ``claims.toml`` what was published. What
the page advises follows from the figures by the rules that it states.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.accuracy.figures import read_runs, text
from benchmarks.semantic_ids.figures import (
    AREA,
    DIAGNOSTICS,
    MAIN,
    REFERENCES,
    SMALL_NUMBER,
    STRENGTHS,
    at_best_strength,
    diagnostics,
    figures,
    read_claims,
)
from tools.accuracy import (
    GROUPS_HEAD,
    Accuracy,
    Figure,
    Run,
    average,
    groups,
    interval,
    listed,
    missing,
    seconds,
    toml_of,
    unstarted,
)

__all__ = ["FIGURES_FILE", "NO_RUNS", "Tokenizers", "page", "read", "written"]

FIGURES_FILE = "benchmarks/results/tokenizers.jsonl"
SUITE = "benchmarks/semantic_ids"
FOLDER = "benchmarks/results/semantic_ids"
FLOOR = "hashed"
NUM_BEST = 4
"""Of ``MAIN``, that are run on the other data sets beside the references."""
NUM_SEEDS = 3
EVENT_PARTS = (".cooccurrence_svd:", ".plum:", ".letter:", ".das:", ".dos:")
"""In the settings of a tokenizer that learns from events."""

NO_RUNS = "No tokenizer has been run yet, so there is nothing to advise."
HEAD = (
    "| tokenizer | N@10 | R@10 | ΔN@10 to RQ-VAE | ΔN@10 to residual k-means | fit CPU-s | peak MiB | seeds |",
    "|---|---|---|---|---|--:|--:|---|",
)
CLAIMS_HEAD = (
    "| method | N@10 as a ratio | to | seeds | what it says | its source says |",
    "|---|---|---|---|---|---|",
)
PREDICTS_HEAD = ("| diagnostic, more being better | ρ with N@10 | tokenizers |", "|---|---|--:|")


@dataclass(frozen=True)
class Tokenizers:
    """What was run, what came out of it, what was to be run and what was published."""

    judged: Accuracy
    claims: Sequence[Mapping[str, Any]] = ()
    titles: Mapping[str, str] = field(default_factory=dict)
    """What each method is, in a sentence."""

    def methods(self, dataset: str, protocol: str) -> list[str]:
        """The tokenizers of a cell, the best first."""
        names = self.judged.methods(dataset, protocol)
        return [name for name in names if self.judged.figure(dataset, protocol, name, "ndcg10")]


def read(root: Path) -> Tokenizers:
    """What the repository below ``root`` holds; raises ``tesserec.errors.DataError`` for runs that do not fit."""
    folder, suite = root / FOLDER, root / SUITE
    claims = read_claims(suite / "claims.toml")
    runs: Sequence[Run] = ()
    lines: Sequence[Figure] = ()
    if (folder / "runs.jsonl").exists():
        runs, lines = read_runs(folder), figures(folder, claims)
    judged = Accuracy(
        runs, {line["figure"]: line for line in lines}, (), toml_of(suite / "suite.toml").get("grid", []), area=AREA
    )
    titles = {path.stem: _title(path) for path in sorted((suite / "methods").glob("*.toml"))}
    return Tokenizers(judged, claims, titles)


def _title(path: Path) -> str:
    """The first line of a method file, which says what the method is."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


def written(root: Path, found: Tokenizers) -> tuple[dict[Path, str], list[Path]]:
    """The file of figures, by path; and it where it is there although nothing was run."""
    path = root / FIGURES_FILE
    if not found.judged.figures:
        return {}, [path] if path.exists() else []
    return {path: text(list(found.judged.figures.values()))}, []


def page(found: Tokenizers, note: str) -> str:
    """docs/semantic-ids.md."""
    lines = [
        *("# Which Semantic IDs should I use?", "", note, ""),
        "Every way to tokenize a catalog, with the same small generator on top: a two-layer Mosaic that knows nothing",
        f"of an item but its codes (`{SUITE}/methods/generator.toml`), so that the accuracy of a row is that of its",
        "codes. N@10 and R@10 are NDCG and recall at item level over the whole catalog, with 95 % bootstrap intervals",
        f"over {_drawn(found)}. They are low beside those of [docs/results.md](results.md), where models are larger",
        "and see more. Fit CPU-s are those of the quantizer, vectors given. `make sids DATA=folder` runs it all again.",
    ]
    if not found.judged.figures:
        lines += ["", NO_RUNS, *unstarted(found.judged)]
        return "\n".join([*lines, *_impossible(found)]) + "\n"
    lines += ["", "## What to take", "", *_advice(found)]
    for dataset, protocol in found.judged.cells():
        lines += ["", f"## {dataset}, {protocol}", "", *_cell(found, dataset, protocol)]
    lines += ["", "## What the diagnostics tell", "", *_predictions(found)]
    lines += ["", "## What was published", "", *_claims(found)]
    lines += [*unstarted(found.judged), *_impossible(found), "", "## Where the figures come from", "", *GROUPS_HEAD]
    lines += groups([{**run, "command": run["command"].partition(" --only")[0]} for run in found.judged.runs])
    return "\n".join(lines) + "\n"


# Tables


def _cell(found: Tokenizers, dataset: str, protocol: str) -> list[str]:
    names = found.methods(dataset, protocol)
    lines = [*HEAD, *(_row(found, dataset, protocol, name) for name in names), ""]
    if (dataset, protocol) == MAIN:
        lines += [*(f"* `{name}`: {found.titles[name]}" for name in sorted(names) if name in found.titles), ""]
    lines += _diagnosed(found, dataset, protocol, names)
    return [*lines, *missing(found.judged, dataset, protocol)]


def _row(found: Tokenizers, dataset: str, protocol: str, method: str) -> str:
    def figure(metric: str) -> Figure | None:
        return found.judged.figure(dataset, protocol, method, metric)

    fit, peak = figure("fit_cpu_s"), figure("fit_peak_bytes")
    cells = [
        f"`{method}`",
        interval(figure("ndcg10")),
        interval(figure("recall10")),
        *(interval(figure(f"ndcg10_over_{reference}"), sign="+") for reference in REFERENCES),
        seconds(fit["value"]) if fit else "",
        f"{peak['high'] / 2**20:,.0f}" if peak else "",
        _listed_seeds(found, dataset, protocol, method),
    ]
    return f"| {' | '.join(cells)} |"


def _listed_seeds(found: Tokenizers, dataset: str, protocol: str, method: str) -> str:
    return ", ".join(map(str, _seeds(found, dataset, protocol, method)))


def _seeds(found: Tokenizers, dataset: str, protocol: str, method: str) -> list[int]:
    return sorted({run["seed"] for run in found.judged.runs_of(dataset, protocol, method)})


def _drawn(found: Tokenizers) -> str:
    """What is drawn again for the intervals of the page: seeds are only where there are several."""
    numbers = [
        len(_seeds(found, dataset, protocol, name))
        for dataset, protocol in found.judged.cells()
        for name in found.methods(dataset, protocol)
    ]
    if max(numbers, default=NUM_SEEDS) == 1:
        return "requests (one seed)"
    return "requests and seeds" + " (requests alone where there is one seed)" * (1 in numbers)


def _diagnosed(found: Tokenizers, dataset: str, protocol: str, names: Sequence[str]) -> list[str]:
    """The diagnostics of each tokenizer, means over seeds; nothing where no run knows any."""
    rows = []
    for name in names:
        known = [diagnostics(run) for run in found.judged.runs_of(dataset, protocol, name)]
        if all(known):
            cells = [
                f"{average(one[key] for one in known):.3f}" if all(key in one for one in known) else ""
                for key in DIAGNOSTICS
            ]
            rows.append(f"| `{name}` | {' | '.join(cells)} |")
    if not rows:
        return []
    head = f"| tokenizer | {' | '.join(key.replace('_', ' ') for key in DIAGNOSTICS)} |"
    told = (
        "Means over seeds, each explained below; cosines, R² and effective capacity are of the vectors that a "
        "tokenizer codes, which are not those of text alone where it reads events:"
    )
    return [told, "", head, "|---|" + "--:|" * len(DIAGNOSTICS), *rows]


def _predictions(found: Tokenizers) -> list[str]:
    """How well each diagnostic ranks the tokenizers by accuracy, the best first."""
    told = dict(_predictive(found))
    names = [*told, *(name for name in DIAGNOSTICS if name not in told)]
    rows = []
    for name in names:
        figure = told.get(name)
        shown = f"{figure['value']:+.2f} ({figure['low']:+.2f} to {figure['high']:+.2f})" if figure else ""
        rows.append(f"| `{name}`: {DIAGNOSTICS[name]} | {shown} | {figure['n'] if figure else ''} |")
    return [
        "Spearman's rank correlation ρ of each with N@10 over the tokenizers, each with its losses at the strength",
        "that is best on validation; 95 % bootstrap interval over tokenizers,",
        f"{_drawn(found)}; none over fewer than {SMALL_NUMBER} tokenizers that have it. Effective capacity is",
        "DRQ's, under noise as large as the vectors vary.",
        "",
        *PREDICTS_HEAD,
        *rows,
    ]


def _predictive(found: Tokenizers) -> list[tuple[str, Figure]]:
    start = f"{AREA}.{MAIN[0]}.{MAIN[1]}.predicted_by_"
    told = [
        (name.removeprefix(start).partition(".")[0], figure)
        for name, figure in found.judged.figures.items()
        if name.startswith(start)
    ]
    return sorted(told, key=lambda pair: (-pair[1]["value"], pair[0]))


def _claims(found: Tokenizers) -> list[str]:
    """A row for each published tokenizer and strength that was run; and which were not."""
    rows, absent = [], []
    for claim in found.claims:
        names = [claim["method"], *(claim["method"] + end for end in STRENGTHS)]
        ran = [(name, figure) for name in names if (figure := found.judged.figures.get(f"claims.{name}.ndcg10"))]
        if not ran and "missing" not in claim:
            absent.append(f"`{claim['method']}` ({claim['source']})")
        for name, figure in ran:
            shown = f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
            said = f"{claim['said']} ({claim['source']})" if name == claim["method"] else ""
            seeds = _listed_seeds(found, *MAIN, name)
            rows.append(
                f"| `{name}` | {shown} | `{claim['against']}` | {seeds} | {_effect(found, names)[name]} | {said} |"
            )
    lines = [
        f"N@10 on {MAIN[0]} as a ratio to that of what a method varies, beside what its source says of it in its own",
        "measure, on its own data. `_weak` and `_strong` have the losses at other strengths. No effect is called",
        f"absent before three strengths have run with {NUM_SEEDS} seeds each.",
    ]
    if rows:
        lines += ["", *CLAIMS_HEAD, *rows]
    if absent:
        lines += ["", f"Not run: {listed(absent)}."]
    return lines


def _effect(found: Tokenizers, names: Sequence[str]) -> dict[str, str]:
    """What the interval of each ratio says."""
    figures = {name: found.judged.figures.get(f"claims.{name}.ndcg10") for name in names}
    complete = all(len(found.judged.runs_of(*MAIN, name)) >= NUM_SEEDS for name in names)
    helps = any(figure and figure["low"] > 1 for figure in figures.values())
    words = {}
    for name, figure in figures.items():
        if figure is None:
            continue
        if figure["low"] > 1:
            words[name] = "better"
        elif figure["high"] < 1:
            words[name] = "worse"
        else:
            words[name] = "not clear"
        if complete and not helps:
            words[name] += "; no gain at any strength"
    return words


def _impossible(found: Tokenizers) -> list[str]:
    """A line on what was published and cannot be run here, with the reason."""
    told = [f"`{claim['method']}`, because {claim['missing']}" for claim in found.claims if "missing" in claim]
    return ["", f"Cannot be run by this suite: {'; '.join(told)}."] if told else []


# In words


def _advice(found: Tokenizers) -> list[str]:
    """A bullet for each rule that the figures allow to apply, after what is to be known of all of them."""
    names = _judged(found, *MAIN)
    if not names:
        return [f"Nothing was run on {MAIN[0]}, {MAIN[1]} yet, by which it is decided."]
    level = [name for name in names[1:] if _is_level(found, name)]
    provisional = _provisional(found)
    bullets = [
        *provisional,
        f"`{names[0]}` has the best N@10 on {MAIN[0]} ({_value(found, names[0]):.4f}), {_behind(level)}.",
        *_cheapest(found, [names[0], *level], "So far `{}`" if provisional else "**Take `{}`**"),
        *_from_content(found, names),
        *_trained(found, names),
        *_floor(found, names),
        *_telling(found),
        *_elsewhere(found, names),
    ]
    return [f"* {bullet}" for bullet in bullets]


def _judged(found: Tokenizers, dataset: str, protocol: str) -> list[str]:
    """The tokenizers of a cell, each at the strength that is best on validation, the best first."""
    names = found.methods(dataset, protocol)
    chosen = at_best_strength([run for name in names for run in found.judged.runs_of(dataset, protocol, name)])
    return [name for name in names if name in chosen]


def _provisional(found: Tokenizers) -> list[str]:
    absent = any(line.startswith("Not run") for line in missing(found.judged, *MAIN))
    return [f"All this is provisional: not all of the grid was run on {MAIN[0]}, see below."] if absent else []


def _value(found: Tokenizers, method: str, metric: str = "ndcg10") -> float:
    figure = found.judged.figure(*MAIN, method, metric)
    assert figure is not None, "every method of the page has it"
    return float(figure["value"])


def _is_level(found: Tokenizers, method: str) -> bool:
    """Whether the interval of the difference to the best one holds zero."""
    figure = found.judged.figure(*MAIN, method, "ndcg10_over_best")
    return figure is not None and bool(figure["high"] >= 0)


def _behind(level: Sequence[str]) -> str:
    if not level:
        return "clearly before all others"
    return f"not clearly before {listed([f'`{name}`' for name in level])}"


def _cheapest(found: Tokenizers, level: Sequence[str], words: str) -> list[str]:
    """Of those that are level with the best, the one whose codes take the least to fit; ``words`` have its name."""
    costs = {name: figure for name in level if (figure := found.judged.figure(*MAIN, name, "fit_cpu_s"))}
    if not costs or len(level) == 1:
        return []
    name = min(costs, key=lambda one: (costs[one]["value"], one))
    took = seconds(costs[name]["value"])
    return [
        f"{words.format(name)}: of those that are level with the best, its codes cost the least to fit ({took} CPU-s)."
    ]


def _from_content(found: Tokenizers, names: Sequence[str]) -> list[str]:
    """The best of those that read no events, which give new items the codes that they deserve."""
    content = [name for name in names if name != FLOOR and not _reads_events(found, name)]
    if not content or content[0] == names[0]:
        return []
    share = _value(found, content[0]) / _value(found, names[0])
    return [
        f"Where items have no events yet, codes come from content alone: `{content[0]}` is the best of these "
        f"({_value(found, content[0]):.4f}, {share:.0%} of the best)."
    ]


def _reads_events(found: Tokenizers, method: str) -> bool:
    recipe = found.judged.runs_of(*MAIN, method)[0]["recipe"]
    told = json.dumps([recipe.get("embedder"), recipe.get("semantic_ids")])
    return any(part in told for part in EVENT_PARTS)


def _trained(found: Tokenizers, names: Sequence[str]) -> list[str]:
    """Whether a trained quantizer is worth it, by the difference of the two references, and of the best of its kind."""
    first, second = REFERENCES
    figure = found.judged.figure(*MAIN, first, f"ndcg10_over_{second}")
    if figure is None:
        return []
    words = "no clear difference"
    if figure["low"] > 0:
        words = "it is worth training one"
    elif figure["high"] < 0:
        words = "training one with nothing but vectors is not worth it"
    costs = [found.judged.figure(*MAIN, name, "fit_cpu_s") for name in REFERENCES]
    times = f", at {costs[0]['value'] / costs[1]['value']:.0f} times the CPU seconds" if costs[0] and costs[1] else ""
    told = f"Plain {REFERENCES[first]} over {REFERENCES[second]}: {interval(figure, sign='+')} in N@10{times}; {words}"
    trained = [name for name in names if name != first and _is_trained(found, name)]
    over = found.judged.figure(*MAIN, trained[0], f"ndcg10_over_{second}") if trained else None
    if over is None:
        return [f"{told}."]
    return [f"{told}. The best of those that are trained with more, `{trained[0]}`: {interval(over, sign='+')}."]


def _is_trained(found: Tokenizers, method: str) -> bool:
    return "training" in (found.judged.runs_of(*MAIN, method)[0]["recipe"].get("semantic_ids") or {})


def _floor(found: Tokenizers, names: Sequence[str]) -> list[str]:
    if FLOOR not in names or names[0] == FLOOR:
        return []
    share = _value(found, FLOOR) / _value(found, names[0])
    return [f"Codes at random reach {share:.0%} of the best N@10: what is above that is what codes are worth."]


def _telling(found: Tokenizers) -> list[str]:
    """Which diagnostics may be trusted: those whose interval does not hold zero."""
    told = _predictive(found)
    if not told:
        return []
    good = [f"`{name}` (ρ {figure['value']:+.2f})" for name, figure in told if figure["low"] > 0]
    bad = [f"`{name}` (ρ {figure['value']:+.2f})" for name, figure in told if figure["high"] < 0]
    parts = [f"choose by {listed(good)}" if good else "none of the diagnostics predicts accuracy clearly"]
    parts += [f"more of {listed(bad)} goes with less accuracy"] if bad else []
    return [f"Before a generator is trained, {'; '.join(parts)}."]


def _elsewhere(found: Tokenizers, names: Sequence[str]) -> list[str]:
    """Which lead on the other data sets, and which ought to be run there."""
    others = [f"`{name}`" for name in names if name not in (*REFERENCES, FLOOR)][:NUM_BEST]
    bullets = (
        [f"The best {len(others)} beside the references, to be run elsewhere too: {listed(others)}."] if others else []
    )
    for dataset, protocol in found.judged.cells():
        ran = _judged(found, dataset, protocol)
        if (dataset, protocol) != MAIN and ran:
            level = [
                f"`{name}`"
                for name in ran[1:]
                if (figure := found.judged.figure(dataset, protocol, name, "ndcg10_over_best")) and figure["high"] >= 0
            ]
            clear = f", not clearly before {listed(level)}" if level else ""
            bullets.append(f"On {dataset} ({len(ran)} were run), `{ran[0]}` is first{clear}.")
    return bullets
