"""The inference endpoints: for each path, how a request is prepared, an answer put right and a stream translated.

A table; adding an endpoint is adding a row. Knows no engines and no connections.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from adapters.errors import BurnishError
from adapters.observations import Assignment
from adapters.settings import Limits
from gateway.access import Caller
from gateway.ids import hex_id
from gateway.latency import Timing
from gateway.passage import Attempt, Passage
from gateway.protocol import answers, requests
from gateway.quotas import Ticket
from gateway.relay import CompletionStream, MessageStream, ResponseStream, Translator
from gateway.routing import Choice, Shadow, Target
from gateway.trace_context import new_span_id
from gateway.traffic import Traffic

Body = dict[str, Any]


@dataclass(slots=True)
class Call:
    """One inference request on its way."""

    endpoint: Endpoint
    request_id: str
    caller: Caller
    target: Target
    body: Body
    """What the engine gets, but for `model`."""
    asked: Body = field(default_factory=dict)
    """What the client sent. Nothing in it is ever changed."""
    shows_usage: bool = False
    own_id: str | None = None
    """The answer's id, where the engine's own would not do."""
    conversation: str | None = None
    """What the client's header `x-burnish-conversation` says."""
    propensity: float = 1.0
    """The probability with which the target was chosen among the variants of its route."""
    assignment: Assignment | None = None
    """What an experiment gave this request."""
    control: Target | None = None
    """What answers where the target cannot."""
    shadow: Shadow | None = None
    """What answers too, off the client's path."""
    traffic: Traffic = Traffic.INTERACTIVE
    limit_headers: tuple[tuple[bytes, bytes], ...] = ()
    """What the answer says of its key's limits."""
    ticket: Ticket | None = None
    timing: Timing | None = None
    passage: Passage | None = None
    trace_headers: bytes = b""
    """Header lines that carry the trace's context on to the engine."""
    began: float = field(default_factory=time.monotonic)
    """When it came; what it waits for a place is part of its time."""

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """What the answer says of the target and of its key's limits."""
        return (*self.target.headers, *self.limit_headers) if self.limit_headers else self.target.headers

    def piece(self) -> None:
        """Whole events are about to go to the client."""
        if self.timing is not None:
            self.timing.piece()
        if self.passage is not None:
            if not self.passage.pieces:
                self.passage.first_piece = time.monotonic()
            self.passage.pieces += 1

    def count(self, usage: Any, *, whole: bool = False) -> None:
        """The answer is complete and took what its `usage` says; `whole`: it was not streamed."""
        prompt, answer = answers.token_counts(usage)
        if self.passage is not None:
            self.passage.prompt_tokens, self.passage.answer_tokens = prompt, answer
            self.passage.settled = time.monotonic()
        if whole and self.timing is not None:
            self.timing.whole(answer)
        if self.ticket is not None:
            self.ticket.settle(None if prompt is None else prompt + (answer or 0))

    def begin_attempt(self, engine: str) -> Attempt:
        """Goes to an engine."""
        attempt = Attempt(engine, time.monotonic(), model=self.target.served or self.target.base)
        if self.passage is not None:
            self.passage.attempts.append(attempt)
            if (trace := self.passage.trace) is not None:
                attempt.span_id = new_span_id() if trace.is_drawn else None
                self.trace_headers = trace.header_lines(attempt.span_id or trace.span_id)
        return attempt

    def recorded(self, completion_id: str | None) -> None:
        """The answer may go out: it is on disk, where it is wanted there."""
        if self.passage is not None:
            self.passage.committed, self.passage.completion_id = time.monotonic(), completion_id

    def failed(self, error: BurnishError) -> None:
        """The client is told in the midst of its answer."""
        if self.passage is not None:
            self.passage.fail(error)

    def take(self, choice: Choice) -> None:
        """Goes to the variant that was chosen."""
        self.target, self.propensity = choice.target, choice.propensity
        self.assignment, self.control, self.shadow = choice.assignment, choice.control, choice.shadow

    def fail_over(self, error: BurnishError) -> bool:
        """Goes to the control in the chosen variant's stead, if it can: the variant's failure is on record with it."""
        if self.control is None or self.assignment is None:
            return False
        if self.passage is not None:
            self.passage.fail_over(self.target, error)
        self.target, self.control = self.control, None
        if self.timing is not None:
            self.timing.turn_to(self.target.variant)
        self.assignment = replace(self.assignment, failed_over=True)
        return True

    @property
    def streams(self) -> bool:
        return self.body.get("stream") is True

    @property
    def user(self) -> str | None:
        """OpenAI's `safety_identifier` or the older `user`; Anthropic's `metadata.user_id`."""
        metadata = self.asked.get("metadata") if self.endpoint.anthropic else None
        named = metadata.get("user_id") if isinstance(metadata, dict) else None
        given = (self.asked.get("safety_identifier"), self.asked.get("user"), named)
        return next((user for user in given if isinstance(user, str) and user), None)

    @property
    def unit(self) -> str:
        """Who keeps the variant of a route that they got: the end user, else the conversation, else this request."""
        if self.user is not None:
            return f"user:{self.user}"
        return self.request_id if self.conversation is None else f"conversation:{self.conversation}"

    @property
    def affinity(self) -> bytes:
        """The beginning of the conversation, which stays the same in all its turns."""
        return _beginning(self.body)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path of the surface."""

    path: str
    prepare: Callable[[Body, Limits], None]
    put_right: Callable[[Body, Call], None]
    translator: Callable[[Call, str], Translator] | None
    id_prefix: str
    """What the ids of its answers begin with."""
    anthropic: bool = False
    stores: bool = False
    """Whether its answers are kept for `previous_response_id`."""
    records: bool = True
    """Whether its requests belong into the record."""

    @property
    def wire_path(self) -> bytes:
        return self.path.encode()

    def new_id(self) -> str:
        """An id for an answer, that no other has."""
        return self.id_prefix + hex_id()


def _chat_stream(call: Call, served: str) -> Translator:
    return _chunks(call, served, chat=True)


def _completion_stream(call: Call, served: str) -> Translator:
    return _chunks(call, served, chat=False)


def _chunks(call: Call, served: str, *, chat: bool) -> Translator:
    return CompletionStream(
        served, call.target.name, call.body, chat=chat, shows_usage=call.shows_usage, own_id=call.own_id
    )


def _response_stream(call: Call, served: str) -> Translator:
    return ResponseStream(call.target.name, call.asked, call.own_id)


def _message_stream(call: Call, served: str) -> Translator:
    return MessageStream(call.target.name, call.request_id, call.own_id)


def _named(put_right: Callable[[Body, str], None]) -> Callable[[Body, Call], None]:
    return lambda answer, call: put_right(answer, call.target.name)


ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint(
            "/v1/chat/completions", requests.prepare_chat, _named(answers.chat), _chat_stream, "chatcmpl-"
        ),
        Endpoint(
            "/v1/completions",
            requests.prepare_completion,
            _named(answers.completion),
            _completion_stream,
            "cmpl-",
        ),
        Endpoint(
            "/v1/responses",
            requests.prepare_response,
            lambda answer, call: answers.response(answer, call.target.name, call.asked),
            _response_stream,
            "resp_",
            stores=True,
        ),
        Endpoint("/v1/embeddings", requests.prepare_embedding, _named(answers.embedding), None, "emb_"),
        Endpoint(
            "/v1/messages",
            requests.prepare_message,
            _named(answers.message),
            _message_stream,
            "msg_",
            anthropic=True,
        ),
        Endpoint(
            "/v1/messages/count_tokens",
            requests.prepare_count,
            _named(answers.count),
            None,
            "",
            anthropic=True,
            records=False,
        ),
    )
}


def _beginning(body: Body) -> bytes:
    messages = body.get("messages") or body.get("input")
    if isinstance(messages, list):
        return repr([item.get("content") for item in messages[:2] if isinstance(item, dict)])[:2048].encode()
    return repr(messages or body.get("prompt"))[:512].encode()
