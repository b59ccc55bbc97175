"""Who may do what."""

import base64
from pathlib import Path

import pytest

from tesserec.errors import ServiceError
from tesserec.serving.access import Access, AccessConfig, Caller, is_loopback
from tesserec.serving.admission import Kind
from tesserec.serving.keys import KeyRing
from tesserec.serving.problems import Refused

LOCAL = {b"host": b"localhost:8000"}


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing(tmp_path / "keys.json")


def access(ring: KeyRing, host: str = "127.0.0.1", **settings: object) -> Access:
    return Access(AccessConfig(**settings), ring, host)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "::1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example.com", "", "127.0.0.1.example.com"])
def test_beyond_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_a_service_beyond_loopback_needs_a_key_and_says_how_to_make_one(ring: KeyRing) -> None:
    with pytest.raises(ServiceError, match=r"needs an API key on 0.0.0.0.*tesserec service key create NAME --home"):
        access(ring, "0.0.0.0")
    with pytest.raises(ServiceError, match='needs an API key with auth = "always"'):
        access(ring, auth="always")
    ring.create("shop", ["read"])
    assert access(ring, "0.0.0.0")


def test_an_open_service_is_called_by_a_name_of_this_machine(ring: KeyRing) -> None:
    open_access = access(ring, hosts=("shop.internal",))
    for host in (b"localhost", b"127.0.0.1:8000", b"[::1]:8000", b"shop.internal:8000"):
        assert open_access.caller("GET", Kind.ADMIN, {b"host": host}) == Caller(
            "local", ("read", "write", "admin"), None
        )
    for host in (b"evil.example:8000", b"", b"[fe80::1]", b"localhost.evil.example"):
        with pytest.raises(Refused, match="is not this machine") as refused:
            open_access.caller("GET", Kind.READ, {b"host": host})
        assert refused.value.status == 403


def test_a_page_of_another_site_changes_nothing(ring: KeyRing) -> None:
    own = access(ring)
    assert own.caller("POST", Kind.WRITE, {**LOCAL, b"origin": b"http://localhost:8000"}).key_id == "local"
    assert own.caller("GET", Kind.READ, {**LOCAL, b"origin": b"http://evil.example"}).key_id == "local"
    with pytest.raises(Refused, match=r"a page of http://evil\.example may not change anything"):
        own.caller("POST", Kind.WRITE, {**LOCAL, b"origin": b"http://evil.example"})
    with pytest.raises(Refused, match="a page of another site"):
        own.caller("DELETE", Kind.WRITE, {**LOCAL, b"sec-fetch-site": b"cross-site"})
    with pytest.raises(Refused, match="a page of null"):
        own.caller("POST", Kind.WRITE, {**LOCAL, b"origin": b"null"})


def test_a_key_is_needed_once_there_is_one(ring: KeyRing) -> None:
    guarded = access(ring)
    key, text = ring.create("shop", ["read"], ["toys"])
    with pytest.raises(Refused, match="no API key") as refused:
        guarded.caller("GET", Kind.READ, LOCAL)
    assert refused.value.status == 401
    assert refused.value.headers["WWW-Authenticate"] == 'Bearer realm="tesserec"'
    with pytest.raises(Refused, match="to a browser it is the password") as refused:
        guarded.caller("GET", Kind.READ, {**LOCAL, b"accept": b"text/html,application/xhtml+xml"})
    assert refused.value.headers["WWW-Authenticate"].startswith("Basic ")
    basic = b"Basic " + base64.b64encode(f"any:{text}".encode())
    for header in (
        {b"x-api-key": text.encode()},
        {b"authorization": f"bearer {text}".encode()},
        {b"authorization": basic},
    ):
        assert guarded.caller("GET", Kind.READ, header) == Caller(key.key_id, ("read",), ("toys",))
    for wrong in (b"Bearer tsk_0_0", b"Basic !", b"Basic " + base64.b64encode(b"nothing"), b"Bearer \xff"):
        with pytest.raises(Refused, match="opens nothing"):
            guarded.caller("GET", Kind.READ, {b"authorization": wrong})
    with pytest.raises(Refused, match="no API key"):
        guarded.caller("GET", Kind.READ, {b"authorization": b"Digest x"})
    ring.revoke(key.key_id)
    assert guarded.caller("GET", Kind.READ, LOCAL).key_id == "local"


@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.IMPORT, Kind.ADMIN])
def test_scopes(ring: KeyRing, kind: Kind) -> None:
    _, text = ring.create("reader", ["read"])
    _, full = ring.create("all", ["admin"])
    guarded = access(ring)
    assert guarded.caller("POST", Kind.RECOMMEND, {b"x-api-key": text.encode()})
    assert guarded.caller("POST", kind, {b"x-api-key": full.encode()})
    with pytest.raises(Refused, match=r"the key has no scope .*: it has read") as refused:
        guarded.caller("POST", kind, {b"x-api-key": text.encode()})
    assert refused.value.status == 403


@pytest.mark.parametrize(
    ("only", "asked", "given"),
    [
        (None, None, "default"),
        (None, b"toys", "toys"),
        (("toys",), None, "toys"),
        (("toys", "books"), None, "default"),
        (("toys", "books"), b"books", "books"),
    ],
)
def test_namespaces(ring: KeyRing, only: tuple[str, ...] | None, asked: bytes | None, given: str) -> None:
    headers = {} if asked is None else {b"x-namespace": asked}
    caller = Caller("k", ("read",), only)
    if given in (only or (given,)):
        assert access(ring).namespace(caller, headers) == given
    else:
        with pytest.raises(Refused, match="the key does not open the namespace 'default'"):
            access(ring).namespace(caller, headers)


def test_a_namespace_that_the_key_does_not_open(ring: KeyRing) -> None:
    caller = Caller("k", ("read",), ("toys",))
    with pytest.raises(Refused, match="the key does not open the namespace 'books'") as refused:
        access(ring).namespace(caller, {b"x-namespace": b"books"})
    assert refused.value.status == 403
    with pytest.raises(Refused, match="is no name of a namespace") as refused:
        access(ring).namespace(caller, {b"x-namespace": b"../toys"})
    assert refused.value.status == 422
