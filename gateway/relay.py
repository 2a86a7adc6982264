"""Server-sent events on their way from an engine to a client.

Owns the splitting of bytes into whole events, and one translator for each API: the client's model name put
back, usage taken out where it was not asked for, what OpenAI's schema requires put in, the end told from a
cut-off. Plain events are changed by replacing bytes; only events that hold something special are parsed. Bytes
inside a JSON string are escaped, so `"model":"` can never match inside a text. Knows no sockets and no routes.

Lines end in LF, CRLF or CR by the specification (WHATWG HTML §9.2.6); engines send LF or CRLF. Lines are split
on bytes only: U+2028 and its kin are text.
"""

from __future__ import annotations

from typing import Any, Protocol

import orjson

from adapters.errors import BurnishError, EngineFailed
from gateway.protocol import answers
from gateway.protocol.errors import anthropic_error, from_engine_words, openai_error

Request = dict[str, Any]

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""An event longer than this is taken for garbage."""


class BrokenStream(Exception):
    """What the engine sent is not the stream it should be."""


class EngineErrorEvent(Exception):
    """The engine ended its stream with an error event."""

    def __init__(self, error: BurnishError) -> None:
        super().__init__(error.message)
        self.error = error


class Events:
    """Cuts a stream of bytes into blocks of whole events. `\\r\\n` becomes `\\n`."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """The whole events that are complete with `data`, each ending in a blank line; perhaps none."""
        if self._tail:
            data = self._tail + data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        end = data.rfind(b"\n\n")
        if end < 0:
            if len(data) > MAX_EVENT_BYTES:
                raise BrokenStream("an event without an end")
            self._tail = data
            return b""
        self._tail = data[end + 2 :]
        return data[: end + 2]

    @property
    def tail(self) -> bytes:
        """What has come of an event that is not complete."""
        return self._tail


class Translator(Protocol):
    """One stream's way from the engine's words to the client's."""

    done: bool
    """Whether the engine has said that its answer is complete."""
    usage: dict[str, Any] | None

    def feed(self, data: bytes) -> bytes:
        """Whole events for the client; raises BrokenStream or EngineErrorEvent."""

    def closing(self) -> bytes:
        """What follows the last event of a complete answer."""

    def broken(self, error: BurnishError) -> bytes:
        """The event that tells a client that its answer will not be completed."""


class CompletionStream:
    """`/v1/chat/completions` and `/v1/completions`: chunks, then `[DONE]`."""

    __slots__ = (
        "_chat",
        "_events",
        "_name",
        "_new",
        "_new_id",
        "_old",
        "_old_id",
        "_own_id",
        "_request",
        "_shows_usage",
        "done",
        "usage",
    )

    def __init__(
        self,
        served: str,
        name: str,
        request: Request,
        *,
        chat: bool,
        shows_usage: bool,
        own_id: str | None = None,
    ) -> None:
        """`own_id` takes the place of the engine's id for its answer."""
        self._events = Events()
        self._own_id = own_id
        self._old_id: bytes | None = None  # known once the first chunk has been parsed
        self._new_id = b'"id":' + orjson.dumps(own_id)
        self._name = name
        self._old = b'"model":' + orjson.dumps(served)
        self._new = b'"model":' + orjson.dumps(name)
        self._request = request
        self._chat = chat
        self._shows_usage = shows_usage
        self.done = False
        self.usage: dict[str, Any] | None = None

    def feed(self, data: bytes) -> bytes:
        block = self._events.feed(data)
        if not block:
            return b""
        count = block.count(b"\n\n")
        if (
            block.count(self._old) == count
            and block.count(b"data: {") == count
            and b'"usage":' not in block
            and b'"logprobs":{' not in block
            and b'"type":"function"' not in block  # opens a tool call
            and b'"error":' not in block
            and b"[DONE]" not in block
            and (self._own_id is None or (self._old_id is not None and block.count(self._old_id) == count))
        ):
            block = block.replace(self._old, self._new)
            if self._old_id is not None:
                block = block.replace(self._old_id, self._new_id)
            return block.replace(b"}\n\n", b',"usage":null}\n\n') if self._shows_usage else block
        return b"".join([self._event(event) for event in block[:-2].split(b"\n\n")])

    def closing(self) -> bytes:
        return b"data: [DONE]\n\n"

    def broken(self, error: BurnishError) -> bytes:
        return b"data: " + orjson.dumps(openai_error(error)) + b"\n\n"

    def _event(self, event: bytes) -> bytes:
        data = _data_of(event)
        if data is None:
            return event + b"\n\n"
        if data == b"[DONE]":
            self.done = True
            return b""
        chunk = _object(data)
        _raise_error(chunk, self._request)
        if "choices" not in chunk:
            raise BrokenStream("a chunk without choices")
        if self._own_id is not None:
            self._old_id = b'"id":' + orjson.dumps(chunk.get("id"))
            chunk["id"] = self._own_id
        if self._chat:
            answers.chat_chunk(chunk, self._name)
        else:
            answers.completion(chunk, self._name)
        self.usage = answers.usage(chunk) or self.usage
        if not self._shows_usage:
            if not chunk["choices"] and chunk.get("usage"):
                return b""
            chunk.pop("usage", None)
        else:
            chunk.setdefault("usage", None)
        return b"data: " + orjson.dumps(chunk) + b"\n\n"


class ResponseStream:
    """`/v1/responses`: named events, the last of which carries the whole response."""

    __slots__ = ("_asked", "_events", "_name", "_own_id", "_sequence", "_text", "done", "response", "usage")

    ENDS = ("response.completed", "response.incomplete", "response.failed")

    def __init__(self, name: str, asked: Request, own_id: str | None = None) -> None:
        self._events = Events()
        self._name = name
        self._own_id = own_id
        self._asked = asked
        self._sequence = -1
        self.done = False
        self.usage: dict[str, Any] | None = None
        self.response: dict[str, Any] | None = None

    def feed(self, data: bytes) -> bytes:
        block = self._events.feed(data)
        return b"".join([self._event(event) for event in block[:-2].split(b"\n\n")]) if block else b""

    def closing(self) -> bytes:
        return b""

    def broken(self, error: BurnishError) -> bytes:
        event = {
            "type": "error",
            "code": error.code,
            "message": error.message,
            "param": error.param,
            "sequence_number": self._sequence + 1,
        }
        return b"event: error\ndata: " + orjson.dumps(event) + b"\n\n"

    def _event(self, event: bytes) -> bytes:
        data = _data_of(event)
        if data is None:
            return event + b"\n\n"
        if data == b"[DONE]":
            return b""
        body = _object(data)
        _raise_error(body, self._asked)
        kind = body.get("type")
        if not isinstance(kind, str):
            raise BrokenStream("an event without a type")
        self._sequence = body.get("sequence_number", self._sequence + 1)
        if kind == "response.output_text.done" or kind == "response.output_text.delta":
            body["logprobs"] = body.get("logprobs") or []
        if isinstance(part := body.get("part"), dict) and part.get("type") == "output_text":
            answers.output_text(part)
        if isinstance(item := body.get("item"), dict):
            answers.output_item(item)
        if isinstance(response := body.get("response"), dict):
            answers.response(response, self._name, self._asked)
            response["id"] = self._own_id or response.get("id")
            if kind in self.ENDS:
                kind = body["type"] = self._end(response, kind)
        return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(body) + b"\n\n"

    def _end(self, response: dict[str, Any], kind: str) -> str:
        self.done = True
        self.response = response
        self.usage = answers.usage(response)
        # vLLM says `response.completed` of an answer that was cut off at its limit.
        return "response.incomplete" if response.get("status") == "incomplete" else kind


class MessageStream:
    """`/v1/messages`: Anthropic's named events, ending in `message_stop`."""

    __slots__ = ("_events", "_name", "_own_id", "_request_id", "done", "usage")

    def __init__(self, name: str, request_id: str, own_id: str | None = None) -> None:
        self._events = Events()
        self._own_id = own_id
        self._name = name
        self._request_id = request_id
        self.done = False
        self.usage: dict[str, Any] | None = None

    def feed(self, data: bytes) -> bytes:
        block = self._events.feed(data)
        if b'"type":"content_block_delta"' in block and block.count(b"\n\n") == 1:
            return block
        return b"".join([self._event(event) for event in block[:-2].split(b"\n\n")]) if block else b""

    def closing(self) -> bytes:
        return b""

    def broken(self, error: BurnishError) -> bytes:
        return b"event: error\ndata: " + orjson.dumps(anthropic_error(error, self._request_id)) + b"\n\n"

    def _event(self, event: bytes) -> bytes:
        data = _data_of(event)
        if data is None:
            return event + b"\n\n"
        if data == b"[DONE]":
            return b""
        body = _object(data)
        _raise_error(body, {})
        if not isinstance(body.get("type"), str):
            raise BrokenStream("an event without a type")
        if found := answers.usage(body) or answers.usage(body.get("message") or {}):
            self.usage = {**(self.usage or {}), **found}
        self.done = self.done or body["type"] == "message_stop"
        if body["type"] != "message_start":
            return event + b"\n\n"
        answers.message(body["message"], self._name)
        body["message"]["id"] = self._own_id or body["message"]["id"]
        return b"event: message_start\ndata: " + orjson.dumps(body) + b"\n\n"


def _data_of(event: bytes) -> bytes | None:
    """The data of one event; None where it has none (a comment, for one)."""
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    if lines:
        return b"\n".join(lines)
    if all(line.startswith((b":", b"event:", b"id:", b"retry:")) or not line for line in event.split(b"\n")):
        return None
    raise BrokenStream("not an event")


def _object(data: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise BrokenStream("an event that is not JSON") from None
    if not isinstance(body, dict):
        raise BrokenStream("an event that is not an object")
    return body


def _raise_error(body: dict[str, Any], request: Request) -> None:
    """Raises the error that an event carries, if it carries one."""
    error = body.get("error")
    if not isinstance(error, dict) or "message" not in error or body.get("choices"):
        return
    code = error.get("code")
    if isinstance(code, int) and 400 <= code < 500:
        param = error.get("param") if isinstance(error.get("param"), str) else None
        raise EngineErrorEvent(from_engine_words(code, str(error["message"]), param, request))
    raise EngineErrorEvent(EngineFailed("The engine failed while it answered this request."))
