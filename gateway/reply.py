"""One answer to a client over ASGI: its head once, then pieces, then the end; errors in the client's API's shape.

Knows nothing of engines. Everything that `inference` says to a client goes through here, so that the server
underneath can be another one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import orjson

from adapters.errors import BurnishError
from gateway.protocol.errors import anthropic_error, error_headers, openai_error

HttpScope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
Headers = Iterable[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
EVENTS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Reply:
    """The answer to one request. `started` once its head has gone out."""

    __slots__ = ("_anthropic", "_request_id", "_send", "headers", "started")

    def __init__(self, send: Send, request_id: str, *, anthropic: bool = False) -> None:
        self._send = send
        self._request_id = request_id
        self._anthropic = anthropic
        self.headers: tuple[tuple[bytes, bytes], ...] = ()
        """What the target says of itself; goes out with the head, errors included."""
        self.started = False

    async def json(self, body: bytes, status: int = 200, headers: Headers = ()) -> None:
        """A whole answer."""
        await self._head(status, (JSON, (b"content-length", str(len(body)).encode()), *headers))
        await self._send({"type": "http.response.body", "body": body})

    async def error(self, error: BurnishError) -> None:
        """An error as the whole answer."""
        shape = anthropic_error(error, self._request_id) if self._anthropic else openai_error(error)
        await self.json(orjson.dumps(shape), error.status, error_headers(error))

    async def start_events(self, headers: Headers = ()) -> None:
        """The head of a stream."""
        await self._head(200, (*EVENTS, *headers))

    async def piece(self, data: bytes) -> None:
        """A piece of a stream; returns when the client's connection can take more."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """The last piece."""
        await self._send({"type": "http.response.body", "body": data})

    async def _head(self, status: int, headers: Headers) -> None:
        self.started = True
        tags = [(b"x-request-id", self._request_id.encode())]
        if self._anthropic:
            tags.append((b"request-id", self._request_id.encode()))
        out = [*headers, *self.headers, *tags]
        await self._send({"type": "http.response.start", "status": status, "headers": out})
