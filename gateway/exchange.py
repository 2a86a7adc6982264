"""One request to an engine and its answer, and the connection that carries them.

Owns the parsing of HTTP/1.1 answers (httptools), the pieces that wait to be read, the back-pressure on the wire and
how an answer can break off. Knows nothing of pools, engines or what the bytes mean.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol

import httptools

PAUSE_BYTES = 256 * 1024
"""Bytes of one answer that may wait unread before its connection stops reading."""

LINGER_SECONDS = 1.0
"""How long an answer that is complete to its reader may take to end on the wire."""


class UpstreamError(Exception):
    """The engine gave no usable answer on this connection; the message says how. Not for clients."""


class ConnectFailed(UpstreamError):
    """No connection, or not in time."""


class ConnectionClosed(UpstreamError):
    """The engine closed, or was cut off, before its answer was complete."""


class GivenUp(UpstreamError):
    """The gateway itself ended the exchange."""


class Malformed(UpstreamError):
    """What came is not HTTP."""


class DeadlinePassed(UpstreamError):
    """No byte came for longer than the request's patience."""


class Exchange:
    """One request and its answer. `status` and `headers` are there once `Pool.open` returned it."""

    __slots__ = (
        "_buffered",
        "_connection",
        "_error",
        "_loop",
        "_pieces",
        "_waiter",
        "complete",
        "headers",
        "last_byte_at",
        "patience_seconds",
        "status",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connection: Connection, patience_seconds: float
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._pieces: deque[bytes] = deque()
        self._buffered = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: UpstreamError | None = None
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.complete = False
        self.last_byte_at = loop.time()
        self.patience_seconds = patience_seconds

    async def next(self) -> bytes:
        """The bytes that have come since the last call, waiting for some; `b""` at the end.

        Raises UpstreamError when the answer broke off; what came before it has been returned.
        """
        while not self._pieces:
            if self._error is not None:
                raise self._broken()
            if self.complete:
                return b""
            await self._wait()
        data = self._pieces.popleft() if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if self._buffered > PAUSE_BYTES:
            self._connection.resume()
        self._buffered = 0
        return data

    async def read(self) -> bytes:
        """The whole body."""
        while not self.complete:
            if self._error is not None:
                raise self._broken()
            self._connection.resume()
            await self._wait()
        body = b"".join(self._pieces)
        self._pieces.clear()
        return body

    def let_go(self) -> None:
        """Nobody reads on, but the end is near: the connection is kept if the end comes soon, cut if it does not."""
        self._pieces.clear()
        self._connection.resume()
        self.patience_seconds = LINGER_SECONDS

    def close(self) -> None:
        """Done with this exchange; cuts the connection (and so the engine's work) if unfinished."""
        if not self.complete:
            self.fail(GivenUp("closed by the gateway"))

    def fail(self, error: UpstreamError) -> None:
        """Ends the exchange with an error and cuts its connection. Nothing happens to a complete one."""
        if self.complete or self._error is not None:
            return
        self._error = error
        self._connection.abort()
        self.wake()

    async def head(self) -> None:
        """Returns when status and headers have come."""
        while not self.status:
            if self._error is not None:
                raise self._broken()
            await self._wait()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def take(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._buffered += len(piece)
        if self._buffered > PAUSE_BYTES:
            self._connection.pause()

    def _broken(self) -> UpstreamError:
        """Its error, anew each time: one that has been raised holds the frames that it went through, and they hold this."""
        assert self._error is not None
        return type(self._error)(*self._error.args)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class Owner(Protocol):
    """Whoever dials connections: is told when one can be used again, and when one is gone."""

    loop: asyncio.AbstractEventLoop
    active: set[Exchange]

    def keep(self, connection: Connection) -> None: ...

    def forget(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """One connection: parses one answer after another into the exchange that asked for it."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._paused = False
        self._headers: dict[bytes, bytes] = {}
        self._interim = False
        self._keep_alive = False
        self.exchange: Exchange | None = None
        self.used = False

    # -- asyncio ---------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:  # nobody asked: the engine speaks out of turn
            self.abort()
            return
        exchange.last_byte_at = self._owner.loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            exchange.fail(Malformed(f"not HTTP: {error}"))
        exchange.wake()
        if exchange.complete:
            self._release()

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self.exchange = self.exchange, None
        self._parser = None  # it has this for its callbacks: they would hold each other
        self._owner.forget(self)
        if exchange is None:
            return
        self._owner.active.discard(exchange)
        until_close = (
            b"content-length" not in exchange.headers and b"transfer-encoding" not in exchange.headers
        )
        if exc is None and exchange.status and until_close:
            exchange.complete = True  # HTTP/1.0 style: the close is the end
            exchange.wake()
        else:
            exchange.fail(ConnectionClosed("the engine closed the connection before its answer was complete"))

    # -- httptools -------------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._interim = status < 200
        if not self._interim and self.exchange is not None:
            self.exchange.status = status
            self.exchange.headers = self._headers

    def on_body(self, piece: bytes) -> None:
        if self.exchange is not None:
            self.exchange.take(piece)

    def on_message_complete(self) -> None:
        # The parser forgets keep-alive once this callback has returned.
        if not self._interim and self.exchange is not None:
            self._keep_alive = self._parser.should_keep_alive()
            self.exchange.complete = True

    # -- the pool's side -------------------------------------------------------------------------
    def send(self, exchange: Exchange, data: bytes) -> None:
        self.exchange = exchange
        self._parser = httptools.HttpResponseParser(self)
        assert self._transport is not None
        self._transport.write(data)

    def pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def _release(self) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            self._owner.active.discard(exchange)
        self.used = True
        if self._keep_alive and self.is_open():
            self.resume()
            self._owner.keep(self)
        else:
            self.abort()
