"""The inference endpoints: for each path, how a request is prepared, an answer put right and a stream translated.

A table; adding an endpoint is adding a row. Knows no engines and no connections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from adapters.settings import Limits
from gateway.access import Caller
from gateway.protocol import answers, requests
from gateway.relay import CompletionStream, MessageStream, ResponseStream, Translator
from gateway.routing import Target

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
    """What the client sent, where its answer must say so again."""
    shows_usage: bool = False

    @property
    def streams(self) -> bool:
        return self.body.get("stream") is True

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
    anthropic: bool = False
    stores: bool = False
    """Whether its answers are kept for `previous_response_id`."""

    @property
    def wire_path(self) -> bytes:
        return self.path.encode()


def _chat_stream(call: Call, served: str) -> Translator:
    return CompletionStream(served, call.target.name, call.body, chat=True, shows_usage=call.shows_usage)


def _completion_stream(call: Call, served: str) -> Translator:
    return CompletionStream(served, call.target.name, call.body, chat=False, shows_usage=call.shows_usage)


def _response_stream(call: Call, served: str) -> Translator:
    return ResponseStream(call.target.name, call.asked)


def _message_stream(call: Call, served: str) -> Translator:
    return MessageStream(call.target.name, call.request_id)


def _named(put_right: Callable[[Body, str], None]) -> Callable[[Body, Call], None]:
    return lambda answer, call: put_right(answer, call.target.name)


ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/v1/chat/completions", requests.prepare_chat, _named(answers.chat), _chat_stream),
        Endpoint(
            "/v1/completions", requests.prepare_completion, _named(answers.completion), _completion_stream
        ),
        Endpoint(
            "/v1/responses",
            requests.prepare_response,
            lambda answer, call: answers.response(answer, call.target.name, call.asked),
            _response_stream,
            stores=True,
        ),
        Endpoint("/v1/embeddings", requests.prepare_embedding, _named(answers.embedding), None),
        Endpoint(
            "/v1/messages", requests.prepare_message, _named(answers.message), _message_stream, anthropic=True
        ),
        Endpoint(
            "/v1/messages/count_tokens", requests.prepare_count, _named(answers.count), None, anthropic=True
        ),
    )
}


def _beginning(body: Body) -> bytes:
    messages = body.get("messages") or body.get("input")
    if isinstance(messages, list):
        return repr([item.get("content") for item in messages[:2] if isinstance(item, dict)])[:2048].encode()
    return repr(messages or body.get("prompt"))[:512].encode()
