"""The accuracy part of docs/results.md and its plots, from the folder of ranks that the runs left.

Everything here is a function of ``benchmarks/results/ranks``, of ``benchmarks/accuracy/published.toml`` and of the grid
in ``benchmarks/accuracy/suite.toml``, where there is one. Plots are written without a date and with fixed identifiers:
the same figures give the same bytes.
"""

from __future__ import annotations

import io
import itertools
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "FIGURES_FILE",
    "GROUPS_HEAD",
    "Accuracy",
    "average",
    "groups",
    "headline",
    "interval",
    "listed",
    "missing",
    "read",
    "seconds",
    "section",
    "toml_of",
    "unstarted",
    "written",
]

FIGURES_FILE = "benchmarks/results/accuracy.jsonl"
PLOTS = "docs/accuracy_*.svg"
PLOTTED = ("last_out", "global_time")
IN_BARS = 6
"""Methods of a data set in the bars by slice, the best first."""

OURS, QUICK = "mosaic", "mosaic_quick"
LEFT_OUT = "_without_"
"""In the name of a method that is another one without a part of it."""
SHUFFLED = "_ties_shuffled"
"""At the end of the name of a data set that is another one with the order of equal times drawn at random."""
NO_RUNS = "No method has been run by the accuracy harness yet, so there is nothing to show here and no plot is made."

TRAPS = (
    "What makes two figures of one data set differ although nobody erred, to be asked of every published one: hits",
    "counted on a code tuple that several items share (it can double recall; here a hit is an item); a baseline that",
    "was set up to lose, such as SASRec with binary cross-entropy and one negative; how much of the history is read",
    "(20 or 50 events); validation figures shown as test; events of one timestamp, whose order is the file's; several",
    "models averaged at test time; a single seed (about ± .002); and whether items that the user had may be answered",
    "(on Beauty, R@10 of one model is .101 when they are removed and .092 when not). And on 5-core sets: items that",
    "are rare in training are likely targets, because the filter has demanded five events of them.",
)

HEAD = (
    "| method | N@10 | R@10 | N@10 refit | R@10 refit | Mosaic over it (ΔN@10) | train CPU-s | peak MiB | parameters "
    "| ms/request | seeds |",
    "|---|---|---|---|---|---|--:|--:|--:|--:|---|",
)
PARTS_HEAD = (
    "| what is left out | N@10 | R@10 | what the whole is better by (ΔN@10) | train CPU-s | seeds |",
    "|---|---|---|---|--:|---|",
)
SHUFFLED_HEAD = ("| method | N@10 | with ties shuffled | what is left |", "|---|---|---|--:|")
PUBLISHED_HEAD = (
    "| published, protocol as far as known | N@10 | R@10 | known of it | source |",
    "|---|--:|--:|---|---|",
)
GROUPS_HEAD = ("| runs | command | commit | machine | date |", "|---|---|---|---|---|")

SLICES = {
    "cold": ("On items unseen in training", "unseen"),
    "tail": ("in the tail", "tail"),
    "head": ("in the head", "head"),
    "new": ("on items new to the user", "new to the user"),
    "repeated": ("on items that the user had before", "had before"),
    "history_short": ("with histories of up to 4 events", "≤ 4 events"),
    "history_long": ("with longer ones", "> 4 events"),
}
"""Each slice in a sentence and under a bar."""

Figure = Mapping[str, Any]
Run = Mapping[str, Any]


TRIALS = "benchmarks/results/tuning/*.*.*.jsonl"
"""Trials of a search, ``<dataset>.<protocol>.<method>.jsonl``."""


@dataclass(frozen=True)
class Accuracy:
    """What was run, what came out of it, what was published and what was to be run."""

    runs: Sequence[Run]
    figures: Mapping[str, Figure]
    published: Sequence[Mapping[str, Any]]
    grid: Sequence[Mapping[str, Any]]
    """The ``[[grid]]`` tables of the suite."""
    searched: frozenset[tuple[str, str, str]] = frozenset()
    """Data set, protocol and method of each log of trials."""
    outdated: frozenset[str] = frozenset()
    """The runs whose settings are no longer those of the suite."""
    area: str = "accuracy"
    """First part of the names of the figures."""

    def cells(self) -> list[tuple[str, str]]:
        """Data sets and protocols with figures, in the order of the page; not those that are shown beside another."""
        names = {tuple(name.split(".")[1:3]) for name in self.figures if name.count(".") > 2}
        return sorted((dataset, protocol) for dataset, protocol in names if not dataset.endswith(SHUFFLED))

    def figure(self, dataset: str, protocol: str, method: str, metric: str, *more: str) -> Figure | None:
        """A figure by the parts of its name; None where there is none."""
        return self.figures.get(".".join([self.area, dataset, protocol, method, metric, *filter(None, more)]))

    def methods(self, dataset: str, protocol: str, *, whole: bool = True) -> list[str]:
        """The methods of a cell, the best N@10 first; those that were only refitted come last.

        Those that are another one without a part where not ``whole``.
        """
        cell = f"{self.area}.{dataset}.{protocol}."
        names = {name.split(".")[3] for name in self.figures if name.startswith(cell)}
        names = {name for name in names if (LEFT_OUT in name) != whole}

        def place(method: str) -> tuple[bool, float, str]:
            plain = self.figure(dataset, protocol, method, "ndcg10")
            shown = plain or self.figure(dataset, protocol, method, "ndcg10", "refit")
            return (plain is None, -shown["value"] if shown else 0.0, method)

        return sorted(names, key=place)

    def runs_of(self, dataset: str, protocol: str, method: str | None = None) -> list[Run]:
        """The runs that a cell rests on, of one method or view if given."""
        ran = "last_out" if protocol == "last_out_other_day" else protocol
        return [
            run
            for run in self.runs
            if (run["dataset"], run["protocol"]) == (dataset, ran)
            and (method is None or method in (run["method"], *run["views"]))
        ]


def read(root: Path) -> Accuracy:
    """What the repository below ``root`` holds; raises ``tesserec.errors.DataError`` for ranks that do not fit."""
    folder = root / "benchmarks" / "results" / "ranks"
    runs: Sequence[Run] = ()
    lines: Sequence[Figure] = ()
    if (folder / "runs.jsonl").exists():
        from benchmarks.accuracy import figures

        runs, lines = figures.read_runs(folder), figures.figures(folder)
    return Accuracy(
        runs,
        {line["figure"]: line for line in lines},
        toml_of(root / "benchmarks" / "accuracy" / "published.toml").get("method", []),
        toml_of(root / "benchmarks" / "accuracy" / "suite.toml").get("grid", []),
        frozenset((parts[0], parts[1], parts[2]) for path in root.glob(TRIALS) for parts in [path.stem.split(".")]),
        _outdated(root / "benchmarks" / "accuracy" / "suite.toml", runs),
    )


def _outdated(path: Path, runs: Sequence[Run]) -> frozenset[str]:
    """The runs of the suite at ``path`` that were done with other settings than it has now."""
    if not path.exists() or "datasets" not in toml_of(path):
        return frozenset()
    from tesserec.bench_suite import read_suite

    digests = {run.name: run.digest for run in read_suite(path).runs()}
    return frozenset(
        run["run"] for run in runs if digests.get(run["run"], run["recipe_digest"]) != run["recipe_digest"]
    )


def toml_of(path: Path) -> dict[str, Any]:
    """The tables of a file; none where there is no file."""
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def written(root: Path, found: Accuracy) -> tuple[dict[Path, str], list[Path]]:
    """The file of figures and the plots, by path; and those that are there although nothing was run for them."""
    wanted: dict[Path, str] = {}
    if found.figures:
        from benchmarks.accuracy import figures

        wanted[root / FIGURES_FILE] = figures.text(list(found.figures.values()))
        wanted |= {root / "docs" / name: svg for name, svg in plots(found)}
    there = [path for path in (root / FIGURES_FILE, *sorted(root.glob(PLOTS))) if path.exists()]
    return wanted, [path for path in there if path not in wanted]


# The section of the README

HEADLINE_DATASETS = ("beauty", "toys", "sports")
HEADLINE_METHODS = (OURS, "mosaic_generative", "sasrec", "hstu", "cooccurrence", "tiger")


def headline(found: Accuracy, datasets: Sequence[str] = HEADLINE_DATASETS) -> str:
    """NDCG@10 by ``last_out`` of a few methods and of what was published: a row each, two columns a data set."""
    rows = []
    for method in HEADLINE_METHODS:
        values = [
            found.figure(dataset, "last_out", method, "ndcg10", refit)
            for dataset in datasets
            for refit in ("", "refit")
        ]
        if any(values):
            rows.append([f"`{method}`", *("" if value is None else f"{value['value']:.4f}" for value in values)])
    if not rows:
        return NO_RUNS
    for paper in found.published:
        printed = [paper.get(dataset) for dataset in datasets]
        rows.append([paper["name"], *(cell for one in printed for cell in (f"{one['ndcg10']:.4f}" if one else "", ""))])
    columns = [f"{name.title()}{refit}" for name in datasets for refit in ("", ", refit")]
    head = [f"| NDCG@10 | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


# The section of the results


def section(found: Accuracy) -> list[str]:
    """The lines of the section, without its heading."""
    lines = [*TRAPS, ""]
    if not found.figures:
        return [*lines, NO_RUNS, *unstarted(found)]
    lines += [
        "N@10 is NDCG@10 and R@10 recall@10 at item level over the whole catalog, with 95 % bootstrap intervals over",
        "requests and seeds. Methods are fitted on train; `refit` fits them again on train + validation, and figures",
        "with refit are only ever compared with others with refit. Costs are means over the seeds of the plain runs",
        "(memory: the most). A view, such as `mosaic_generative`, is the same fitted model asked in another way.",
        "In the sentences below a table a method leads where its interval lies above all others', and Mosaic, over all",
        "requests, where those of its paired differences lie above 0.",
        f"Every figure, with slices: [accuracy.jsonl](../{FIGURES_FILE}).",
    ]
    for dataset, protocol in found.cells():
        lines += ["", f"### {dataset}, {protocol}", "", *_facts(found, dataset, protocol), "", *HEAD]
        lines += [_row(found, dataset, protocol, method) for method in found.methods(dataset, protocol)]
        lines += _published(found, dataset, protocol) + _parts(found, dataset, protocol)
        lines += _shuffled(found, dataset, protocol)
        lines += ["", _winners(found, dataset, protocol), *missing(found, dataset, protocol)]
        lines += _settings(found, dataset, protocol)
    lines += unstarted(found)
    quick = found.figures.get("accuracy.beauty.minutes_to_tiger")
    accuracy = found.figure("beauty", "last_out", QUICK, "ndcg10")
    if quick and accuracy:
        lines += [
            "",
            f"Generation alone, after {quick['value']:.1f} minutes of training: N@10 of {interval(accuracy)} on",
            f"Beauty, {quick['n']} seed(s), items that the user had removed from the answers, as everywhere here.",
            "What TIGER published is in the table; whether its answers were filtered so is not said",
            f"(`{quick['command']}`).",
        ]
    for name, alternative in plot_names(found):
        lines += ["", f"![{alternative}]({name})"]
    return [*lines, "", *GROUPS_HEAD, *groups(found.runs)]


def _facts(found: Accuracy, dataset: str, protocol: str) -> list[str]:
    """A sentence on what is asked, from the split of the newest run."""
    first = (found.methods(dataset, protocol) or found.methods(dataset, protocol, whole=False))[0]
    figure = found.figure(dataset, protocol, first, "ndcg10") or found.figure(
        dataset, protocol, first, "ndcg10", "refit"
    )
    assert figure is not None, "a method of the page has one of the two"
    split = max(found.runs_of(dataset, protocol), key=lambda run: str(run["date"]))["split"]
    seen = "removed from" if split["exclude_history"] else "allowed in"
    facts = [f"{figure['n']:,} requests", f"items that the user had are {seen} the answers"]
    if split["t1"] is not None:
        facts.append(f"T1 = {split['t1']} and T2 = {split['t2']} seconds since 1970")
    if protocol != "last_out_other_day":
        facts.append(
            f"{split['test']['tie_share']:.0%} of targets are told from events of the same time by order alone"
        )
    return ["; ".join(facts) + "."]


def _row(found: Accuracy, dataset: str, protocol: str, method: str) -> str:
    runs = found.runs_of(dataset, protocol, method)
    plain = [run for run in runs if not run["refit"]] or runs
    cells = [f"`{method}`"]
    cells += [
        interval(found.figure(dataset, protocol, method, metric, refit))
        for refit in ("", "refit")
        for metric in ("ndcg10", "recall10")
    ]
    leads = [
        (found.figure(dataset, protocol, OURS, f"ndcg10_over_{method}", refit), f"{refit} " if refit else "")
        for refit in ("", "refit")
    ]
    cells.append("; ".join(label + interval(lead, sign="+") for lead, label in leads if lead))
    cells += [
        seconds(average(run["train_cpu_s"] for run in plain)),
        f"{max(run['peak_rss_bytes'] for run in plain) / 2**20:,.0f}",
        f"{max(run['parameters'] for run in plain):,}",
        f"{average(run['retrieve_s_per_1000'][method] for run in plain):.2f}",
        ", ".join(str(seed) for seed in sorted({run["seed"] for run in plain})),
    ]
    return f"| {' | '.join(cells)} |"


def _parts(found: Accuracy, dataset: str, protocol: str) -> list[str]:
    """What each part of a method is worth: a row for each that was left out."""
    rows = []
    for method in found.methods(dataset, protocol, whole=False):
        whole, _, part = method.partition(LEFT_OUT)
        figures = [found.figure(dataset, protocol, method, metric) for metric in ("ndcg10", "recall10")]
        lead = found.figure(dataset, protocol, OURS, f"ndcg10_over_{method}") if whole == OURS else None
        runs = found.runs_of(dataset, protocol, method)
        seeds = ", ".join(str(seed) for seed in sorted({run["seed"] for run in runs}))
        cells = [f"{part}, of `{whole}`", *map(interval, figures), interval(lead, sign="+")]
        rows.append(f"| {' | '.join(cells)} | {seconds(average(run['train_cpu_s'] for run in runs))} | {seeds} |")
    return ["", *PARTS_HEAD, *rows] if rows else []


def _shuffled(found: Accuracy, dataset: str, protocol: str) -> list[str]:
    """What the order of events of one time is worth to each method: a row where both were run."""
    rows = []
    for method in found.methods(dataset, protocol):
        figure = found.figure(dataset, protocol, method, "ndcg10")
        shuffled = found.figure(dataset + SHUFFLED, protocol, method, "ndcg10")
        if figure and shuffled:
            left = f"{shuffled['value'] / figure['value']:.0%}" if figure["value"] else ""
            rows.append(f"| `{method}` | {interval(figure)} | {interval(shuffled)} | {left} |")
    if not rows:
        return []
    return [
        "",
        "Events of one user at one time, drawn into a random order before the split, where the file has them in an",
        "order that a method can learn:",
        "",
        *SHUFFLED_HEAD,
        *rows,
    ]


def interval(figure: Figure | None, sign: str = "") -> str:
    """A figure as a cell of a table; empty where there is none."""
    if figure is None:
        return ""
    return f"{figure['value']:{sign}.4f} ({figure['low']:{sign}.4f} to {figure['high']:{sign}.4f})"


def seconds(value: float) -> str:
    """Three digits at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def average(values: Iterable[float]) -> float:
    """The mean of at least one value."""
    found = [float(value) for value in values]
    return sum(found) / len(found)


def _published(found: Accuracy, dataset: str, protocol: str) -> list[str]:
    """The published figures of a data set, for the one protocol that they have."""
    rows = [method for method in found.published if dataset in method and protocol == "last_out"]
    if not rows:
        return []
    rows.sort(key=lambda method: (-method[dataset]["ndcg10"], method["name"]))
    return [
        "",
        *PUBLISHED_HEAD,
        *(
            f"| {method['name']} | {method[dataset]['ndcg10']:.4f} | {method[dataset]['recall10']:.4f} "
            f"| {method.get('note', '')} | {method['source']} |"
            for method in rows
        ),
    ]


# In words


def _winners(found: Accuracy, dataset: str, protocol: str) -> str:
    """Who is first over all and in each slice, without refit; a lead inside the interval is no lead."""
    methods = found.methods(dataset, protocol)
    told = [("Over all requests", "")] + [(words, part) for part, (words, _) in SLICES.items()]
    parts = []
    for words, part in told:
        values = [(f, m) for m in methods if (f := found.figure(dataset, protocol, m, "ndcg10", part)) is not None]
        leads = {m: found.figure(dataset, protocol, OURS, f"ndcg10_over_{m}") for m in methods if not part}
        if values:
            parts.append(f"{words[:1].lower()}{words[1:]} {_first(values, leads)}")
    if not parts:
        return "No method was run here without refit."
    text = "; ".join(parts)
    return f"By N@10 without refit: {text}."


def _first(values: list[tuple[Figure, str]], leads: Mapping[str, Figure | None]) -> str:
    """``leads`` are what ours has over others, paired."""
    ranked = sorted(values, key=lambda pair: (-pair[0]["value"], pair[1]))
    best, name = ranked[0]
    if best["value"] == 0:
        return "no method finds any"
    if len(ranked) == 1:
        return f"only `{name}` was run ({best['value']:.4f})"

    def is_level(figure: Figure, method: str) -> bool:
        lead = leads.get(method) if name == OURS else None
        return bool(figure["high"] >= best["low"] if lead is None else lead["low"] <= 0)

    level = [f"`{m}`" for f, m in ranked[1:] if is_level(f, m)]
    if level:
        return f"`{name}` is first ({best['value']:.4f}), not clearly before {listed(level)}"
    second, other = ranked[1]
    return f"`{name}` leads ({best['value']:.4f}; next `{other}` {second['value']:.4f})"


def listed(names: Sequence[str]) -> str:
    """Names as in a sentence."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


# What was not run


def _planned(found: Accuracy) -> Iterator[tuple[str, str, str, bool, int]]:
    """The grid's cells: data set, protocol, method, refit, seed.

    A method whose run drew nothing at random (its training log is empty) is run for the first seed only.
    """
    random = {run["method"] for run in found.runs if run["training_log"]}
    ran = {run["method"] for run in found.runs}
    for table in found.grid:
        seeds, refits = table.get("seeds", [0]), table.get("refit", [False])
        for dataset, protocol, method, refit in itertools.product(
            table["datasets"], table["protocols"], table["methods"], refits
        ):
            for seed in seeds if method in random or method not in ran else seeds[:1]:
                yield dataset, protocol, method, refit, seed


def _absent(found: Accuracy) -> list[tuple[str, str, str, bool, int]]:
    done = {(run["dataset"], run["protocol"], run["method"], run["refit"], run["seed"]) for run in found.runs}
    return sorted(set(_planned(found)) - done)


def missing(found: Accuracy, dataset: str, protocol: str) -> list[str]:
    """A sentence on the grid's cells of a table that have no run; none where there is no grid."""
    if not any((dataset, protocol) == cell[:2] for cell in _planned(found)):
        return []
    absent = [cell[2:] for cell in _absent(found) if cell[:2] == (dataset, protocol)]
    if not absent:
        return ["", "All of the grid was run here."]
    names = []
    for (method, refit), cells in itertools.groupby(absent, key=lambda cell: cell[:2]):
        seeds = [cell[2] for cell in cells]
        words = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
        names.append(f"`{method}`{' with refit' if refit else ''} ({words})")
    return ["", f"Not run: {'; '.join(names)}."]


def _settings(found: Accuracy, dataset: str, protocol: str) -> list[str]:
    """Sentences on where the settings of a table's methods come from, and on runs with others than those of today."""
    runs = found.runs_of(dataset, protocol)
    ran = {run["method"] for run in runs if LEFT_OUT not in run["method"]}
    searched = {method for *cell, method in found.searched if cell == [dataset, runs[0]["protocol"]]}
    elsewhere = {method for *_, method in found.searched} - searched
    parts = [
        ("Searched on other data only", ran & elsewhere),
        ("Not searched, at settings chosen by hand", ran - searched - elsewhere),
    ]
    told = [f"{words}: {listed([f'`{name}`' for name in sorted(names)])}." for words, names in parts if names]
    lines = ["", " ".join(told)] if told else []
    older = sorted(run["run"] for run in runs if run["run"] in found.outdated)
    return lines + (
        ["", f"Measured with earlier settings: {listed([f'`{name}`' for name in older])}."] if older else []
    )


def unstarted(found: Accuracy) -> list[str]:
    """A line on the data sets and protocols of the grid of which nothing was run."""
    begun = {(run["dataset"], run["protocol"]) for run in found.runs}
    names = sorted({f"{cell[0]}, {cell[1]}" for cell in _absent(found) if cell[:2] not in begun})
    return ["", f"Nothing was run yet of: {'; '.join(names)}."] if names else []


def groups(runs: Sequence[Run]) -> list[str]:
    """A row for the runs of one command, commit, machine and day."""
    grouped: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        key = (str(run["date"])[:10], str(run["commit"] or "unknown"), run["machine"], run["command"])
        grouped.setdefault(key, []).append(f"{run['dataset']}.{run['protocol']}")
    rows = []
    for (date, commit, machine, command), cells in sorted(grouped.items()):
        counted = ", ".join(f"{cell} ({cells.count(cell)})" for cell in sorted(set(cells)))
        escaped = command.replace("|", r"\|")
        rows.append(f"| {counted} | `{escaped}` | `{commit}` | {machine} | {date} |")
    return rows


# Plots


def plot_names(found: Accuracy) -> list[tuple[str, str]]:
    """The files of the plots and what they show, without making them."""
    protocols = [p for p in PLOTTED if any(_points(found, dataset, p) for dataset, q in found.cells() if q == p)]
    return [
        pair
        for protocol in protocols
        for pair in (
            (f"accuracy_{protocol}.svg", f"{protocol}: N@10 against the CPU seconds of training"),
            (f"accuracy_{protocol}_slices.svg", f"{protocol}: N@10 of the best {IN_BARS} methods by slice"),
        )
    ]


def plots(found: Accuracy) -> Iterator[tuple[str, str]]:
    """Each plot's file name and SVG: accuracy against training time, and accuracy by slice, a panel a data set."""
    for name, title in plot_names(found):
        protocol = name.removeprefix("accuracy_").removesuffix(".svg").removesuffix("_slices")
        datasets = [d for d, p in found.cells() if p == protocol and _points(found, d, p)]
        yield name, _svg(found, protocol, datasets, title, by_slice=name.endswith("_slices.svg"))


def _points(found: Accuracy, dataset: str, protocol: str) -> list[tuple[str, Figure, Figure]]:
    """Methods with N@10 and CPU seconds of the plain runs, the best first."""
    points = []
    for method in found.methods(dataset, protocol):
        accuracy = found.figure(dataset, protocol, method, "ndcg10")
        cost = found.figure(dataset, protocol, method, "train_cpu_s")
        if accuracy and cost:
            points.append((method, accuracy, cost))
    return points


def _svg(found: Accuracy, protocol: str, datasets: Sequence[str], title: str, *, by_slice: bool) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    methods = sorted({method for dataset in datasets for method, _, _ in _points(found, dataset, protocol)})
    palette = mpl.colormaps["tab20"]
    colours = {method: palette((2 * n + n // 10) % 20) for n, method in enumerate(methods)}
    with mpl.rc_context({"svg.hashsalt": "tesserec", "svg.fonttype": "none", "font.size": 9}):
        width = 9.0 if by_slice else 4.5
        columns = 1 if by_slice else min(2, len(datasets))
        rows = -(-len(datasets) // columns)
        figure = Canvas(figsize=(width * columns, 3.2 * rows + 0.6), layout="constrained")
        figure.suptitle(title)
        for place, dataset in enumerate(datasets, start=1):
            axes = figure.add_subplot(rows, columns, place)
            axes.set_title(dataset)
            axes.set_ylabel("N@10")
            (_bars if by_slice else _scatter)(axes, found, dataset, protocol, colours)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _scatter(axes: Any, found: Accuracy, dataset: str, protocol: str, colours: Mapping[str, Any]) -> None:
    for method, accuracy, cost in _points(found, dataset, protocol):
        value = accuracy["value"]
        error = [[value - accuracy["low"]], [accuracy["high"] - value]]
        seconds = max(cost["value"], 0.01)
        axes.errorbar(seconds, value, yerr=error, fmt="o", color=colours[method], capsize=2)
        axes.annotate(method, (seconds, value), xytext=(4, 3), textcoords="offset points", fontsize=7)
    shown = [max(cost["value"], 0.01) for _, _, cost in _points(found, dataset, protocol)]
    axes.set_xscale("log")
    axes.set_xlim(10 ** math.floor(math.log10(min(shown) / 1.5)), 10 ** math.ceil(math.log10(max(shown) * 2)))
    axes.set_xlabel("CPU seconds of training")


def _bars(axes: Any, found: Accuracy, dataset: str, protocol: str, colours: Mapping[str, Any]) -> None:
    methods = [method for method, _, _ in _points(found, dataset, protocol)][:IN_BARS]
    parts = [part for part in SLICES if found.figure(dataset, protocol, methods[0], "ndcg10", part)]
    for place, method in enumerate(methods):
        figures = [found.figure(dataset, protocol, method, "ndcg10", part) for part in parts]
        heights = [figure["value"] if figure else 0.0 for figure in figures]
        errors = [
            [figure["value"] - figure["low"] if figure else 0.0 for figure in figures],
            [figure["high"] - figure["value"] if figure else 0.0 for figure in figures],
        ]
        at = [n + 0.8 * (place + 0.5) / len(methods) - 0.4 for n in range(len(parts))]
        axes.bar(at, heights, 0.8 / len(methods), yerr=errors, capsize=1.5, color=colours[method], label=method)
    axes.set_xticks(range(len(parts)), [SLICES[part][1] for part in parts])
    axes.legend(fontsize=7)
