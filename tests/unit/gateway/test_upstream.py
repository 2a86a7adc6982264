"""The client of one engine: connections are reused, deadlines kept, and what breaks off says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.exchange import (
    PAUSE_BYTES,
    ConnectFailed,
    ConnectionClosed,
    DeadlinePassed,
    Exchange,
    GivenUp,
    Malformed,
)
from gateway.upstream import Address, Pool
from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, free_port

CHAT = b"/v1/chat/completions"


def body(**fields: Any) -> bytes:
    return orjson.dumps(
        {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, **fields}
    )


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeEngine]:
    with FakeEngine(MODEL) as engine:
        yield engine


@pytest.fixture
def engine(fake: FakeEngine) -> FakeEngine:
    fake.reset()
    return fake


@pytest.fixture
async def pool(engine: FakeEngine) -> AsyncIterator[Pool]:
    made = Pool(engine.url, connect_timeout_seconds=1)
    yield made
    made.close()


async def ask(pool: Pool, patience_seconds: float = 10, **fields: Any) -> Exchange:
    return await pool.open(CHAT, body(**fields), patience_seconds=patience_seconds)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://host:81/v1", Address("host", 81, None, False, "")),
        ("https://host/api/v1/", Address("host", 443, None, True, "/api")),
        ("unix:///run/e.sock", Address("localhost", 0, "/run/e.sock", False, "")),
    ],
)
def test_an_engines_url_may_end_in_v1_or_name_a_socket(url: str, address: Address) -> None:
    assert Address.parse(url) == address


async def test_a_connection_serves_one_request_after_another(pool: Pool, engine: FakeEngine) -> None:
    before = engine.stats()["connections"]
    for _ in range(5):
        exchange = await ask(pool)
        assert exchange.status == 200
        assert orjson.loads(await exchange.read())["model"] == MODEL
    assert engine.stats()["connections"] - before == 1


async def test_a_stream_that_was_read_to_its_done_gives_its_connection_back(
    pool: Pool, engine: FakeEngine
) -> None:
    before = engine.stats()["connections"]
    for _ in range(3):
        exchange, read = await ask(pool, stream=True), b""
        while b"[DONE]" not in read:
            read += await exchange.next()
        exchange.let_go()
        await asyncio.sleep(0.05)
    assert engine.stats()["connections"] - before == 1
    assert engine.stats()["aborted"] == 0


async def test_a_unix_socket_serves_as_well(tmp_path: Path) -> None:
    with FakeEngine(MODEL, uds=tmp_path / "e.sock") as engine:
        pool = Pool(engine.url)
        exchange = await ask(pool)
        assert orjson.loads(await exchange.read())["choices"]
        pool.close()


async def test_a_connection_that_the_engine_has_closed_meanwhile_is_replaced(
    pool: Pool, engine: FakeEngine
) -> None:
    await (await ask(pool)).read()
    engine.restart()
    assert (await ask(pool)).status == 200


async def test_nobody_listening_is_said_so() -> None:
    pool = Pool(f"http://127.0.0.1:{free_port()}", connect_timeout_seconds=1)
    with pytest.raises(ConnectFailed):
        await ask(pool)
    pool.close()


@pytest.mark.parametrize(
    ("fault", "error"),
    [("close_before_headers", ConnectionClosed), ("garbage_http", Malformed), ("hang", DeadlinePassed)],
)
async def test_no_answer_is_said_so(
    pool: Pool, engine: FakeEngine, fault: str, error: type[Exception]
) -> None:
    engine.set(fault=fault)
    with pytest.raises(error):
        await ask(pool, patience_seconds=0.3)
    assert not pool.active


@pytest.mark.parametrize(
    ("fault", "error"), [("close_mid_stream", ConnectionClosed), ("hang_mid_stream", DeadlinePassed)]
)
async def test_an_answer_that_breaks_off_gives_what_came_and_then_the_error(
    pool: Pool, engine: FakeEngine, fault: str, error: type[Exception]
) -> None:
    engine.set(fault=fault, fault_after=2)
    exchange = await ask(pool, patience_seconds=0.5, stream=True)
    read = b""
    with pytest.raises(error):
        while True:
            read += await exchange.next()
    assert read.count(b"data: ") == 2


async def test_closing_an_exchange_stops_the_engines_work(pool: Pool, engine: FakeEngine) -> None:
    engine.set(itl_seconds=0.05)
    exchange = await ask(pool, stream=True, max_tokens=1000)
    await exchange.next()
    exchange.close()
    with pytest.raises(GivenUp):
        while True:
            await exchange.next()
    await asyncio.to_thread(engine.wait_for, 2.0, aborted=1, active=0)


async def test_a_request_can_be_closed_before_its_answer_begins(pool: Pool, engine: FakeEngine) -> None:
    engine.set(fault="hang")
    begun: list[Exchange] = []
    opening = asyncio.create_task(pool.open(CHAT, body(), patience_seconds=60, begun=begun.append))
    while not begun:
        await asyncio.sleep(0.01)
    begun[0].close()
    with pytest.raises(GivenUp):
        await opening


async def test_silence_is_measured_and_the_silent_are_given_up(pool: Pool, engine: FakeEngine) -> None:
    engine.set(fault="hang", fault_count=1)
    silent = asyncio.create_task(ask(pool))
    while not pool.active:
        await asyncio.sleep(0.01)
    since = asyncio.get_running_loop().time()
    engine.set(itl_seconds=0.01)
    speaking = await ask(pool, stream=True, max_tokens=500)
    await speaking.next()
    pool.abort_silent(since, "it does not answer")
    with pytest.raises(GivenUp):
        await silent
    assert await speaking.next()


async def test_an_unread_answer_stops_being_read_from_the_wire() -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
        with pytest.raises((ConnectionError, asyncio.CancelledError)):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536

    server = await asyncio.start_server(pour, "127.0.0.1", 0)
    pool = Pool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    exchange = await pool.open(b"/", b"", patience_seconds=10)
    await asyncio.sleep(0.5)
    stuck = sent
    await asyncio.sleep(0.3)
    assert sent == stuck < 50_000_000
    assert len(await exchange.next()) >= PAUSE_BYTES
    for _ in range(20):
        await exchange.next()
    assert sent > stuck
    pool.close()
    server.close()
