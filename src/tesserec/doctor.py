"""What this machine has for tesserec, what is missing, and how to get it."""

import os
import platform
import re
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

__all__ = ["Check", "examine"]

GIB = 2**30

EXTRAS = {
    "text": "sentence encoders for item texts",
    "llm": "language models",
    "serve": "the HTTP service",
    "scale": "logs larger than memory",
    "dist": "several machines",
    "dev": "tests and linters",
}
"""The optional parts of the package and what they are for."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: str
    """``"ok"``, ``"optional"`` (absent, and only some things need it) or ``"low"`` (small data only)."""
    found: str
    remedy: str = ""
    """What to do about it; empty where nothing needs doing."""


def examine(folder: Path = Path()) -> list[Check]:
    """Look at Python, processor, memory, disk (of ``folder``), PyTorch and its devices, and the optional packages."""
    return [
        Check("tesserec", "ok", metadata.version("tesserec")),
        Check("Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Check("cores", "ok", str(os.cpu_count())),
        _memory(),
        _disk(folder),
        *_torch(),
        *(_extra(extra, use) for extra, use in EXTRAS.items()),
    ]


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    low = total < 2 * GIB
    remedy = "the demo needs about 2 GiB: close other programs or use a larger machine" if low else ""
    return Check("memory", "low" if low else "ok", f"{total / GIB:.1f} GiB", remedy)


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    low = free < GIB
    return Check(
        "disk",
        "low" if low else "ok",
        f"{free / GIB:.1f} GiB free",
        "make room: bundles take up to 1 GiB" if low else "",
    )


def _torch() -> list[Check]:
    import torch

    found = Check("PyTorch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        remedy = (
            "a CUDA build from https://pytorch.org/get-started/locally trains larger models"
            if torch.version.cuda is None
            else ""
        )
        return [found, Check("GPU", "optional", "none that PyTorch can use", remedy)]
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [found, *(Check("GPU", "ok", f"{name}, as device cuda:{i}") for i, name in enumerate(names))]


def _extra(extra: str, use: str) -> Check:
    """Whether all packages of an extra are installed."""
    wanted = [
        match.group(0)
        for line in metadata.requires("tesserec") or []
        if re.search(rf"extra == ['\"]{extra}['\"]", line) and (match := re.match(r"[A-Za-z0-9._-]+", line))
    ]
    missing = [name for name in wanted if not _installed(name)]
    if not missing:
        return Check(f"[{extra}]", "ok", use)
    return Check(f"[{extra}]", "optional", f"{use}: without {', '.join(missing)}", f'pip install "tesserec[{extra}]"')


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
