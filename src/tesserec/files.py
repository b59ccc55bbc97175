"""Files that commands write: refused before the work where they cannot be, and there only when they are complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tesserec.errors import DataError

__all__ = ["check_file", "completed"]


def check_file(path: Path) -> None:
    """Raise ``DataError`` where ``path`` is a folder, which no file can replace."""
    if path.is_dir():
        raise DataError(f"{path} is a folder: give the file to write, such as one in this folder")


@contextmanager
def completed(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to: it becomes ``path`` at the end, or is removed where something is raised.

    The folder of ``path`` is made if need be. Raises ``DataError`` where ``path`` is a folder.
    """
    check_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
