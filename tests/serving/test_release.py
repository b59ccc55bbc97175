"""The way of a bundle to the live version."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving.bundles import shop_bundle
from tests.serving.test_gate import fitted, shuffled

import shop
from tesserec.bundle import Bundle, publish
from tesserec.errors import BundleError, ServiceError
from tesserec.serving.bundle_events import bundle_events, source_of
from tesserec.serving.gate import GateConfig
from tesserec.serving.release import release
from tesserec.serving.sqlite_store import SQLiteStore
from tesserec.serving.versions import Versions

FEW = GateConfig(min_questions=20)


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[tuple[Versions, SQLiteStore]]:
    """A namespace without versions."""
    store = SQLiteStore(tmp_path / "state.sqlite")
    yield Versions(tmp_path / "shop"), store
    store.close()


def test_published_refused_and_forced(namespace: tuple[Versions, SQLiteStore], tmp_path: Path) -> None:
    versions, store = namespace
    bundle = shop_bundle(tmp_path / "b")
    first = release(bundle, versions, store, config=FEW)
    opened = Bundle.open(bundle)
    store.import_events(source_of(opened), bundle_events(opened))
    bad = publish(tmp_path / "bad", fitted(shuffled(shop.events()), seed=4)).folder
    with pytest.raises(ServiceError, match=r"^bad is not published: it is worse than .*\. Publish it with force"):
        release(bad, versions, store, config=FEW)
    pointer = versions.pointer()
    assert pointer is not None
    assert (pointer.live, versions.ids()) == (first.version, [first.version])
    store.delete_user("u07").result()
    forced = release(bad, versions, store, config=FEW, force=True, key_id="k1", keep=0)
    assert forced.report is None, "the gate was not asked"
    pointer = versions.pointer()
    assert pointer is not None
    assert (pointer.live, pointer.previous) == (forced.version, first.version)
    assert "u07" not in versions.check(forced.version).interactions.users.ids.to_pylist()
    assert "u08" in versions.check(forced.version).interactions.users.ids.to_pylist()
    entries = store.audit(10)
    assert [(e.action, e.key_id) for e in entries] == [
        ("publish by force", "k1"),
        ("publish refused", "command line"),
        ("publish", "command line"),
    ]
    assert entries[0].detail["version"] == forced.version
    assert str(entries[1].detail["reasons"]).startswith("['it is worse than live")
    third = release(shop_bundle(tmp_path / "c", 2), versions, store, config=FEW, force=True, keep=0)
    assert third.pruned == (first.version,)


def test_force_replaces_a_damaged_live_version(namespace: tuple[Versions, SQLiteStore], tmp_path: Path) -> None:
    versions, store = namespace
    bundle = shop_bundle(tmp_path / "b")
    live = release(bundle, versions, store, config=FEW).version
    file = versions.path(live) / "model.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"model\.safetensors is damaged"):
        release(bundle, versions, store, config=FEW)
    assert release(bundle, versions, store, config=FEW, force=True).version == live
    assert file.read_bytes() == good
    assert release(bundle, versions, store, config=FEW).report is not None
    assert release(versions.path(live), versions, store, config=FEW).report is None, "nothing to compare with"
