"""Opening a namespace: its store, its versions, the model that is live, and the engine over them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from tesserec.bundle import Bundle
from tesserec.errors import ServiceError
from tesserec.serving.batcher import Fault
from tesserec.serving.bundle_events import bundle_events
from tesserec.serving.config import ServiceConfig
from tesserec.serving.deployment import Deployed, Deployment, Serving
from tesserec.serving.engine import Engine
from tesserec.serving.erase import Eraser
from tesserec.serving.ladder import Ladder
from tesserec.serving.live_catalog import LiveCatalog
from tesserec.serving.loaded_model import LoadedModel
from tesserec.serving.open_store import open_store
from tesserec.serving.recent import RecentRequests
from tesserec.serving.records import Store
from tesserec.serving.rungs import Rung
from tesserec.serving.shop import Shop
from tesserec.serving.telemetry import NamespaceTelemetry
from tesserec.serving.tracing import Tracing
from tesserec.serving.versions import Versions

__all__ = ["FIRST_IMPORT", "begin", "folder_of", "open_shop"]

FIRST_IMPORT = "first bundle"
"""The name under which a store keeps the events of the bundle that a namespace began with."""


def folder_of(home: Path, namespace: str) -> Path:
    """Where a namespace's versions are."""
    return home / "namespaces" / namespace


def begin(home: Path, namespace: str, bundle: Path) -> bool:
    """Make ``bundle`` the first version of a namespace; whether there was none. Raises ``BundleError``."""
    versions = Versions(folder_of(home, namespace))
    if versions.pointer() is not None:
        return False
    versions.publish(bundle)
    return True


def open_shop(
    home: Path,
    name: str,
    config: ServiceConfig,
    telemetry: NamespaceTelemetry,
    *,
    faults: Mapping[Rung, Fault],
    tracing: Tracing,
) -> Shop:
    """A namespace, ready to answer; what it began with is in its store. Blocks; raises a ``TesserecError``."""
    versions = Versions(folder_of(home, name))
    pointer = versions.pointer()
    if pointer is None:
        raise ServiceError(
            f"the namespace {name!r} has no bundle yet: "
            f"`tesserec service publish BUNDLE --home {home} --namespace {name}` gives it one"
        )
    with ExitStack() as undo:
        store = open_store(config.store, home, name)
        undo.callback(store.close)
        store.watch_commits(telemetry.commit)
        recent = RecentRequests(config.engine.num_recent)

        def make(folder: Path, version: str) -> LiveCatalog[LoadedModel]:
            return LiveCatalog(LoadedModel.load(folder, version), store)

        def changed(serving: Serving[LiveCatalog[LoadedModel]]) -> None:
            telemetry.serving(_named(serving.live), None if serving.canary is None else _named(serving.canary))

        deployment = Deployment(versions, make, warm=recent.replay, changed=changed, config=config.deployment)
        undo.callback(deployment.close)
        deployment.start()
        _import_first(store, versions, deployment.current().version)  # the live one may be damaged
        ladder = Ladder(config.ladder, faults=faults, observer=telemetry)
        telemetry.watch_queue(lambda: ladder.depth)
        engine = Engine(
            store, deployment, ladder, config=config.engine, recent=recent, observer=telemetry, tracing=tracing
        )
        engine.refresh()
        eraser = Eraser(versions, store)
        telemetry.watch_erasing(lambda: eraser.waiting)
        eraser.start()
        telemetry.store_up(True)
        undo.pop_all()
    return Shop(name, home, store, versions, deployment, engine, eraser)


def _named(deployed: Deployed[LiveCatalog[LoadedModel]]) -> tuple[str, str | None]:
    """A version, and that of its codebook."""
    return deployed.version, deployed.model.snapshot.model.codebook_version


def _import_first(store: Store, versions: Versions, version: str) -> None:
    """Keep the events of the first bundle; from then on the store is the only source of histories."""
    with versions.reading():
        bundle = Bundle.open(versions.path(version))
        store.import_events(FIRST_IMPORT, bundle_events(bundle))
