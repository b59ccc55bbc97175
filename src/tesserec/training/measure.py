"""What a piece of work took: seconds, and the peak of the process's memory meanwhile; and on what machine."""

import ctypes
import gc
import os
import platform
import re
import resource
import sys
import time
from importlib import metadata
from pathlib import Path
from types import TracebackType

import torch

__all__ = ["Measured", "machine", "versions"]

PACKAGES = ("torch", "polars", "numpy", "tesserec")

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


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


def _release_memory() -> None:
    """Give back to the system what the work before freed, so that it is not counted here."""
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
