"""An engine over the shop of ``served_shop``, with a store, versions and a ladder whose rungs can be broken."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.serving.served_shop import bundle, stored_events

from tesserec.bundle import Bundle
from tesserec.serving.batcher import Fault
from tesserec.serving.deployment import Deployment, DeploymentConfig
from tesserec.serving.engine import Engine, EngineConfig
from tesserec.serving.ladder import Ladder, LadderConfig
from tesserec.serving.live_catalog import LiveCatalog
from tesserec.serving.loaded_model import LoadedModel
from tesserec.serving.recent import RecentRequests
from tesserec.serving.rungs import Rung
from tesserec.serving.sqlite_store import SQLiteStore
from tesserec.serving.versions import Versions

PATIENT = LadderConfig(deadline_ms=10_000)
"""A busy machine is no reason to answer from a lower rung."""


@dataclass
class Opened:
    """One namespace, open."""

    engine: Engine
    store: SQLiteStore
    versions: Versions
    deployment: Deployment[LiveCatalog[LoadedModel]]
    faults: dict[Rung, Fault] = field(default_factory=dict)


@contextmanager
def opened(
    name: str = "mosaic", config: EngineConfig | None = None, ladder: LadderConfig = PATIENT
) -> Iterator[Opened]:
    """A namespace with ``bundle(name)`` live and its events in the store."""
    with tempfile.TemporaryDirectory(prefix="engine_") as home:
        store, versions = SQLiteStore(Path(home) / "state.sqlite"), Versions(Path(home))
        versions.publish(bundle(name))
        log = Bundle.open(bundle(name)).interactions
        store.import_events("bundle", iter([stored_events(log, user) for user in log.users.ids.to_pylist()]))
        recent = RecentRequests()
        deployment = Deployment(
            versions,
            lambda folder, version: LiveCatalog(LoadedModel.load(folder, version), store),
            warm=recent.replay,
            config=DeploymentConfig(poll_s=0.02),
        )
        deployment.start()
        faults: dict[Rung, Fault] = {}
        rungs = Ladder(ladder, faults=faults)
        engine = Engine(store, deployment, rungs, config=config, recent=recent)
        try:
            yield Opened(engine, store, versions, deployment, faults)
        finally:
            engine.close()
            rungs.close()
            deployment.close()
            store.close()


def play(scene: Callable[[Opened], Awaitable[None]], name: str = "mosaic", **settings) -> None:
    """Run ``scene`` with an open namespace."""
    with opened(name, **settings) as shop:

        async def whole() -> None:
            await scene(shop)

        asyncio.run(whole())
