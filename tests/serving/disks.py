"""Small disks of their own for tests, which only root may make."""

import os
import subprocess
from contextlib import contextmanager

import pytest


def _mounted(folder, *options):
    if os.geteuid() != 0:
        pytest.skip("only root may mount a disk")
    folder.mkdir()
    done = subprocess.run(["mount", *options, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this machine mounts no disk: {done.stderr.strip()}")


@contextmanager
def small_disk(folder, size):
    """A disk in memory of ``size``, such as ``4m``."""
    _mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")
    try:
        yield folder
    finally:
        # A server may hold files open for a while.
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def breaking_disk(folder):
    """(ext4 in a file, what makes it read-only under those who write, as Linux does when a disk fails)."""
    image = folder.with_suffix(".image")
    with image.open("wb") as file:
        file.truncate(16 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
    except FileNotFoundError:
        pytest.skip("no mkfs.ext4 on this machine")
    _mounted(folder, "-o", "loop", image)
    try:
        yield folder, lambda: subprocess.run(["mount", "-o", "remount,abort", folder], check=False, capture_output=True)
    finally:
        subprocess.run(["umount", folder], check=True)
        image.unlink()
