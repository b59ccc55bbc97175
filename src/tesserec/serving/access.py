"""Who may do what: keys in requests, scopes, namespaces, and what protects a service that is open on this machine.

A key is needed beyond loopback, as soon as there is one, and with ``auth = "always"``. Without keys the service listens
on loopback only, and a page in a browser must not reach it: the ``Host`` header has to be a name of loopback (a name of
the attacker's that was made to point here is refused), and what changes something must not come from another origin.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from tesserec.config import Field, component
from tesserec.errors import ServiceError
from tesserec.serving.admission import Kind
from tesserec.serving.keys import KeyRing, Scope
from tesserec.serving.problems import Refused

__all__ = ["DEFAULT_NAMESPACE", "NAMESPACE", "Access", "AccessConfig", "Caller", "is_loopback"]

DEFAULT_NAMESPACE = "default"
NAMESPACE = r"^[a-z0-9][a-z0-9_-]{0,31}$"
"""Names of namespaces."""
_SCOPE_OF: dict[Kind, Scope] = {
    Kind.RECOMMEND: "read",
    Kind.READ: "read",
    Kind.WRITE: "write",
    Kind.IMPORT: "write",
    Kind.ADMIN: "admin",
}
_SAFE = ("GET", "HEAD", "OPTIONS")
_BEARER = {"WWW-Authenticate": 'Bearer realm="tesserec"'}
_BASIC = {"WWW-Authenticate": 'Basic realm="tesserec", charset="UTF-8"'}


@component
class AccessConfig:
    """Who may come in."""

    auth: Literal["auto", "always"] = "auto"
    """``auto``: a key is needed beyond loopback, and everywhere once there is one; ``always``: a key is needed."""
    hosts: Annotated[tuple[str, ...], Field(max_length=100)] = ()
    """Further names by which a service without keys may be called, beside those of loopback."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking."""

    key_id: str
    """``"local"`` where no key is needed."""
    scopes: tuple[Scope, ...]
    namespaces: tuple[str, ...] | None
    """None: all of them."""


_LOCAL = Caller("local", ("read", "write", "admin"), None)


class Access:
    """Knows who is asking, and refuses who may not."""

    def __init__(self, config: AccessConfig, keys: KeyRing, host: str) -> None:
        """``host`` is what the service listens on; raises ``ServiceError`` where that needs a key and there is none."""
        self.keys = keys
        self._always = config.auth == "always" or not is_loopback(host)
        self._hosts = frozenset(name.lower() for name in config.hosts)
        if self._always and not keys:
            why = f"on {host}, beyond this machine," if config.auth == "auto" else 'with auth = "always"'
            raise ServiceError(
                f"the service needs an API key {why} and there is none: "
                f"make one with `tesserec service key create NAME --home {keys.path.parent}`"
            )

    def caller(self, method: str, kind: Kind, headers: dict[bytes, bytes]) -> Caller:
        """Who is asking; raises ``Refused`` (401, 403) where that may not be."""
        if method not in _SAFE:
            _check_origin(headers)
        if not self._always and not self.keys:
            self._check_host(headers)
            return _LOCAL
        text = _key_in(headers)
        if text is None:
            detail = (
                "no API key: send one as `Authorization: Bearer tsk_…` or `X-API-Key`; to a browser it is the password"
            )
            raise Refused(401, detail, _challenge(headers))
        key = self.keys.verify(text)
        if key is None:
            detail = "the API key opens nothing: it is not complete, was revoked or never made"
            raise Refused(401, detail, _challenge(headers))
        # Who may make keys may do everything: they could make themselves one for it.
        if _SCOPE_OF[kind] not in key.scopes and "admin" not in key.scopes:
            raise Refused(403, f"the key has no scope {_SCOPE_OF[kind]!r}: it has {', '.join(key.scopes)}")
        return Caller(key.key_id, key.scopes, key.namespaces)

    def namespace(self, caller: Caller, headers: dict[bytes, bytes]) -> str:
        """The namespace that is asked for; raises ``Refused`` where the key does not open it."""
        only = caller.namespaces
        own = only[0] if only is not None and len(only) == 1 else DEFAULT_NAMESPACE
        name = headers.get(b"x-namespace", own.encode()).decode("latin-1")
        if not re.fullmatch(NAMESPACE, name):
            raise Refused(422, f"X-Namespace: {name!r} is no name of a namespace: expected {NAMESPACE}")
        if only is not None and name not in only:
            raise Refused(403, f"the key does not open the namespace {name!r}")
        return name

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        host = _host_of(headers.get(b"host", b"").decode("latin-1"))
        if not is_loopback(host) and host not in self._hosts:
            detail = f"the host {host!r} is not this machine: a service without keys is called by localhost"
            raise Refused(403, detail)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_of(text: str) -> str:
    """The host of ``host:port`` or ``[address]:port``, in lower case."""
    if text.startswith("["):
        return text[1:].partition("]")[0].lower()
    return text.partition(":")[0].lower()


def _challenge(headers: dict[bytes, bytes]) -> dict[str, str]:
    """How to send a key: a browser that opens a page asks its user for a password, others are told of Bearer.

    One or the other, as Chromium asks nobody where a header has both.
    """
    return _BASIC if b"text/html" in headers.get(b"accept", b"") else _BEARER


def _key_in(headers: dict[bytes, bytes]) -> str | None:
    """A key from ``X-API-Key`` or ``Authorization`` (Bearer, or Basic with the key as password, which browsers do)."""
    given = headers.get(b"x-api-key")
    if given is not None:
        return given.decode("latin-1")
    kind, _, text = headers.get(b"authorization", b"").partition(b" ")
    if kind.lower() == b"bearer":
        return text.strip().decode("latin-1")
    if kind.lower() == b"basic":
        try:
            return base64.b64decode(text.strip(), validate=True).decode("latin-1").partition(":")[2]
        except binascii.Error:
            return ""
    return None


def _check_origin(headers: dict[bytes, bytes]) -> None:
    """Refuse a change that a page of another site asked a browser for."""
    origin = headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2] != headers.get(b"host", b""):
        raise Refused(403, f"a page of {origin.decode('latin-1')} may not change anything here")
    if headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site"):
        raise Refused(403, "a page of another site may not change anything here")
