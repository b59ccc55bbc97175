"""The events of a bundle as a store keeps them: the history that a service begins with.

    store.import_events(source_of(bundle), bundle_events(bundle))

Their ids are made of the data's digest, the place of the user and that of the event among the user's own: the same log
is the same events whichever bundle brings it, and still is when others were erased from it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tesserec.bundle import Bundle
from tesserec.serving.records import Event
from tesserec.types import NO_TIME, Interactions

__all__ = ["KIND", "bundle_events", "source_of"]

KIND = "purchase"
"""What an event of a bundle without kinds is in a store."""
_BATCH = 5000


def source_of(bundle: Bundle) -> str:
    """The name of the import."""
    return f"bundle:{bundle.manifest.data_digest}"


def bundle_events(bundle: Bundle) -> Iterator[list[Event]]:
    """Every event of the bundle, some thousand at a time; one without a time is of the year 1970."""
    log = bundle.interactions
    source, first = source_of(bundle), log.user_offsets.tolist()
    users, items = ([str(i) for i in v.ids.to_pylist()] for v in (log.users, log.items))
    for start in range(0, len(log), _BATCH):
        rows = range(start, min(start + _BATCH, len(log)))
        part = log.select(torch.arange(rows.start, rows.stop))
        yield [
            Event(
                event_id=f"{source}:{user}:{row - first[user]}",
                user_id=users[user],
                item_id=items[item],
                kind=kind,
                time=0.0 if time == NO_TIME else float(time),
                value=value,
                session=session,
            )
            for row, user, item, kind, time, value, session in zip(
                rows,
                part.user_E.tolist(),
                part.item_E.tolist(),
                _kinds(part),
                part.time_E.tolist(),
                [None] * len(part) if part.value_E is None else part.value_E.tolist(),
                _sessions(part, source),
                strict=True,
            )
        ]


def _kinds(part: Interactions) -> list[str]:
    return [KIND] * len(part) if part.kind_E is None else [part.kinds[kind] for kind in part.kind_E.tolist()]


def _sessions(part: Interactions, source: str) -> list[str | None]:
    numbers = [-1] * len(part) if part.session_E is None else part.session_E.tolist()
    return [None if number < 0 else f"{source}:{number}" for number in numbers]
