"""Routes of items: what there is to show. A change is on disk and live when the reply is out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Body, Request

from tesserec.errors import DataError, UnknownIdError
from tesserec.serving.api import CHANGES, READS, STATE_CHANGES, PathId, linked, shop_of
from tesserec.serving.bodies import Availability, ItemBatch, ItemsKept
from tesserec.serving.problems import Refused
from tesserec.serving.records import Item
from tesserec.serving.schemas import ItemIn, ItemOut, ItemPatch

__all__ = ["router"]

router = APIRouter(prefix="/api/items", tags=["items"])

_LAMP = {"attributes": {"title": "Red lamp", "text": "A lamp, red.", "price": 9.5}, "available": True}
_ID = {"item_id": "$request.path.item_id"}
_LINKS = linked(
    read=("get_item", _ID),
    patch=("patch_item", _ID),
    stock=("set_availability", _ID),
    similar=("similar_items", _ID),
    delete=("delete_item", _ID),
)


@contextmanager
def _fitting() -> Iterator[None]:
    """What does not fit the items that are there, such as a text as price, is a conflict: its form is right."""
    try:
        yield
    except UnknownIdError:
        raise
    except DataError as error:
        raise Refused(409, str(error)) from None


@router.post("", operation_id="put_items", responses={**STATE_CHANGES})
async def put_items(request: Request, body: ItemBatch) -> ItemsKept:
    """Put up to 1,000 items; of an id that comes twice, the last one counts."""
    items = {one.item_id: Item(one.item_id, one.attributes, one.available) for one in body.items}
    with _fitting():
        revision = await shop_of(request).engine.put_items(list(items.values()))
    return ItemsKept(items=len(items), table_revision=revision)


@router.put("/{item_id}", operation_id="put_item", responses={**STATE_CHANGES, **_LINKS})
async def put_item(request: Request, item_id: PathId, body: Annotated[ItemIn, Body(examples=[_LAMP])]) -> ItemOut:
    """Make an item what is given, whether it was there or not."""
    shop = shop_of(request)
    with _fitting():
        await shop.engine.put_items([Item(item_id, body.attributes, body.available)])
    try:
        return shop.item(item_id)
    except UnknownIdError:
        detail = "the item is kept, and cannot be shown: the model's codes have no room for it until it is fitted again"
        raise Refused(409, detail) from None


@router.patch("/{item_id}", operation_id="patch_item", responses={**STATE_CHANGES, **_LINKS})
async def patch_item(
    request: Request, item_id: PathId, body: Annotated[ItemPatch, Body(examples=[{"attributes": {"price": 8.0}}])]
) -> ItemOut:
    """Change some attributes of an item."""
    shop = shop_of(request)
    with _fitting():
        await shop.engine.patch_item(item_id, body.attributes, body.available)
    return shop.item(item_id)


@router.put("/{item_id}/availability", operation_id="set_availability", responses={**CHANGES, **_LINKS})
async def set_availability(request: Request, item_id: PathId, body: Availability) -> ItemOut:
    """Let an item be shown, or not, from the next request on."""
    shop = shop_of(request)
    await shop.engine.patch_item(item_id, {}, body.available)
    return shop.item(item_id)


@router.get("/{item_id}", operation_id="get_item", responses={**READS, **_LINKS})
async def get_item(request: Request, item_id: PathId) -> ItemOut:
    """Read an item, what it is now."""
    return shop_of(request).item(item_id)


@router.delete("/{item_id}", operation_id="delete_item", responses={**READS, **linked(read=("get_item", _ID))})
async def delete_item(request: Request, item_id: PathId) -> ItemsKept:
    """Never show an item again, unless it is put again; an item that is deleted already stays so."""
    revision = await shop_of(request).delete_item(item_id)
    return ItemsKept(items=1, table_revision=revision)
