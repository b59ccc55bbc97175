"""A whole service in this process: stores, models, guards and routes behind a real connection on loopback."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.serving.live import listening

from tesserec.serving.app import create_app
from tesserec.serving.config import GuardConfig, ServiceConfig
from tesserec.serving.deployment import DeploymentConfig
from tesserec.serving.ladder import LadderConfig
from tesserec.serving.opening import begin
from tesserec.serving.rates import RateConfig
from tesserec.serving.service import Service

__all__ = ["Running", "service_at"]

CONFIG = ServiceConfig(
    ladder=LadderConfig(deadline_ms=10_000),  # a busy machine is no reason to answer from a lower rung
    guards=GuardConfig(rates=RateConfig(per_key=None, per_address=None)),
    deployment=DeploymentConfig(poll_s=0.02),
)


@dataclass(frozen=True)
class Running:
    """A service that answers."""

    url: str
    service: Service


@contextmanager
def service_at(home: Path, *bundles: Path, config: ServiceConfig = CONFIG) -> Iterator[Running]:
    """A service of one namespace; the last of ``bundles`` is live, and the one before it the previous version."""
    begin(home, "default", bundles[0])
    with Service(home, config) as service:
        service.start()
        shop = service.shop("default")
        for bundle in bundles[1:]:
            shop.versions.publish(bundle)
            pointer = shop.versions.pointer()
            assert pointer is not None
            assert shop.deployment.wait(pointer.sequence, 60)
        with listening(create_app(service)) as port:
            yield Running(f"http://127.0.0.1:{port}", service)
