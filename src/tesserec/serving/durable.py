"""Files that are whole and on disk when a call returns, and locks between processes.

A file or folder is written under another name, synced, and renamed; the folder that holds the name is synced too. Who
dies in between leaves the old one. Locks are those of the operating system, so that a dead process holds none.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tesserec.files import completed

__all__ = ["copy_file", "durable_file", "locked", "make_folder", "sync", "try_lock", "write_text"]


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they are there after a power cut too."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for part in missing:
        sync(part.parent)


@contextmanager
def durable_file(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which is ``path`` and on disk at the end; folders are made if need be.

    Raises ``DataError`` where ``path`` is a folder.
    """
    make_folder(path.parent)
    with completed(path) as part:
        part.unlink(missing_ok=True)
        yield part
        sync(part)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a small file at once: readers, and whoever comes after a crash, see the old text or the new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        sync(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync(path.parent)


def copy_file(source: Path, target: Path) -> None:
    """Copy the bytes of a file and put them on disk; the folder of ``target`` is made if need be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    sync(target)


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Wait for the lock in the file ``path`` and hold it; ``shared`` ones do not exclude each other."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock in the file ``path`` if nobody else does; whether it is held now."""
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
