"""A client for load: sends streamed chat requests, in an open or a closed loop, and takes the times of what comes back.

Each request has a connection of its own, straight on the socket and an HTTP parser, so that the client costs little
of the machine that is measured. Knows neither what is measured with it nor servers.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httptools
import orjson

from loadtests.chat_stream import ChatStream
from loadtests.workload import CHAT, Ask

ANSWER_SECONDS = 120.0
"""Who has no whole answer by then, from its time on, goes, and is counted as an error."""

LEAST_ASKED = 8
STRETCH = 4.0
POLL_SECONDS = 0.05

REST_SECONDS = 0.2
"""Of a caller in a closed loop whose request failed: a server that refuses at once is not asked as fast as it can."""

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


@dataclass(frozen=True, slots=True)
class Loop:
    """What a closed loop has found. Times are seconds on the clock of the answers' `at_seconds`."""

    answers: tuple[Answer, ...]  # the callers' first ones too, which came before `begin`
    begin_seconds: float
    end_seconds: float


class Exchange(asyncio.Protocol):
    """One request on one connection, from its bytes to its [DONE]."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._told = b""
        self._read_at = 0.0
        self._transport: Any = None  # uvloop's is no subclass of asyncio.Transport
        self.error: str | None = None
        self.chat = ChatStream()
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
        for event in events:
            self.chat.take(event, self._read_at)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self.end(f"{status}: {self._told[:300].decode(errors='replace')}")
        else:
            self.end(self.chat.problem())

    def end(self, error: str | None) -> None:
        """The first end counts."""
        if not self.ended.done():
            self.error = self.chat.error or self.error or error
            self.ended.set_result(None)
            self._transport.close()


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


async def keep_asking(
    url: str, asks: Sequence[Ask], body: Body, at_once: int, seconds: float, warm_seconds: float
) -> Loop:
    """A closed loop of `at_once` callers over `seconds`, which begin when every caller has had an answer, and after
    `warm_seconds` at the latest: all begin together, and that burst is nothing that lasts. Where too few have asked by the
    end, as of a slow engine, it lasts until everybody might have asked once, and STRETCH times as long at most.

    The asks are gone through again and again. Who has asked within the time is answered, so that no slow one is left out.
    """
    numbered = enumerate(itertools.cycle(asks))
    answers: list[Answer] = []
    start = time.monotonic()
    waiting, asked = at_once, 0
    are_warm = asyncio.Event()
    until = float("inf")

    async def caller() -> None:
        nonlocal waiting, asked
        is_first = True
        while (now := time.monotonic()) < until:
            number, ask = next(numbered)
            asked += 1
            answer = await _at_its_time(url, _request(url, body(ask, number)), now, now - start)
            answers.append(answer)
            if is_first:
                is_first, waiting = False, waiting - 1
                if waiting == 0:
                    are_warm.set()
            if answer.error is not None:
                await asyncio.sleep(REST_SECONDS)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(caller())
        await asyncio.wait([group.create_task(are_warm.wait())], timeout=warm_seconds)
        are_warm.set()
        begin, enough = time.monotonic(), asked + max(at_once, LEAST_ASKED)
        await asyncio.sleep(seconds)
        while asked < enough and time.monotonic() < begin + STRETCH * seconds:
            await asyncio.sleep(POLL_SECONDS)
        until = time.monotonic()
    return Loop(tuple(answers), begin - start, until - start)


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
    chat = exchange.chat
    times = chat.token_times
    return Answer(
        at_seconds=at_seconds,
        late_seconds=(exchange.sent or time.monotonic()) - due,
        ttft_seconds=times[0] - due if times else None,
        total_seconds=time.monotonic() - due,
        gaps_seconds=chat.gaps_seconds,
        prompt_tokens=chat.usage.get("prompt_tokens"),
        answer_tokens=chat.usage.get("completion_tokens"),
        error=exchange.error,
    )


def _request(url: str, body: dict[str, Any]) -> bytes:
    content = orjson.dumps(body)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: {url.removeprefix('http://')}\r\ncontent-type: application/json\r\n"
        f"connection: close\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
