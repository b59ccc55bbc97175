"""Routes that ask the model: recommendations, similar items, search."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request

from tesserec.serving.api import CHANGES, READS, PathId, linked, passed_of, shop_of
from tesserec.serving.bodies import RecommendBatch, RecommendBatchOut, RecommendQuery, SearchQuery, SimilarQuery
from tesserec.serving.schemas import RecommendRequest, RecommendResponse, SearchResponse, SimilarResponse

__all__ = ["router"]

router = APIRouter(prefix="/api", tags=["recommendations"])

_REQUESTS = {
    "user": {"summary": "A user", "value": {"user_id": "u1", "k": 5}},
    "history": {"summary": "Somebody who is not known", "value": {"history": ["i1", "i2"], "k": 5}},
    "rules": {
        "summary": "Under rules",
        "value": {
            "user_id": "u1",
            "scenario": "cart",
            "filter": "price < 10",
            "exclude": ["i3"],
            "boosts": [{"when": "price < 5", "weight": 1.5}],
            "diversity": 0.3,
            "rotate": 0.5,
            "explain": True,
        },
    },
}


@router.get("/recommend/{user_id}", operation_id="recommend_to_user", responses={**READS})
async def recommend_to_user(
    request: Request, user_id: PathId, query: Annotated[RecommendQuery, Query()]
) -> RecommendResponse:
    """Recommend to a user."""
    asked = RecommendRequest(user_id=user_id, **query.model_dump())
    return await shop_of(request).engine.recommend(asked, key_id=passed_of(request).caller.key_id)


@router.post("/recommend", operation_id="recommend", responses={**CHANGES})
async def recommend(
    request: Request, body: Annotated[RecommendRequest, Body(openapi_examples=_REQUESTS)]
) -> RecommendResponse:
    """Recommend to a user, to somebody with a history, or for words, under the rules of the request."""
    return await shop_of(request).engine.recommend(body, key_id=passed_of(request).caller.key_id)


@router.post("/recommend/batch", operation_id="recommend_batch", responses={**CHANGES})
async def recommend_batch(request: Request, body: RecommendBatch) -> RecommendBatchOut:
    """Answer several requests at once; they are answered all, or none."""
    engine, key_id = shop_of(request).engine, passed_of(request).caller.key_id
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(engine.recommend(one, key_id=key_id)) for one in body.requests]
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
    return RecommendBatchOut(responses=[task.result() for task in tasks])


@router.get("/items/{item_id}/similar", operation_id="similar_items", responses={**READS})
async def similar_items(request: Request, item_id: PathId, query: Annotated[SimilarQuery, Query()]) -> SimilarResponse:
    """Find the items most like one."""
    return await shop_of(request).engine.similar(item_id, query.k, query.filter)


@router.get(
    "/search",
    operation_id="search",
    responses={**READS, **linked(item=("get_item", {"item_id": "$response.body#/items/0/item_id"}))},
)
async def search(request: Request, query: Annotated[SearchQuery, Query()]) -> SearchResponse:
    """Find items by words of their title and text."""
    return await shop_of(request).engine.search(query.q, query.k, query.filter)
