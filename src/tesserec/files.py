"""Files that commands write: refused before the work where they cannot be, and there only when they are complete."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tesserec.errors import DataError

__all__ = ["check_file", "check_parent", "completed"]


def check_file(path: Path) -> None:
    """Raise ``DataError`` where no file can be written: over a folder, or where ``check_parent`` refuses."""
    _refuse_folder(path)
    check_parent(path)


def check_parent(path: Path) -> None:
    """Raise ``DataError`` where nothing can be made at ``path``: below a file, or in a folder that takes nothing new.

    The folders on the way that are missing are not made; a folder in the last one that is there is, for a moment.
    """
    folder = next((one for one in path.absolute().parents if os.path.lexists(one)), path)
    if not folder.is_dir():
        raise DataError(f"{path} cannot be written, as {folder} is not a folder: choose another place")
    try:
        tempfile.TemporaryDirectory(prefix=".tesserec-", dir=folder).cleanup()
    except OSError as error:
        raise DataError(
            f"{path} cannot be written, as nothing can be made in {folder} ({error.strerror}): choose another place"
        ) from None


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder: give the file to write, such as one in this folder")


@contextmanager
def completed(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to: it becomes ``path`` at the end, or is removed where something is raised.

    The folder of ``path`` is made if need be. Raises ``DataError`` where ``path`` is a folder.
    """
    _refuse_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
