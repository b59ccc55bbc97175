"""Writes what can be read from elsewhere: docs/methods.md, results.md and semantic-ids.md, and sections of README.md.

``python -m tools.docs`` writes them (and runs examples/quickstart.py, whose output the README shows); with ``--check``
it writes nothing and fails where a page, the accuracy figures or a plot is stale, a link broken or the header of a
method file incomplete. The accuracy figures, their part of docs/results.md and the plots come from tools/accuracy.py,
docs/semantic-ids.md and its figures from tools/semantic_ids.py.
The grammar of a header::

    Title: what it is, on the first line of the module's docstring.

    Paper: where it was published, or "none" and why it is here.
    Adds: the idea, in one or two sentences; a line that is too long
        goes on, indented.
    Differs: from the paper, and why.
    Checked: tests/<stage>/test_<module>.py (what it proves).
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tools import accuracy, decoding, semantic_ids, serving

__all__ = ["Method", "Problem", "main", "methods_page", "pages", "read_methods", "read_results", "results_page"]

ROOT = Path(__file__).resolve().parent.parent
KEYS = ("Paper", "Adds", "Differs", "Checked")
VERBS = frozenset(
    {
        *("embed", "fit", "encode", "retrieve", "rank", "rerank", "score", "search"),
        *("module", "level", "offsets"),  # losses, level transforms and assigners of a quantizer
    }
)
"""A component with one of these is a method; others are settings."""

STAGES = (
    *("embedders", "semantic_ids", "decoding", "retrievers", "rankers", "rerankers"),
    *("alignment", "search", "language", "conversation", "evaluation"),
)
"""Folders in which every method has a header, in the order data flows through them."""

VALUE_HEAD = ("| figure | value | interval | unit | n | of what |", "|---|--:|---|---|--:|---|")
ORIGIN_HEAD = ("| figure | command | commit | machine | date |", "|---|---|---|---|---|")

NOTE = "<!-- Written by `make docs`: change the source it names, not this page. -->"


T = TypeVar("T")


class Problem(Exception):
    """What keeps the pages from being written, one ``path:line: message`` a line."""


@dataclass(frozen=True)
class Method:
    """One method file: its header and the methods it defines."""

    path: str
    """From the repository's root."""
    title: str
    header: dict[str, str]
    classes: tuple[str, ...]

    @property
    def stage(self) -> str:
        """The folder it is in."""
        return Path(self.path).parent.name


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Write or check the pages below ``root``; 1 where something is stale or a header is incomplete."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs", description="Write the generated pages.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is stale")
    check = parser.parse_args(arguments).check
    try:
        if not check:
            run_quickstart(root)
        wanted, left_over = pages(root)
    except Problem as problem:
        print(problem, file=sys.stderr)
        return 1
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if check:
            print(f"{path.relative_to(root)}:1: stale: run `make docs` and commit what it writes", file=sys.stderr)
        else:
            path.write_text(wanted[path], encoding="utf-8")
            print(f"wrote {path.relative_to(root)}")
    for path in left_over:
        if check:
            print(f"{path.relative_to(root)}:1: stale: no run is behind it; `make docs` deletes it", file=sys.stderr)
        else:
            path.unlink()
            print(f"deleted {path.relative_to(root)}")
    faults = [*read_methods(root)[1], *broken_links(root)]
    print(*faults, sep="\n", end="\n" if faults else "", file=sys.stderr)
    return 1 if faults or (check and (stale or left_over)) else 0


def pages(root: Path) -> tuple[dict[Path, str], list[Path]]:
    """Every generated file and its text, and what was generated once and has nothing behind it any more.

    Raises ``Problem`` for a line that is no figure, ranks that do not fit together or a README without marks.
    """
    methods, _ = read_methods(root)
    results, unreadable = read_results(root)
    if unreadable:
        raise Problem("\n".join(unreadable))
    judged = _judged(root, accuracy.read, "ranks")
    tokenizers = _judged(root, semantic_ids.read, "semantic_ids")
    figures, left_over = accuracy.written(root, judged)
    more, more_left_over = semantic_ids.written(root, tokenizers)
    results |= {name: dict(figure) for name, figure in tokenizers.judged.figures.items() if name.startswith("claims.")}
    sections = {
        "accuracy": accuracy.headline(judged),
        "demo": demo_section(results),
        "quickstart": quickstart_section(root),
    }
    return {
        **figures,
        **more,
        **decoding.written(root, results),
        root / decoding.PAGE: with_sections(root / decoding.PAGE, {"decoding": decoding.section(results)}),
        root / serving.PAGE: with_sections(root / serving.PAGE, {"serving": serving.section(results)}),
        root / "docs" / "methods.md": methods_page(methods),
        root / "docs" / "results.md": results_page(dict(sorted(results.items())), judged),
        root / "docs" / "semantic-ids.md": semantic_ids.page(tokenizers, NOTE),
        root / "README.md": with_sections(root / "README.md", sections),
    }, [*left_over, *more_left_over]


def _judged(root: Path, read: Callable[[Path], T], folder: str) -> T:
    """What ``read`` makes of the runs in a folder of results."""
    try:
        return read(root)
    except ValueError as error:
        raise Problem(f"benchmarks/results/{folder}:1: {error}") from None


# The header of a method file


def read_methods(root: Path) -> tuple[list[Method], list[str]]:
    """All method files by stage and title, and a ``path:line: message`` for whatever their headers lack."""
    methods, problems = [], []
    for path in sorted((root / "src" / "tesserec").glob("*/*.py")):
        name = path.relative_to(root).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        text = ast.get_docstring(tree, clean=False) or ""
        classes = tuple(node.name for node in tree.body if isinstance(node, ast.ClassDef) and _is_method(node))
        header, lines = read_header(text)
        if not header and not (classes and path.parent.name in STAGES):
            continue
        method = Method(name, text.partition("\n")[0].strip(), header, classes)
        methods.append(method)
        problems += [f"{name}:{line}: {message}" for line, message in _faults(method, lines, root)]
    return sorted(methods, key=lambda m: (_stage_order(m.stage), m.title.lower())), problems


def read_header(docstring: str) -> tuple[dict[str, str], dict[str, int]]:
    """The keyed lines of a module's docstring, continuations joined, and the line each begins on."""
    header: dict[str, str] = {}
    lines: dict[str, int] = {}
    key = None
    for number, line in enumerate(docstring.splitlines(), start=1):
        begins = re.match(rf"({'|'.join(KEYS)}):(.*)", line)
        if begins:
            key = begins[1]
            header[key], lines[key] = begins[2].strip(), number
        elif key and line.startswith(" ") and line.strip():
            header[key] = f"{header[key]} {line.strip()}".strip()
        else:
            key = None
    return header, lines


def _faults(method: Method, lines: dict[str, int], root: Path) -> Iterator[tuple[int, str]]:
    if not method.title:
        yield 1, "a method file begins with a docstring whose first line is its title"
    missing = [f"`{key}:`" for key in KEYS if key not in method.header]
    if missing:
        yield 1, f"the module header has no {', '.join(missing)}; a method file has {', '.join(KEYS)} (CONTRIBUTING.md)"
    for key, text in method.header.items():
        if not text:
            yield lines[key], f"`{key}:` says nothing: write it out, or say why there is nothing to say"
    for test in re.findall(r"tests/[\w/]+\.py", method.header.get("Checked", "")):
        if not (root / test).exists():
            yield lines["Checked"], f"`Checked:` names {test}, which does not exist"


def _is_method(node: ast.ClassDef) -> bool:
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    verbs = {child.name for child in node.body if isinstance(child, ast.FunctionDef)} & VERBS
    return "component" in decorators and bool(verbs)


def _stage_order(stage: str) -> tuple[int, str]:
    return (STAGES.index(stage) if stage in STAGES else len(STAGES), stage)


def methods_page(methods: Iterable[Method]) -> str:
    """docs/methods.md: methods by stage, each with its header and a link to its file."""
    lines = ["# Methods", "", NOTE, "", "Read from the header of each method file; `make docs` writes this page again."]
    stage = None
    for method in methods:
        if method.stage != stage:
            stage = method.stage
            lines += ["", f"## {stage}"]
        short, _, rest = method.title.rstrip(".").partition(": ")
        lines += ["", f"### [{_plain(short)}](../{method.path})", ""]
        if rest:
            lines += [f"{_plain(rest[:1].upper() + rest[1:])}.", ""]
        module = method.path.removeprefix("src/").removesuffix(".py").replace("/", ".")
        lines += [f"* In a recipe: `{module}:{name}`" for name in method.classes]
        lines += [f"* {key}: {_plain(text)}" for key, text in method.header.items()]
    return "\n".join(lines) + "\n"


# Figures


def read_results(root: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The latest line of every figure, by name, and a ``path:line: message`` for lines that are no results.

    Figures of tokenizers are not among them: that file is generated too.
    """
    latest: dict[str, dict[str, Any]] = {}
    problems = []
    generated = root / semantic_ids.FIGURES_FILE
    for path in sorted(set((root / "benchmarks" / "results").glob("*.jsonl")) - {generated}):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            where = f"{path.relative_to(root).as_posix()}:{number}"
            try:
                figure = json.loads(line)
                latest[figure["figure"]] = figure
                if figure["commit"].endswith("-dirty"):
                    problems.append(f"{where}: measured with changes that no commit holds: commit, and measure again")
            except (ValueError, KeyError, TypeError) as error:
                problems.append(f"{where}: not a figure as benchmarks/_record.py writes it: {error!r}")
    return dict(sorted(latest.items())), problems


def results_page(results: dict[str, dict[str, Any]], judged: accuracy.Accuracy) -> str:
    """docs/results.md: the accuracy tables, then one table an area and below it where each figure comes from."""
    lines = [
        *("# Results", "", NOTE, ""),
        "Every figure is a line that a script under benchmarks/ wrote; the latest line of a figure counts. Intervals",
        "are 95 % unless the protocol says otherwise. [How to measure them again](../benchmarks/README.md).",
        *("", "## accuracy", "", *accuracy.section(judged)),
    ]
    for area in sorted({name.partition(".")[0] for name in results} - {"accuracy"}):
        # Cells are what a figure was made of: they are kept beside it, and are too many to be read here.
        figures = [one for name, one in results.items() if name.partition(".")[0] == area and ".cells." not in name]
        lines += ["", f"## {area}", "", *VALUE_HEAD]
        lines += [_value_row(figure) for figure in figures]
        lines += ["", *ORIGIN_HEAD]
        lines += [_origin_row(figure) for figure in figures]
    return "\n".join(lines) + "\n"


def _value_row(figure: dict[str, Any]) -> str:
    interval = "" if figure["low"] is None else f"{number(figure['low'])} to {number(figure['high'])}"
    memory = figure["peak_rss_bytes"]
    of_what = [
        figure["dataset"],
        figure["protocol"],
        figure["against"] and f"against {figure['against']}",
        figure["seeds"] and f"seeds {', '.join(map(str, figure['seeds']))}",
        memory and f"peak memory {memory / 2**20:,.0f} MiB",
    ]
    cells = [f"`{figure['figure']}`", number(figure["value"]), interval, figure["unit"], f"{figure['n']:,}"]
    return f"| {' | '.join(cells)} | {_cell('; '.join(filter(None, of_what)))} |"


def _origin_row(figure: dict[str, Any]) -> str:
    cells = [f"`{figure['figure']}`", f"`{_cell(figure['command'])}`", f"`{figure['commit']}`"]
    return f"| {' | '.join(cells)} | {_cell(figure['machine'])} | {figure['date'][:10]} |"


def number(value: float) -> str:
    """Four significant digits, thousands grouped, never in exponents above 0.0001."""
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.4g}"


# Links


def broken_links(root: Path) -> list[str]:
    """A ``path:line: message`` for every relative link to a file that does not exist."""
    problems = []
    for path in sorted([*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("*/README.md")]):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for target in re.findall(r"\]\((?!\w+:)([^)#\s]+)", line):
                if not (path.parent / target).exists():
                    where = path.relative_to(root).as_posix()
                    problems.append(f"{where}:{number}: links to {target}, which does not exist")
    return problems


# Sections of the README


def quickstart_section(root: Path) -> str:
    """The example and what it printed when it last ran."""
    printed = root / "examples" / "quickstart.out"
    if not printed.exists():
        raise Problem(
            "examples/quickstart.out:1: missing: run `make docs`, which runs the example and keeps its output"
        )
    code = (root / "examples" / "quickstart.py").read_text(encoding="utf-8").rstrip()
    output = printed.read_text(encoding="utf-8").rstrip()
    return f"```python\n{code}\n```\n\nIt prints\n\n```\n{output}\n```"


def run_quickstart(root: Path) -> None:
    """Run the example and keep what it prints beside it; raises ``Problem`` where it fails."""
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # sums, and so lists of equals, depend on the number of threads
    example = [sys.executable, "examples/quickstart.py"]
    run = subprocess.run(example, cwd=root, env=one_thread, check=False, stdout=subprocess.PIPE)
    if run.returncode:
        raise Problem(f"examples/quickstart.py:1: ended with exit code {run.returncode}: its output is above")
    (root / "examples" / "quickstart.out").write_bytes(run.stdout)


def demo_section(results: dict[str, dict[str, Any]]) -> str:
    """The demo's methods, best first, with their intervals."""
    found = {name.split(".")[1]: figure for name, figure in results.items() if re.fullmatch(r"demo\.\w+\.ndcg10", name)}
    if not found:
        return "`make demo` measures and prints them; none are recorded yet."
    lines = ["| method | NDCG@10 | Recall@10 |", "|---|---|---|"]
    for method, ndcg in sorted(found.items(), key=lambda pair: -pair[1]["value"]):
        recall = results.get(f"demo.{method}.recall10")
        lines.append(f"| {method} | {_with_interval(ndcg)} | {_with_interval(recall) if recall else ''} |")
    first = next(iter(found.values()))
    return "\n".join(
        [*lines, "", f"{first['n']:,} requests, 95 % intervals; commit `{first['commit']}`, {first['machine']}."]
    )


def with_sections(path: Path, sections: dict[str, str]) -> str:
    """The page with the text between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` replaced, for every section."""
    text = path.read_text(encoding="utf-8")
    for name, content in sections.items():
        begin, end = f"<!-- begin {name}: written by `make docs` -->", f"<!-- end {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise Problem(f"{path.name}:1: must hold `{begin}` and `{end}` once, around the section they name")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"
    return text


def _with_interval(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.4f} ({figure['low']:.4f} to {figure['high']:.4f})"


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", r"\*")


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    sys.exit(main())
