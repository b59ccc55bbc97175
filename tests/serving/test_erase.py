"""Deleted users leave every version on disk."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from tests.serving.bundles import damage
from tests.serving.serving_process import until

import shop
from tesserec.bundle import Bundle, publish
from tesserec.data.requests import user_requests
from tesserec.errors import BundleError
from tesserec.pipeline import fit, read_data, serving_retriever
from tesserec.serving.bundle_events import bundle_events, source_of
from tesserec.serving.durable import locked
from tesserec.serving.erase import Eraser, EraserConfig, deleted_users, erase, unfinished_folder
from tesserec.serving.loaded_model import LoadedModel
from tesserec.serving.sqlite_store import SQLiteStore
from tesserec.serving.versions import Versions

WHO = "Kunigunde-von-Thurn-4711"
AT_ONCE = EraserConfig(gather_s=0, retry_s=0.05)
LONG_S = 60.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop, whose customer ``u05`` has a name; not to be changed."""
    events = shop.events().with_columns(pl.col("user_id").replace("u05", WHO))
    recipe = shop.recipe()
    folder = tmp_path_factory.mktemp("bundles") / "b"
    publish(folder, fit(recipe, *read_data(recipe.data, events, shop.items())))
    return folder


@pytest.fixture
def home(tmp_path: Path, bundle: Path) -> Iterator[tuple[Versions, SQLiteStore]]:
    """A namespace with two versions of the shop, and its store."""
    versions = Versions(tmp_path / "shop")
    versions.publish(bundle)
    second = Bundle.open(bundle).contents()
    versions.publish(publish(tmp_path / "second", dataclasses.replace(second, recipe_digest="another")).folder)
    store = SQLiteStore(tmp_path / "shop" / "state.sqlite")
    opened = Bundle.open(bundle)
    store.import_events(source_of(opened), bundle_events(opened))
    yield versions, store
    store.close()


def files_that_name(folder: Path, user: str) -> list[str]:
    """Files below ``folder`` that have the id, Parquet files read column by column."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        text = path.read_bytes()
        if path.suffix == ".parquet":
            text += str(pq.read_table(path).to_pydict()).encode()
        if user.encode() in text:
            found.append(str(path.relative_to(folder)))
    return found


def test_a_deleted_user_is_nowhere_below_the_home(home: tuple[Versions, SQLiteStore]) -> None:
    versions, store = home
    assert len(files_that_name(versions.folder, WHO)) >= 3
    eraser = Eraser(versions, store, AT_ONCE)
    eraser.start()
    store.delete_user(WHO).result()
    eraser.add(WHO)
    assert eraser.wait(LONG_S)
    eraser.close()
    assert until(lambda: files_that_name(versions.folder, WHO) == []), "the store's log too, once nobody reads"
    assert (eraser.waiting, eraser.failure) == (0, None)
    for version in versions.ids():
        versions.check(version)


def test_the_others_are_answered_as_before(home: tuple[Versions, SQLiteStore], bundle: Path) -> None:
    versions, _ = home
    version = versions.ids()[0]
    before, pointer = Bundle.open(bundle), versions.pointer()
    assert erase(versions, [WHO, "nobody"], only=version) == [version]
    assert versions.pointer() == pointer
    after = versions.check(version)
    log, was = after.interactions, before.interactions
    row = int(was.users.index([WHO])[0])
    erased = log.users.ids[row].as_py()
    assert erased.startswith("erased-")
    assert len(log.users) == len(was.users)
    assert len(was) - len(log) == 12 == len(was) - after.manifest.num_events
    assert int((log.user_E == row).sum()) == 0
    assert after.manifest.data_digest == before.manifest.data_digest
    kept = [event for batch in bundle_events(before) for event in batch if event.user_id != WHO]
    assert [event for batch in bundle_events(after) for event in batch] == kept
    others = was.users.index(["u00", "u07", "u99"])
    requests = user_requests(was, others)
    lists = [serving_retriever(b.contents()).retrieve(requests, 10) for b in (before, after)]
    assert lists[0].items_BK.equal(lists[1].items_BK)
    assert lists[0].scores_BK.equal(lists[1].scores_BK)
    model = LoadedModel.load(after.folder, version)
    assert model.read([], user_id="u07").user == int(was.users.index(["u07"])[0])
    assert model.read([], user_id=WHO).user == -1
    assert erase(versions, [WHO], only=version) == []
    assert versions.add(after.folder) == version, "it is still that version"


def test_numbers_as_ids(tmp_path: Path) -> None:
    events = shop.events().with_columns(pl.col("user_id").str.slice(1).cast(pl.Int64) + 1000)
    recipe = shop.recipe()
    versions = Versions(tmp_path / "shop")
    version = versions.publish(
        publish(tmp_path / "b", fit(recipe, *read_data(recipe.data, events, shop.items()))).folder
    )
    assert erase(versions, ["1005", "x"]) == [version]
    ids = versions.check(version).interactions.users.ids.to_pylist()
    assert 1005 not in ids
    assert ids[5] < 0
    assert len(set(ids)) == 49


def test_unchanged_and_derived_files_are_linked(home: tuple[Versions, SQLiteStore]) -> None:
    versions, _ = home
    folder = versions.path(versions.ids()[0])
    (folder / "derived").mkdir()
    (folder / "derived" / "trie").write_bytes(b"tables")
    inode = (folder / "model.safetensors").stat().st_ino
    erase(versions, [WHO])
    assert (folder / "derived" / "trie").read_bytes() == b"tables"
    assert (folder / "model.safetensors").stat().st_ino == inode


def test_files_are_copied_where_there_are_no_links(
    home: tuple[Versions, SQLiteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    versions, _ = home
    assert erase(versions, [WHO]) == versions.ids()
    assert files_that_name(versions.folder / "versions", WHO) == []


def test_a_damaged_version_is_named_and_the_others_are_done(home: tuple[Versions, SQLiteStore], bundle: Path) -> None:
    versions, store = home
    version = next(v for v in versions.ids() if versions.check(v).manifest.recipe_digest != "another")
    damage(versions.path(version) / "model.safetensors")
    with pytest.raises(BundleError, match=r"model\.safetensors is damaged .* publish it again, or prune it"):
        erase(versions, [WHO])
    assert [name for name in files_that_name(versions.folder / "versions", WHO) if version not in name] == []
    store.delete_user(WHO).result()
    eraser = Eraser(versions, store, AT_ONCE)
    eraser.add(WHO)
    eraser.start()
    assert not eraser.wait(0.5)
    assert eraser.failure is not None
    assert eraser.waiting == 1
    versions.add(bundle)
    assert eraser.wait(LONG_S), "it is tried again"
    eraser.close()
    assert eraser.failure is None
    assert until(lambda: files_that_name(versions.folder, WHO) == [])


def test_who_waited_is_erased_after_a_restart(home: tuple[Versions, SQLiteStore]) -> None:
    versions, store = home
    store.delete_user("u07").result()
    Eraser(versions, store).add(WHO)
    later = Eraser(versions, store, AT_ONCE)
    assert later.waiting == 1
    later.start()
    assert later.wait(LONG_S)
    later.close()
    assert files_that_name(versions.folder / "versions", WHO) == []
    assert not (versions.folder / "erasing.json").exists()
    for version in versions.ids():
        ids = versions.check(version).interactions.users.ids.to_pylist()
        assert "u07" not in ids, "the store knew"
        assert "u08" in ids
        assert deleted_users(versions.check(version), store) == []


def test_an_unfinished_nightly_run_is_dropped_unless_it_runs(home: tuple[Versions, SQLiteStore], bundle: Path) -> None:
    versions, _ = home
    place = unfinished_folder(versions) / "bundle"
    place.mkdir(parents=True)
    with locked(versions.folder / ".nightly.lock"):
        erase(versions, [])
        assert place.exists()
    erase(versions, [])
    assert not place.exists()


def test_a_load_that_goes_on_is_waited_for(home: tuple[Versions, SQLiteStore]) -> None:
    versions, _ = home
    program = "import sys; from pathlib import Path; from tesserec.serving.versions import Versions\n"
    program += "from tesserec.serving.erase import erase\n"
    program += "versions = Versions(Path(sys.argv[1])); print('go', flush=True); erase(versions, [sys.argv[2]])"
    command = [sys.executable, "-c", program, str(versions.folder), WHO]
    version = versions.ids()[0]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        with versions.reading():
            assert other.stdout.readline() == "go\n"
            bundle = Bundle.open(versions.path(version))
            assert WHO in bundle.interactions.users.ids.to_pylist()
            assert other.poll() is None
        assert other.wait(LONG_S) == 0
    assert WHO not in versions.check(version).interactions.users.ids.to_pylist()
