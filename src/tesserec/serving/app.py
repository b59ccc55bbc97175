"""``create_app``: the HTTP API over a service, with its guards, as one ASGI application.

    app = create_app(service)         what uvicorn runs; ``app.app`` is the FastAPI application within the guards

Routes are in the ``routes_*`` modules by topic. Whatever goes wrong in them is answered as a problem document.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

import tesserec
from tesserec.errors import (
    BundleError,
    DataError,
    RecipeError,
    ServiceError,
    StoreError,
    UnknownIdError,
    VersionMismatchError,
)
from tesserec.serving import (
    routes_admin,
    routes_events,
    routes_items,
    routes_recommend,
    routes_system,
    routes_users,
    web,
)
from tesserec.serving.access import Access
from tesserec.serving.admission import Admission
from tesserec.serving.engine import Overloaded
from tesserec.serving.guards import Guards
from tesserec.serving.problems import Refused, explained, problem_response, request_id_of
from tesserec.serving.rates import RateLimits
from tesserec.serving.schemas import Problem
from tesserec.serving.service import Service

__all__ = ["create_app"]

LOG = logging.getLogger(__name__)
_TOPICS = (routes_recommend, routes_items, routes_events, routes_users, routes_admin, routes_system, web)
_SUMMARY = "Recommendations that are generated, with events that are never lost."
_DESCRIPTION = """
Send an API key as `Authorization: Bearer tsk_…` or as `X-API-Key`. A service with several shops takes the name of one
in the header `X-Namespace`; a key of one shop needs none. Errors are `application/problem+json`, and every response has
an `X-Request-ID`, the caller's own where it sent one. An id in a path has its `/` written as `%2F`.
"""


def create_app(service: Service) -> Guards:
    """The application of a service; requests are refused (503) until it is started."""
    app = FastAPI(
        title="tesserec",
        version=tesserec.__version__,
        summary=_SUMMARY,
        description=_DESCRIPTION,
        docs_url=None,  # its page would come from the internet
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    for topic in _TOPICS:
        app.include_router(topic.router)
    _handle_errors(app, service)
    described = _openapi(app)
    app.openapi = lambda: described  # type: ignore[method-assign]  # how FastAPI has it
    config = service.config
    admission = Admission(config.guards.admission)
    service.telemetry.in_flight.set_function(lambda: sum(admission.in_flight.values()))
    return Guards(
        app,
        access=Access(config.guards.access, service.keys, config.server.host),
        rates=RateLimits(config.guards.rates),
        admission=admission,
        body=config.guards.body,
        observer=service.telemetry,
        tracing=service.tracing,
    )


def _handle_errors(app: FastAPI, service: Service) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return problem_response(error.status, error.detail, request_id_of(request), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return problem_response(422, explained(error.errors()), request_id_of(request))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        headers, detail = dict(error.headers or {}), str(error.detail)
        if error.status_code == 405:
            headers["Allow"] = ", ".join(sorted(_methods_at(request)))
            detail = f"{request.method} is not what this path takes: {headers['Allow']}"
        elif detail == HTTPStatus.NOT_FOUND.phrase:
            detail = "there is no such path: /openapi.json has those there are, and a / of an id is written %2F"
        elif isinstance(error.__cause__, RecursionError):
            detail = "the body is nested too deeply"
        elif isinstance(error.__cause__, UnicodeDecodeError):
            detail = "the body is not UTF-8"
        return problem_response(error.status_code, detail, request_id_of(request), headers)

    @app.exception_handler(DataError)
    async def data(request: Request, error: DataError) -> Response:
        status = 404 if isinstance(error, UnknownIdError) else 422
        return problem_response(status, str(error), request_id_of(request))

    @app.exception_handler(ServiceError)
    @app.exception_handler(BundleError)
    @app.exception_handler(RecipeError)  # of a bundle that is to be published
    @app.exception_handler(VersionMismatchError)
    async def state(request: Request, error: Exception) -> Response:
        return problem_response(409, str(error), request_id_of(request))

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> Response:
        service.telemetry.refused("queue")
        retry = {"Retry-After": str(service.config.guards.admission.retry_after_s)}
        return problem_response(429, str(error), request_id_of(request), retry)

    @app.exception_handler(StoreError)
    async def store(request: Request, error: StoreError) -> Response:
        LOG.error("the store failed: %s", error)
        detail = "the store does not keep or read now: nothing was acknowledged, try again later"
        return problem_response(503, detail, request_id_of(request), {"Retry-After": "1"})

    @app.exception_handler(Exception)
    async def ours(request: Request, error: Exception) -> Response:
        return problem_response(500, "a mistake of the service", request_id_of(request))


def _methods_at(request: Request) -> set[str]:
    """The methods that a path takes."""
    methods: set[str] = set()
    for topic in _TOPICS:
        for route in topic.router.routes:
            if isinstance(route, APIRoute) and route.path_regex.fullmatch(request.scope["path"]):
                methods |= route.methods or set()
    return methods


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The description of the API: that of FastAPI with problems as they are and who may call what."""
    described = get_openapi(
        title=app.title, version=app.version, summary=app.summary, description=app.description, routes=app.routes
    )
    components = described["components"]
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    components["schemas"]["Problem"] = Problem.model_json_schema()
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "`tsk_…`, made by `tesserec service key create`."},
        "key_header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    described["security"] = [{"key": []}, {"key_header": []}]
    for operations in described["paths"].values():
        for operation in operations.values():
            operation["summary"] = operation["description"].partition("\n")[0].rstrip(".")
    return described
