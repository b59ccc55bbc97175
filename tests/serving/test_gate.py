"""The gate: an honest bundle passes, one that learned nothing does not."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.serving.bundles import damage

import shop
from tesserec.bundle import Bundle, Contents, publish
from tesserec.errors import BundleError
from tesserec.pipeline import fit, read_data
from tesserec.serving.bundle_events import bundle_events, source_of
from tesserec.serving.gate import GateConfig, gate
from tesserec.serving.gate_questions import last_times, questions_after
from tesserec.serving.pasts import Reader
from tesserec.serving.records import Event, Store
from tesserec.serving.sqlite_store import SQLiteStore

FEW = GateConfig(min_questions=30)
"""The shop has 48 customers."""


def fitted(events: pl.DataFrame, **changes: Any) -> Contents:
    """The shop fitted on these events."""
    recipe = shop.recipe(**changes)
    return fit(recipe, *read_data(recipe.data, events, shop.items()))


def shuffled(events: pl.DataFrame) -> pl.DataFrame:
    """The same users, times and items, but who had what is drawn at random."""
    return events.with_columns(pl.col("item_id").shuffle(seed=1))


def stored(events: pl.DataFrame) -> list[Event]:
    """Rows of a frame as a store keeps them."""
    return [
        Event(f"e{n}", row["user_id"], row["item_id"], row["kind"], float(row["timestamp"]))
        for n, row in enumerate(events.iter_rows(named=True))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles: ``live``, an ``honest`` retrain of it with later events, and a ``shuffled`` one."""
    folder = tmp_path_factory.mktemp("gate")
    publish(folder / "live", shop.contents())
    later = shop.events(range(8))
    publish(folder / "honest", fitted(later, seed=4))
    publish(folder / "shuffled", fitted(shuffled(later), seed=4))
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[Store]:
    """What the service knows: the history of the live bundle, and three baskets of each customer since."""
    store = SQLiteStore(folder / "state.sqlite")
    bundle = Bundle.open(folder / "live")
    store.import_events(source_of(bundle), bundle_events(bundle))
    store.add_events(stored(shop.events(range(6, 9)))).result()
    yield store
    store.close()


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Store]:
    """A service that nobody used."""
    store = SQLiteStore(tmp_path / "empty.sqlite")
    yield store
    store.close()


def test_an_honest_retrain_is_accepted(folder: Path, store: Store) -> None:
    report = gate(folder / "honest", folder / "live", store, FEW)
    assert report.accepted, report.text()
    live, popular = report.comparisons
    assert (live.against, popular.against) == ("live", "popularity")
    assert {found.source for found in report.comparisons} == {"store"}
    assert live.num_questions == 48
    assert live.candidate > 0.5
    assert live.candidate == popular.candidate > popular.other
    assert report.num_lists == 48
    assert report.overlap is not None
    assert report.overlap > 0.5
    assert report.notes == ()


def test_a_bundle_of_shuffled_labels_is_refused(folder: Path, store: Store) -> None:
    report = gate(folder / "shuffled", folder / "live", store, FEW)
    assert not report.accepted
    assert report.reasons[0].startswith("it is worse than live by more than chance: NDCG@10 0.")
    assert report.comparisons[0].high < 0
    table = report.to_dict()
    assert table["accepted"] is False
    assert table["comparisons"][0]["difference"] == report.comparisons[0].difference
    assert report.text().splitlines()[:2] == [f"{folder / 'shuffled'}: refused", f"  refused: {report.reasons[0]}"]


def test_lists_that_share_nothing_are_refused(folder: Path, store: Store) -> None:
    strict = dataclasses.replace(FEW, min_overlap=1.0)
    report = gate(folder / "shuffled", folder / "live", store, strict)
    assert any("of their items with the live ones, 1.0 are asked for" in reason for reason in report.reasons)
    same = gate(folder / "live", folder / "live", store, strict)
    assert same.accepted
    assert same.overlap == 1.0
    assert same.comparisons[0].difference == 0.0
    assert f"  overlap with live: 1.000 over {same.num_lists} users" in same.text()


def test_worse_within_the_tolerance_is_accepted(folder: Path, store: Store) -> None:
    lenient = dataclasses.replace(FEW, tolerance=1.0)
    reasons = gate(folder / "shuffled", folder / "live", store, lenient).reasons
    assert not any("worse than live" in reason for reason in reasons)


def test_with_few_questions_the_published_reports_are_compared(folder: Path, empty: Store) -> None:
    report = gate(folder / "live", folder / "live", empty)
    assert report.accepted
    assert [(found.against, found.source) for found in report.comparisons] == [
        ("live", "published"),
        ("popularity", "published"),
    ]
    assert report.notes[0] == "no user has a history yet: lists are not compared"
    assert report.notes[1].startswith("0 users did something positive after 2020-")
    assert report.notes[1].endswith("UTC, 50 are asked for: the published reports are compared")
    bad = gate(folder / "shuffled", folder / "live", empty)
    assert [found.against for found in bad.comparisons] == ["popularity"]
    assert "the published figures cannot be compared with live" in bad.notes[2]


def test_without_times_the_published_reports_are_compared(store: Store, tmp_path: Path) -> None:
    events = shop.events().with_row_index("order").drop("timestamp")
    publish(tmp_path / "b", fitted(events, split={"protocol": "last_out"}))
    report = gate(tmp_path / "b", tmp_path / "b", store, FEW)
    assert {found.source for found in report.comparisons} == {"published"}
    assert report.notes[0].startswith("0 users did something positive after a time that nobody knows, 30 are asked for")


def test_the_first_bundle_has_nothing_to_be_compared_with(folder: Path, empty: Store) -> None:
    report = gate(folder / "honest", None, empty)
    assert report.accepted
    assert report.notes == ("nothing is live yet: there is nothing to compare with",)
    assert [found.against for found in report.comparisons] == ["popularity"]


def test_damaged_and_different_bundles(folder: Path, store: Store, tmp_path: Path) -> None:
    publish(tmp_path / "b", shop.contents())
    damage(tmp_path / "b" / "holdout.safetensors")
    with pytest.raises(BundleError, match=r"holdout\.safetensors is damaged"):
        gate(tmp_path / "b", folder / "live", store)
    numbers = shop.items().with_columns(pl.col("item_id").str.slice(1).cast(pl.Int64))
    events = shop.events().with_columns(pl.col("item_id").str.slice(1).cast(pl.Int64))
    recipe = shop.recipe(data={"positive_kinds": ["purchase", "return"]})
    publish(tmp_path / "n", fit(recipe, *read_data(recipe.data, events, numbers)))
    assert gate(tmp_path / "n", folder / "live", store).reasons == (
        "its ids of items are numbers, the live ones text",
        "its positive kinds are ['purchase', 'return'], the live ones ['purchase']",
    )


def test_questions_stand_before_the_first_positive_step(empty: Store) -> None:
    def event(name: str, time: float, item: str, kind: str = "purchase", session: str | None = None) -> Event:
        return Event(f"{name}{time}{item}", name, item, kind, time, session=session)

    empty.add_events(
        [
            event("a", 1, "x"),
            event("a", 9, "r", "return"),
            event("a", 11, "y", session="s"),
            event("a", 12, "r", "return", "s"),
            event("a", 13, "z", session="s"),
            event("a", 14, "w"),
            event("new", 12, "x"),
            event("old", 10.9, "x"),
            event("back", 1, "x"),
            event("back", 12, "x", "return"),
        ]
    ).result()
    times = last_times(empty)
    assert times == {"a": 14, "new": 12, "old": 10.9, "back": 12}
    reader = Reader(("purchase", "return"), ("purchase",), True)
    asked = questions_after(empty, times, 10, reader, num_questions=9, seed=0)
    assert asked.users == ["a"], "the others did nothing positive before or since"
    assert [e.item_id for e in asked.pasts[0]] == ["x", "r"]
    assert asked.targets == [["y", "z"]]
    assert len(questions_after(empty, times, 0, reader, num_questions=0, seed=0)) == 0
