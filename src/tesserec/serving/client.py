"""A client of the service: typed, synchronous, and it asks again where that cannot do harm.

    with Client("http://localhost:8000", key="tsk_…") as shop:
        shop.add_events([EventIn(event_id="e1", user_id="ann", item_id="lamp")])
        for item in shop.recommend("ann", k=5).items:
            print(item.rank, item.title)

Every request may be sent twice: events are kept once by their id, and the others say what shall be, not what to change
it by. So a request that failed on the way, or was refused because the service had too much to do (429, 503), is sent
again after the time that the service asks for.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Annotated, Self, TypeVar
from urllib.parse import quote

import httpx2
import pydantic

from tesserec.config import Field, component
from tesserec.errors import RequestError
from tesserec.serving.bodies import Availability, Health, ItemsKept, UserDeleted, UserExport, UsersOut
from tesserec.serving.schemas import (
    Accepted,
    Attribute,
    EventBatch,
    EventIn,
    ItemIn,
    ItemOut,
    ItemPatch,
    Problem,
    RecommendRequest,
    RecommendResponse,
    SearchResponse,
    SimilarResponse,
    UserOut,
)

__all__ = ["Client", "RetryConfig"]

Body = TypeVar("Body", bound=pydantic.BaseModel)
RETRIED = (429, 503)


@component
class RetryConfig:
    """How often, and how long, a client asks again."""

    times: Annotated[int, Field(ge=0, le=20)] = 4
    """After the first attempt."""
    first_wait_s: Annotated[float, Field(ge=0)] = 0.1
    """Before the second attempt; doubled for each further one, and drawn between half and all of it."""
    longest_wait_s: Annotated[float, Field(ge=0)] = 10.0
    """A service that asks for more than this is not asked again."""


class Client:
    """One service and one namespace. May be used by several threads; close it, or use it in a ``with`` block.

    Every method raises ``RequestError``, with the service's own words, where the answer is not a success.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        namespace: str | None = None,
        timeout_s: float = 10.0,
        retry: RetryConfig | None = None,
    ) -> None:
        headers = {}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        if namespace is not None:
            headers["X-Namespace"] = namespace
        self._retry = retry or RetryConfig()
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def recommend(
        self, user_id: str | int, k: int = 10, *, wishes: RecommendRequest | None = None
    ) -> RecommendResponse:
        """The ``k`` best items for a user; ``wishes`` has what else is asked for: filter, boosts, explanation …"""
        return self.ask((wishes or RecommendRequest()).model_copy(update={"user_id": str(user_id), "k": k}))

    def recommend_for_history(
        self, history: Sequence[str | int], k: int = 10, *, wishes: RecommendRequest | None = None
    ) -> RecommendResponse:
        """The ``k`` best items for somebody who is not known and had the items of ``history``, oldest first."""
        update = {"user_id": None, "history": [str(item_id) for item_id in history], "k": k}
        return self.ask((wishes or RecommendRequest()).model_copy(update=update))

    def ask(self, request: RecommendRequest) -> RecommendResponse:
        """The answer to a whole request."""
        return self._send("POST", "/api/recommend", RecommendResponse, request)

    def similar(self, item_id: str, k: int = 10, *, filter: str | None = None) -> SimilarResponse:  # noqa: A002
        """The ``k`` items most like one."""
        path = f"/api/items/{_part(item_id)}/similar"
        return self._send("GET", path, SimilarResponse, query={"k": k, "filter": filter})

    def search(self, words: str, k: int = 10, *, filter: str | None = None) -> SearchResponse:  # noqa: A002
        """The ``k`` items that match words best."""
        return self._send("GET", "/api/search", SearchResponse, query={"q": words, "k": k, "filter": filter})

    def add_events(self, events: Sequence[EventIn]) -> Accepted:
        """Keep events, 1,000 at most; they are on disk when this returns, and those sent before are counted as such."""
        return self._send("POST", "/api/events", Accepted, EventBatch(events=list(events)))

    def item(self, item_id: str) -> ItemOut:
        """An item, what it is now."""
        return self._send("GET", f"/api/items/{_part(item_id)}", ItemOut)

    def put_item(self, item_id: str, attributes: Mapping[str, Attribute], *, available: bool = True) -> ItemOut:
        """Make an item what is given, whether it was there or not; it can be recommended when this returns."""
        body = ItemIn(attributes=dict(attributes), available=available)
        return self._send("PUT", f"/api/items/{_part(item_id)}", ItemOut, body)

    def patch_item(
        self, item_id: str, attributes: Mapping[str, Attribute], *, available: bool | None = None
    ) -> ItemOut:
        """Change some attributes of an item; None removes one."""
        body = ItemPatch(attributes=dict(attributes), available=available)
        return self._send("PATCH", f"/api/items/{_part(item_id)}", ItemOut, body)

    def set_availability(self, item_id: str, available: bool) -> ItemOut:
        """Let an item be shown, or not, from the next request on."""
        path = f"/api/items/{_part(item_id)}/availability"
        return self._send("PUT", path, ItemOut, Availability(available=available))

    def delete_item(self, item_id: str) -> ItemsKept:
        """Never show an item again, unless it is put again."""
        return self._send("DELETE", f"/api/items/{_part(item_id)}", ItemsKept)

    def users(self, prefix: str = "", limit: int = 100) -> list[str]:
        """Ids of users that begin with ``prefix``, ascending."""
        return self._send("GET", "/api/users", UsersOut, query={"prefix": prefix, "limit": limit}).users

    def user(self, user_id: str) -> UserOut:
        """A user's latest events."""
        return self._send("GET", f"/api/users/{_part(user_id)}", UserOut)

    def export_user(self, user_id: str) -> UserExport:
        """Everything that is kept of a user: events, and lists that were shown."""
        return self._send("GET", f"/api/users/{_part(user_id)}/export", UserExport)

    def delete_user(self, user_id: str) -> UserDeleted:
        """Remove everything of a user: from the store now, and from all bundles on disk within a minute."""
        return self._send("DELETE", f"/api/users/{_part(user_id)}", UserDeleted)

    def health(self) -> Health:
        """Whether the service is ready to answer; raises ``RequestError`` (503) at once where it is not."""
        return self._send("GET", "/api/health/ready", Health, times=0)

    def _send(
        self,
        method: str,
        path: str,
        shape: type[Body],
        body: pydantic.BaseModel | None = None,
        query: Mapping[str, str | int | None] | None = None,
        *,
        times: int | None = None,
    ) -> Body:
        reply = self._request(method, path, body, query, times=times)
        try:
            return shape.model_validate_json(reply.content)
        except pydantic.ValidationError as error:
            detail = f"{method} {path}: the answer is no {shape.__name__}; is the service of this version? {error}"
            raise RequestError(detail, reply.status_code) from None

    def _request(
        self,
        method: str,
        path: str,
        body: pydantic.BaseModel | None = None,
        query: Mapping[str, str | int | None] | None = None,
        *,
        times: int | None = None,
    ) -> httpx2.Response:
        content = None if body is None else body.model_dump_json(exclude_unset=True)
        headers = {} if content is None else {"Content-Type": "application/json"}
        params = {name: value for name, value in (query or {}).items() if value is not None}
        left = self._retry.times if times is None else times
        wait_s = self._retry.first_wait_s
        while True:
            try:
                reply = self._http.request(method, path, content=content, headers=headers, params=params)
            except httpx2.TransportError as error:
                failure = RequestError(f"{method} {path}: {self._http.base_url} gave no answer: {error!r}")
                asked_s: float | None = 0.0
            else:
                if reply.is_success:
                    return reply
                failure = _failure(method, path, reply)
                asked_s = _retry_after_s(reply)
            if left == 0 or asked_s is None or asked_s > self._retry.longest_wait_s:
                raise failure
            # Drawn, so that clients who were refused together do not come back together.
            time.sleep(max(asked_s, min(wait_s, self._retry.longest_wait_s) * random.uniform(0.5, 1.0)))
            left, wait_s = left - 1, 2 * wait_s


def _retry_after_s(reply: httpx2.Response) -> float | None:
    """How long a service that has too much to do wants to be left alone; None where asking again is of no use."""
    if reply.status_code not in RETRIED:
        return None
    text = reply.headers.get("Retry-After", "0")
    return float(text) if text.isdigit() else 0.0


def _failure(method: str, path: str, reply: httpx2.Response) -> RequestError:
    detail, request_id = reply.text[:200] or reply.reason_phrase, reply.headers.get("X-Request-Id")
    with contextlib.suppress(pydantic.ValidationError):  # else it is of a proxy in between
        detail = Problem.model_validate_json(reply.content).detail
    return RequestError(f"{method} {path}: {reply.status_code}, {detail}", reply.status_code, detail, request_id)


def _part(text: str) -> str:
    """An id as one part of a path."""
    return quote(text, safe="")
