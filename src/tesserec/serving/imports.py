"""Bulk import of a history: JSON lines, read as a stream while they are written, once a name."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import pydantic

from tesserec.serving.bodies import Imported, ImportedEvent
from tesserec.serving.problems import Refused, explained
from tesserec.serving.records import Event
from tesserec.serving.shop import Shop, event_of

__all__ = ["import_lines"]

_BATCH = 1000
_MAX_LINE_BYTES = 64 << 10


async def import_lines(shop: Shop, name: str, body: AsyncIterator[bytes]) -> Imported:
    """Keep every event of a body; raises ``Refused`` (422) that names the first line that is no event.

    What came before that line, or before the body was cut off, may be kept already: sent again as a whole, under the
    same name, it counts once.
    """
    lines = _Lines(name, body, asyncio.get_running_loop())

    def kept() -> int:
        batches = iter(lines)
        first = next(batches, None)  # read also where the name was imported before: what is no event is refused
        if first is None:
            raise Refused(422, "the body has no event: send one JSON object a line")
        return shop.import_events(f"import:{name}", itertools.chain([first], batches))

    accepted = await asyncio.to_thread(kept)
    return Imported(name=name, lines=lines.events, accepted=accepted)


@dataclass
class _Lines:
    """The body as batches of events, for a thread; the event loop fetches the pieces."""

    name: str
    body: AsyncIterator[bytes]
    loop: asyncio.AbstractEventLoop
    events: int = 0
    """That were read."""
    now: float = field(default_factory=time.time)

    def __iter__(self) -> Iterator[list[Event]]:
        events = (self._event(number, line) for number, line in enumerate(self._lines(), 1) if line.strip())
        while batch := list(itertools.islice(events, _BATCH)):
            self.events += len(batch)
            yield batch

    def _lines(self) -> Iterator[bytes]:
        rest = b""
        while piece := asyncio.run_coroutine_threadsafe(self._piece(), self.loop).result():
            *whole, rest = (rest + piece).split(b"\n")
            yield from whole
            if len(rest) > _MAX_LINE_BYTES:
                raise Refused(422, f"a line has more than {_MAX_LINE_BYTES:,} bytes: an event has not")
        yield rest

    async def _piece(self) -> bytes:
        return await anext(self.body, b"")

    def _event(self, number: int, line: bytes) -> Event:
        try:
            given = ImportedEvent.model_validate_json(line)
        except pydantic.ValidationError as error:
            raise Refused(422, f"line {number}: {explained(error.errors())}") from None
        event_id = given.event_id or f"import:{self.name}:{number}"
        return event_of(given.model_copy(update={"event_id": event_id}), self.now)
