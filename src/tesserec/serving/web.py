"""The page at ``/``: what the service answers and why, the tree of codes, search, two versions side by side, health.

Pages are rendered here and work without a script; htmx, which is served from here too, swaps parts of them in place.
Nothing on a page changes anything: all of them are GET. Scripts and styles come from this service only, and none are
inline, so that a title that holds HTML stays a title.
"""

from __future__ import annotations

import asyncio
import datetime
import functools
import importlib.resources
from typing import Annotated, Any

import jinja2
import markupsafe
import polars as pl
import pydantic
from fastapi import APIRouter, Query, Request, Response

import tesserec
from tesserec.errors import TesserecError
from tesserec.serving.api import passed_of, service_of, shop_of
from tesserec.serving.live_catalog import Live
from tesserec.serving.loaded_model import LoadedModel
from tesserec.serving.problems import Refused
from tesserec.serving.schemas import Explanation, RecommendResponse
from tesserec.serving.shop import Shop
from tesserec.serving.web_compare import NUM_COMPARED, compared
from tesserec.serving.web_form import Form
from tesserec.serving.web_view import palette_of, read_prefix, tree_of

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

PAGES = (
    ("/", "Recommend"),
    ("/browse", "Semantic IDs"),
    ("/search", "Search"),
    ("/compare", "Compare"),
    ("/status", "Health"),
)
NUM_FOUND, NUM_HITS, NUM_USERS, NUM_PAST, NUM_REASONS, NUM_MOVED = 8, 30, 20, 15, 3, 8
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_FILES = {
    "style.css": (("page.css", "web/web.css"), "text/css"),
    "htmx.min.js": (("web/htmx.min.js",), "text/javascript"),
    "htmx.LICENSE": (("web/htmx.LICENSE",), "text/plain"),
}

Words = Annotated[str, Query(max_length=1000)]


@router.get("/")
async def recommend_page(request: Request) -> Response:
    """Recommendations for a user or a history."""
    form, shop = Form.of(request), shop_of(request)
    changed = bool({"add", "remove"} & set(request.query_params))
    if changed and "hx-request" not in request.headers:
        return Response(status_code=303, headers={**_HEADERS, "Location": f"{_root(request)}/?{form.address()}"})
    live = shop.deployment.current().model.snapshot
    users = await shop.users(form.user, NUM_USERS)
    view: dict[str, Any] = {"response": None, "items": [], "past": [], "removed": [], "found": [], "problem": None}
    try:
        if form.find:
            found = await shop.engine.search(form.find, NUM_FOUND, None)
            view["found"] = [_shown(live, one.item_id, one.title) for one in found.items]
        elif (asked := form.request()) is not None:
            key_id = passed_of(request).caller.key_id
            response = await shop.engine.recommend(asked, key_id=key_id, shown=False)
            view |= await asyncio.to_thread(_answer, shop, live, form, response)
    except (TesserecError, Refused, pydantic.ValidationError) as error:
        view["problem"] = _explained(error)
    shown = [_shown(live, item_id, None) for item_id in form.history]
    view |= {"form": {**vars(form), "history": shown, "changed": changed}, "users": users, **_columns(live)}
    headers = {"HX-Push-Url": f"{_root(request)}/?{form.address()}"} if not form.find else {}
    return _page(request, "recommend", live, view, headers)


@router.get("/web/users")
async def user_options(request: Request, user: Words = "") -> Response:
    """User ids that begin with what was typed, as options of an input."""
    users = await shop_of(request).users(user, NUM_USERS)
    text = "".join(f'<option value="{markupsafe.escape(one)}"></option>' for one in users)
    return Response(text, headers=_HEADERS, media_type="text/html")


@router.get("/browse")
def browse_page(request: Request, prefix: Words = "") -> Response:
    """The tree of codes, one level."""
    live = shop_of(request).deployment.current().model.snapshot
    view: dict[str, Any] = {"problem": None}
    try:
        view["tree"] = tree_of(live.model, live.catalog, read_prefix(prefix))
    except TesserecError as error:
        view = {"problem": str(error), "tree": tree_of(live.model, live.catalog, ())}
    return _page(request, "browse", live, view)


@router.get("/search")
async def search_page(request: Request, q: Words = "") -> Response:
    """Items by the words of their titles and texts."""
    shop, words = shop_of(request), q.strip()
    live = shop.deployment.current().model.snapshot
    view: dict[str, Any] = {"words": words, "response": None, "hits": [], "problem": None}
    try:
        if words:
            response = await shop.engine.search(words, NUM_HITS, None)
            view |= {"response": response, "hits": [_shown(live, one.item_id, one.title) for one in response.items]}
    except (TesserecError, Refused) as error:
        view["problem"] = _explained(error)
    return _page(request, "search", live, view)


@router.get("/compare")
def compare_page(request: Request, user: Words = "", left: Words = "", right: Words = "") -> Response:
    """Two versions in memory, asked for the same user."""
    shop, user = shop_of(request), user.strip()
    live = shop.deployment.current().model.snapshot
    versions = _versions(shop)
    names = [one["version"] for one in versions]
    chosen = {"left": left or names[0], "right": right or names[min(1, len(names) - 1)]}
    view: dict[str, Any] = {"user": user, "versions": versions, "chosen": chosen, "sides": [], "problem": None}
    try:
        if user:
            view |= compared(shop, user, (chosen["left"], chosen["right"]), NUM_COMPARED)
    except TesserecError as error:
        view["problem"] = str(error)
    view["users"] = shop.store.users(user, NUM_USERS)
    return _page(request, "compare", live, view)


@router.get("/status")
async def status_page(request: Request, live: bool = False) -> Response:
    """Whether the service is well, renewed while it is open; ``live``: only what is renewed."""
    service, shop = service_of(request), shop_of(request)
    trouble = await service.trouble()
    view = {
        "ready": trouble is None,
        "notes": [*([] if trouble is None else [trouble]), *shop.deployment.notes],
        "now": f"{datetime.datetime.now(datetime.UTC):%H:%M:%S}",
        "recent": service.telemetry.namespace(shop.name).recent(),
        "versions": _versions(shop),
        "counts": None if live else await asyncio.to_thread(shop.store.counts),
        "problem": None,
    }
    return _page(request, "status", shop.deployment.current().model.snapshot, view)


@router.get("/web/{name}")
def web_file(name: str) -> Response:
    """The stylesheet, and htmx with its licence."""
    if name not in _FILES:
        raise Refused(404, f"there is no file {name!r}")
    parts, media_type = _FILES[name]
    headers = {**_HEADERS, "Cache-Control": "private, max-age=600"}
    return Response(_text_of(parts), headers=headers, media_type=media_type)


@functools.cache
def _text_of(parts: tuple[str, ...]) -> str:
    folder = importlib.resources.files(tesserec) / "templates"
    return "\n".join((folder / part).read_text(encoding="utf-8") for part in parts)


@functools.cache
def _templates() -> jinja2.Environment:
    loader = jinja2.PackageLoader("tesserec")
    return jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )


def _page(
    request: Request, name: str, live: Live[LoadedModel], view: dict[str, Any], headers: dict[str, str] | None = None
) -> Response:
    titles = dict(PAGES)
    here = request.url.path.removeprefix(_root(request))
    frame = {
        "title": titles[here],
        "here": here,
        "pages": PAGES,
        "root": _root(request),
        "namespace": passed_of(request).namespace,
        # A part of a page is swapped in place, the strip above it is not.
        "strip": [] if "hx-request" in request.headers else palette_of(live.model).strip,
        "footer": f"tesserec {tesserec.__version__}",
    }
    text = _templates().get_template(f"web/{name}.html.j2").render(**frame, **view)
    return Response(text, headers={**_HEADERS, **(headers or {})}, media_type="text/html")


def _root(request: Request) -> str:
    return str(request.scope.get("root_path", ""))


def _explained(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):
        first = error.errors()[0]
        return f"{first['loc'][0]}: {first['msg']}"
    return error.detail if isinstance(error, Refused) else str(error)


def _shown(live: Live[LoadedModel], item_id: str, title: str | None) -> dict[str, Any]:
    index = live.catalog.index(item_id)
    known = title or (f"{item_id} (not known)" if index is None else live.catalog.titles[index])
    return {"item_id": item_id, "title": known, "fills": palette_of(live.model).of_item(index)}


def _columns(live: Live[LoadedModel]) -> dict[str, Any]:
    """What a filter can ask for, and an example that is true of somebody."""
    schema = {name: kind for name, kind in live.catalog.frame.schema.items() if name not in ("item_id", "text")}
    numeric = next((name for name, kind in schema.items() if kind.is_numeric()), None)
    middle = None if numeric is None else live.catalog.frame[numeric].cast(pl.Float64).median()
    example = None if middle is None else f"{numeric} < {float(str(middle)):g}"
    return {"columns": list(schema), "example": example}


def _answer(shop: Shop, live: Live[LoadedModel], form: Form, response: RecommendResponse) -> dict[str, Any]:
    """An answer with what is known of the user."""
    past = shop.store.history(form.user, NUM_PAST) if form.user else []
    return {
        "response": response,
        "items": [
            {**_shown(live, one.item_id, one.title), "it": one, **_reasons(one.explanation)} for one in response.items
        ],
        "past": [
            {**_shown(live, one.item_id, None), "kind": one.kind, "day": _day(one.time)} for one in reversed(past)
        ],
        "removed": [{**_shown(live, one.item_id, None), "rule": one.rule} for one in response.removed or ()],
    }


def _reasons(explanation: Explanation | None) -> dict[str, Any]:
    """The history items that raised the score most, and those that moved it most."""
    moved = [] if explanation is None else sorted(explanation.history, key=lambda one: -abs(one.change))
    return {"reasons": [one for one in moved if one.change > 0][:NUM_REASONS], "most": moved[:NUM_MOVED]}


def _day(time: float) -> str:
    return f"{datetime.datetime.fromtimestamp(time, datetime.UTC):%Y-%m-%d}"


def _versions(shop: Shop) -> list[dict[str, Any]]:
    """The versions in memory, what answers first."""
    serving = shop.deployment.serving
    rows = []
    for version in shop.deployment.resident():
        catalog = shop.deployment.loaded(version).model.snapshot.catalog
        canary = serving.canary is not None and serving.canary.version == version
        roles = [*(["live"] if serving.live.version == version else []), *(["canary"] if canary else [])]
        rows.append(
            {
                "version": version,
                "roles": roles or ["previous"],
                "num_items": len(catalog),
                "num_cold": len(catalog) - catalog.num_fitted,
                "revision": catalog.revision,
            }
        )
    return sorted(rows, key=lambda row: ("live" not in row["roles"], "canary" not in row["roles"], row["version"]))
