"""What may be shown is what the store says, at every revision."""

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.served_shop import model

from tesserec.data.requests import history_requests
from tesserec.errors import DataError, FilterError
from tesserec.serving.attributes import MAX_ATTRIBUTES, AttributeTypes
from tesserec.serving.live_catalog import LiveCatalog
from tesserec.serving.loaded_model import LoadedModel
from tesserec.serving.records import Item, Revised, Value
from tesserec.serving.snapshot import CatalogSnapshot
from tesserec.serving.sqlite_store import SQLiteStore

OPEN = "item_id != ''"


class Items:
    """The items of a store, in memory: each with the revision of its last change."""

    def __init__(self) -> None:
        self.latest: dict[str, Revised] = {}
        self.revision = 0
        self.readings = 0

    def put(self, *items: Item) -> int:
        self.revision += 1
        for item in items:
            self.latest[item.item_id] = Revised(self.revision, item)
        return self.revision

    def items_after(self, revision: int) -> list[Revised]:
        self.readings += 1
        found = [r for r in self.latest.values() if r.revision > revision]
        return sorted(found, key=lambda r: (r.revision, r.item.item_id))


def item(item_id: str, available: bool = True, deleted: bool = False, **attributes: Value) -> Item:
    return Item(item_id, attributes, available, deleted)


def legal(snapshot: CatalogSnapshot, text: str | None = None) -> set[str]:
    return {str(i) for i in snapshot.items.to_ids(snapshot.mask(text).nonzero()[:, 0])}


@pytest.fixture
def store() -> Items:
    return Items()


@pytest.fixture
def live(store: Items) -> LiveCatalog[LoadedModel]:
    """The shop: 24 items, i00 to i23."""
    return LiveCatalog(model("popular"), store)


def test_a_bundle_alone(live: LiveCatalog[LoadedModel]) -> None:
    served, snapshot = live.snapshot
    assert served is model("popular")
    assert (len(snapshot), snapshot.revision, snapshot.num_fitted) == (24, 0, 24)
    assert len(legal(snapshot)) == 24
    assert legal(snapshot, "price < 2") == {"i00", "i06", "i12", "i18"}
    assert snapshot.index("i07") == 7
    assert snapshot.index("nothing") is None
    assert snapshot.titles[7] == "garden red lamp large"
    assert list(snapshot.titles) == model("popular").catalog.titles
    assert snapshot.titles[1:3] == ["kitchen red lamp large", "kitchen oak shelf"]
    assert snapshot.attributes(7) == {"title": "garden red lamp large", "price": 2.0}
    assert [index for index, _ in live.search("garden lamp", 9, snapshot.mask("price < 2"))] == [6]


def test_stock(store: Items, live: LiveCatalog[LoadedModel]) -> None:
    before = live.snapshot.catalog
    attributes = before.attributes(3)
    revision = store.put(Item("i03", attributes, available=False))
    assert live.refresh() == revision == 1
    after = live.snapshot.catalog
    assert live.snapshot.model is model("popular")
    assert not after.is_legal("i03", None)
    assert not after.is_legal("i03", OPEN)
    assert len(legal(after)) == 23
    assert after.frame is before.frame, "nothing but stock changed"
    assert after.holds(OPEN) is before.holds(OPEN), "filters are not evaluated again"
    assert (before.revision, before.is_legal("i03", None)) == (0, True), "what was given out stays"
    store.put(Item("i03", attributes, available=True))
    live.refresh()
    assert live.snapshot.catalog.is_legal("i03", OPEN)


def test_attributes_of_the_store_replace_those_of_the_bundle(store: Items, live: LiveCatalog[LoadedModel]) -> None:
    before = live.snapshot.catalog
    frame = before.frame.clone()
    store.put(item("i00", title="violet kettle", colors=["violet"], weight=2))
    live.refresh()
    after = live.snapshot.catalog
    assert after.attributes(0) == {"title": "violet kettle", "colors": ["violet"], "weight": 2.0}
    assert after.titles[0] == "violet kettle"
    assert legal(after, "is_missing(price)") == {"i00"}
    assert legal(after, '"violet" in colors and weight == 2') == {"i00"}
    assert [i for i, _ in live.search("kettle", 5, after.mask(None))] == [0]
    assert 0 not in [i for i, _ in live.search("kitchen red lamp", 24, after.mask(None))]
    assert before.frame.equals(frame)
    assert before.titles[0] == "kitchen red lamp"
    with pytest.raises(DataError, match="there is no attribute colors"):
        before.mask("'violet' in colors")


def test_many_changes_at_once(store: Items, live: LiveCatalog[LoadedModel]) -> None:
    before = live.snapshot.catalog.frame
    changed = [*range(0, 24, 2), *range(1, 24, 4)]
    store.put(*(item(f"i{n:02}", title=f"thing {n}", price=float(n)) for n in changed))
    live.refresh()
    frame = live.snapshot.catalog.frame
    assert frame["item_id"].to_list() == before["item_id"].to_list()
    for n in range(24):
        title, price = (f"thing {n}", float(n)) if n in changed else before.select("title", "price").row(n)
        assert frame.select("title", "price").row(n) == (title, price)


def test_a_bundle_of_ids_alone(store: Items) -> None:
    served = model("popular")
    catalog = dataclasses.replace(served.catalog, frame=served.catalog.frame.select("item_id"))
    live = LiveCatalog(dataclasses.replace(served, catalog=catalog), store)
    assert live.snapshot.catalog.titles[3] == "i03"
    store.put(item("i03", title="a lamp"), item("new", price=2))
    live.refresh()
    snapshot = live.snapshot.catalog
    assert (snapshot.titles[3], snapshot.titles[24]) == ("a lamp", "new")
    assert legal(snapshot, "price == 2") == {"new"}
    assert [i for i, _ in live.search("lamp", 5, snapshot.mask(None))] == [3]


def test_deleted_items(store: Items, live: LiveCatalog[LoadedModel]) -> None:
    store.put(item("i05", deleted=True, title="a tin box"), item("never", deleted=True))
    live.refresh()
    snapshot = live.snapshot.catalog
    assert len(snapshot) == 24, "what never was there gets no place"
    assert snapshot.index("i05") == 5, "histories hold it"
    assert snapshot.deleted_N.nonzero().tolist() == [[5]]
    assert snapshot.attributes(5) == {}
    assert snapshot.titles[5] == "i05"
    assert not snapshot.is_legal("i05", None)
    assert 5 not in [i for i, _ in live.search("tin box", 24, torch.ones(24, dtype=torch.bool))]
    with pytest.raises(DataError, match="there is no item 'i05': put it as a whole"):
        live.patched("i05", {}, True)
    store.put(item("i05", title="a tin box again"))
    live.refresh()
    assert live.snapshot.catalog.is_legal("i05", 'contains(title, "again")')
    assert not live.snapshot.catalog.deleted_N.any()
    assert [i for i, _ in live.search("again", 24, torch.ones(24, dtype=torch.bool))] == [5]


def test_new_items_are_in_the_model_the_filters_and_the_search(store: Items) -> None:
    live = LiveCatalog(model("mosaic"), store)
    before = live.snapshot
    store.put(
        item("new0", title="garden red lamp huge", price=3),
        item("new1", title="office oak shelf tall", available=False, eco=True),
        item("i02", deleted=True),
    )
    assert live.refresh() == 1
    served, snapshot = live.snapshot
    assert served is not before.model
    assert served.catalog.items is snapshot.items
    assert snapshot.items.ids.to_pylist()[24:] == ["new0", "new1"]
    assert (snapshot.num_fitted, len(before.catalog), len(before.model.catalog)) == (24, 24, 24)
    assert before.catalog.index("new0") is None, "a snapshot knows nothing of later items"
    assert not before.catalog.is_legal("new0", None)
    assert snapshot.is_legal("new0", "price == 3")
    assert not snapshot.is_legal("new1", None)
    assert snapshot.holds("eco").nonzero().tolist() == [[25]]
    assert served.codes_of(24) is not None
    assert 24 in [i for i, _ in live.search("huge lamp", 5, snapshot.mask(None))]
    assert live.search("huge", 5, before.catalog.mask(None)) == [], "nor does its search"
    found = served.answer("generative", history_requests([[6, 7]], available_N=snapshot.mask("price == 3")), 26)
    assert 24 in found.items_BK
    store.put(item("new0", deleted=True), item("new2", title="nursery tin box"))
    live.refresh()
    assert live.snapshot.catalog.items.ids.to_pylist()[24:] == ["new0", "new1", "new2"]
    assert not live.snapshot.catalog.is_legal("new0", None)


def test_masks_without_items_added_since_the_fit(store: Items) -> None:
    live = LiveCatalog(model(), store)
    store.put(Item("new", {"price": 1.0}))
    live.refresh()
    snapshot = live.snapshot.catalog
    for text in (None, "price < 3"):
        fitted_N = snapshot.mask(text, cold=False)
        assert fitted_N is snapshot.mask(text, cold=False)
        assert torch.equal(fitted_N[:24], snapshot.mask(text)[:24])
        assert (bool(snapshot.mask(text)[24]), bool(fitted_N[24])) == (True, False)
    with pytest.raises(FilterError, match="the filter is empty"):
        snapshot.mask("", cold=False)


def test_the_text_of_a_new_item_is_its_own_or_made_like_the_bundles(store: Items) -> None:
    live = LiveCatalog(model("mosaic"), store)
    store.put(
        item("own", title="a", text="oak shelf"), item("made", title="a", brand="Oak", description="wide"), item("no")
    )
    live.refresh()
    served, snapshot = live.snapshot
    assert served.catalog.texts[24:] == ["a. Brand: Oak. wide", "", "oak shelf"]
    assert snapshot.attributes(26) == {"title": "a", "text": "oak shelf"}
    assert snapshot.attributes(24) == {"title": "a", "brand": "Oak", "description": "wide"}
    assert snapshot.titles[25] == "no"


def test_a_new_service_over_an_old_store(store: Items, live: LiveCatalog[LoadedModel]) -> None:
    store.put(item("new", title="x", price=1.5), item("i01", available=False))
    live.refresh()
    store.put(item("i02", deleted=True))
    live.refresh()
    again = LiveCatalog(model("popular"), store).snapshot.catalog
    assert again.revision == 2
    assert legal(again, OPEN) == legal(live.snapshot.catalog, OPEN)
    assert again.attributes(24) == {"title": "x", "price": 1.5}


def test_masks_are_the_same_object_for_the_same_text(live: LiveCatalog[LoadedModel]) -> None:
    snapshot = live.snapshot.catalog
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(snapshot.mask, ["price < 3"] * 50))
    assert all(mask is masks[0] for mask in masks)
    assert snapshot.mask(None) is snapshot.available_N is snapshot.mask(None, cold=False)
    for n in range(200):
        snapshot.mask(f"price < {n}.5")
    assert torch.equal(snapshot.mask("price < 3"), masks[0]), "evaluated again after it was let go of"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"price": "cheap"}, "attribute price is 'cheap': expected a number, as other items have"),
        ({"price": True}, "attribute price is True: expected a number"),
        ({"price": -1}, "attribute price is -1: expected a number of at least 0"),
        ({"price": float("nan")}, "attribute price is too large or no number"),
        ({"price": 10**400}, "attribute price is too large or no number"),
        ({"title": 7}, "attribute title is 7: expected text"),
        ({"title": "x" * 100 + "y", "price": ["x" * 100]}, r"attribute price is \['x{38}…: expected a number"),
        ({"brand": ["a"]}, r"attribute brand is \['a'\]: expected text"),
        ({"title": "\ud800"}, "attribute title holds half a surrogate pair"),
        ({"colors": ["\udfff"]}, "attribute colors holds half a surrogate pair"),
        ({"colors": [1]}, r"attribute colors is \[1\]: expected a list of texts"),
        ({"size": {"w": 1}}, "attribute size is a dict: give text, a number, true or false, or texts"),
        ({"item_id": "x"}, "item_id is no attribute: say it beside the attributes"),
        ({"available": True}, "available is no attribute"),
        ({f"a{n}": 1 for n in range(300)}, "256 are possible: use those there are"),
    ],
    ids=str,
)
def test_mistyped_attributes_are_refused_before_they_are_written(
    live: LiveCatalog[LoadedModel], attributes: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        live.check_item(attributes)


def test_the_first_value_settles_the_type_of_a_new_attribute(live: LiveCatalog[LoadedModel]) -> None:
    with pytest.raises(DataError, match="attribute price"):
        live.check_item({"size": 3, "price": "x"})
    live.check_item({"size": "M", "eco": True, "colors": ["red"], "weight": 3, "gone": None})
    for wrong, expected in {"size": "text", "eco": "true or false", "colors": "a list", "weight": "a number"}.items():
        with pytest.raises(DataError, match=f"attribute {wrong} is .*: expected {expected}"):
            live.check_item({wrong: 3 if wrong == "size" else "x"})
    live.check_item({"gone": "now", "weight": 2.5})


def test_attributes_beyond_the_limit_may_go_on_being_used() -> None:
    types = AttributeTypes({})
    types.check({f"a{n}": 1 for n in range(MAX_ATTRIBUTES - 8)})  # six have names already
    types.frame([("came while another version was live", {f"b{n}": 1 for n in range(9)})])
    types.check({"a0": 2, "b8": 3, "gone": None})
    with pytest.raises(DataError, match=f"^b9: items have {MAX_ATTRIBUTES + 7} attributes between them"):
        types.check({"b9": 1})


def test_columns_of_every_type(store: Items) -> None:
    served = model("popular")
    frame = served.catalog.frame.with_columns(
        stock=pl.lit(3, pl.Int32),
        since=pl.lit("2024-01-01").str.to_date(),
        seen=pl.lit("2024-01-01T12:00").str.to_datetime(),
        paths=pl.lit([["a", "b"], ["c"]], pl.List(pl.List(pl.String))),
        kind=pl.lit("x", pl.Categorical),
        score=pl.lit(float("nan")),
        nothing=pl.lit(None),
        shape=pl.struct(w=1),
        available=pl.lit(True),
    )
    catalog = dataclasses.replace(served.catalog, frame=frame, available_N=torch.arange(24) != 4)
    live = LiveCatalog(dataclasses.replace(served, catalog=catalog), store)
    before = live.snapshot.catalog
    assert not before.is_legal("i04", None), "as the bundle says"
    assert before.attributes(0) == {
        "title": "kitchen red lamp",
        "price": 1.0,
        "stock": 3,
        "since": "2024-01-01",
        "seen": "2024-01-01T12:00:00+00:00",
        "paths": ["a", "b", "c"],
        "kind": "x",
    }
    for wrong in ({"stock": 1.5}, {"since": "soon"}, {"seen": True}, {"seen": 1e300}, {"paths": "a"}):
        with pytest.raises(DataError, match=f"attribute {next(iter(wrong))} is .*: expected"):
            live.check_item(wrong)
    given: dict[str, Value] = {
        "stock": 4.0,
        "since": 1_717_113_600,
        "seen": "2024-05-31T12:00:00+02:00",
        "paths": ["d"],
    }
    given |= {"kind": "new", "score": 1, "nothing": "something"}
    live.check_item(given)
    store.put(Item("i00", given), Item("new", given))
    live.refresh()
    after = live.snapshot.catalog
    told = {"stock": 4, "since": "2024-05-31", "seen": "2024-05-31T10:00:00+00:00", "paths": ["d"]}
    told |= {"kind": "new", "score": 1.0, "nothing": "something"}
    assert after.attributes(0) == after.attributes(24) == told
    text = """since == "2024-05-31" and seen >= 1717149600 and "d" in paths and kind == "new" and stock in [4]"""
    assert legal(after, text) == {"i00", "new"}


def test_a_value_that_another_bundle_let_in_counts_as_missing(
    store: Items, live: LiveCatalog[LoadedModel], caplog: pytest.LogCaptureFixture
) -> None:
    store.put(item("i00", title="x", price="cheap"))
    live.refresh()
    assert live.snapshot.catalog.attributes(0) == {"title": "x"}
    assert (
        "item i00: attribute price is 'cheap': expected a number, as other items have; it counts as missing"
        in caplog.text
    )


def test_patches(store: Items, live: LiveCatalog[LoadedModel]) -> None:
    patch = live.patched("i00", {"price": 9, "eco": True}, None)
    assert patch == Item("i00", {"title": "kitchen red lamp", "price": 9, "eco": True})
    store.put(patch)
    live.refresh()
    assert live.patched("i00", {"title": "blue lamp", "price": None}, False) == Item(
        "i00", {"title": "blue lamp", "eco": True}, available=False
    )
    with pytest.raises(DataError, match="attribute price is 'x'"):
        live.patched("i00", {"price": "x"}, None)
    with pytest.raises(DataError, match="there is no item 'i99': put it as a whole"):
        live.patched("i99", {"price": 1}, None)
    store.put(live.patched("i00", {"title": "blue lamp"}, False))
    live.refresh()
    assert live.patched("i00", {}, None).available is False
    assert [i for i, _ in live.search("blue", 5, torch.ones(24, dtype=torch.bool))] == [0], "text follows the title"


class Broken(Items):
    """A store that can be made to fail, and to be slow."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = False
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def items_after(self, revision: int) -> list[Revised]:
        self.entered.set()
        assert self.gate.wait(30)
        if self.fails:
            raise DataError("the store is away")
        return super().items_after(revision)


def test_a_refresh_that_failed_leaves_what_there_was_and_is_made_up_for() -> None:
    store = Broken()
    live = LiveCatalog(model("popular"), store)
    store.put(item("i00", available=False))
    before, store.fails = live.snapshot, True
    with pytest.raises(DataError, match="the store is away"):
        live.refresh()
    assert live.snapshot is before
    store.fails = False
    assert live.refresh() == 1
    assert not live.snapshot.catalog.is_legal("i00", None)


def test_callers_that_wait_share_one_reading() -> None:
    store = Broken()
    live = LiveCatalog(model("popular"), store)
    readings = store.readings
    store.gate.clear()
    store.entered.clear()
    with ThreadPoolExecutor(12) as pool:
        first = pool.submit(live.refresh)
        assert store.entered.wait(30)
        wanted = [store.put(item(f"i{n:02}", available=False)) for n in range(10)]
        asked = live._asked
        others = [pool.submit(live.refresh) for _ in wanted]
        while live._asked < asked + len(others):
            pass
        store.gate.set()
        assert first.result(30) >= 0
        assert all(other.result(30) == 10 for other in others), "each sees what was written before it asked"
    assert store.readings - readings == 2


IDS = [f"i{n:02}" for n in range(4)] + ["n0", "n1", "n2"]
PRICES = st.none() | st.integers(0, 3).map(float)
ACTIONS = st.sampled_from(["put", "put", "patch", "delete", "stock", "refresh", "refresh"])
STEPS = st.lists(st.tuples(ACTIONS, st.sampled_from(IDS), PRICES, st.booleans()), max_size=12)
Known = dict[str, tuple[float | None, bool]]


def expected(known: Known, limit: float | None) -> set[str]:
    """Ids of what is available, at a price below the limit where there is one."""
    shown = {item_id: price for item_id, (price, available) in known.items() if available}
    return set(shown) if limit is None else {i for i, price in shown.items() if price is not None and price < limit}


def check_sequence(steps: Sequence[tuple[str, str, float | None, bool]]) -> None:
    store = Items()
    live = LiveCatalog(model("popular"), store)
    known: Known = {f"i{n:02}": (1.0 + n % 6, True) for n in range(24)}
    given: list[tuple[CatalogSnapshot, dict[float | None, set[str]]]] = []
    for action, item_id, price, available in [*steps, ("refresh", "", None, True)]:
        if action == "put":
            known[item_id] = (price, available)
            store.put(Item(item_id, {"price": price}, available))
        elif action in ("patch", "stock") and item_id in known:
            live.refresh()
            changes: dict[str, Value] = {"price": price} if action == "patch" else {}
            known[item_id] = (price if changes else known[item_id][0], available)
            store.put(live.patched(item_id, changes, available))
        elif action == "delete":
            known.pop(item_id, None)
            store.put(Item(item_id, {}, deleted=True))
        elif action == "refresh":
            assert live.refresh() == store.revision
            given.append((live.snapshot.catalog, {limit: expected(known, limit) for limit in (None, 2.0)}))
    for snapshot, wanted in given:
        for limit, ids in wanted.items():
            assert legal(snapshot, None if limit is None else f"price < {limit}") == ids
            assert {i for i in IDS if snapshot.is_legal(i, None)} == wanted[None] & set(IDS)
        assert len(snapshot) == len(snapshot.frame) == len(snapshot.available_N)
    live.close()


@given(STEPS)
@settings(max_examples=40)
def test_exactly_what_is_legal_at_its_revision(steps: list[tuple[str, str, float | None, bool]]) -> None:
    check_sequence(steps)


@pytest.mark.prove
@given(STEPS)
@settings(max_examples=2_000)
def test_exactly_what_is_legal_at_its_revision_at_length(steps: list[tuple[str, str, float | None, bool]]) -> None:
    check_sequence(steps)


def test_writers_at_the_same_time_over_a_real_store(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "state.sqlite")
    live = LiveCatalog(model("popular"), store)
    wrong: list[str] = []

    def write(writer: int) -> None:
        for n in range(8):
            item_id, available = (f"i{writer:02}", bool(n % 2)) if n < 6 else (f"n{writer}-{n}", True)
            done: Future[int] = store.put_items([Item(item_id, {"title": f"{n}", "price": 1.0 * n}, available)])
            revision = done.result(30)
            if live.refresh() < revision:
                wrong.append(f"{revision} is not live")
            snapshot = live.snapshot.catalog
            if snapshot.is_legal(item_id, f"price == {n}") != available:
                wrong.append(f"{item_id} at {snapshot.revision}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    assert wrong == []
    served, snapshot = live.snapshot
    assert snapshot.revision == store.revision() == 48
    assert len(served.catalog) == len(snapshot) == 24 + 12
    live.close()
    store.close()
