"""The load: keep-alive connections to one relay that ask again as soon as they are answered, and what they ask.

Counts answers and events. Knows nothing of processes and CPU.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httptools
import orjson

CHAT = "/v1/chat/completions"
MODEL, ENGINE_MODEL = "bench", "bench-at-the-engine"
JSON_HEADERS = {"content-type": "application/json"}
CONNECTIONS = 32
SLICE_SECONDS = 4.0
"""A slow relay is not asked all its requests: CPU time is divided by those it has answered."""


@dataclass
class Slice:
    """What one slice of load has seen."""

    left: int
    """Requests that have not been asked yet."""
    until: float
    busy: int = 0
    answered: int = 0
    events: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> bool:
        """Whether one more request is to be asked."""
        if self.left == 0 or time.monotonic() > self.until:
            return False
        self.left -= 1
        return True


class Caller(asyncio.Protocol):
    """One keep-alive connection; during a slice it asks again as soon as it has been answered."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._slice: Slice | None = None
        self.failure: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # uvloop's is no subclass of asyncio.Transport

    def begin(self, body: bytes, part: Slice) -> None:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        self._request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        self._slice = part
        part.busy += 1
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        problem = f"{self._url} closed a connection of the load's: {exc}"
        if self._slice is not None:
            self._end(problem)
        self.failure = problem

    def on_body(self, piece: bytes) -> None:
        if self._slice is not None:
            self._slice.events += piece.count(b"\n\n")

    def on_message_complete(self) -> None:
        assert self._slice is not None
        self._slice.answered += 1
        if (status := self._parser.get_status_code()) != 200:
            self._end(f"{self._url} answered {status}")
        else:
            self._ask()

    def _ask(self) -> None:
        assert self._slice is not None
        if self.failure is not None:
            self._end(self.failure)
        elif self._slice.take():
            self._parser = httptools.HttpResponseParser(self)
            self._transport.write(self._request)
        else:
            self._end(None)

    def _end(self, failure: str | None) -> None:
        part, self._slice = self._slice, None
        assert part is not None
        self.failure = failure
        part.busy -= 1
        if part.busy == 0:
            part.ended.set()


@asynccontextmanager
async def connections(url: str) -> AsyncIterator[list[Caller]]:
    """The load's connections to one relay, open for as long as the block runs."""
    loop = asyncio.get_running_loop()
    host, port = url.removeprefix("http://").split(":")
    opened = [await loop.create_connection(lambda: Caller(url), host, int(port)) for _ in range(CONNECTIONS)]
    try:
        yield [caller for _, caller in opened]
    finally:
        for transport, _ in opened:
            transport.close()


async def ask(callers: list[Caller], body: bytes, requests: int) -> Slice:
    """Asks `requests` times over all the connections, and waits for every answer. Raises RuntimeError for a bad one."""
    part = Slice(left=requests, until=time.monotonic() + SLICE_SECONDS)
    for caller in callers:
        caller.begin(body, part)
    await part.ended.wait()
    for failure in filter(None, (caller.failure for caller in callers)):
        raise RuntimeError(failure)
    return part


def request_body(model: str, tokens: int, *, streams: bool) -> bytes:
    """A chat request of about 0.6 kB."""
    text = "Explain to somebody who has never written software what a gateway does. " * 6
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}]}
    body |= {"max_tokens": tokens, "temperature": 0.7}
    if streams:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return orjson.dumps(body)
