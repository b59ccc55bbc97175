"""Where the files of public data sets come from: a folder of yours, the cache, or their public address.

A download goes to ``$TESSEREC_DATA`` (``~/.cache/tesserec`` where that is not set). Its SHA-256 is written beside it,
and the file is checked against that whenever it is used again. We state no checksums of our own: the first download
counts.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import logging
import os
import shutil
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from tesserec.data.catalog import read_catalog
from tesserec.errors import DataError
from tesserec.types import Catalog, Interactions

__all__ = ["catalog_for", "choose", "fetch", "local", "member", "notice", "records"]

LOGGER = logging.getLogger(__name__)
_TIMEOUT_S = 60


def notice(name: str, terms: str) -> None:
    """Say at every load under which terms a data set may be used."""
    LOGGER.warning("%s: %s", name, terms)


def choose(source: str, name: str, known: Sequence[str]) -> str:
    """``name``, if it is one of the ``known``; raises ``DataError`` that lists these."""
    if name not in known:
        raise DataError(f"{source} has no data set {name!r}: choose one of {', '.join(known)}")
    return name


def local(folder: Path | None, file_name: str, page: str) -> Path:
    """``file_name`` in ``folder``, for sets that can only be had by hand, from the web page ``page``."""
    if folder is None or not (Path(folder) / file_name).exists():
        raise DataError(f"no {file_name} in {folder}: get it from {page} (it cannot be downloaded for you)")
    return Path(folder) / file_name


def fetch(url: str, folder: Path | None, place: str) -> Path:
    """The file that ``url`` ends in: from ``folder`` where one is given, else from ``place`` in the cache.

    It is downloaded where the cache lacks it. Raises ``DataError`` where it is not in ``folder``, cannot be downloaded,
    or is no longer what was first downloaded.
    """
    file_name = url.rsplit("/", maxsplit=1)[-1]
    if folder is not None:
        path = Path(folder) / file_name
        if not path.exists():
            raise DataError(f"no {file_name} in {folder}: put it there (from {url}), or give no folder to download it")
        return path
    path = Path(os.environ.get("TESSEREC_DATA", "~/.cache/tesserec")).expanduser() / place / file_name
    recorded = path.with_name(f"{file_name}.sha256")
    if not path.exists() or not recorded.exists():
        _download(url, path)
        recorded.write_text(f"{_sha256(path)}  {file_name}\n", encoding="ascii")
        return path
    expected, found = recorded.read_text(encoding="ascii").split()[0], _sha256(path)
    if found != expected:
        raise DataError(
            f"{path} has SHA-256 {found}, at its download it was {expected}: delete it to download it again"
        )
    return path


def _download(url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    LOGGER.warning("downloading %s to %s", url, path)
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer, partial.open("wb") as file:
            shutil.copyfileobj(answer, file)
            expected = answer.headers.get("Content-Length")
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"cannot download {url}: {error}; get it by hand and give its folder") from None
    size = partial.stat().st_size
    if expected is not None and size != int(expected):
        partial.unlink()
        raise DataError(f"the download of {url} broke off after {size} of {expected} bytes: try again")
    partial.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def member(url: str, folder: Path | None, place: str, inner: str) -> bytes:
    """A file within the zip that ``url`` ends in, or the same file already unpacked in ``folder``."""
    if folder is not None and (Path(folder) / inner).exists():
        return (Path(folder) / inner).read_bytes()
    path = fetch(url, folder, place)
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(inner)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{path} is damaged or holds no {inner} ({error}): delete it and get it again") from None


def records(path: Path, *, literal: bool = False) -> Iterator[dict[str, Any]]:
    """The objects of a file with one a line, JSON or (``literal``) Python literals; also with ``.gz``."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield ast.literal_eval(line) if literal else json.loads(line)
            except (ValueError, SyntaxError) as error:
                raise DataError(f"{path}, line {number}: not one object a line ({error}): get the file again") from None


def catalog_for(interactions: Interactions, items: pl.DataFrame) -> Catalog:
    """The catalog of the items of a log: the first row of each in ``items``, nulls where it has none."""
    own = pl.DataFrame({"item_id": pl.Series(interactions.items.ids)})
    first = items.unique("item_id", keep="first", maintain_order=True)
    return read_catalog(own.join(first, on="item_id", how="left", maintain_order="left"))
