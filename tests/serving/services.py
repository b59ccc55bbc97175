"""A whole service over the shop of ``served_shop``, without a socket: two namespaces, and a client of each kind."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.testclient import TestClient
from tests.serving import engines
from tests.serving.served_shop import bundle

from tesserec.serving.app import create_app
from tesserec.serving.config import GuardConfig, ServiceConfig
from tesserec.serving.deployment import DeploymentConfig
from tesserec.serving.opening import begin
from tesserec.serving.rates import RateConfig
from tesserec.serving.service import Service

CONFIG = ServiceConfig(
    namespaces=("default", "toys"),
    ladder=engines.PATIENT,
    guards=GuardConfig(rates=RateConfig(per_key=None, per_address=None)),
    deployment=DeploymentConfig(poll_s=0.02),
)


@contextmanager
def served(home: Path, config: ServiceConfig = CONFIG) -> Iterator[tuple[Service, TestClient]]:
    """A started service of counting models, and somebody who calls it as ``localhost``."""
    for name in config.namespaces:
        begin(home, name, bundle("counted"))
    with Service(home, config) as service:
        service.start()
        with TestClient(create_app(service), base_url="http://localhost", raise_server_exceptions=False) as client:
            yield service, client
