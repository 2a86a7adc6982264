"""One inference request from first byte to last: admit it, choose an engine, relay its answer.

The way through: read the body → `access` → `protocol.requests` → `routing.resolve` → `quotas` → `admission` →
`engines.pick` → `upstream` → `relay` or `protocol.answers` → `reply`. Batch lines go the same way, by `ask`. Until the
first byte for the client is there, an engine's failure is another engine's chance (promise 9); afterwards it is the end
of the stream, said in an event. A client that leaves closes the exchange, and with it the engine's work. The last byte of
an answer goes out when `recorder` has it on disk (promise 1); beyond that it touches no database but to go on from an
earlier response.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
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
    TooLarge,
    Unavailable,
)
from adapters.keys import Scope
from adapters.settings import Settings
from gateway import access, routing
from gateway.access import Caller
from gateway.admission import Admission, Evicted
from gateway.conversations import Conversations
from gateway.endpoints import ENDPOINTS, Call, Endpoint
from gateway.engines import Engine, Engines
from gateway.exchange import ConnectFailed, DeadlinePassed, Exchange, UpstreamError
from gateway.latency import Latencies
from gateway.passage import Attempt, Ending, Passage
from gateway.presence import Presence
from gateway.protocol import requests
from gateway.protocol.errors import from_engine
from gateway.quotas import UNNAMED_ANSWER_TOKENS, Quotas, Ticket, estimated_tokens
from gateway.recorder import Record, Recorder
from gateway.relay import BrokenStream, EngineErrorEvent, Translator
from gateway.reply import HttpScope, Message, Receive, Reply, Send
from gateway.shadow import Shadows
from gateway.trace_context import Trace, pass_on
from gateway.traffic import ENGINE_PRIORITY, Traffic
from gateway.visit import Answered, Asking, Collected, Visit

log = logging.getLogger("burnish.inference")


class ClientGone(Exception):
    """The client has left; nothing is to be said to anybody."""


class EngineGaveUp(Exception):
    """The engine gave nothing that a client could be sent; another engine may."""

    def __init__(self, error: BurnishError, *, at_once: bool = False, is_fault: bool = True) -> None:
        super().__init__(error.message)
        self.error = error
        self.at_once = at_once
        self.is_fault = is_fault


class Inference:
    """The ASGI application of the inference endpoints, and the same way through for work within this process."""

    def __init__(
        self,
        settings: Settings,
        engines: Engines,
        snapshot: Callable[[], routing.Snapshot],
        conversations: Conversations,
        recorder: Recorder,
        shadows: Shadows,
        latencies: Latencies,
        quotas: Quotas,
        admission: Admission,
        observers: Sequence[Callable[[Passage], None]] = (),
        begin_trace: Callable[[Passage], Trace | None] = pass_on,
    ) -> None:
        """`observers` are told of every request once it is over; they wait for nothing and raise nothing. `begin_trace`
        says which trace a request belongs to."""
        self._settings = settings
        self._engines = engines
        self._snapshot = snapshot
        self._conversations = conversations
        self._recorder = recorder
        self._shadows = shadows
        self._latencies = latencies
        self._quotas = quotas
        self._admission = admission
        self._observers = observers
        self._begin_trace = begin_trace

    async def __call__(self, scope: HttpScope, receive: Receive, send: Send) -> None:
        asking = Asking(
            ENDPOINTS[scope["path"]],
            _new_request_id(),
            functools.partial(_authorize, scope),
            conversation=_text(scope, b"x-burnish-conversation"),
            trace_parent=_text(scope, b"traceparent"),
            trace_state=_text(scope, b"tracestate"),
        )
        await self._handle(asking, functools.partial(self._body, scope, receive), receive, send)

    async def ask(
        self,
        endpoint: Endpoint,
        raw: bytes,
        *,
        caller: Caller,
        traffic: Traffic,
        owner: str,
        may_be_evicted: bool = True,
    ) -> Answered:
        """The answer to a request of this process's own, errors included. Nobody is streamed to.

        Raises Evicted where its place was taken away for a person: ask again. Cancelling ends the engine's work too.
        """
        left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        collected = Collected()

        async def body() -> bytes:
            return raw

        async def receive() -> Message:
            await asyncio.shield(left)
            return {"type": "http.disconnect"}

        def evict() -> None:
            if not left.done():
                left.set_result(None)

        asking = Asking(
            endpoint,
            _new_request_id(),
            lambda _: caller,
            traffic=traffic,
            owner=owner,
            evict=evict if may_be_evicted else None,
        )
        await self._handle(asking, body, receive, collected.send)
        if not collected.status:
            raise Evicted
        return collected.answered(asking.request_id)

    async def _handle(
        self, asking: Asking, body: Callable[[], Awaitable[bytes]], receive: Receive, send: Send
    ) -> None:
        """One request, whatever becomes of it; what it holds is given back."""
        endpoint, request_id = asking.endpoint, asking.request_id
        reply = Reply(send, request_id, anthropic=endpoint.anthropic)
        passage = Passage(request_id, endpoint.path, asking.trace_parent, asking.trace_state)
        passage.trace = self._begin_trace(passage)
        visit = Visit(passage)
        try:
            raw = await body()
            visit.presence = Presence(receive)
            call = self._admit(asking, raw, visit, reply)
            await self._serve(asking, call, visit, reply)
        except ClientGone:
            passage.ending = Ending.LEFT
            log.info("client_left request=%s path=%s", request_id, endpoint.path)
        except BurnishError as error:
            passage.fail(error)
            if visit.ticket is not None and not reply.started:  # no tokens were made; was it asked at all?
                visit.ticket.give_back() if visit.place is None else visit.ticket.settle(0)
            await self._refuse(error, visit.record, reply)
        except Exception:
            log.exception("request_failed request=%s path=%s", request_id, endpoint.path)
            ours = BurnishError("The server had an error while processing your request.")
            passage.fail(ours)
            if not reply.started:
                await self._refuse(ours, visit.record, reply)
        except asyncio.CancelledError:
            passage.ending = Ending.INTERRUPTED
            raise
        finally:
            self._give_back(visit)
            self._tell(passage)

    async def _serve(self, asking: Asking, call: Call, visit: Visit, reply: Reply) -> None:
        """What was let in, once there is a place for it."""
        await self._conversations.recall(call)
        owner = asking.owner if asking.owner is not None else call.caller.key_id or ""
        visit.timing = call.timing = self._latencies.begin(
            call.target.name, call.traffic, streams=call.streams, variant=call.target.variant
        )
        visit.passage.queued = visit.timing.begun
        visit.place = await self._admission.enter(
            call.target.base, call.traffic, owner, evict=asking.evict, is_gone=lambda: visit.is_gone
        )
        if visit.place is None:
            raise ClientGone
        visit.passage.placed = time.monotonic()
        record = visit.record = self._recorder.begin(call)
        assert visit.presence is not None
        await self._answer(call, record, reply, visit.presence)
        if call.shadow is not None:
            self._shadows.follow(call, record)

    def _give_back(self, visit: Visit) -> None:
        """Nothing here waits, so that nothing can cancel it."""
        is_evicted = visit.place is not None and visit.place.is_evicted and visit.is_gone
        if is_evicted:
            visit.passage.ending = Ending.EVICTED
        if visit.place is not None:
            self._admission.leave(visit.place)
        if visit.timing is not None:
            visit.timing.end()
        if visit.record is not None and not is_evicted:  # else: it is asked again, and then recorded
            self._recorder.abandon(visit.record, "client_left" if visit.is_gone else "interrupted")
        if visit.ticket is not None:
            # Where it was settled before, nothing happens here.
            visit.ticket.give_back() if visit.place is None or is_evicted else visit.ticket.settle(None)
        if visit.presence is not None:
            visit.presence.forget()

    def _tell(self, passage: Passage) -> None:
        passage.ended = time.monotonic()
        for observer in self._observers:
            try:
                observer(passage)
            except Exception:  # whoever watches must not cost anybody an answer
                log.exception("observer_failed request=%s", passage.request_id)

    async def _refuse(self, error: BurnishError, record: Record | None, reply: Reply) -> None:
        if record is not None:
            code, at_fault = error.code or error.type, error.status >= 500
            await self._recorder.fail(record, Status.ERROR, code, at_fault=at_fault)
        await reply.error(error)

    async def _body(self, scope: HttpScope, receive: Receive) -> bytes:
        """The request's body. Raises TooLarge before more than the limit is held in memory."""
        most = self._settings.limits.max_body_bytes
        length = _header(scope, b"content-length")
        pieces, size = [], 0
        too_large = length.isdigit() and int(length) > most
        while not too_large:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            too_large = size > most
            if not message.get("more_body"):
                break
        if too_large:
            raise TooLarge(f"The request body is larger than the {most} bytes that are allowed here.")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _admit(self, asking: Asking, raw: bytes, visit: Visit, reply: Reply) -> Call:
        """The call that a request makes, checked against everything that can be known before an engine is asked."""
        snapshot, endpoint = self._snapshot(), asking.endpoint
        caller = asking.authorize(snapshot)
        traffic = asking.traffic or (Traffic.TRAINING if caller.may_evaluate else Traffic.INTERACTIVE)
        visit.passage.traffic = traffic
        body = requests.parse(raw)
        name = requests.model_name(body)
        target = routing.resolve(snapshot, name, caller.may_evaluate)
        visit.passage.route = target.name
        if not caller.is_admin:
            requests.refuse_privileged(body)
        asked = dict(body)  # preparing replaces what it changes, and changes nothing within
        shows_usage = requests.wants_usage(body)
        endpoint.prepare(body, self._settings.limits)
        call = Call(endpoint, asking.request_id, caller, target, body, asked, shows_usage)
        call.passage = visit.passage
        call.traffic = traffic
        call.conversation = asking.conversation
        visit.ticket = call.ticket = self._take_quota(call, reply)
        call.take(routing.choose(snapshot, target, call.unit))
        visit.passage.call = call
        reply.headers = call.headers
        return call

    def _take_quota(self, call: Call, reply: Reply) -> Ticket:
        """What the key may ask for, less this request. Raises RateLimited, and the answer says of what limit."""
        tokens = 0
        if self._quotas.counts_tokens(call.caller):
            unnamed = UNNAMED_ANSWER_TOKENS if call.endpoint.translator is not None else 0
            tokens = estimated_tokens(call.body, unnamed=unnamed)
        try:
            return self._quotas.admit(call.caller, call.traffic, tokens)
        finally:
            reply.headers = call.limit_headers = self._quotas.headers(call.caller)

    async def _answer(self, call: Call, record: Record, reply: Reply, presence: Presence) -> None:
        """Gives the call to its variant; where that cannot answer, to the control of the experiment, if there is one."""
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
            if (
                translator.done
            ):  # all of it came at once: its end waits for the record, its beginning does not
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


def _new_request_id() -> str:
    return "req_" + secrets.token_hex(16)


def _authorize(scope: HttpScope, snapshot: routing.Snapshot) -> Caller:
    authorization, api_key = _header(scope, b"authorization"), _header(scope, b"x-api-key")
    return access.authorize(snapshot, authorization, api_key, Scope.INFERENCE)


def _text(scope: HttpScope, name: bytes) -> str | None:
    return _header(scope, name).decode("latin-1") or None


def _header(scope: HttpScope, name: bytes) -> bytes:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return b""
