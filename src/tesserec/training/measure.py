"""What a piece of work took: seconds, and the peak of the process's memory meanwhile."""

import ctypes
import gc
import platform
import resource
import sys
import time
from pathlib import Path
from types import TracebackType

__all__ = ["Measured"]

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
