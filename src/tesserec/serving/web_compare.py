"""Two versions asked for the same user, side by side: what each model proposes, without rules, logged nowhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tesserec.serving.pasts import Question
from tesserec.serving.records import Event
from tesserec.serving.shop import Shop
from tesserec.serving.web_view import palette_of

__all__ = ["NUM_COMPARED", "compared"]

NUM_COMPARED = 12
NUM_EVENTS = 200
"""Of the history that are read."""


def compared(shop: Shop, user_id: str, versions: tuple[str, str], k: int) -> dict[str, Any]:
    """The first ``k`` items of both versions, with how they moved, for the page. Blocks.

    Raises ``ServiceError`` for a version that is not in memory.
    """
    events = shop.store.history(user_id, NUM_EVENTS)
    sides = [_side(shop, version, user_id, events, k) for version in versions]
    places = [{item["item_id"]: place for place, item in enumerate(side["items"])} for side in sides]
    for side, other in zip(sides, reversed(places), strict=True):
        for place, item in enumerate(side["items"]):
            before = other.get(item["item_id"])
            item |= {"both": before is not None, "moved": 0 if before is None else before - place}
    return {"sides": sides, "common": len(places[0].keys() & places[1].keys())}


def _side(shop: Shop, version: str, user_id: str, events: Sequence[Event], k: int) -> dict[str, Any]:
    catalog = shop.deployment.loaded(version).model
    catalog.refresh()
    model, snapshot = catalog.snapshot
    past = model.read(events, user_id=user_id)
    question = Question(past, k, snapshot.mask(None), exclude_history=model.exclude_history)
    started = time.perf_counter()
    (answer,) = model.answer_all(model.rungs[0], [question])
    palette = palette_of(model)
    items = [
        {"item_id": str(snapshot.items.ids[i].as_py()), "title": snapshot.titles[i], "fills": palette.of_item(i)}
        for i in answer.items
    ]
    facts = {
        "rung": "popularity" if past.is_empty else model.rungs[0],
        "codebook": (model.codebook_version or "none")[:12],
        "table revision": snapshot.revision,
        "time": f"{1e3 * (time.perf_counter() - started):.1f} ms",
    }
    return {"title": version, "facts": facts, "items": items}
