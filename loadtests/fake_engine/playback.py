"""An answer sent in its own time: first token, then one event after another, or spoilt on the way by a fault.

Returns how it ended; a client that leaves cancels it. Knows neither what is said nor who asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from loadtests.fake_engine import errors
from loadtests.fake_engine.replies import Reply, Stream
from loadtests.fake_engine.settings import Ending, Fault
from loadtests.fake_engine.wire import EVENTS, JSON, Connection, head

GARBAGE = b'\x00\xff\xfe{]not: an event\ndata: {"id": \xc3\x28, \n\n'
HTML = b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>\n"
_MID_STREAM = {
    Fault.CLOSE_MID_STREAM,
    Fault.HANG_MID_STREAM,
    Fault.GARBAGE_SSE,
    Fault.GARBAGE_FIRST,
    Fault.ERROR_EVENT_MID_STREAM,
    Fault.TRUNCATED_JSON,
}


@dataclass(frozen=True, slots=True)
class Pace:
    """The delays and the fault of one request, as they were set when it began."""

    ttft_seconds: float
    itl_seconds: float
    slow_seconds: float
    fault: Fault | None
    fault_after: int
    crowd: Callable[[], float] | None = None
    """Seconds that the others under way add to each token, now; None: they add nothing."""

    @property
    def instant(self) -> bool:
        return self.fault is None and not self.ttft_seconds and not self.itl_seconds and self.crowd is None

    def first(self) -> float:
        """Seconds until the first token."""
        return self.ttft_seconds + self._more()

    def next(self) -> float:
        """Seconds until the next token, as things are now."""
        return self.itl_seconds + self._more()

    def _more(self) -> float:
        return 0.0 if self.crowd is None else self.crowd()


async def play(
    wire: Connection, reply: Reply, tokens: int, streams: bool, pace: Pace, count: Callable[[int], None]
) -> Ending:
    """Send `reply`. `count` is told of tokens as they are made."""
    ending = await _before_headers(wire, pace.fault)
    if ending is not None:
        return ending
    if streams:
        return await _play_stream(wire, reply.stream(), pace, count)
    return await _play_whole(wire, reply, tokens, pace, count)


async def spoil_control(
    wire: Connection,
    fault: Fault,
    slow_seconds: float,
    answer: Callable[[], Coroutine[Any, Any, None] | None],
) -> None:
    """A fault on a route that generates nothing; one that needs a stream leaves the answer right."""
    match fault:
        case Fault.TRUNCATED_JSON:
            wire.respond(200, b'{"object":"list","da')
        case Fault.GARBAGE_SSE | Fault.GARBAGE_FIRST:
            wire.respond(200, GARBAGE)
        case Fault.HANG_MID_STREAM:
            await hang()
        case Fault.CLOSE_MID_STREAM:
            wire.close()
        case _ if await _before_headers(wire, fault) is None:
            if fault is Fault.SLOW_HEADERS:
                await asyncio.sleep(slow_seconds)
            answering = answer()
            if answering is not None:
                await answering


async def _before_headers(wire: Connection, fault: Fault | None) -> Ending | None:
    """The faults that take the place of the answer."""
    if fault is Fault.REFUSE:
        wire.respond(*errors.BUSY)
    elif fault is Fault.CLOSE_BEFORE_HEADERS:
        wire.close()
    elif fault is Fault.HANG:
        await hang()
    elif fault is Fault.GARBAGE_HTTP:
        wire.write(GARBAGE)
        wire.close()
    elif fault is Fault.HTML_200:
        wire.respond(200, HTML, "text/html")
    else:
        return None
    return Ending.FAULTED


async def _play_whole(
    wire: Connection, reply: Reply, tokens: int, pace: Pace, count: Callable[[int], None]
) -> Ending:
    await asyncio.sleep(pace.first())
    for made in range(tokens):
        if made and (seconds := pace.next()):
            await asyncio.sleep(seconds)
        count(1)
    body = reply.whole()
    half = body[: len(body) // 2]
    match pace.fault:
        case Fault.GARBAGE_SSE | Fault.GARBAGE_FIRST:
            wire.respond(200, GARBAGE)
        case Fault.ERROR_EVENT_MID_STREAM:
            wire.respond(*errors.GENERATION_FAILED)
        case Fault.TRUNCATED_JSON:
            wire.respond(200, half)
        case Fault.CLOSE_MID_STREAM | Fault.HANG_MID_STREAM:
            wire.send_head(200, JSON, len(body))
            wire.write(half)
            if pace.fault is Fault.HANG_MID_STREAM:
                await hang()
            wire.close()
        case _:
            await _send_head(wire, JSON, len(body), pace)
            wire.write(body)
            wire.end_body()
            return Ending.COMPLETED
    return Ending.FAULTED


async def _play_stream(wire: Connection, stream: Stream, pace: Pace, count: Callable[[int], None]) -> Ending:
    await _send_head(wire, EVENTS, None, pace)
    spoils_at = pace.fault_after if pace.fault in _MID_STREAM else None
    if pace.fault is Fault.GARBAGE_FIRST:
        spoils_at = 0
    sent = 0
    for delay, made, event in _timed(stream, pace):
        if delay is not None:
            await asyncio.sleep(delay)
        if spoils_at is not None and sent >= spoils_at:
            return await _spoil(wire, stream, event, pace)
        count(made)
        if event:
            wire.send_chunk(event)
            sent += 1
        if wire.full:
            await wire.drained()
    if spoils_at is not None:
        return await _spoil(wire, stream, stream.last[0], pace)
    if pace.fault is Fault.MISSING_DONE:
        wire.end_chunks()
        return Ending.FAULTED
    for event in stream.last:
        wire.send_chunk(event)
    wire.end_chunks()
    return Ending.COMPLETED


def _timed(stream: Stream, pace: Pace) -> Iterator[tuple[float | None, int, bytes]]:
    """Every event but the last: seconds to wait first (0 lets the others run), tokens it brings, its bytes.

    No bytes where a token shows nothing.
    """
    for event in stream.opening:
        yield None, 0, event
    delay: float | None = pace.first()
    for event in stream.head:
        yield delay, 0, event
        delay = None
    for step in stream.steps:
        yield delay, 1, step[0] if step else b""
        for event in step[1:]:
            yield None, 0, event
        delay = pace.next()
    for event in stream.tail:
        yield None, 0, event


async def _spoil(wire: Connection, stream: Stream, event: bytes, pace: Pace) -> Ending:
    """Go wrong in place of `event`."""
    match pace.fault:
        case Fault.HANG_MID_STREAM:
            await hang()
        case Fault.GARBAGE_SSE | Fault.GARBAGE_FIRST:
            wire.send_chunk(GARBAGE)
            wire.end_chunks()
        case Fault.TRUNCATED_JSON:
            wire.send_chunk(event[: len(event) // 2])
            wire.end_chunks()
        case Fault.ERROR_EVENT_MID_STREAM if stream.error:
            for failed in stream.error:
                wire.send_chunk(failed)
            wire.end_chunks()
        case _:
            wire.close()
    return Ending.FAULTED


async def _send_head(wire: Connection, content_type: str, length: int | None, pace: Pace) -> None:
    if pace.fault is not Fault.SLOW_HEADERS:
        wire.send_head(200, content_type, length)
        return
    whole = head(200, content_type, length)
    step = max(1, len(whole) // 20)
    for start in range(0, len(whole), step):
        await asyncio.sleep(pace.slow_seconds / 20)
        wire.write(whole[start : start + step])


async def hang() -> None:
    """Until the client leaves."""
    await asyncio.get_running_loop().create_future()
