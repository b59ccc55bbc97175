"""``Versions``: bundles on disk, and the pointer to the live one."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.serving.bundles import damage, shop_bundle

from tesserec.bundle import Bundle, save_manifest
from tesserec.errors import BundleError, ServiceError
from tesserec.recommender import Recommender
from tesserec.serving.versions import Canary, Pointer, Versions


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four bundles, the oldest first; not to be changed."""
    folder = tmp_path_factory.mktemp("bundles")
    return [shop_bundle(folder / f"b{day}", day) for day in (1, 2, 3, 4)]


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    """The versions of an empty namespace."""
    return Versions(tmp_path / "shop")


def names(folder: Path) -> list[str]:
    """Folders of versions, those in the making included."""
    return sorted(path.name for path in (folder / "versions").iterdir() if path.is_dir())


def test_a_published_bundle_is_copied_and_live(versions: Versions, bundles: list[Path]) -> None:
    assert versions.pointer() is None
    assert versions.ids() == []
    version = versions.publish(bundles[0])
    assert version.startswith("20261101-080000-")
    assert versions.pointer() == Pointer(1, version)
    copy = versions.check(version)
    assert copy.manifest == Bundle.open(bundles[0]).manifest
    assert Recommender.load(copy.folder).recommend(["u00"]).equals(Recommender.load(bundles[0]).recommend(["u00"]))
    table = json.loads((versions.folder / "live.json").read_text())
    assert (table["sequence"], table["live"], table["previous"], table["canary"]) == (1, version, None, None)
    assert names(versions.folder) == [version]


def test_the_same_bundle_is_the_same_version(versions: Versions, bundles: list[Path], tmp_path: Path) -> None:
    first = versions.publish(bundles[0])
    second = versions.publish(bundles[1])
    before = versions.pointer()
    assert versions.publish(bundles[1]) == second
    assert versions.pointer() == before == Pointer(2, second, first)
    assert versions.add(versions.path(first)) == first
    assert versions.publish(shop_bundle(tmp_path / "again", 1)) != first, "files of another fit may differ"
    assert len(versions.ids()) == 3


def test_derived_files_are_not_copied(versions: Versions, tmp_path: Path) -> None:
    bundle = shop_bundle(tmp_path / "b")
    (bundle / "derived").mkdir()
    (bundle / "derived" / "trie").write_bytes(b"x")
    version = versions.add(bundle)
    assert not (versions.path(version) / "derived").exists()
    assert versions.pointer() is None, "added, not live"


def test_damaged_bundles_are_refused_by_name(versions: Versions, bundles: list[Path], tmp_path: Path) -> None:
    version = versions.publish(bundles[0])
    bundle = shop_bundle(tmp_path / "b", 9)
    damage(bundle / "model.safetensors")
    with pytest.raises(BundleError, match=r"model\.safetensors is damaged"):
        versions.publish(bundle)
    assert versions.pointer() == Pointer(1, version)
    assert names(versions.folder) == [version]
    damage(versions.path(version) / "events.parquet")
    with pytest.raises(BundleError, match=r"events\.parquet is damaged"):
        versions.check(version)
    assert [info.version for info in versions.infos()] == [version], "it can be listed"
    assert versions.add(bundles[0]) == version, "a damaged version is made anew of the bundle it was"
    versions.check(version)
    (versions.path(version) / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
        versions.infos()


def test_a_manifest_may_not_name_files_elsewhere(versions: Versions, tmp_path: Path) -> None:
    bundle = shop_bundle(tmp_path / "b")
    manifest = Bundle.open(bundle).manifest
    for name in ("../b/users.parquet", "derived/../users.parquet", str(bundle / "users.parquet"), "derived/trie"):
        files = {**manifest.files, name: manifest.files["users.parquet"]}
        (bundle / "derived").mkdir(exist_ok=True)
        (bundle / "derived" / "trie").write_bytes((bundle / "users.parquet").read_bytes())
        save_manifest(bundle, dataclasses.replace(manifest, files=files))
        with pytest.raises(BundleError, match="outside itself: this is no bundle that tesserec made"):
            versions.add(bundle)


def test_rollback_and_back(versions: Versions, bundles: list[Path]) -> None:
    with pytest.raises(ServiceError, match=r"nothing is published in .*: publish a bundle first"):
        versions.rollback()
    first = versions.publish(bundles[0])
    with pytest.raises(ServiceError, match="there is no previous version to roll back to: publish one"):
        versions.rollback()
    second = versions.publish(bundles[1])
    versions.canary(versions.add(bundles[2]))
    assert versions.rollback() == Pointer(4, first, second), "the canary ended"
    assert versions.rollback() == Pointer(5, second, first)
    damage(versions.path(first) / "users.parquet")
    with pytest.raises(BundleError, match=r"users\.parquet is damaged"):
        versions.rollback()
    assert versions.pointer() == Pointer(5, second, first)


def test_a_rollback_waits_for_no_copy(versions: Versions, bundles: list[Path]) -> None:
    first = versions.publish(bundles[0])
    versions.publish(bundles[1])
    with versions.writing():
        done = threading.Thread(target=versions.rollback)
        done.start()
        done.join(30)
        assert not done.is_alive()
        pointer = versions.pointer()
    assert pointer is not None
    assert pointer.live == first


def test_a_change_is_undone_unless_somebody_changed_it_since(versions: Versions, bundles: list[Path]) -> None:
    first = versions.publish(bundles[0])
    before = versions.pointer()
    second = versions.publish(bundles[1])
    after = versions.pointer()
    assert before is not None
    assert after is not None
    assert versions.undo(before, after)
    undone = versions.pointer()
    assert undone == dataclasses.replace(before, sequence=3)
    assert not versions.undo(before, after), "it is not what is live any more"
    assert versions.go_live(second).live == second
    assert first == before.live


def test_canaries(versions: Versions, bundles: list[Path]) -> None:
    first = versions.publish(bundles[0])
    second = versions.add(bundles[1])
    assert versions.canary(second, 0.2) == Pointer(2, first, None, Canary(second, 0.2))
    assert versions.pointer() == Pointer(2, first, None, Canary(second, 0.2))
    for share in (0, 1.5):
        with pytest.raises(ServiceError, match=rf"share = {share}: give the canary a share in \(0, 1\]"):
            versions.canary(second, share)
    with pytest.raises(ServiceError, match="is live already: a canary is another version"):
        versions.canary(first)
    assert [info.roles for info in versions.infos()] == [("live",), ("canary",)]
    assert versions.go_live(second) == Pointer(3, second, first), "a canary that goes live is none any more"
    assert versions.canary(None) == Pointer(3, second, first)
    versions.canary(first)
    assert versions.canary(None) == Pointer(5, second, first)


def test_prune_keeps_what_has_a_role(versions: Versions, bundles: list[Path]) -> None:
    a, b, c, d = (versions.add(bundle) for bundle in bundles)
    versions.go_live(c)
    versions.go_live(a)
    versions.canary(b)
    assert versions.prune(keep=4) == []
    assert versions.prune(keep=0) == [d]
    assert versions.ids() == [a, b, c]
    versions.add(bundles[3])
    versions.canary(None)
    assert versions.prune(keep=1) == [b]
    assert names(versions.folder) == [a, c, d]
    with pytest.raises(ServiceError, match="keep = -1: give the number of versions to keep, 0 or more"):
        versions.prune(-1)


def test_names_of_no_version(versions: Versions, bundles: list[Path]) -> None:
    version = versions.publish(bundles[0])
    for name in ("", "..", "../shop", version[:-1], "20261101-080000-00000000"):
        with pytest.raises(ServiceError, match=f"there is no version '{name}': there are {version}"):
            versions.go_live(name)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sequence": 1}'])
def test_a_damaged_pointer_is_refused_by_name(versions: Versions, bundles: list[Path], text: str) -> None:
    version = versions.publish(bundles[0])
    file = versions.folder / "live.json"
    whole = file.read_text()
    changed = whole.replace('"sequence": 1', '"sequence": 2')
    assert changed != whole
    for damaged in (text, changed):
        file.write_text(damaged)
        with pytest.raises(ServiceError, match=rf"live\.json is damaged .*there are {version}"):
            versions.pointer()
    file.unlink()
    assert versions.go_live(version) == Pointer(1, version)


def test_somebody_else_publishes_first(
    versions: Versions, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions.publish(bundles[0])
    versions.publish(bundles[1])
    other, check = Versions(versions.folder), versions.check

    def checked(version: str) -> Bundle:
        other.publish(bundles[2])
        return check(version)

    monkeypatch.setattr(versions, "check", checked)
    with pytest.raises(ServiceError, match="somebody else changed what is live just now, it is 20261103-080000-"):
        versions.rollback()


def killed(folder: Path, bundles: list[Path], times: int) -> int:
    """Kill a publisher so often, at random points, and look at what it left; how often something was unfinished."""
    command = [sys.executable, str(Path(__file__).with_name("publisher.py")), str(folder), *map(str, bundles)]
    rng, unfinished = random.Random(0), 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        for _ in range(times):
            driver.stdin.write("\n")
            driver.stdin.flush()
            child = int(driver.stdout.readline())
            time.sleep(rng.uniform(0, 0.12))
            os.kill(child, signal.SIGKILL)
            assert int(driver.stdout.readline()) == signal.SIGKILL
            left = [name for name in names(folder) if name.startswith(".")]
            unfinished += bool(left)
            versions = Versions(folder)
            assert not [name for name in names(folder) if name.startswith(".")], "what it left is put right"
            pointer = versions.pointer()
            assert pointer is not None
            for version in filter(None, (pointer.live, pointer.previous, *versions.ids())):
                versions.check(version)
    return unfinished


def test_killed_publishers_leave_a_whole_live_version(versions: Versions, bundles: list[Path]) -> None:
    versions.publish(bundles[0])
    assert killed(versions.folder, bundles, 8) > 0


@pytest.mark.prove
def test_many_killed_publishers(versions: Versions, bundles: list[Path]) -> None:
    versions.publish(bundles[0])
    assert killed(versions.folder, bundles, 300) > 10
