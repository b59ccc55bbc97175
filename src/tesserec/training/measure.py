"""What a piece of work took: seconds, and the peak of the process's memory meanwhile; and on what machine."""

import ctypes
import gc
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import TracebackType

import torch

__all__ = ["Measured", "machine", "memory_kept", "versions"]

PACKAGES = ("torch", "polars", "numpy", "tesserec")

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Numbers of malloc.h."""
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_kept_blocks: list[None] = []
"""One entry for each ``memory_kept`` that runs: the setting is of the process, so the last one to end undoes it."""


class Measured:
    """A ``with`` block whose ``seconds`` and ``peak_rss_bytes`` are known when it ends.

    On Linux the peak is that of the block. Elsewhere the system only keeps the peak since the process started, and
    that is what is given.
    """

    seconds: float = 0.0
    peak_rss_bytes: int = 0

    def __enter__(self) -> "Measured":
        if _STATUS.exists():
            _release_memory()
            _CLEAR_REFS.write_text("5")  # resets VmHWM, see proc(5)
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        self.peak_rss_bytes = _peak_rss_bytes()


@contextmanager
def memory_kept() -> Iterator[None]:
    """A block in which freed memory stays with the process, for its next tensors; it is given back at the end.

    The steps of a training free and want the same hundreds of megabytes. glibc gives blocks of that size back to the
    system and takes new pages each time, which the system clears first: that was a quarter of a step. Does nothing
    with another C library. Blocks nest: memory is given back when the outermost one ends.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    _kept_blocks.append(None)
    try:
        yield
    finally:
        _kept_blocks.pop()
        if not _kept_blocks:
            mallopt(_M_MMAP_MAX, 65_536)
            mallopt(_M_TRIM_THRESHOLD, 128 * 1024)
            _release_memory()


def _release_memory() -> None:
    """Give back to the system what the work before freed."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _peak_rss_bytes() -> int:
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def machine() -> str:
    """Processor, usable cores, memory and, where there is one, the accelerator."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [_processor(), f"{cores} cores", f"{memory:.0f} GiB"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def versions() -> dict[str, str]:
    """Versions of Python and of what decides speed and accuracy."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return named[1].strip() if named else platform.processor() or platform.machine()
