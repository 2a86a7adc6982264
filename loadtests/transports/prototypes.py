"""The least that a relay must do, on two servers and with two clients; one process runs one pair of them.

    python -m loadtests.transports.prototypes fastapi httpx http://127.0.0.1:9000

They check nothing, survive nothing and are for measuring only. Knows neither the load nor the figures.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import httpx
import orjson
import uvicorn
import uvloop
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from loadtests.transports.load import CHAT, ENGINE_MODEL, JSON_HEADERS

KEEP_ALIVE_SECONDS = 75
"""Longer than the turns of the others, so that nobody dials anew in the middle of a slice."""

Ask = Callable[[bytes], AsyncIterator[bytes]]
"""A client: from a request's body to the bytes of its answer, as they come."""
Message = MutableMapping[str, Any]
App = Callable[[Any, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


def httpx_client(url: str) -> Ask:
    limits = httpx.Limits(keepalive_expiry=KEEP_ALIVE_SECONDS)
    client = httpx.AsyncClient(limits=limits, timeout=60, trust_env=False)

    async def ask(body: bytes) -> AsyncIterator[bytes]:
        async with client.stream("POST", url, content=body, headers=JSON_HEADERS) as answer:
            answer.raise_for_status()
            async for piece in answer.aiter_raw():
                yield piece

    return ask


def aiohttp_client(url: str) -> Ask:
    import aiohttp  # not among our dependencies: its rows are left out where it is not installed

    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
    session = aiohttp.ClientSession(connector=connector, auto_decompress=False)

    async def ask(body: bytes) -> AsyncIterator[bytes]:
        async with session.post(url, data=body, headers=JSON_HEADERS) as answer:
            answer.raise_for_status()
            async for piece in answer.content.iter_any():
                yield piece

    return ask


def fastapi_server(ask: Ask) -> App:
    app = FastAPI()

    @app.post(CHAT)
    async def chat(request: Request) -> Response:
        body, streams = rewritten(await request.body())
        if streams:
            return StreamingResponse(with_usage_read(ask(body)), media_type="text/event-stream")
        return Response(await whole(ask(body)), media_type="application/json")

    return app


def asgi_server(ask: Ask) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        pieces = []
        while True:
            message = await receive()
            pieces.append(message["body"])
            if not message.get("more_body"):
                break
        body, streams = rewritten(b"".join(pieces))
        kind = b"text/event-stream" if streams else b"application/json"
        headers = [(b"content-type", kind)]
        if streams:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for piece in with_usage_read(ask(body)):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        else:
            answer = await whole(ask(body))
            headers.append((b"content-length", str(len(answer)).encode()))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": answer})

    return app


def rewritten(raw: bytes) -> tuple[bytes, bool]:
    """The body for the engine, and whether its answer streams."""
    body = orjson.loads(raw)
    body["model"] = ENGINE_MODEL
    return orjson.dumps(body), body.get("stream") is True


async def whole(pieces: AsyncIterator[bytes]) -> bytes:
    """The answer, once its usage has been read."""
    answer = b"".join([piece async for piece in pieces])
    assert orjson.loads(answer)["usage"]["completion_tokens"]
    return answer


async def with_usage_read(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces as they are, parsing the one event that says the usage."""
    async for piece in pieces:
        if b'"usage":{' in piece:
            event = piece[piece.rindex(b"data: {") + 6 :].partition(b"\n")[0]
            assert orjson.loads(event)["usage"]["completion_tokens"]
        yield piece


SERVERS = {"fastapi": fastapi_server, "asgi": asgi_server}
CLIENTS = {"httpx": httpx_client, "aiohttp": aiohttp_client}


async def run_prototype(server: str, client: str, upstream: str) -> None:
    """One prototype as this process: says its port in one line of JSON, ends when standard input does."""
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    app = SERVERS[server](CLIENTS[client](upstream + CHAT))
    config = uvicorn.Config(
        app,
        http="httptools",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    uvloop.run(run_prototype(*sys.argv[1:]))
