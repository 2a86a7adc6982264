"""/v1/feedback: what people say of completions, of the caller's own key's unless it is an admin's.

Through the same writer as the completions themselves, and answered once it is on disk (promise 2). Enough of it makes
a training job in the same transaction. Does not know what is right to say: `adapters.drafts` does.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import AfterValidator, Field, WithJsonSchema
from sqlalchemy.engine import Connection

from adapters.errors import NotFound
from adapters.feedback import Draft, Feedback, give
from adapters.triggers import maybe_enqueue
from gateway.access import Caller
from gateway.admin.bodies import Body, read_json
from gateway.deps import Anybody, TheRuntime
from gateway.shapes import feedback_shape

router = APIRouter(prefix="/v1/feedback", tags=["feedback"])

Name = Annotated[str, Field(min_length=1, max_length=64)]
Text = Annotated[str, Field(max_length=512)]


def _boolean_or_number(value: Any) -> Any:
    if not isinstance(value, bool | int | float | None):
        raise ValueError("it must be true, false or a number")
    return value


def _text_or_message(value: Any) -> Any:
    if not isinstance(value, str | dict | None):
        raise ValueError("it must be a text or an assistant message")
    return value


# Not unions: pydantic would name the member that does not fit instead of the field.
Value = Annotated[
    Any,
    AfterValidator(_boolean_or_number),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "number"}, {"type": "null"}]}),
]
Demonstration = Annotated[
    Any,
    AfterValidator(_text_or_message),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "null"}]}),
]


class NewFeedback(Body):
    """At least one of value, comment, demonstration and preferred_over."""

    completion_id: Annotated[str, Field(min_length=1, max_length=256)]
    name: Name | None = None
    value: Value = None
    comment: str | None = None
    demonstration: Demonstration = None
    preferred_over: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    metadata: Annotated[dict[Name, Text], Field(max_length=16)] | None = None
    user: Annotated[str, Field(min_length=1, max_length=512)] | None = None

    def draft(self) -> Draft:
        return Draft(**{**self.model_dump(), "metadata": self.metadata or {}})


BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": NewFeedback.model_json_schema()}},
    }
}


@router.post("", status_code=201, openapi_extra=BODY)
async def create_feedback(
    request: Request,
    response: Response,
    runtime: TheRuntime,
    caller: Anybody,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> dict[str, Any]:
    """201 for new feedback; 200 for what the same Idempotency-Key has made before."""
    draft = (await read_json(request, NewFeedback)).draft()
    work = partial(_give, draft=draft, caller=caller, idempotency_key=idempotency_key)
    feedback, made = await runtime.writer.submit_soon(work)
    response.status_code = 201 if made else 200
    if made and runtime.generations is not None:
        runtime.generations.judged(feedback, is_boolean=isinstance(draft.value, bool))
    return feedback_shape(feedback)


@router.get("")
async def list_feedback(
    runtime: TheRuntime,
    caller: Anybody,
    completion_id: str | None = None,
    route: str | None = None,
    name: str | None = None,
    user: str | None = None,
    after: str | None = None,
    limit: int = Query(20, ge=1, le=100),
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """What this key has said, newest first unless `order` says otherwise."""
    page, has_more = await asyncio.to_thread(
        runtime.feedback.list,
        caller.key_id,
        all_keys=caller.is_admin,
        completion_id=completion_id,
        route=route,
        name=name,
        user=user,
        after=after,
        limit=limit,
        newest_first=order == "desc",
    )
    return {
        "object": "list",
        "data": [feedback_shape(feedback) for feedback in page],
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": has_more,
    }


@router.get("/{feedback_id}")
async def retrieve_feedback(feedback_id: str, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    found = await asyncio.to_thread(
        runtime.feedback.get, feedback_id, caller.key_id, all_keys=caller.is_admin
    )
    if found is None:
        raise NotFound(
            f"Feedback with id '{feedback_id}' not found.", param="feedback_id", code="feedback_not_found"
        )
    return feedback_shape(found)


def _give(
    connection: Connection, draft: Draft, caller: Caller, idempotency_key: str | None
) -> tuple[Feedback, bool]:
    """The feedback and the job that it makes due: both or neither."""
    feedback, made = give(
        connection, draft, caller.key_id, all_keys=caller.is_admin, idempotency_key=idempotency_key
    )
    if made:
        maybe_enqueue(connection, feedback.route, feedback.created)
    return feedback, made
