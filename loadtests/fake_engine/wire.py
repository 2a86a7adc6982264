"""HTTP/1.1 on a socket: requests parsed, answers written, keep-alive, and word of a client that leaves.

One `Connection` a socket; it is also the means to answer the request in hand. Requests that a client
pipelines wait their turn. Knows nothing of what is asked or said.
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import httptools

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    """Without its query."""
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    keep_alive: bool


Handler = Callable[[Request, "Connection"], Coroutine[Any, Any, None] | None]


class Connection(asyncio.Protocol):
    """Hands each request to `handle`, which answers at once or returns a coroutine that will.

    That coroutine is cancelled when the client closes its side.
    """

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._request: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._resumed: asyncio.Future[None] | None = None
        self._clear()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # uvloop's is no subclass of asyncio.Transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserCallbackError as error:  # `handle` raised
            traceback.print_exception(error, file=sys.stderr)
            self.respond(500, b"Internal Server Error", "text/plain; charset=utf-8")
            self.close()
        except httptools.HttpParserError:
            self.send_head(400, "text/plain; charset=utf-8", 30)
            self.write(b"Invalid HTTP request received.")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.clear()
        self.resume_writing()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._resumed = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        self._resumed = None

    # What the parser calls.

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        request = Request(
            method=self._parser.get_method().decode(),
            path=self._url.partition(b"?")[0].decode("latin-1"),
            headers=self._headers,
            body=b"".join(self._body),
            keep_alive=self._parser.should_keep_alive(),  # true for ever if it is read any later
        )
        self._clear()
        if self._request is None:
            self._begin(request)
        else:
            self._waiting.append(request)

    # What answers a request.

    def respond(self, status: int, body: bytes, content_type: str | None = JSON) -> None:
        """A whole answer."""
        self.write(head(status, content_type, len(body)) + body)
        self._finish()

    def send_head(self, status: int, content_type: str | None, length: int | None) -> None:
        """The head alone; length None means chunked."""
        self.write(head(status, content_type, length))

    def send_chunk(self, data: bytes) -> None:
        """One HTTP chunk."""
        self.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end_chunks(self) -> None:
        self.write(b"0\r\n\r\n")
        self._finish()

    def end_body(self) -> None:
        """Say that a body of known length, sent by `write`, is complete."""
        self._finish()

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def close(self) -> None:
        """Close now, whatever was promised."""
        self._transport.close()

    @property
    def full(self) -> bool:
        """The client reads too slowly: wait until it has `drained` before writing on."""
        return self._resumed is not None

    async def drained(self) -> None:
        if self._resumed is not None:
            await self._resumed

    # Within.

    def _clear(self) -> None:
        self._url, self._headers, self._body = b"", dict[str, str](), list[bytes]()

    def _begin(self, request: Request) -> None:
        self._request = request
        answering = self._handle(request, self)
        if answering is not None:
            self._task = asyncio.get_running_loop().create_task(answering)
            self._task.add_done_callback(self._report)

    def _finish(self) -> None:
        request, self._request, self._task = self._request, None, None
        if request is None or not request.keep_alive:
            self._transport.close()
        elif self._waiting:
            asyncio.get_running_loop().call_soon(self._begin_next)

    def _begin_next(self) -> None:
        if self._request is None and self._waiting:
            self._begin(self._waiting.popleft())

    def _report(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            traceback.print_exception(error, file=sys.stderr)
            self.close()


def head(status: int, content_type: str | None, length: int | None) -> bytes:
    """Status line and headers as uvicorn writes them."""
    lines = b"HTTP/1.1 %d %b\r\n%bserver: uvicorn\r\n" % (status, _PHRASES[status], _date(int(time.time())))
    if length is not None:
        lines += b"content-length: %d\r\n" % length
    if content_type is not None:
        lines += b"content-type: %b\r\n" % content_type.encode()
    if length is None:
        lines += b"transfer-encoding: chunked\r\n"
    return lines + b"\r\n"


_dates: dict[int, bytes] = {}


def _date(second: int) -> bytes:
    if second not in _dates:
        _dates.clear()
        _dates[second] = b"date: %b\r\n" % formatdate(second, usegmt=True).encode()
    return _dates[second]
