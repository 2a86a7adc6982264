"""/v1/batches: OpenAI's batches, from an uploaded file. /v1/batch: many requests in one, answered together.

Owns the HTTP surface. A key sees the batches that it made; an admin's key sees all. How a batch looks is
`gateway.batch_shapes`' affair, and `gateway.batch_runner` does the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

import orjson
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from adapters.errors import InvalidRequest, NotFound
from adapters.files import Purpose
from adapters.jobs import Job
from gateway.access import Caller
from gateway.admin import refuse_foreign_pages
from gateway.admin.bodies import Body, BoundedRoute
from gateway.admin.changes import actor
from gateway.admission import Evicted
from gateway.batch_input import BATCH_ENDPOINTS, window_seconds
from gateway.batch_shapes import batch_shape
from gateway.batch_work import MAX_EVICTIONS
from gateway.deps import Anybody, TheRuntime
from gateway.endpoints import ENDPOINTS, Endpoint
from gateway.files import ExpiresAfter
from gateway.multipart import pieces
from gateway.presence import ClientGone
from gateway.protocol import checks
from gateway.protocol.errors import openai_error
from gateway.runtime import Runtime
from gateway.shapes import page
from gateway.traffic import Traffic
from gateway.visit import Answered

OWNER = "batch"
"""Who shares the places of batch lines with others where no keys are in use."""

guarded = [Depends(refuse_foreign_pages)]
router = APIRouter(prefix="/v1/batches", tags=["batches"], dependencies=guarded, route_class=BoundedRoute)
list_router = APIRouter(prefix="/v1/batch", tags=["batches"], dependencies=guarded)


class NewBatch(Body):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


# -- batches ---------------------------------------------------------------------------------------
@router.post("")
async def create_batch(body: NewBatch, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    """A new batch: its file is looked through in the background, then its lines are asked as there is room."""
    checks.one_of("endpoint", body.endpoint, BATCH_ENDPOINTS)
    seconds = window_seconds(body.completion_window)
    metadata = checks.plain_metadata(body.metadata)
    job = await asyncio.to_thread(_created, runtime, body, seconds, metadata, caller)
    runtime.batch_runner.wake.set()
    return batch_shape(job)


@router.get("")
async def list_batches(
    runtime: TheRuntime,
    caller: Anybody,
    after: str | None = None,
    limit: int = Query(20, ge=1, le=100),
) -> dict[str, Any]:
    """The caller's batches, newest first."""
    jobs, has_more = await asyncio.to_thread(
        runtime.batches.list, caller.key_id, all_keys=caller.is_admin, after=after, limit=limit
    )
    return page([batch_shape(job) for job in jobs], has_more)


@router.get("/{batch_id}")
async def retrieve_batch(batch_id: str, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    return batch_shape(await asyncio.to_thread(runtime.batches.get, batch_id, caller.key_id, caller.is_admin))


@router.post("/{batch_id}/cancel")
async def cancel_batch(batch_id: str, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    """Ends a batch; the lines that were answered by then are in its files."""
    job = await asyncio.to_thread(
        runtime.batches.cancel, batch_id, actor(caller), caller.key_id, caller.is_admin
    )
    runtime.batch_runner.wake.set()
    return batch_shape(job)


def _created(runtime: Runtime, body: NewBatch, seconds: int, metadata: dict[str, str], caller: Caller) -> Job:
    _check_input(runtime, body.input_file_id, caller)
    kept = body.output_expires_after
    return runtime.batches.create(
        input_file=body.input_file_id,
        endpoint=body.endpoint,
        window=body.completion_window,
        window_seconds=seconds,
        metadata=metadata,
        key_id=caller.key_id,
        output_seconds=None if kept is None else kept.seconds,
    )


def _check_input(runtime: Runtime, id: str, caller: Caller) -> None:
    """Raises InvalidRequest for a file that the caller has not, that is for something else, or too large."""
    try:
        file = runtime.files.get(id, caller.key_id, caller.is_admin)
    except NotFound:
        raise InvalidRequest(
            f"There is no file '{id}'.", param="input_file_id", code="invalid_input_file"
        ) from None
    if file.purpose is not Purpose.BATCH:
        raise InvalidRequest(
            f"File '{id}' has the purpose '{file.purpose.value}', not 'batch'.",
            param="input_file_id",
            code="invalid_input_file",
        )
    most = runtime.settings.batches.max_file_bytes
    if file.size_bytes > most:
        raise checks.too_large("input_file_id", "a file in bytes", most, file.size_bytes)


# -- many requests in one --------------------------------------------------------------------------
@list_router.post("")
async def answer_list(request: Request, runtime: TheRuntime, caller: Anybody) -> Response:
    """Answers every request of a list, in its order, whatever some of them fail with."""
    raw = b"".join([piece async for piece in pieces(request, runtime.settings.limits.max_body_bytes)])
    endpoint, items = _requests(raw, runtime.settings.batches.max_list)
    del raw
    asked = [_item(runtime, caller, endpoint, index, item) for index, item in enumerate(items)]
    answers = await _while_present(request, asked)
    return Response(b'{"object":"list","data":[' + b",".join(answers) + b"]}", media_type="application/json")


def _requests(raw: bytes, most: int) -> tuple[Endpoint, list[Any]]:
    """What is asked, and where. Raises InvalidRequest."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not JSON: {error.msg}.", code="invalid_json") from None
    asked = {"requests": body} if isinstance(body, list) else body
    if not isinstance(asked, dict):
        raise InvalidRequest(
            "The body must be an array of requests, or an object with 'requests'.", code="invalid_json"
        )
    for name in asked.keys() - {"requests", "endpoint"}:
        raise checks.unsupported(name, f"Unknown parameter: '{name}'.")
    path = asked.get("endpoint", BATCH_ENDPOINTS[0])
    checks.one_of("endpoint", path, BATCH_ENDPOINTS)
    return ENDPOINTS[path], _checked_list(asked.get("requests"), most)


def _checked_list(items: object, most: int) -> list[Any]:
    if items is None:
        raise checks.missing("requests")
    if not isinstance(items, list):
        raise checks.wrong_type("requests", "an array", items)
    if not items:
        raise InvalidRequest("Invalid 'requests': empty array.", param="requests", code="empty_array")
    if len(items) > most:
        raise checks.too_large("requests", "an array", most, len(items))
    return items


async def _while_present(request: Request, asked: Iterable[Coroutine[Any, Any, bytes]]) -> list[bytes]:
    """What all of them come to, in their order; all end, and with them the engines' work, when the client leaves."""
    answers: list[bytes] = []
    try:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_until_gone(request))
            tasks = []
            for one in asked:
                tasks.append(group.create_task(one))
                await asyncio.sleep(0)  # so that what else waits for the loop goes in between their parsing
            answers = [await task for task in tasks]
            watch.cancel()
    except* ClientGone:
        pass  # whatever is answered now, nobody reads it
    return answers


async def _until_gone(request: Request) -> None:
    """Raises ClientGone. The whole body has come, so that nothing else can be received."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    raise ClientGone


async def _item(runtime: Runtime, caller: Caller, endpoint: Endpoint, index: int, item: object) -> bytes:
    """One entry of the answer. Its body is the answer's, byte for byte."""
    try:
        answered = await _ask(runtime, caller, endpoint, _raw(item))
        status, body = answered.status, answered.body
    except InvalidRequest as error:
        status, body = error.status, orjson.dumps(openai_error(error))
    return b'{"index":%d,"status_code":%d,"body":%b}' % (index, status, body)


def _raw(item: object) -> bytes:
    """The body of one request. Raises InvalidRequest for what can be none."""
    if not isinstance(item, dict):
        raise InvalidRequest(
            f"A request must be an object, but got {checks.json_name(item)} instead.", code="invalid_type"
        )
    if item.get("stream") is True:
        raise checks.unsupported("stream", "'stream' is not supported here: all answers come together.")
    try:
        return orjson.dumps(item)
    except orjson.JSONEncodeError:
        raise InvalidRequest("The request is nested too deeply.", code="invalid_json") from None


async def _ask(runtime: Runtime, caller: Caller, endpoint: Endpoint, raw: bytes) -> Answered:
    evictions = 0
    while True:
        try:
            return await runtime.inference.ask(
                endpoint,
                raw,
                caller=caller,
                traffic=Traffic.BATCH,
                owner=caller.key_id or OWNER,
                may_be_evicted=evictions < MAX_EVICTIONS,
            )
        except Evicted:  # a person needed its place
            evictions += 1
