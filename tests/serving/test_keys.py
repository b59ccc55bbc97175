"""API keys: what opens, what does not, and what is on disk."""

import hashlib
import json
import multiprocessing
import re
from pathlib import Path

import pytest

from tesserec.errors import ServiceError
from tesserec.serving import keys
from tesserec.serving.keys import KeyRing


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing(tmp_path / "home" / "keys.json")


def test_a_key_opens_and_nothing_else_does(ring: KeyRing) -> None:
    key, text = ring.create("shop", ["write", "read"], ["default"])
    assert re.fullmatch(r"tsk_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", text)
    assert (key.scopes, key.namespaces, key.revoked) == (("read", "write"), ("default",), None)
    assert ring.verify(text) == key
    _, other = ring.create("other", ["admin"])
    wrong = [
        "", "tsk_", "tsk__", text[:-1], text + "x", text.removeprefix("tsk_"), "x" + text, f"tsk_{key.key_id}_",
        f"tsk_{key.key_id}_{other.rpartition('_')[2]}", f"tsk_{key.key_id}_{key.digest}", "tsk_0_\udcff",
    ]  # fmt: skip
    assert [ring.verify(one) for one in wrong] == [None] * len(wrong)


def test_only_a_digest_is_on_disk_for_the_owner_alone(ring: KeyRing) -> None:
    key, text = ring.create("shop", ["read"])
    secret = text.removeprefix(f"tsk_{key.key_id}_")
    stored = ring.path.read_text()
    assert secret not in stored
    assert json.loads(stored)[0]["digest"] == hashlib.sha256(secret.encode()).hexdigest()
    assert {one.stat().st_mode & 0o777 for one in ring.path.parent.iterdir()} == {0o600}


def test_a_revoked_key_opens_nothing_and_stays_in_the_list(ring: KeyRing) -> None:
    key, text = ring.create("shop", ["read"])
    assert ring
    revoked = ring.revoke(key.key_id)
    assert revoked.revoked is not None
    assert ring.revoke(key.key_id) == revoked
    assert ring.verify(text) is None
    assert not ring
    assert ring.all() == [revoked]


def test_another_process_is_heard(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_REREAD_S", 0.0)
    assert not ring
    other = KeyRing(ring.path)
    key, text = other.create("made elsewhere", ["read"])
    assert ring.verify(text) == key
    other.revoke(key.key_id)
    assert ring.verify(text) is None


def _make(path: Path, number: int) -> None:
    for i in range(10):
        KeyRing(path).create(f"{number}-{i}", ["read"])


def test_processes_that_make_keys_at_once_lose_none(ring: KeyRing) -> None:
    spawn = multiprocessing.get_context("fork")
    makers = [spawn.Process(target=_make, args=(ring.path, number)) for number in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert sorted(key.name for key in KeyRing(ring.path).all()) == sorted(
        f"{n}-{i}" for n in range(4) for i in range(10)
    )


def test_what_cannot_be_made(ring: KeyRing) -> None:
    with pytest.raises(ServiceError, match="'raed' is not a scope of keys; did you mean read"):
        ring.create("shop", ["raed"])
    with pytest.raises(ServiceError, match="'' is not a scope"):
        ring.create("shop", [])
    with pytest.raises(ServiceError, match="the name 'a/b' of a key: expected 1 to 64 letters"):
        ring.create("a/b", ["read"])
    with pytest.raises(ServiceError, match="there is no key 'nobody'"):
        ring.revoke("nobody")


def test_a_damaged_file_is_refused(ring: KeyRing) -> None:
    ring.create("shop", ["read"])
    ring.path.write_text(ring.path.read_text().replace('"digest"', '"digits"'))
    with pytest.raises(ServiceError, match=r"keys\.json is damaged: restore it"):
        KeyRing(ring.path)
