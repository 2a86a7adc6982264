"""The client: sends streamed chat requests at their times, and takes the times of what comes back.

Each request has a connection of its own, straight on the socket and an HTTP parser, so that the client costs little
of the machine that is measured. Knows neither scenarios nor servers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httptools
import orjson

from loadtests.coserving.trace import CHAT, Ask

ANSWER_SECONDS = 120.0
"""Who has no whole answer by then, from its time on, goes, and is counted as an error."""

Body = Callable[[Ask, int], dict[str, Any]]
"""Of the ask with this number."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request met. Times are seconds; TTFT and the whole count from the time it was to be sent."""

    at_seconds: float
    late_seconds: float  # how much later than that the client sent it: the harness's own fault
    ttft_seconds: float | None
    total_seconds: float
    gaps_seconds: tuple[float, ...]
    prompt_tokens: int | None
    answer_tokens: int | None
    error: str | None


class Exchange(asyncio.Protocol):
    """One request on one connection, from its bytes to its [DONE]."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._told = b""
        self._is_whole = False
        self._read_at = 0.0
        self._transport: Any = None  # uvloop's is no subclass of asyncio.Transport
        self.error: str | None = None
        self.token_times: list[float] = []
        self.usage: dict[str, Any] = {}
        self.sent: float | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.sent = time.monotonic()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._read_at = time.monotonic()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as problem:
            self.end(f"no HTTP: {problem}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(f"the connection was closed: {exc or 'early'}")

    def on_body(self, piece: bytes) -> None:
        if self._parser.get_status_code() != 200:
            self._told += piece
            return
        *events, self._rest = (self._rest + piece).split(b"\n\n")
        brought = [self._event(event.removeprefix(b"data: ")) for event in events]
        if any(brought) and (not self.token_times or self.token_times[-1] < self._read_at):
            self.token_times.append(self._read_at)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self.end(f"{status}: {self._told[:300].decode(errors='replace')}")
        else:
            self.end(None if self._is_whole else "the stream ended without [DONE]")

    def end(self, error: str | None) -> None:
        """The first end counts."""
        if not self.ended.done():
            self.error = self.error or error
            self.ended.set_result(None)
            self._transport.close()

    def _event(self, data: bytes) -> bool:
        """Whether it is a token's: neither the role that opens the stream nor the usage that ends it."""
        if data == b"[DONE]":
            self._is_whole = True
            return False
        if not data or data.startswith(b":"):
            return False
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            self.error = "in the stream: an event that is no JSON"
            return False
        if "error" in event:
            self.error = f"in the stream: {event['error']}"
        self.usage = event.get("usage") or self.usage
        choices = event.get("choices") or ()
        return any(choice["delta"].get("content") or "role" not in choice["delta"] for choice in choices)


async def play(url: str, asks: Sequence[Ask], body: Body, begin: float) -> list[Answer]:
    """The trace from `begin` (time.monotonic's clock) to its last answer; the answers in the order of `asks`.

    Nobody waits for anybody: each is sent at its time.
    """
    requests = [_request(url, body(ask, number)) for number, ask in enumerate(asks)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_at_its_time(url, request, begin + ask.at_seconds, ask.at_seconds))
            for request, ask in zip(requests, asks, strict=True)
        ]
    return [task.result() for task in tasks]


async def saturate(url: str, asks: Sequence[Ask], body: Body, at_once: int) -> list[float]:
    """A closed loop: `at_once` callers, each of which asks again when it is answered. The times of all answers, in
    order, on time.monotonic's clock. Raises RuntimeError for one that failed."""
    waiting = iter(enumerate(asks))
    times: list[float] = []
    problems: list[str] = []

    async def caller() -> None:
        for number, ask in waiting:
            answer = await _at_its_time(url, _request(url, body(ask, number)), time.monotonic(), 0.0)
            if answer.error is not None:
                problems.append(answer.error)
            if problems:
                return
            times.append(time.monotonic())

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(caller())
    if problems:
        raise RuntimeError(f"a request of the calibration failed: {problems[0]}")
    return times


async def _at_its_time(url: str, request: bytes, due: float, at_seconds: float) -> Answer:
    await asyncio.sleep(due - time.monotonic())
    host, port = url.removeprefix("http://").split(":")
    exchange = Exchange(request)
    try:
        async with asyncio.timeout(due + ANSWER_SECONDS - time.monotonic()):
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: exchange, host, int(port)
            )
            try:
                await asyncio.wait([exchange.ended])
            finally:
                transport.abort()
    except TimeoutError:
        exchange.error = "no whole answer in time"
    except OSError as problem:
        exchange.error = f"no connection: {problem}"
    return _answer(exchange, due, at_seconds)


def _answer(exchange: Exchange, due: float, at_seconds: float) -> Answer:
    times = exchange.token_times
    return Answer(
        at_seconds=at_seconds,
        late_seconds=(exchange.sent or time.monotonic()) - due,
        ttft_seconds=times[0] - due if times else None,
        total_seconds=time.monotonic() - due,
        gaps_seconds=tuple(later - earlier for earlier, later in zip(times, times[1:], strict=False)),
        prompt_tokens=exchange.usage.get("prompt_tokens"),
        answer_tokens=exchange.usage.get("completion_tokens"),
        error=exchange.error,
    )


def _request(url: str, body: dict[str, Any]) -> bytes:
    content = orjson.dumps(body)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: {url.removeprefix('http://')}\r\ncontent-type: application/json\r\n"
        f"connection: close\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
