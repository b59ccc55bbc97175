"""``ServiceConfig``: every setting of the service, read from one TOML file.

A setting that does not exist is an error that names the nearest one. Each table is the settings class of the module
that uses it.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tesserec.config import Field, build, component, load_toml
from tesserec.errors import ServiceError
from tesserec.serving.access import NAMESPACE, AccessConfig
from tesserec.serving.admission import AdmissionConfig
from tesserec.serving.deployment import DeploymentConfig
from tesserec.serving.engine import EngineConfig
from tesserec.serving.guards import BodyConfig
from tesserec.serving.ladder import LadderConfig
from tesserec.serving.rates import RateConfig
from tesserec.serving.telemetry import TelemetryConfig
from tesserec.serving.tracing import TracingConfig

__all__ = ["GuardConfig", "ServerConfig", "ServiceConfig", "read_service_config"]


@component
class ServerConfig:
    """The process."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0: any free one."""
    drain_s: Annotated[float, Field(ge=0)] = 0.0
    """How long the service goes on answering after SIGTERM while ``/api/health/ready`` says no."""
    shutdown_s: Annotated[float, Field(gt=0)] = 30.0
    """How long requests that are being worked on may take after that."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Logs are JSON lines on standard error; users are named at DEBUG only."""


@component
class GuardConfig:
    """What a request has to pass."""

    access: AccessConfig = dataclasses.field(default_factory=AccessConfig)
    rates: RateConfig = dataclasses.field(default_factory=RateConfig)
    admission: AdmissionConfig = dataclasses.field(default_factory=AdmissionConfig)
    body: BodyConfig = dataclasses.field(default_factory=BodyConfig)


@component
class ServiceConfig:
    """The service."""

    server: ServerConfig = dataclasses.field(default_factory=ServerConfig)
    guards: GuardConfig = dataclasses.field(default_factory=GuardConfig)
    deployment: DeploymentConfig = dataclasses.field(default_factory=DeploymentConfig)
    telemetry: TelemetryConfig = dataclasses.field(default_factory=TelemetryConfig)
    tracing: TracingConfig = dataclasses.field(default_factory=TracingConfig)
    ladder: LadderConfig = dataclasses.field(default_factory=LadderConfig)
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    namespaces: Annotated[tuple[Annotated[str, Field(pattern=NAMESPACE)], ...], Field(min_length=1)] = ("default",)
    """Shops that share the service; each has versions, events, items and users of its own."""
    store: str | None = None
    """``postgresql://…`` or ``redis://…``; None: SQLite in the home folder."""


def read_service_config(path: Path | None) -> ServiceConfig:
    """The settings in a TOML file; the defaults without one.

    Raises ``ServiceError`` where there is no such file, and ``RecipeError`` for a setting that does not exist.
    """
    if path is None:
        return ServiceConfig()
    if not path.is_file():
        raise ServiceError(f"no settings at {path}: give a TOML file, or none for the defaults")
    return build(ServiceConfig, load_toml(path), "service")
