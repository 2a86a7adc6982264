"""What a request made goes when it is over, and does not wait for Python to look for garbage."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.errors import EngineFailed
from gateway.passage import Passage
from gateway.wire import WireProtocol
from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL
from tests.unit.gateway.in_process import gateway
from tests.unit.gateway.test_tally import target

MANY = 20
ASK = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
Request = Callable[[], Awaitable[None]]
OURS = ("gateway.", "adapters.", "uvicorn.")


@pytest.fixture(params=[WireProtocol, "httptools"], ids=["our protocol", "uvicorn's own"])
async def client(
    request: pytest.FixtureRequest, engine: FakeEngine, tmp_path: Path
) -> AsyncIterator[httpx.AsyncClient]:
    """Of a gateway in this process, over a fake engine."""
    async with gateway(engine, tmp_path, request.param) as client:
        yield client


def answered(client: httpx.AsyncClient, status: int, body: dict[str, Any]) -> Request:
    async def ask() -> None:
        answer = await client.post("/v1/chat/completions", json={"model": MODEL, **ASK, **body})
        assert answer.status_code == status, answer.text

    return ask


async def left_by(ask: Request, engine: FakeEngine) -> Counter[str]:
    """Our objects that are still there, held by nobody but each other, after many such requests; by type."""
    await ask()  # what the first makes, and keeps
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        await asyncio.gather(*(ask() for _ in range(MANY)))
        await asyncio.to_thread(engine.wait_for, active=0)  # it has heard who has left
        await ask()  # on record after all of theirs, so that the writer's thread has let go of those
        gc.collect()
        types = (type(thing) for thing in gc.garbage)
        names = Counter(f"{kind.__module__}.{kind.__qualname__}" for kind in types)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    return Counter({name: count for name, count in names.items() if name.startswith(OURS) and count >= MANY})


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {}),
        (200, {"stream": True}),
        (200, {"store": False}),
        (400, {"temperature": 9}),
        (404, {"model": "nobody"}),
    ],
)
async def test_a_request_leaves_nothing_behind(
    client: httpx.AsyncClient, engine: FakeEngine, status: int, body: dict[str, Any]
) -> None:
    assert not await left_by(answered(client, status, body), engine)


async def test_a_request_that_every_engine_fails_leaves_nothing_behind(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.set(fault="refuse", fault_paths=["/v1/chat/completions"])
    assert not await left_by(answered(client, 503, {}), engine)


async def test_a_client_that_leaves_in_the_midst_leaves_nothing_behind(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.set(itl_seconds=0.01)

    async def ask() -> None:
        body = {"model": MODEL, **ASK, "max_tokens": 1000, "stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            await anext(answer.aiter_lines())

    assert not await left_by(ask, engine)


def test_a_passage_keeps_errors_without_the_frames_that_raised_them() -> None:
    passage = Passage("req_1", "/v1/chat/completions")
    support = target("support", 1)
    for keep in (passage.fail, lambda error: passage.fail_over(support, error)):
        try:
            raise EngineFailed("broken") from ValueError("why")
        except EngineFailed as error:
            keep(error)
    for kept in (passage.error, passage.failed_over_for):
        assert kept is not None
        assert kept.message == "broken"
        assert kept.__traceback__ is kept.__context__ is kept.__cause__ is None
