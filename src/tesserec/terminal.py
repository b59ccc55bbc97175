"""What the commands print: results on standard output, progress and messages on standard error."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from tesserec.types import Progress

__all__ = ["JsonOption", "StandardError", "bars", "out", "print_json", "say", "say_lines"]

WIDTH = 150
"""Columns of a table that goes to a file or a pipe."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def out() -> Console:
    """Standard output, for tables."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def print_json(value: Any) -> None:
    """A result as JSON."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def say(line: str) -> None:
    """One line to a person, on standard error."""
    typer.echo(" ".join(line.split()), err=True)


def say_lines(text: str) -> None:
    """Several lines to a person, on standard error."""
    typer.echo(text, err=True)


class StandardError(logging.Handler):
    """Records and warnings as lines on standard error; where bars are shown, above them, which no bar overwrites."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record; bars take the place of ``sys.stderr``, so it is looked up each time."""
        say_lines(self.format(record))


@contextmanager
def bars() -> Iterator[Progress]:
    """A bar for each task, on a terminal; nothing where there is none."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shown = Bars(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console)
    shown.disable = not console.is_terminal
    known: dict[str, Any] = {}

    def progress(task: str, done: float, total: float, note: str = "") -> None:
        if task not in known:
            known[task] = shown.add_task(task, total=total, note=note)
        shown.update(known[task], completed=done, total=total, note=note)

    with shown:
        yield progress
