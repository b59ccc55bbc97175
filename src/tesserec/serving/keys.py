"""API keys: made, kept as digests in one file, looked up in constant time.

A key is ``tsk_<id>_<secret>``; the secret is 32 random bytes, so a plain SHA-256 of it cannot be turned around and no
slow hash is needed. The file is only readable by its owner, is replaced as a whole, and is read again when another
process changed it: a key that is revoked on the command line stops working in a running service within a second.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import pydantic

from tesserec.config import did_you_mean
from tesserec.errors import ServiceError
from tesserec.files import completed

__all__ = ["SCOPES", "Key", "KeyRing", "Scope"]

Scope = Literal["read", "write", "admin"]
"""``read``: ask for recommendations, items, users. ``write``: events, items, users. ``admin``: all of it."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
_REREAD_S = 1.0
_NOBODY = hashlib.sha256(b"").hexdigest()
_DIGEST = r"^[0-9a-f]{64}$"
_NAME = re.compile(r"[A-Za-z0-9._ -]{1,64}")


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of a key: everything but its secret."""

    key_id: str
    name: str
    """What a person calls it."""
    scopes: tuple[Scope, ...]
    namespaces: tuple[str, ...] | None
    """The only namespaces it opens; None: all of them."""
    created: float
    """Seconds since 1970 UTC."""
    revoked: float | None
    digest: Annotated[str, pydantic.Field(pattern=_DIGEST)]
    """SHA-256 of the secret, in hexadecimal digits."""


_FILE = pydantic.TypeAdapter(tuple[Key, ...])


class KeyRing:
    """The keys of a home folder. All methods may be called from any thread, and of several processes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._looked = 0.0
        self._keys: dict[str, Key] = {}
        self._read()

    def create(self, name: str, scopes: Sequence[str], namespaces: Sequence[str] | None = None) -> tuple[Key, str]:
        """A new key and its text, which is shown this once and kept nowhere.

        Raises ``ServiceError`` for a scope that does not exist, or a name that is not 1 to 64 letters, digits,
        spaces, dots, hyphens and underscores.
        """
        if not _NAME.fullmatch(name):
            raise ServiceError(f"the name {name!r} of a key: expected 1 to 64 letters, digits, spaces, '.', '-', '_'")
        chosen = tuple(scope for scope in SCOPES if scope in scopes)
        if not chosen or len(chosen) != len(set(scopes)):
            wrong = next((scope for scope in scopes if scope not in SCOPES), "")
            raise ServiceError(f"{wrong!r} is not a scope of keys{did_you_mean(wrong, list(SCOPES))}")
        secret = secrets.token_urlsafe(32)
        where = None if namespaces is None else tuple(namespaces)
        with self._changing() as keys:
            key_id = next(one for one in iter(lambda: secrets.token_hex(4), "") if one not in keys)
            key = Key(key_id, name, chosen, where, time.time(), None, _digest(secret))
            keys[key_id] = key
        return key, f"tsk_{key_id}_{secret}"

    def revoke(self, key_id: str) -> Key:
        """The key, which opens nothing from now on. Raises ``ServiceError`` where there is no such key."""
        with self._changing() as keys:
            if key_id not in keys:
                raise ServiceError(f"there is no key {key_id!r}{did_you_mean(key_id, list(keys))}")
            if keys[key_id].revoked is None:
                keys[key_id] = dataclasses.replace(keys[key_id], revoked=time.time())
            return keys[key_id]

    def verify(self, text: str) -> Key | None:
        """The key of this text, or None where it opens nothing (any more)."""
        self._reread()
        _, _, rest = text.partition("tsk_")
        key_id, _, secret = rest.partition("_")
        key = self._keys.get(key_id)
        # Somebody unknown costs as much as somebody known, so that time does not tell which ids exist.
        same = hmac.compare_digest(_digest(secret), _NOBODY if key is None else key.digest)
        return key if same and key is not None and key.revoked is None and text.startswith("tsk_") else None

    def all(self) -> list[Key]:
        """Every key that was ever made, revoked ones included, by time."""
        self._reread()
        return sorted(self._keys.values(), key=lambda key: key.created)

    def __bool__(self) -> bool:
        """Whether any key opens something."""
        self._reread()
        return any(key.revoked is None for key in self._keys.values())

    def _reread(self) -> None:
        now = time.monotonic()
        if now - self._looked > _REREAD_S:
            self._looked = now
            if _stamp(self.path) != self._stamp:
                self._read()

    def _read(self) -> None:
        stamp = _stamp(self.path)
        try:
            keys = _FILE.validate_json(self.path.read_bytes()) if stamp is not None else ()
        except ValueError:
            raise ServiceError(f"{self.path} is damaged: restore it, or remove it and make new keys") from None
        self._keys, self._stamp = {key.key_id: key for key in keys}, stamp

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Key]]:
        """The keys, to change: written when the block ends. One process at a time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, _owned(self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._read()
            keys = dict(self._keys)
            yield keys
            text = json.dumps([dataclasses.asdict(key) for key in keys.values()], indent=1)
            with completed(self.path) as part, _owned(part, os.O_WRONLY | os.O_TRUNC) as descriptor:
                os.write(descriptor, text.encode())
                os.fsync(descriptor)
            self._read()


@contextmanager
def _owned(path: Path, flags: int) -> Iterator[int]:
    """A file that nobody but its owner can read, opened."""
    descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        yield descriptor
    finally:
        os.close(descriptor)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file is replaced."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
