"""Measures figures again: ``python -m benchmarks.run --figure PREFIX``, or ``make bench FIGURE=PREFIX``.

A script below benchmarks/ or tools/ names what it measures in ``FIGURES = ("area.name", …)``; ``*`` stands for any one
part of a name. Every script with a figure that begins with PREFIX is run. One that says ``NEEDS_DATA = True`` reads
data sets that are not in this repository, from the folder of ``--data``.
"""

import argparse
import ast
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("benchmarks", "tools")


def main(arguments: list[str] | None = None) -> int:
    """Run the scripts; 0 when all of them succeeded, 2 when no figure begins with the prefix or data are missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Measure figures again.")
    parser.add_argument("--figure", required=True, metavar="PREFIX", help="for example demo, or demo.mosaic")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder of the data sets, for scripts that need it")
    given = parser.parse_args(arguments)
    prefix = given.figure
    known = scripts(ROOT)
    chosen = [name for name, figures in known.items() if any(begins_with(figure, prefix) for figure in figures)]
    if not prefix or not chosen:
        print(f"no figure begins with {prefix!r}; these are measured:", file=sys.stderr)
        for name, figures in known.items():
            print(*(f"  {figure:40} {name}" for figure in figures), sep="\n", file=sys.stderr)
        return 2
    needing = [name for name in chosen if needs_data(ROOT, name)]
    if needing and (given.data is None or not given.data.is_dir()):
        got = "no folder was given" if given.data is None else f"{given.data} is not a folder"
        print(f"data sets are needed by {', '.join(needing)}, and {got}: name theirs, --data FOLDER", file=sys.stderr)
        return 2
    for name in chosen:
        print(f"== python -m {name}", flush=True)
        more = ["--data", str(given.data.resolve())] if name in needing else []
        status = subprocess.run([sys.executable, "-m", name, *more], cwd=ROOT, check=False).returncode
        if status:
            return status
    return 0


def scripts(root: Path) -> dict[str, tuple[str, ...]]:
    """Module name of each script that declares ``FIGURES``, and its figures."""
    found = {}
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        figures = _constant(path, "FIGURES")
        if figures is not None:
            found[".".join(path.relative_to(root).with_suffix("").parts)] = tuple(figures)
    return found


def needs_data(root: Path, name: str) -> bool:
    """Whether the script takes the folder of the data sets."""
    return bool(_constant(root / Path(*name.split(".")).with_suffix(".py"), "NEEDS_DATA"))


def _constant(path: Path, name: str) -> Any:
    """The value of a constant of a module, which is not imported; None where it has none of this name."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    return None


def begins_with(figure: str, prefix: str) -> bool:
    """Whether ``figure``, in which ``*`` is any one part, can begin with ``prefix``."""
    parts, wanted = figure.split("."), prefix.split(".")
    if len(wanted) > len(parts):
        return False
    *whole, last = wanted
    return all(fnmatchcase(w, p) for w, p in zip(whole, parts, strict=False)) and (
        fnmatchcase(last, parts[len(whole)]) or parts[len(whole)].startswith(last)
    )


if __name__ == "__main__":
    sys.exit(main())
