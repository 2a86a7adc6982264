"""uvicorn's HTTP/1.1, with what ASGI has no words for: a whole answer in one piece, and word of a client that leaves.

ASGI has a client's leaving awaited by a task of its own for each request, and an answer told in messages; together they were about a
tenth of what a request costs (docs/log.md). Any ASGI server serves the gateway without this. Owns nothing of HTTP that uvicorn does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.reply import WIRE, Headers, Send


class Wire:
    """One request's place on its connection."""

    __slots__ = ("_cycle", "_leaving")

    def __init__(self, cycle: RequestResponseCycle, leaving: dict[Wire, Callable[[], None]]) -> None:
        self._cycle = cycle
        self._leaving = leaving

    def when_left(self, left: Callable[[], None]) -> Callable[[], None]:
        """Calls `left` once where the client leaves before its answer is complete, until what it returns is called."""
        if self._cycle.disconnected:
            left()
            return _nothing
        self._cycle.flow.resume_reading()  # who is not read from is not seen to leave
        self._leaving[self] = left
        return self._forget

    def is_beneath(self, send: Send) -> bool:
        """Whether `send` is the connection's own: what is wrapped around it would not see an answer given here."""
        return send == self._cycle.send

    def body(self) -> bytes | None:
        """The request's body, once, if all of it has come; otherwise it is to be received."""
        cycle = self._cycle
        if cycle.more_body or cycle.waiting_for_100_continue or cycle.disconnected:
            return None
        cycle.message_event.clear()
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer; `headers` say its length. Nothing waits: the connection holds it until the client takes it."""
        cycle = self._cycle
        if cycle.disconnected:
            return
        lines = [*cycle.default_headers, *headers]
        if not cycle.keep_alive:
            lines.append((b"connection", b"close"))
        head = b"".join((STATUS_LINE[status], *[b"%b: %b\r\n" % line for line in lines], b"\r\n"))
        if not head.count(b"\r") == head.count(b"\n") == len(lines) + 2:
            raise RuntimeError("a header of more than one line")
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        cycle.transport.write(head + body)
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    def _forget(self) -> None:
        self._leaving.pop(self, None)


class WireProtocol(HttpToolsProtocol):
    """Gives each request its `Wire`, in the scope."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._leaving: dict[Wire, Callable[[], None]] = {}

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.scope[WIRE] = Wire(self.cycle, self._leaving)  # type: ignore[literal-required]

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        leaving = tuple(self._leaving.values())
        self._leaving.clear()
        for left in leaving:
            left()


def _nothing() -> None:
    pass
