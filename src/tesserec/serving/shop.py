"""``Shop``: one namespace of a service, with what is asked of it outside of recommendations."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tesserec.errors import UnknownIdError
from tesserec.serving.bodies import ExportedImpression, UserExport
from tesserec.serving.deployment import Deployment
from tesserec.serving.engine import Engine
from tesserec.serving.erase import Eraser
from tesserec.serving.live_catalog import LiveCatalog
from tesserec.serving.loaded_model import LoadedModel
from tesserec.serving.records import Event, Impression, Store
from tesserec.serving.schemas import EventIn, EventOut, ItemOut, UserOut
from tesserec.serving.versions import Versions

__all__ = ["Shop", "event_of"]


@dataclasses.dataclass(frozen=True)
class Shop:
    """An open namespace."""

    name: str
    home: Path
    """Of the service."""
    store: Store
    versions: Versions
    deployment: Deployment[LiveCatalog[LoadedModel]]
    engine: Engine
    eraser: Eraser

    def item(self, item_id: str) -> ItemOut:
        """An item, what it is now; raises ``UnknownIdError`` where there is none, or it is deleted."""
        model, catalog = self.deployment.current().model.snapshot
        index = catalog.index(item_id)
        if index is None or catalog.deleted_N[index]:
            raise UnknownIdError(f"there is no item {item_id!r}")
        codes = model.codes_of(index)
        return ItemOut(
            model_version=model.version,
            codebook_version=model.codebook_version,
            table_revision=catalog.revision,
            item_id=item_id,
            attributes=catalog.attributes(index),
            available=bool(catalog.available_N[index]),
            codes=None if codes is None else list(codes),
            cold=index >= catalog.num_fitted,
        )

    async def delete_item(self, item_id: str) -> int:
        """Take an item away; the revision without it, also where it was deleted before. Raises ``UnknownIdError``."""
        _, catalog = self.deployment.current().model.snapshot
        index = catalog.index(item_id)
        if index is not None and catalog.deleted_N[index]:
            return catalog.revision
        return await self.engine.delete_item(item_id)

    async def users(self, prefix: str, limit: int) -> list[str]:
        """Ids of users with events."""
        return await asyncio.to_thread(self.store.users, prefix, limit)

    async def user(self, user_id: str, limit: int) -> UserOut:
        """The latest events of a user; raises ``UnknownIdError`` where there is nothing."""
        found = await asyncio.to_thread(self.store.user, user_id)
        if found is None:
            raise UnknownIdError(f"nothing is known of {user_id!r}")
        latest = [_event(one) for one in found.events[: -limit - 1 : -1]]
        return UserOut(user_id=user_id, num_events=len(found.events), history=latest)

    async def export_user(self, user_id: str) -> UserExport:
        """Everything of a user; raises ``UnknownIdError`` where there is nothing."""
        found = await asyncio.to_thread(self.store.user, user_id)
        if found is None:
            raise UnknownIdError(f"nothing is known of {user_id!r}")
        return UserExport(
            user_id=user_id,
            events=[_event(one) for one in found.events],
            impressions=[_impression(one) for one in found.impressions],
        )

    async def delete_user(self, user_id: str) -> int:
        """Remove everything of a user; how many events and lists went. Versions on disk follow soon."""
        removed = await self.engine.delete_user(user_id)
        await asyncio.to_thread(self.eraser.add, user_id)
        return removed

    async def move_events(self, source: str, target: str) -> int:
        """Make the events of one user those of another; how many. Raises ``UnknownIdError`` where there are none.

        Who is killed in between has both, and the next attempt changes nothing but what is missing.
        """
        found = await asyncio.to_thread(self.store.user, source)
        if found is None or not found.events:
            raise UnknownIdError(f"nothing is known of {source!r}")
        moved = [dataclasses.replace(one, user_id=target, event_id=_moved_id(one, target)) for one in found.events]
        await self.engine.add_events(moved)
        await self.engine.delete_user(source)
        return len(moved)

    def import_events(self, source: str, batches: Iterator[Sequence[Event]]) -> int:
        """Keep a history in bulk; how many events were new. Blocks."""
        return self.engine.import_events(source, batches)

    def backup(self) -> Path:
        """A copy of the store below ``backups`` in the home folder. Blocks."""
        moment = datetime.datetime.now(datetime.UTC)
        folder = self.home / "backups"
        folder.mkdir(exist_ok=True, mode=0o700)
        path = folder / f"{self.name}-{moment:%Y%m%d-%H%M%S-%f}.sqlite"
        self.store.backup(path)
        return path

    def close(self) -> None:
        """Finish what was accepted, and let go of everything."""
        self.eraser.close()
        self.deployment.close()
        self.engine.ladder.close()
        self.engine.close()
        self.store.close()


def event_of(given: EventIn, now: float) -> Event:
    """An event as the store keeps it; one that does not say when it was is of ``now``."""
    return Event(
        given.event_id,
        given.user_id,
        given.item_id,
        given.kind,
        now if given.time is None else given.time,
        given.value,
        given.session,
        given.response_id,
    )


def _event(event: Event) -> EventOut:
    return EventOut(**dataclasses.asdict(event))


def _impression(shown: Impression) -> ExportedImpression:
    return ExportedImpression(
        response_id=shown.response_id,
        time=shown.time,
        scenario=shown.scenario,
        items=list(shown.items),
        scores=list(shown.scores),
        propensities=None if shown.propensities is None else list(shown.propensities),
        model_version=shown.model_version,
        rung=shown.rung,
        arm=shown.arm,
    )


def _moved_id(event: Event, target: str) -> str:
    """The id of a moved event, the same each time that it is moved there."""
    return "moved:" + hashlib.sha256(f"{event.event_id}\0{target}".encode()).hexdigest()[:40]
