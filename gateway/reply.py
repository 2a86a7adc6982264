"""One answer to a client over ASGI: its head once, then pieces, then the end; errors in the client's API's shape.

Knows nothing of engines. Everything that `inference` says to a client goes through here, so that the server
underneath can be another one. What the server can do beyond ASGI is in the scope under `WIRE`, see `wire`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Protocol

import orjson

from adapters.errors import BurnishError
from gateway.protocol.errors import anthropic_error, error_headers, openai_error

HttpScope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
Headers = Iterable[tuple[bytes, bytes]]

WIRE = "burnish.wire"
"""To be taken out of the scope: with it there the request's objects hold each other in a circle."""


class Wire(Protocol):
    """What the server underneath can do beyond ASGI."""

    def when_left(self, left: Callable[[], None]) -> Callable[[], None]: ...

    def is_beneath(self, send: Send) -> bool: ...

    def body(self) -> bytes | None: ...

    def respond(self, status: int, headers: Headers, body: bytes) -> None: ...


JSON = (b"content-type", b"application/json")
EVENTS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Reply:
    """The answer to one request. `started` once its head has gone out."""

    __slots__ = ("_anthropic", "_request_id", "_send", "_wire", "headers", "started")

    def __init__(
        self, send: Send, request_id: str, *, anthropic: bool = False, wire: Wire | None = None
    ) -> None:
        self._send = send
        self._wire = wire if wire is not None and wire.is_beneath(send) else None
        self._request_id = request_id
        self._anthropic = anthropic
        self.headers: tuple[tuple[bytes, bytes], ...] = ()
        """What the target says of itself; goes out with the head, errors included."""
        self.started = False

    async def json(self, body: bytes, status: int = 200, headers: Headers = ()) -> None:
        """A whole answer."""
        head = self._head(JSON, (b"content-length", b"%d" % len(body)), *headers)
        if self._wire is not None:
            self._wire.respond(status, head, body)
            return
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        await self._send({"type": "http.response.body", "body": body})

    async def error(self, error: BurnishError) -> None:
        """An error as the whole answer."""
        shape = anthropic_error(error, self._request_id) if self._anthropic else openai_error(error)
        await self.json(orjson.dumps(shape), error.status, error_headers(error))

    async def start_events(self, headers: Headers = ()) -> None:
        """The head of a stream."""
        head = self._head(*EVENTS, *headers)
        await self._send({"type": "http.response.start", "status": 200, "headers": head})

    async def piece(self, data: bytes) -> None:
        """A piece of a stream; returns when the client's connection can take more."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """The last piece."""
        await self._send({"type": "http.response.body", "body": data})

    def _head(self, *headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        self.started = True
        request_id = self._request_id.encode()
        head = [*headers, *self.headers, (b"x-request-id", request_id)]
        if self._anthropic:
            head.append((b"request-id", request_id))
        return head
