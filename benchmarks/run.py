"""Measures figures again: ``python -m benchmarks.run --figure PREFIX``, or ``make bench FIGURE=PREFIX``.

A script below benchmarks/ or tools/ names what it measures in ``FIGURES = ("area.name", …)``; ``*`` stands for any one
part of a name. Every script with a figure that begins with PREFIX is run.
"""

import argparse
import ast
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("benchmarks", "tools")


def main(arguments: list[str] | None = None) -> int:
    """Run the scripts; 0 when all of them succeeded, 2 when no figure begins with the prefix."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Measure figures again.")
    parser.add_argument("--figure", required=True, metavar="PREFIX", help="for example demo, or demo.mosaic")
    prefix = parser.parse_args(arguments).figure
    known = scripts(ROOT)
    chosen = [name for name, figures in known.items() if any(begins_with(figure, prefix) for figure in figures)]
    if not prefix or not chosen:
        print(f"no figure begins with {prefix!r}; these are measured:", file=sys.stderr)
        for name, figures in known.items():
            print(*(f"  {figure:40} {name}" for figure in figures), sep="\n", file=sys.stderr)
        return 2
    for name in chosen:
        print(f"== python -m {name}", flush=True)
        status = subprocess.run([sys.executable, "-m", name], cwd=ROOT, check=False).returncode
        if status:
            return status
    return 0


def scripts(root: Path) -> dict[str, tuple[str, ...]]:
    """Module name of each script that declares ``FIGURES``, and its figures."""
    found = {}
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FIGURES":
                found[".".join(path.relative_to(root).with_suffix("").parts)] = tuple(ast.literal_eval(node.value))
    return found


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
