"""One inference request from first byte to last: let it in, have it answered, give back what it held.

The way through: read the body → `access` → `protocol.requests` → `routing.resolve` → `quotas` → `admission` → `attempts` →
`reply`. Batch lines go the same way, by `ask`. A client that leaves closes the exchange, and with it the engine's work. But
for the record (promise 1) and to go on from an earlier response it touches no database. Knows no engine.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from adapters.completions import Status
from adapters.errors import BurnishError, TooLarge
from adapters.keys import Scope
from adapters.settings import Settings
from gateway import access, routing
from gateway.access import Caller
from gateway.admission import Admission, Evicted
from gateway.attempts import Attempts
from gateway.conversations import Conversations
from gateway.endpoints import ENDPOINTS, Call, Endpoint
from gateway.ids import hex_id
from gateway.latency import Latencies
from gateway.passage import Ending, Passage
from gateway.presence import ClientGone, Presence, WhenLeft, by_receiving
from gateway.protocol import requests
from gateway.quotas import UNNAMED_ANSWER_TOKENS, Quotas, Ticket, estimated_tokens
from gateway.recorder import Record, Recorder
from gateway.reply import WIRE, HttpScope, Receive, Reply, Send, Wire
from gateway.shadow import Shadows
from gateway.snapshots import Snapshots
from gateway.trace_context import Trace, pass_on
from gateway.traffic import Traffic
from gateway.visit import Answered, Asking, Collected, Eviction, Visit

log = logging.getLogger("burnish.inference")


class Inference:
    """The ASGI application of the inference endpoints, and the same way through for work within this process."""

    def __init__(
        self,
        settings: Settings,
        attempts: Attempts,
        snapshots: Snapshots,
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
        self._attempts = attempts
        self._snapshots = snapshots
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
        wire: Wire | None = scope.pop(WIRE, None)
        await self._handle(
            asking,
            functools.partial(self._body, scope, receive, wire),
            wire.when_left if wire is not None else by_receiving(receive),
            Reply(send, asking.request_id, anthropic=asking.endpoint.anthropic, wire=wire),
        )

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
        collected, eviction = Collected(), Eviction()

        async def body() -> bytes:
            return raw

        asking = Asking(
            endpoint,
            _new_request_id(),
            lambda _: caller,
            traffic=traffic,
            owner=owner,
            evict=eviction.evict if may_be_evicted else None,
        )
        reply = Reply(collected.send, asking.request_id, anthropic=endpoint.anthropic)
        await self._handle(asking, body, eviction.when_left, reply)
        if not collected.status:
            raise Evicted
        return collected.answered(asking.request_id)

    async def _handle(
        self, asking: Asking, body: Callable[[], Awaitable[bytes]], when_left: WhenLeft, reply: Reply
    ) -> None:
        """One request, whatever becomes of it; what it holds is given back."""
        endpoint, request_id = asking.endpoint, asking.request_id
        passage = Passage(request_id, endpoint.path, asking.trace_parent, asking.trace_state)
        passage.trace = self._begin_trace(passage)
        visit = Visit(passage)
        try:
            raw = await body()
            visit.presence = Presence(when_left)
            call = await self._snapshots.decide(functools.partial(self._admit, asking, raw, visit, reply))
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
        await self._attempts.answer(call, record, reply, visit.presence)
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
        passage.call = None

    async def _refuse(self, error: BurnishError, record: Record | None, reply: Reply) -> None:
        if record is not None:
            code, at_fault = error.code or error.type, error.status >= 500
            await self._recorder.fail(record, Status.ERROR, code, at_fault=at_fault)
        await reply.error(error)

    async def _body(self, scope: HttpScope, receive: Receive, wire: Wire | None) -> bytes:
        """The request's body. Raises TooLarge before more than the limit is held in memory."""
        most = self._settings.limits.max_body_bytes
        length = _header(scope, b"content-length")
        is_known = length.isdigit() and int(length) > most
        body = wire.body() if wire is not None and not is_known else None
        if body is None and not is_known:
            body = await _received(receive, most)
        if body is None or len(body) > most:
            raise TooLarge(f"The request body is larger than the {most} bytes that are allowed here.")
        return body

    def _admit(
        self, asking: Asking, raw: bytes, visit: Visit, reply: Reply, snapshot: routing.Snapshot
    ) -> Call:
        """The call that a request makes, checked against everything that can be known before an engine is asked.

        What it raises before the quota is taken may be tried again.
        """
        endpoint = asking.endpoint
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


async def _received(receive: Receive, most: int) -> bytes:
    """A body as it comes; no more of it than the first piece that is too much. Raises ClientGone."""
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > most or not message.get("more_body"):
            return b"".join(pieces)


def _new_request_id() -> str:
    return "req_" + hex_id()


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
