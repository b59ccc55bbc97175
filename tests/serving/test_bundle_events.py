"""The events of a bundle, in a store."""

import dataclasses
from pathlib import Path

import torch

import shop
from tesserec.bundle import Bundle, publish
from tesserec.serving.bundle_events import bundle_events, source_of
from tesserec.serving.sqlite_store import SQLiteStore
from tesserec.types import NO_TIME, Interactions


def with_events(folder: Path, log: Interactions) -> Bundle:
    """A bundle that says that it was fitted on ``log``."""
    return publish(folder, dataclasses.replace(shop.contents(), interactions=log))


def test_a_store_has_the_history_of_a_bundle(tmp_path: Path) -> None:
    bundle = publish(tmp_path / "b", shop.contents())
    store = SQLiteStore(tmp_path / "state.sqlite")
    log = bundle.interactions
    assert store.import_events(source_of(bundle), bundle_events(bundle)) == len(log)
    assert store.import_events(source_of(bundle), bundle_events(bundle)) == 0
    found = store.history("u01", 3)
    assert [event.item_id for event in found] == ["i09", "i10", "i11"]
    assert {(event.kind, event.value, event.session) for event in found} == {("purchase", None, None)}
    assert found[-1].time == float(log.time_E[int(log.user_offsets[2]) - 1])
    assert store.history("u99", 5)[0].kind == "return"
    store.close()


def test_every_column_that_a_log_may_have(tmp_path: Path) -> None:
    log = shop.contents().interactions
    numbers = torch.arange(len(log))
    changed = dataclasses.replace(
        log,
        kind_E=None,
        kinds=(),
        positive_kinds=(),
        time_E=torch.full((len(log),), NO_TIME),
        session_E=numbers - 1,
        value_E=numbers.float() / 2,
    )
    bundle = with_events(tmp_path / "b", changed)
    events = [event for batch in bundle_events(bundle) for event in batch]
    assert len({event.event_id for event in events}) == len(log)
    assert {(event.kind, event.time) for event in events} == {("purchase", 0.0)}
    assert [event.value for event in events[:3]] == [0.0, 0.5, 1.0]
    assert [event.session for event in events[:2]] == [None, f"{source_of(bundle)}:0"]
