"""What the server does beyond ASGI: a whole answer in one piece, the body at once, word of a client that leaves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from gateway.reply import WIRE, HttpScope, Receive, Send
from gateway.wire import Wire
from loadtests.fake_engine.process import FakeEngine
from tests.unit.gateway.in_process import gateway, serving

ASK = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi"


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Status line, headers and body of the next answer."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in head[1:] if line)
    return head[0], headers, await reader.readexactly(int(headers[b"content-length"]))


def wire_of(scope: HttpScope) -> Wire:
    wire = scope[WIRE]
    assert isinstance(wire, Wire)
    return wire


async def echo(scope: HttpScope, receive: Receive, send: Send) -> None:
    body = wire_of(scope).body()
    while body is None or len(body) < int(dict(scope["headers"])[b"content-length"]):
        body = (body or b"") + (await receive())["body"]
    headers = [(b"content-length", b"%d" % len(body)), (b"x-told", b"yes")]
    wire_of(scope).respond(200, headers, body)


async def test_a_connection_carries_one_whole_answer_after_another() -> None:
    async with serving(echo) as port:
        reader, writer = await connect(port)
        for _ in range(3):
            writer.write(ASK)
            status, headers, body = await answer(reader)
            assert (status, body) == (b"HTTP/1.1 200 OK", b"hi")
            assert headers[b"x-told"] == b"yes"
            assert b"date" in headers
            assert b"connection" not in headers
        writer.close()


async def test_questions_that_come_at_once_are_answered_in_their_order() -> None:
    async with serving(echo) as port:
        reader, writer = await connect(port)
        writer.write(b"".join(ASK.replace(b"hi", b"%02d" % number) for number in range(10)))
        assert [(await answer(reader))[2] for _ in range(10)] == [b"%02d" % number for number in range(10)]
        writer.close()


async def test_who_does_not_keep_the_connection_has_it_closed() -> None:
    async with serving(echo) as port:
        for ask in (ASK.replace(b"1.1", b"1.0"), ASK.replace(b"host: x", b"connection: close")):
            reader, writer = await connect(port)
            writer.write(ask)
            _, headers, body = await answer(reader)
            assert (headers[b"connection"], body) == (b"close", b"hi")
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()


async def test_a_body_that_is_still_to_come_is_received() -> None:
    async with serving(echo) as port:
        reader, writer = await connect(port)
        size = 300_000  # more than uvicorn reads ahead
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        await asyncio.sleep(0.05)
        writer.write(b"y" * size)
        assert (await answer(reader))[2] == b"y" * size
        writer.close()


async def test_who_waits_to_be_told_to_go_on_is_told() -> None:
    async with serving(echo) as port:
        reader, writer = await connect(port)
        writer.write(ASK.removesuffix(b"hi").replace(b"host: x", b"host: x\r\nexpect: 100-continue"))
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hi")
        assert (await answer(reader))[2] == b"hi"
        writer.close()


async def test_a_header_cannot_begin_another() -> None:
    raised: list[str] = []

    async def split(scope: HttpScope, receive: Receive, send: Send) -> None:
        for value in (b"a\r\nx-evil: 1", b"a\nx-evil: 1", b"a\rx-evil: 1"):
            try:
                wire_of(scope).respond(200, [(b"content-length", b"0"), (b"x-told", value)], b"")
            except RuntimeError as error:
                raised.append(str(error))
        await echo(scope, receive, send)

    async with serving(split) as port:
        reader, writer = await connect(port)
        writer.write(ASK)
        _, headers, _ = await answer(reader)
        assert b"x-evil" not in headers
        assert len(raised) == 3
        writer.close()


async def test_a_client_that_leaves_is_told_once_and_not_to_those_who_have_forgotten_it() -> None:
    told: list[str] = []
    arrived, leave = asyncio.Event(), asyncio.Event()

    async def waits(scope: HttpScope, receive: Receive, send: Send) -> None:
        wire = wire_of(scope)
        wire.body()
        wire.when_left(lambda: told.append("forgotten"))()
        wire.when_left(lambda: told.append("left"))
        arrived.set()
        await leave.wait()
        wire.when_left(lambda: told.append("late"))
        wire.respond(200, [(b"content-length", b"0")], b"")

    async with serving(waits) as port:
        _, writer = await connect(port)
        writer.write(ASK)
        await arrived.wait()
        assert not told
        writer.close()
        async with asyncio.timeout(5):
            while not told:
                await asyncio.sleep(0.01)
        leave.set()
        await asyncio.sleep(0.05)
    assert told == ["left", "late"]


async def test_an_answer_given_here_would_pass_by_what_is_wrapped_around_send() -> None:
    found: list[Any] = []

    async def looks(scope: HttpScope, receive: Receive, send: Send) -> None:
        async def wrapped(message: Any) -> None:
            await send(message)

        found.extend((wire_of(scope).is_beneath(send), wire_of(scope).is_beneath(wrapped)))
        await echo(scope, receive, send)

    async with serving(looks) as port:
        reader, writer = await connect(port)
        writer.write(ASK)
        await answer(reader)
        writer.close()
    assert found == [True, False]


async def test_an_answer_to_another_origin_says_that_it_may_be_read(
    engine: FakeEngine, tmp_path: Path
) -> None:
    origin = "https://app.example"
    body = {"model": engine.model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    async with gateway(engine, tmp_path, cors_origins=(origin,)) as client:
        asked = await client.post("/v1/chat/completions", json=body, headers={"origin": origin})
    assert asked.json()["choices"]
    assert asked.headers["access-control-allow-origin"] == origin
