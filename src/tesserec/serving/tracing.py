"""Spans of requests for OpenTelemetry, sent to a collector by OTLP over HTTP.

    with tracing.request("POST /api/recommend", headers.get(b"traceparent")) as span:
        with tracing.span("history"):
            ...

Without an endpoint, ``request`` and ``span`` hand out one object that does nothing, and OpenTelemetry is not even
imported. A collector that does not answer costs spans, never requests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Protocol

from tesserec.config import Field, component
from tesserec.errors import ServiceError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["Span", "Tracing", "TracingConfig"]

Attribute = str | bool | int | float


@component
class TracingConfig:
    """Where spans go."""

    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """Such as ``http://localhost:4318/v1/traces``; None: no spans."""
    sample_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the requests that are traced, of those whose caller did not decide (``traceparent``)."""


class Span(Protocol):
    """A piece of work that is being measured."""

    def set_attribute(self, key: str, value: Attribute) -> None:
        """Note something of it: never who the user is."""

    def update_name(self, name: str) -> None:
        """Call it something else, now that more is known."""


class _NoSpan:
    def set_attribute(self, key: str, value: Attribute) -> None: ...

    def update_name(self, name: str) -> None: ...


NOTHING: AbstractContextManager[Span] = contextlib.nullcontext(_NoSpan())


class Tracing:
    """Hands out spans; without an endpoint, spans that do nothing.

    Raises ``ServiceError`` where there is an endpoint and OpenTelemetry is not installed.
    """

    def __init__(self, config: TracingConfig | None = None, service: str = "tesserec") -> None:
        config = config or TracingConfig()
        self._provider = None if config.otlp_endpoint is None else _provider(config, config.otlp_endpoint, service)
        self._tracer = None if self._provider is None else self._provider.get_tracer("tesserec.serving")

    @property
    def on(self) -> bool:
        """Whether spans go anywhere."""
        return self._tracer is not None

    def request(
        self, name: str, traceparent: bytes | None, attributes: Mapping[str, Attribute] | None = None
    ) -> AbstractContextManager[Span]:
        """The span of a request, a child of the caller's where a W3C ``traceparent`` header came with it."""
        if self._tracer is None:
            return NOTHING
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {} if traceparent is None else {"traceparent": traceparent.decode("latin-1")}
        parent = TraceContextTextMapPropagator().extract(carrier)
        return self._tracer.start_as_current_span(name, parent, kind=SpanKind.SERVER, attributes=attributes)

    def span(self, name: str, attributes: Mapping[str, Attribute] | None = None) -> AbstractContextManager[Span]:
        """A part of what this task or thread is working on, such as ``history``, ``model`` or ``slate``."""
        if self._tracer is None:
            return NOTHING
        return self._tracer.start_as_current_span(name, attributes=attributes)

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        if self._provider is not None:
            self._provider.shutdown()


def _provider(config: TracingConfig, endpoint: str, service: str) -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ModuleNotFoundError as error:
        raise ServiceError(
            f"tracing.otlp_endpoint is {endpoint}, and tracing needs the package {error.name}: "
            "pip install 'tesserec[tracing]', or take the endpoint out"
        ) from None
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(config.sample_share),
        resource=Resource.create({"service.name": service}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=5)))
    return provider
