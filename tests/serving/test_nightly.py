"""The nightly run, over a real store and real versions."""

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from tests.serving.test_gate import shuffled, stored

import shop
from tesserec.bundle import Bundle, publish
from tesserec.errors import ServiceError
from tesserec.pipeline import fit, read_data
from tesserec.recommender import Recommender
from tesserec.serving.bundle_events import bundle_events, source_of
from tesserec.serving.durable import locked
from tesserec.serving.erase import unfinished_folder
from tesserec.serving.export import export, last_sequence
from tesserec.serving.gate import GateConfig
from tesserec.serving.nightly import NightlyConfig, nightly, run_nightly
from tesserec.serving.open_store import state_file
from tesserec.serving.records import Event, Item
from tesserec.serving.sqlite_store import SQLiteStore
from tesserec.serving.versions import Versions

LENIENT = NightlyConfig(gate=GateConfig(min_questions=10, tolerance=1.0))
"""The shop is small: chance is large."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop; not to be changed."""
    return publish(tmp_path_factory.mktemp("bundles") / "b", shop.contents()).folder


@pytest.fixture
def home(tmp_path: Path, bundle: Path) -> Iterator[tuple[Path, Versions, SQLiteStore]]:
    """The home of a service with the shop live, and a basket of each customer since."""
    versions = Versions(tmp_path / "namespaces" / "default")
    versions.publish(bundle)
    store = SQLiteStore(state_file(tmp_path, "default"))
    opened = Bundle.open(bundle)
    store.import_events(source_of(opened), bundle_events(opened))
    store.add_events(stored(shop.events(range(6, 7)))).result()
    yield tmp_path, versions, store
    store.close()


def lines(folder: Path) -> pl.DataFrame:
    """The events of a bundle with the user's own ids, sorted."""
    log = Bundle.open(folder).interactions
    return pl.DataFrame(
        {
            "user": log.users.to_ids(log.user_E.long()),
            "item": log.items.to_ids(log.item_E.long()),
            "time": log.time_E.numpy(),
            "kind": [log.kinds[k] for k in log.kind_E.tolist()],
        }
    ).sort("user", "time", "item")


def test_what_came_since_is_fitted_and_live(home: tuple[Path, Versions, SQLiteStore]) -> None:
    folder, versions, store = home
    (base,) = versions.ids()
    store.put_items([Item("i98", {"title": "kitchen red lamp tall", "price": 3})]).result()
    day = shop.START_S + 90 * shop.DAY_S
    store.add_events([Event("n1", "newcomer", "i98", "purchase", day), Event("n2", "u00", "i98", "purchase", day)])
    store.delete_user("u07").result()
    told: list[str] = []
    report = run_nightly(folder, config=LENIENT, tell=told.append)
    assert report.version is not None
    pointer = versions.pointer()
    assert pointer is not None
    assert (pointer.live, pointer.previous) == (report.version, base)
    assert (report.num_new_items, report.notes) == (1, ())
    assert report.text().startswith(f"{report.version} is live, fitted on ")
    assert "1 items are new" in report.text()
    rows = lines(versions.path(report.version))
    wanted = 48 * 7 * 2 + 1 + 2 - 14
    assert len(rows) == report.num_events == wanted
    assert "u07" not in Bundle.open(versions.path(report.version)).interactions.users.ids.to_pylist()
    fitted = Recommender.load(versions.path(report.version))
    assert fitted.history_of("newcomer") == ["i98"]
    assert len(fitted.recommend(["u00"], k=25)) == 25
    assert fitted.contents.catalog.titles[-1] == "kitchen red lamp tall"
    assert not unfinished_folder(versions).exists()
    assert store.audit(1)[0].key_id == "nightly"
    assert any(line.startswith("fitting cooccurrence again") for line in told)
    again = nightly(versions, store, config=LENIENT)
    assert again.version is None
    assert again.text().startswith("nothing new: nothing was published\nnote: nothing positive happened since")


def test_everything_anew(home: tuple[Path, Versions, SQLiteStore]) -> None:
    _, versions, store = home
    full = dataclasses.replace(LENIENT, full=True)
    (old,) = versions.ids()
    new = nightly(versions, store, config=full).version
    assert new is not None
    before, after = (Bundle.open(versions.path(v)).manifest for v in (old, new))
    assert after.num_events == before.num_events + 96
    assert after.recipe["split"].get("t1") is None


def test_what_cannot_be_read_is_left_out_and_counted(home: tuple[Path, Versions, SQLiteStore], bundle: Path) -> None:
    _, _, store = home
    now = time.time()
    odd = [
        Event("o1", "u00", "i00", "view", now),
        Event("o2", "u00", "i77", "purchase", now),
        Event("o3", "u00", "i00", "purchase", now + 10**9),
        Event("o4", "u00", "i00", "purchase", now),
    ]
    store.add_events(odd).result()
    last = last_sequence(store)
    assert [s.event.event_id for s in store.events_after(last - 1, 5)] == ["o4"]
    found = export(store, Bundle.open(bundle).contents(), sequence=last - 1, until_s=now + 86_400)
    assert found.notes == (
        "1 events were left out: nobody described their items",
        "1 events were left out: the live bundle knows no kind 'view'",
        "1 events were left out: their time is still to come",
    )
    assert len(found.interactions) == 48 * 7 * 2 + 1
    assert found.interactions.kinds == ("purchase", "return")
    assert found.interactions.positive_kinds == ("purchase",)
    with pytest.raises(ServiceError, match="the store has no event that the live bundle can read"):
        export(store, Bundle.open(bundle).contents(), sequence=0, until_s=now)


def test_ids_that_are_numbers(tmp_path: Path) -> None:
    events = shop.events().with_columns(
        pl.col("user_id").str.slice(1).cast(pl.Int64), pl.col("item_id").str.slice(1).cast(pl.Int64)
    )
    items = shop.items().with_columns(pl.col("item_id").str.slice(1).cast(pl.Int64))
    recipe = shop.recipe()
    opened = publish(tmp_path / "b", fit(recipe, *read_data(recipe.data, events, items)))
    store = SQLiteStore(tmp_path / "state.sqlite")
    store.import_events(source_of(opened), bundle_events(opened))
    store.put_items([Item("70", {"title": "vase"}), Item("x1", {"title": "no number"}), Item("3", {"title": "known"})])
    store.put_items([Item("71", {"title": "gone"}, deleted=True), Item("72", {"title": "sold out"}, False)]).result()
    store.add_events([Event("a", "500", "70", "purchase", 1.7e9), Event("b", "anna", "70", "purchase", 1.7e9)]).result()
    found = export(store, opened.contents(), sequence=last_sequence(store), until_s=2e9)
    assert found.catalog.items.ids.to_pylist()[24:] == [70, 72]
    assert found.catalog.available_N is not None
    assert found.catalog.available_N.tolist() == [True] * 25 + [False]
    assert found.interactions.users.ids.to_pylist()[-1] == 500
    assert found.notes == ("1 events were left out: their users' ids are no numbers, as the live bundle's are",)
    store.close()


def test_a_refused_run_changes_nothing(tmp_path: Path, bundle: Path) -> None:
    versions = Versions(tmp_path / "shop")
    base = versions.publish(bundle)
    store = SQLiteStore(tmp_path / "state.sqlite")
    store.add_events(stored(shuffled(shop.events(range(9))))).result()
    strict = NightlyConfig(gate=GateConfig(min_overlap=1.0), full=True)
    with pytest.raises(ServiceError, match=r" is not published: .*of their items with the live ones"):
        nightly(versions, store, config=strict)
    assert versions.ids() == [base]
    assert not unfinished_folder(versions).exists()
    store.close()


def test_one_at_a_time_and_only_where_there_is_a_service(home: tuple[Path, Versions, SQLiteStore]) -> None:
    folder, versions, store = home
    with (
        locked(versions.folder / ".nightly.lock"),
        pytest.raises(ServiceError, match=r"another nightly run of .* is under way: wait for it, or stop it"),
    ):
        nightly(versions, store)
    with pytest.raises(ServiceError, match=r"nothing is published in .*elsewhere: give the home of a service"):
        run_nightly(folder, "elsewhere")
    with pytest.raises(ServiceError, match=r"nothing is published in .*empty yet: publish a bundle first"):
        nightly(Versions(folder / "empty"), store)


def test_a_killed_run_goes_on(home: tuple[Path, Versions, SQLiteStore]) -> None:
    folder, versions, store = home
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom tesserec.serving.nightly import run_nightly\n"
        "def tell(line):\n    print(line, flush=True)\n    if 'again on all' in line: time.sleep(600)\n"
        "run_nightly(Path(sys.argv[1]), tell=tell)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        while "again on all" not in other.stdout.readline():
            assert other.poll() is None
        other.send_signal(signal.SIGKILL)
    place = unfinished_folder(versions)
    assert (place / "run.json").is_file()
    assert any((place / "work" / "methods").iterdir()), "what was finished is kept"
    late = shop.START_S + 95 * shop.DAY_S
    store.add_events([Event("late", "u00", "i00", "purchase", late)]).result()
    report = nightly(versions, store, config=dataclasses.replace(LENIENT, force=True))
    assert report.version is not None
    assert report.num_events == 48 * 7 * 2 + 1, "on what the run was begun with"
    assert not place.exists()
    more = nightly(versions, store, config=LENIENT)
    assert more.num_events == 48 * 7 * 2 + 2
