"""The connections to one engine: dialled, kept alive, reused, given up when silent.

Takes a request as bytes and returns its exchange. Knows nothing of models, routes, SSE, or of the web framework on
the other side. (docs/log.md has the measurements that rejected httpx and aiohttp here.)
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from gateway.exchange import ConnectFailed, Connection, ConnectionClosed, DeadlinePassed, Exchange, GivenUp

IDLE_CONNECTIONS = 256
"""Connections kept open for reuse, per engine."""

TICK_SECONDS = 0.1
"""How often silence is measured: one timer an engine, not one a request."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine listens: `host` and `port`, or the path of a Unix socket."""

    host: str
    port: int
    uds: str | None
    tls: bool
    prefix: str
    """Path before `/v1`, without a trailing slash: an engine at `https://host/api` has `/api`."""

    @staticmethod
    def parse(url: str) -> Address:
        """From `http://…`, `https://…` or `unix:///path.sock`; a trailing `/v1` is dropped."""
        parts = urlsplit(url)
        if parts.scheme == "unix":
            return Address("localhost", 0, parts.path, False, "")
        tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return Address(parts.hostname or "localhost", parts.port or (443 if tls else 80), None, tls, prefix)

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.uds or self.port in (80, 443) else f"{host}:{self.port}"


class Pool:
    """The connections to one engine. Lives on one event loop."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        connect_timeout_seconds: float = 2.0,
    ) -> None:
        self.address = Address.parse(url)
        self.loop = asyncio.get_running_loop()
        self.active: set[Exchange] = set()
        self._idle: list[Connection] = []
        self._ticker = self.loop.call_later(TICK_SECONDS, self._tick)
        self._connect_timeout_seconds = connect_timeout_seconds
        self._ssl = ssl.create_default_context() if self.address.tls else None
        authorization = f"authorization: Bearer {api_key}\r\n" if api_key else ""
        self._fixed = (
            f" HTTP/1.1\r\nhost: {self.address.authority}\r\n{authorization}"
            "accept-encoding: identity\r\ncontent-type: application/json\r\ncontent-length: "
        ).encode("latin-1")
        self._prefix = self.address.prefix.encode("latin-1")

    async def open(
        self,
        path: bytes,
        body: bytes,
        *,
        headers: bytes = b"",
        patience_seconds: float,
        method: bytes = b"POST",
        begun: Callable[[Exchange], None] = lambda exchange: None,
    ) -> Exchange:
        """Sends a request and returns its exchange once the answer's head is there.

        `begun` is told of the exchange as soon as the request is out, so that somebody else can close it.
        `headers` are whole lines, each ending in CRLF. `patience_seconds` is the longest silence: before the
        first byte, and then between any two. Raises UpstreamError. A reused connection that the engine had
        closed already is replaced by another without the caller's notice.
        """
        request = b"".join(
            (
                method,
                b" ",
                self._prefix,
                path,
                self._fixed,
                str(len(body)).encode(),
                b"\r\n",
                headers,
                b"\r\n",
                body,
            )
        )
        while True:
            connection = self._take_idle() or await self._connect()
            reused = connection.used
            exchange = Exchange(self.loop, connection, patience_seconds)
            self.active.add(exchange)
            connection.send(exchange, request)
            begun(exchange)
            try:
                await exchange.head()
                return exchange
            except ConnectionClosed:
                if not reused:
                    raise
            except BaseException:
                exchange.close()
                raise

    def abort_silent(self, since: float, reason: str) -> None:
        """Ends every exchange that has had no byte since the loop time `since`."""
        for exchange in [e for e in self.active if e.last_byte_at <= since]:
            exchange.fail(GivenUp(reason))

    def close(self) -> None:
        """Cuts every connection."""
        self._ticker.cancel()
        self.abort_silent(float("inf"), "the gateway is stopping")
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    def keep(self, connection: Connection) -> None:
        if len(self._idle) < IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.abort()

    def forget(self, connection: Connection) -> None:
        if connection.used and connection in self._idle:
            self._idle.remove(connection)

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()  # the one used last is the one most surely alive
            if connection.is_open():
                return connection
        return None

    async def _connect(self) -> Connection:
        address = self.address
        try:
            async with asyncio.timeout(self._connect_timeout_seconds):
                if address.uds:
                    _, connection = await self.loop.create_unix_connection(
                        lambda: Connection(self), address.uds
                    )
                else:
                    _, connection = await self.loop.create_connection(
                        lambda: Connection(self), address.host, address.port, ssl=self._ssl
                    )
        except (OSError, TimeoutError) as error:
            raise ConnectFailed(f"no connection: {str(error) or 'timed out'}") from error
        return connection

    def _tick(self) -> None:
        now = self.loop.time()
        for exchange in [e for e in self.active if now - e.last_byte_at > e.patience_seconds]:
            exchange.fail(DeadlinePassed("the engine was silent for too long"))
        self._ticker = self.loop.call_later(TICK_SECONDS, self._tick)
