"""A call's answer by an engine: one after another until one gives it, and then the control of the experiment.

Owns what an engine's failure means. Until the first byte for the client is there it is another engine's chance (promise 9);
afterwards it is the end of the stream, said in an event. The last byte of an answer goes out when `recorder` has it on
disk (promise 1). Knows neither keys, nor quotas, nor places: who is here has been let in, by `inference`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import orjson

from adapters.completions import Status
from adapters.errors import (
    BurnishError,
    EngineFailed,
    EngineTimeout,
    InvalidRequest,
    NotRecorded,
    RateLimited,
    Unavailable,
)
from adapters.settings import Settings
from gateway.conversations import Conversations
from gateway.endpoints import Call
from gateway.engines import Engine, Engines
from gateway.exchange import ConnectFailed, DeadlinePassed, Exchange, UpstreamError
from gateway.passage import Attempt
from gateway.presence import ClientGone, Presence
from gateway.protocol.errors import from_engine
from gateway.recorder import Record, Recorder
from gateway.relay import BrokenStream, EngineErrorEvent, Translator
from gateway.reply import Reply
from gateway.traffic import ENGINE_PRIORITY, Traffic

log = logging.getLogger("burnish.inference")


class EngineGaveUp(Exception):
    """The engine gave nothing that a client could be sent; another engine may."""

    def __init__(self, error: BurnishError, *, at_once: bool = False, is_fault: bool = True) -> None:
        super().__init__(error.message)
        self.error = error
        self.at_once = at_once
        self.is_fault = is_fault


class Attempts:
    """Gives a call that was let in to engines."""

    def __init__(
        self, settings: Settings, engines: Engines, recorder: Recorder, conversations: Conversations
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._recorder = recorder
        self._conversations = conversations

    async def answer(self, call: Call, record: Record, reply: Reply, presence: Presence) -> None:
        """Gives the call to its variant; where that cannot answer, to the control of the experiment, if there is one.

        Raises BurnishError while the client has been sent nothing, and ClientGone.
        """
        try:
            await self._answer_by_variant(call, record, reply, presence)
        except (Unavailable, EngineFailed, EngineTimeout, RateLimited) as error:
            if reply.started or isinstance(error, NotRecorded) or not call.fail_over(error):
                raise
            log.warning("failed_over request=%s: %s", call.request_id, error.message)
            reply.headers = call.headers
            await self._answer_by_variant(call, record, reply, presence)

    async def _answer_by_variant(self, call: Call, record: Record, reply: Reply, presence: Presence) -> None:
        """Gives the call to one engine after another until one answers it."""
        tried: list[Engine] = []
        while True:
            engine = await self._engine(call, tried, presence)
            self._engines.begin(engine, call.target)
            attempt = call.begin_attempt(engine.name)
            try:
                await self._attempt(call, record, engine, attempt, reply, presence)
                return
            except EngineGaveUp as failure:
                attempt.error = failure.error
                if failure.is_fault:
                    self._engines.failed(engine, failure.error.message, at_once=failure.at_once)
                tried.append(engine)
                log.warning(
                    "attempt_failed request=%s engine=%s attempt=%d: %s",
                    call.request_id,
                    engine.name,
                    len(tried),
                    failure.__cause__ or failure.error.message,
                )
                if len(tried) >= self._settings.health.max_attempts:
                    raise failure.error from None
            finally:
                attempt.ended = time.monotonic()
                presence.close_exchange()
                self._engines.end(engine, call.target)

    async def _engine(self, call: Call, tried: list[Engine], presence: Presence) -> Engine:
        """The engine for the next attempt; waits a little for one that is on its way up, but for nothing where the
        control can answer instead."""
        affinity = call.affinity if len(self._engines.all) > 1 else b""
        until = asyncio.get_running_loop().time() + self._settings.health.hold_seconds
        while True:
            engine = self._engines.pick(call.target, affinity, tried)
            if engine is not None:
                return engine
            left = until - asyncio.get_running_loop().time()
            may_come = left > 0 and self._engines.could(call.target)
            if not may_come or self._has_stand_in(call):
                raise Unavailable(
                    f"No engine can answer for the model '{call.target.name}' now.", retry_after_seconds=2
                )
            try:
                async with asyncio.timeout(min(left, 0.25)):  # a client that left is noticed in between
                    await self._engines.changed.wait()
            except TimeoutError:
                pass
            if presence.gone:
                raise ClientGone

    def _has_stand_in(self, call: Call) -> bool:
        return call.control is not None and self._engines.pick(call.control, b"") is not None

    async def _attempt(
        self,
        call: Call,
        record: Record,
        engine: Engine,
        attempt: Attempt,
        reply: Reply,
        presence: Presence,
    ) -> None:
        """One engine's try. Raises EngineGaveUp while the client has been sent nothing."""
        served = engine.served(call.target)
        call.body["model"] = served
        self._prioritize(call, engine)
        # vLLM's ids are random; others count, or begin again after a restart.
        call.own_id = None if engine.takes_adapters else call.endpoint.new_id()
        health = self._settings.health
        patience = health.first_byte_timeout_seconds if call.streams else health.total_timeout_seconds
        try:
            exchange = await engine.pool.open(
                call.endpoint.wire_path,
                orjson.dumps(call.body),
                headers=call.trace_headers,
                patience_seconds=patience,
                begun=presence.watch,
            )
            if exchange.status >= 400:
                raise self._refusal(call, engine, exchange, await exchange.read())
            if call.streams and call.endpoint.translator is not None:
                translator = call.endpoint.translator(call, served)
                first = await _first_events(exchange, translator)
            else:
                answer = _whole(exchange, await exchange.read())
            attempt.answered = time.monotonic()
        except (UpstreamError, BrokenStream) as error:
            if presence.gone:
                raise ClientGone from None
            raise _gave_up(error) from error
        if call.streams and call.endpoint.translator is not None:
            await self._relay(call, record, engine, exchange, translator, first, reply, presence)
        else:
            self._engines.succeeded(engine)
            await self._whole_answer(call, record, answer, reply)

    def _prioritize(self, call: Call, engine: Engine) -> None:
        """Has the engine serve what is not interactive after what is, where it can."""
        if call.traffic is Traffic.INTERACTIVE or not self._settings.priority.enabled:
            return
        if engine.settings.takes_priorities:
            call.body["priority"] = ENGINE_PRIORITY[call.traffic]
        else:
            call.body.pop("priority", None)  # of an engine tried before it

    async def _whole_answer(self, call: Call, record: Record, answer: dict[str, Any], reply: Reply) -> None:
        """An answer that is not streamed. Raises NotRecorded where it may not go out."""
        call.endpoint.put_right(answer, call)
        if call.own_id is not None and "id" in answer:
            answer["id"] = call.own_id
        kept = self._conversations.to_keep(call, answer)
        call.count(answer.get("usage"), whole=True)
        headers = await self._recorder.complete(record, answer, kept=kept)
        call.recorded(record.id if record.wanted else None)
        await reply.json(orjson.dumps(answer), headers=headers)

    async def _relay(
        self,
        call: Call,
        record: Record,
        engine: Engine,
        exchange: Exchange,
        translator: Translator,
        events: bytes,
        reply: Reply,
        presence: Presence,
    ) -> None:
        """The stream from its first events on. Every way out of it ends the client's answer."""
        await reply.start_events(self._recorder.warning(record))
        try:
            # Where all of it came at once its end waits for the record, and its beginning does not.
            if translator.done:
                beginning, events = _split_last_event(events)
                if beginning:
                    call.piece()
                    record.keep(beginning)
                    await reply.piece(beginning)
            while not translator.done:
                if events:
                    call.piece()
                    record.keep(events)
                    await reply.piece(events)
                data = await exchange.next()
                if not data:
                    raise BrokenStream("the stream ended before it was complete")
                events = translator.feed(data)
        except EngineErrorEvent as event:
            await self._break_off(record, translator, event.error, reply)
        except (UpstreamError, BrokenStream) as error:
            if presence.gone:
                raise ClientGone from None
            log.warning("stream_broken request=%s engine=%s: %s", call.request_id, engine.name, error)
            self._engines.failed(engine, str(error))
            broken = EngineFailed("The engine failed in the middle of its answer.", code="stream_broken")
            await self._break_off(record, translator, broken, reply)
        else:
            presence.let_go()
            self._engines.succeeded(engine)
            await self._last_piece(call, record, translator, events, reply)

    async def _last_piece(
        self, call: Call, record: Record, translator: Translator, events: bytes, reply: Reply
    ) -> None:
        """The end of a whole stream, once it is on disk; an error event where it may not go out without that."""
        call.piece()
        call.count(translator.usage)
        record.keep(events)
        response = getattr(translator, "response", None)
        kept = self._conversations.to_keep(call, response)
        try:
            await self._recorder.complete(record, response, usage=translator.usage, kept=kept)
        except NotRecorded as error:
            call.failed(error)
            await reply.end(translator.broken(error))
        else:
            call.recorded(record.id if record.wanted else None)
            await reply.end(events + translator.closing())

    async def _break_off(
        self, record: Record, translator: Translator, error: BurnishError, reply: Reply
    ) -> None:
        """The end of a stream that will not be completed."""
        record.call.failed(error)
        await self._recorder.fail(record, Status.INCOMPLETE, error.code or error.type, usage=translator.usage)
        await reply.end(translator.broken(error))

    def _refusal(self, call: Call, engine: Engine, exchange: Exchange, body: bytes) -> Exception:
        """What an engine's HTTP error means: the client's error, or another engine's chance."""
        served = engine.served(call.target)
        error = from_engine(exchange.status, body, exchange.headers, call.body, served, call.target.name)
        if exchange.status == 404:
            if b'"error"' not in body:  # no such path there, as {"detail":"Not Found"} or a page of HTML
                return InvalidRequest(
                    f"The model '{call.target.name}' does not support {call.endpoint.path}.",
                    param="model",
                    code="unsupported_endpoint",
                )
            if call.target.served is not None and served.encode() in body:
                self._engines.lost_adapter(engine, served)
                return EngineGaveUp(
                    Unavailable("The engine is loading this adapter.", retry_after_seconds=1), is_fault=False
                )
            return EngineFailed("The engine does not know the model that it is set up to serve.")
        if exchange.status >= 500:
            return EngineGaveUp(error)
        self._engines.succeeded(engine)
        return error


async def _first_events(exchange: Exchange, translator: Translator) -> bytes:
    """The first whole events. What is wrong up to here is an HTTP error to the client, not an event."""
    if b"text/event-stream" not in exchange.headers.get(b"content-type", b""):
        raise BrokenStream("not a stream of events")
    events = b""
    while not events and not translator.done:
        data = await exchange.next()
        if not data:
            raise BrokenStream("the stream ended before it began")
        try:
            events = translator.feed(data)
        except EngineErrorEvent as event:
            exchange.close()
            raise event.error if event.error.status < 500 else EngineGaveUp(event.error) from None
    return events


def _split_last_event(events: bytes) -> tuple[bytes, bytes]:
    cut = events.rfind(b"\n\n", 0, -2) + 2
    return (events[:cut], events[cut:]) if cut > 1 else (b"", events)


def _whole(exchange: Exchange, body: bytes) -> dict[str, Any]:
    """The JSON object of an answer that is not streamed."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BrokenStream("an answer that is not JSON") from None
    if not isinstance(answer, dict):
        raise BrokenStream("an answer that is not an object")
    return answer


def _gave_up(error: UpstreamError | BrokenStream) -> EngineGaveUp:
    if isinstance(error, DeadlinePassed):
        return EngineGaveUp(EngineTimeout("The engine did not answer in time.", retry_after_seconds=1))
    if isinstance(error, ConnectFailed):
        # Refused is certain; a time-out may be our own lack of processor time.
        refused = not isinstance(error.__cause__, TimeoutError)
        return EngineGaveUp(
            Unavailable("The engine cannot be reached.", retry_after_seconds=2), at_once=refused
        )
    return EngineGaveUp(EngineFailed("The engine gave no usable answer."))
