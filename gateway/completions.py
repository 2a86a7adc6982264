"""OpenAI's stored chat completions: list, retrieve, change the metadata, delete, and the messages that were asked.

A key sees its own; a key with scope `admin` sees everybody's. Unknown and foreign ids get the same answer. What other
endpoints answered is in the record too, but has no place in this API of OpenAI's.
"""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request

from adapters.completions import Completion, Status
from adapters.errors import InvalidRequest, NotFound
from gateway.access import Caller
from gateway.admin.bodies import Body, BoundedRoute
from gateway.deps import Anybody, TheRuntime
from gateway.protocol import checks
from gateway.runtime import Runtime

PATH = "/v1/chat/completions"

ANSWERED = (Status.COMPLETE, Status.INCOMPLETE)

ASKED = (
    "frequency_penalty",
    "presence_penalty",
    "response_format",
    "seed",
    "service_tier",
    "temperature",
    "tool_choice",
    "tools",
    "top_p",
)
"""What a stored completion repeats of its request; null where the client did not say."""

Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]

router = APIRouter(prefix=PATH, tags=["stored completions"], route_class=BoundedRoute)


class Change(Body):
    metadata: dict[str, Any] | None


@router.get("")
async def list_completions(
    request: Request,
    runtime: TheRuntime,
    caller: Anybody,
    model: str | None = None,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> dict[str, Any]:
    """The caller's completions, oldest first unless `order` says otherwise; `metadata[name]=value` must all match."""
    if after is not None:
        await _stored(runtime, after, caller, param="after")
    found, has_more = await asyncio.to_thread(
        runtime.completions.list,
        caller.key_id,
        all_keys=caller.is_admin,
        route=model,
        endpoint=PATH,
        metadata=_filters(request),
        statuses=ANSWERED,
        after=after,
        limit=limit,
        newest_first=order == "desc",
    )
    return _page([_shape(completion) for completion in found], has_more)


@router.get("/{completion_id}")
async def retrieve_completion(completion_id: str, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    return _shape(await _stored(runtime, completion_id, caller))


@router.post("/{completion_id}")
async def update_completion(
    completion_id: str, body: Change, runtime: TheRuntime, caller: Anybody
) -> dict[str, Any]:
    """Replaces the metadata; nothing else of a completion can be changed."""
    checks.metadata({"metadata": body.metadata})
    await _stored(runtime, completion_id, caller)
    changed = await asyncio.to_thread(
        runtime.completions.update_metadata,
        completion_id,
        caller.key_id,
        {_storable(name): _storable(value) for name, value in (body.metadata or {}).items()},
        all_keys=caller.is_admin,
    )
    if changed is None:
        raise _unknown(completion_id)
    return _shape(changed)


@router.delete("/{completion_id}")
async def delete_completion(completion_id: str, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    """Forgets the completion and what was said of it."""
    await _stored(runtime, completion_id, caller)
    delete = runtime.completions.delete
    if not await asyncio.to_thread(delete, completion_id, caller.key_id, all_keys=caller.is_admin):
        raise _unknown(completion_id)
    return {"id": completion_id, "object": "chat.completion.deleted", "deleted": True}


@router.get("/{completion_id}/messages")
async def list_messages(
    completion_id: str,
    runtime: TheRuntime,
    caller: Anybody,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> dict[str, Any]:
    """The messages that were asked, in their order unless `order` says otherwise."""
    completion = await _stored(runtime, completion_id, caller)
    messages = _messages(completion)
    messages = messages if order == "asc" else messages[::-1]
    if after is not None:
        places = [index for index, message in enumerate(messages) if message["id"] == after]
        if not places:
            raise InvalidRequest(f"There is no message '{after}'.", param="after", code="invalid_value")
        messages = messages[places[0] + 1 :]
    return _page(messages[:limit], len(messages) > limit)


async def _stored(
    runtime: Runtime, completion_id: str, caller: Caller, param: str = "completion_id"
) -> Completion:
    found = await asyncio.to_thread(
        runtime.completions.get, completion_id, caller.key_id, all_keys=caller.is_admin
    )
    if found is None or found.endpoint != PATH or found.status not in ANSWERED:
        raise _unknown(completion_id, param)
    return found


def _unknown(completion_id: str, param: str = "completion_id") -> NotFound:
    return NotFound(f"Completion '{completion_id}' not found.", param=param, code="completion_not_found")


def _filters(request: Request) -> dict[str, str]:
    """`?metadata[name]=value&…`"""
    given = request.query_params.multi_items()
    return {found[1]: value for name, value in given if (found := re.fullmatch(r"metadata\[(.*)\]", name))}


def _shape(completion: Completion) -> dict[str, Any]:
    """The answer as it was given, and what OpenAI repeats of its request."""
    asked = completion.request
    return {
        "object": "chat.completion",
        "id": completion.id,
        "created": int(completion.created),
        "model": completion.route,
        "choices": [],
        **{name: asked.get(name) for name in ASKED},
        "input_user": completion.user,
        **(completion.output or {}),
        "metadata": completion.metadata,
    }


def _messages(completion: Completion) -> list[dict[str, Any]]:
    asked = completion.request.get("messages")
    return [
        {"name": None, **message, "id": f"{completion.id}-{index}", **_content(message)}
        for index, message in enumerate(asked if isinstance(asked, list) else ())
    ]


def _content(message: dict[str, Any]) -> dict[str, Any]:
    """OpenAI shows text as `content` and parts as `content_parts`."""
    content = message.get("content")
    if isinstance(content, list):
        return {"content": None, "content_parts": content}
    return {"content": content, "content_parts": None}


def _page(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


def _storable(text: str) -> str:
    """No database stores NUL."""
    return text.replace("\x00", "\ufffd")
