"""The shop of ``tests/shop.py`` as bundles on disk, fitted once a test run, and its events as a store has them."""

import functools
from pathlib import Path
from typing import Any

import shop
from shared import made_once
from tesserec.bundle import publish
from tesserec.pipeline import fit
from tesserec.serving.loaded_model import LoadedModel
from tesserec.serving.records import Event
from tesserec.types import Interactions

MOSAIC: dict[str, Any] = {
    "class": "tesserec.retrievers.mosaic:Mosaic",
    "model": {"width": 16, "num_layers": 1, "num_heads": 1},
    "max_length": 16,
    "heads": {"num_beams": 12, "num_candidates": 12},
    "training": {"epochs": 2},
}
SASREC: dict[str, Any] = {
    "class": "tesserec.retrievers.sasrec:SASRec",
    "model": {"width": 8, "num_layers": 1, "num_heads": 1},
    "training": {"epochs": 1},
}
COUNTED: dict[str, Any] = {"class": shop.COOCCURRENCE}
POPULAR: dict[str, Any] = {"class": shop.POPULARITY}
_RETRIEVERS = {"mosaic": MOSAIC, "sasrec": SASREC, "counted": COUNTED, "popular": POPULAR}


def bundle(name: str) -> Path:
    """A bundle with the retriever ``name``; not to be changed."""

    def make(folder: Path) -> None:
        changes: dict[str, Any] = {"retriever": _RETRIEVERS[name], "fit": {"refit": False}}
        if name == "popular":
            changes["baselines"] = {"ease": {"class": "tesserec.retrievers.ease:EASE"}}
        publish(folder, fit(shop.recipe(**changes), *shop.data()))

    return made_once(f"served_{name}", make)


@functools.cache
def model(name: str = "mosaic") -> LoadedModel:
    """``bundle`` loaded as version ``v1``."""
    return LoadedModel.load(bundle(name), "v1")


def stored_events(log: Interactions, user: str) -> list[Event]:
    """Everything a user did, as events of a store."""
    at = int(log.users.index([user])[0])
    rows = range(int(log.user_offsets[at]), int(log.user_offsets[at + 1]))
    return [
        Event(
            event_id=f"{user}-{row}",
            user_id=user,
            item_id=str(log.items.ids[int(log.item_E[row])]),
            kind=log.kinds[int(log.kind_E[row])] if log.kind_E is not None else "purchase",
            time=float(log.time_E[row]),
            session=None if log.session_E is None or log.session_E[row] < 0 else str(int(log.session_E[row])),
        )
        for row in rows
    ]
