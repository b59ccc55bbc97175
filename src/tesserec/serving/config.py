"""``ServiceConfig``: every setting of the service, read from one TOML file.

A setting that does not exist is an error that names the nearest one. Each table is the settings class of the module
that uses it.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

from tesserec.config import Field, build, component, load_toml
from tesserec.errors import ServiceError
from tesserec.serving.access import NAMESPACE, AccessConfig
from tesserec.serving.admission import AdmissionConfig
from tesserec.serving.guards import BodyConfig
from tesserec.serving.rates import RateConfig

__all__ = ["ServerConfig", "ServiceConfig", "read_service_config"]


@component
class ServerConfig:
    """The process."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0: any free one."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Of the model; None: as many as there are cores."""
    drain_s: Annotated[float, Field(ge=0)] = 0.0
    """How long the service goes on answering after SIGTERM while ``/api/health/ready`` says no."""
    shutdown_s: Annotated[float, Field(gt=0)] = 30.0
    """How long requests that are being worked on may take after that."""


@component
class ServiceConfig:
    """The service."""

    server: ServerConfig = dataclasses.field(default_factory=ServerConfig)
    access: AccessConfig = dataclasses.field(default_factory=AccessConfig)
    rates: RateConfig = dataclasses.field(default_factory=RateConfig)
    admission: AdmissionConfig = dataclasses.field(default_factory=AdmissionConfig)
    body: BodyConfig = dataclasses.field(default_factory=BodyConfig)
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
