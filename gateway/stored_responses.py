"""GET and DELETE /v1/responses/{id}, and the input items of one: the kept responses of the caller's own key."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Query

from adapters.errors import InvalidRequest, NotFound
from adapters.responses import StoredResponse
from gateway.access import Caller
from gateway.deps import Anybody, TheRuntime
from gateway.runtime import Runtime

router = APIRouter(prefix="/v1/responses", tags=["responses"])


@router.get("/{response_id}")
async def retrieve_response(response_id: str, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    return (await _stored(runtime, response_id, caller)).body


@router.delete("/{response_id}")
async def delete_response(response_id: str, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    if not await asyncio.to_thread(runtime.responses.delete, response_id, caller.key_id):
        raise _unknown(response_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.get("/{response_id}/input_items")
async def list_input_items(
    response_id: str,
    runtime: TheRuntime,
    caller: Anybody,
    after: str | None = None,
    limit: int = Query(20, ge=1, le=100),
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """The input of that one request, newest first unless `order` says otherwise."""
    items = (await _stored(runtime, response_id, caller)).request_input
    items = items if order == "asc" else items[::-1]
    if after is not None:
        places = [index for index, item in enumerate(items) if item.get("id") == after]
        if not places:
            raise InvalidRequest(f"There is no item '{after}'.", param="after", code="invalid_value")
        items = items[places[0] + 1 :]
    page = items[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0].get("id") if page else None,
        "last_id": page[-1].get("id") if page else None,
        "has_more": len(items) > limit,
    }


@router.post("/{response_id}/cancel")
async def cancel_response(response_id: str, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    """Only background responses can be cancelled, and there are none here."""
    await _stored(runtime, response_id, caller)
    raise InvalidRequest(
        "Cannot cancel a response that was not created with 'background'.", code="invalid_state"
    )


async def _stored(runtime: Runtime, response_id: str, caller: Caller) -> StoredResponse:
    found = await asyncio.to_thread(runtime.responses.get, response_id, caller.key_id)
    if found is None:
        raise _unknown(response_id)
    return found


def _unknown(response_id: str) -> NotFound:
    return NotFound(
        f"Response with id '{response_id}' not found.", param="response_id", code="response_not_found"
    )
