"""Where the files of public data sets come from: a folder of yours, the cache, or their public address.

A download goes to ``$TESSEREC_DATA`` (``~/.cache/tesserec`` where that is not set). Its SHA-256 is written beside it,
and the file is checked against that whenever it is used again. We state no checksums of our own: the first download
counts.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from tesserec.errors import DataError

__all__ = ["choose", "fetch", "notice"]

LOGGER = logging.getLogger(__name__)
_TIMEOUT_S = 60


def notice(name: str, terms: str) -> None:
    """Say once a load under which terms a data set may be used."""
    LOGGER.warning("%s: %s", name, terms)


def choose(source: str, name: str, known: dict[str, str]) -> str:
    """The value of ``name`` in ``known``; raises ``DataError`` that lists the known names."""
    if name not in known:
        raise DataError(f"{source} has no data set {name!r}: choose one of {', '.join(sorted(known))}")
    return known[name]


def fetch(url: str, folder: Path | None = None) -> Path:
    """The file that ``url`` ends in: from ``folder`` where one is given, else from the cache, downloaded if need be.

    Raises ``DataError`` where it is not in ``folder``, cannot be downloaded, or is not what was first downloaded.
    """
    file_name = url.rsplit("/", maxsplit=1)[-1]
    if folder is not None:
        path = Path(folder) / file_name
        if not path.exists():
            raise DataError(f"no {file_name} in {folder}: put it there (from {url}), or give no folder to download it")
        return path
    path = _cache() / file_name
    recorded = path.with_name(f"{file_name}.sha256")
    if not path.exists() or not recorded.exists():
        _download(url, path)
        recorded.write_text(f"{_sha256(path)}  {file_name}\n", encoding="ascii")
        return path
    expected, found = recorded.read_text(encoding="ascii").split()[0], _sha256(path)
    if found != expected:
        raise DataError(
            f"{path} has SHA-256 {found}, recorded at its download: {expected}; delete it to download it again"
        )
    return path


def _cache() -> Path:
    folder = Path(os.environ.get("TESSEREC_DATA", "~/.cache/tesserec")).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _download(url: str, path: Path) -> None:
    partial = path.with_name(f"{path.name}.part")
    LOGGER.warning("downloading %s to %s", url, path)
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer, partial.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"cannot download {url}: {error}; download it by hand and give its folder") from None
    partial.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
