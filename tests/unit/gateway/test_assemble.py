"""However an answer is split into events, and the events into blocks, what is put together is the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.assemble import (
    ASSEMBLIES,
    Assembly,
    ChatAssembly,
    MessageAssembly,
    ResponseAssembly,
    TextAssembly,
)

TEXT = st.text(max_size=20) | st.sampled_from(["data: [DONE]", "\n\n", "\u2028\x85", '"choices":[', ""])
HEAD = {"id": "chatcmpl-1", "created": 7, "model": "support"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


def sse(body: dict[str, Any]) -> bytes:
    kind = body.get("type")
    return (f"event: {kind}\n".encode() if kind else b"") + b"data: " + orjson.dumps(body) + b"\n\n"


def pieces(data: st.DataObject, text: str) -> Iterator[str]:
    """The text in pieces, the first of which may be empty."""
    if data.draw(st.booleans()):
        yield ""
    while text:
        size = data.draw(st.integers(1, len(text)))
        yield text[:size]
        text = text[size:]


def fed(data: st.DataObject, assembly: Assembly, events: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What is put together of the events, in blocks of any number, with comments between them."""
    wire = [sse(event) for event in events]
    wire.insert(data.draw(st.integers(0, len(wire))), b": keep-alive\n\n")
    wire.append(b"data: [DONE]\n\n")
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        assembly.feed(b"".join(wire[:size]))
        wire = wire[size:]
    return assembly.answer()


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    """An assistant's message: it says something, or calls something, or both."""
    names = st.text("abc_", min_size=1, max_size=5)
    calls = [
        {"id": f"call_{i}", "type": "function", "function": {"name": draw(names), "arguments": draw(TEXT)}}
        for i in range(draw(st.integers(0, 2)))
    ]
    text = draw(TEXT)
    message: dict[str, Any] = {"role": "assistant", "content": (text or None) if calls else text}
    if calls:
        message["tool_calls"] = calls
    return {**message, "refusal": None}


@st.composite
def logprobs(draw: st.DrawFn) -> dict[str, Any] | None:
    tokens = [
        {"token": draw(TEXT), "logprob": -0.5, "top_logprobs": []} for _ in range(draw(st.integers(1, 3)))
    ]
    return draw(st.sampled_from([None, {"content": tokens, "refusal": None}]))


def chat_chunks(data: st.DataObject, answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The answer as an engine streams it: each choice in its order, the choices in any."""
    streams = [list(choice_deltas(data, choice)) for choice in answer["choices"]]
    chunks = []
    while any(streams):
        stream = data.draw(st.sampled_from([s for s in streams if s]))
        chunks.append({**HEAD, "object": "chat.completion.chunk", "choices": [stream.pop(0)], "usage": None})
    return [*chunks, {**HEAD, "object": "chat.completion.chunk", "choices": [], "usage": answer["usage"]}]


def choice_deltas(data: st.DataObject, choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    message, none = choice["message"], {"index": choice["index"], "logprobs": None, "finish_reason": None}
    yield {**none, "delta": {"role": "assistant", "content": ""}}
    for piece in pieces(data, message["content"] or ""):
        yield {**none, "delta": {"content": piece}}
    for index, call in enumerate(message.get("tool_calls", ())):
        function = {"name": call["function"]["name"], "arguments": ""}
        yield {**none, "delta": {"tool_calls": [{**call, "index": index, "function": function}]}}
        for piece in pieces(data, call["function"]["arguments"]):
            yield {**none, "delta": {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}}
    if choice["logprobs"]:
        for entry in choice["logprobs"]["content"]:
            yield {**none, "delta": {}, "logprobs": {"content": [entry], "refusal": None}}
    yield {**none, "delta": {}, "finish_reason": choice["finish_reason"]}


@given(st.data())
def test_a_chat_completion_survives_being_streamed(data: st.DataObject) -> None:
    choices = [
        {
            "index": index,
            "message": data.draw(messages()),
            "logprobs": data.draw(logprobs()),
            "finish_reason": data.draw(st.sampled_from(["stop", "length", "tool_calls"])),
        }
        for index in range(data.draw(st.integers(1, 3)))
    ]
    answer = {**HEAD, "object": "chat.completion", "choices": choices, "usage": USAGE}
    assert fed(data, ChatAssembly(), chat_chunks(data, answer)) == answer


@given(st.data())
def test_a_text_completion_survives_being_streamed(data: st.DataObject) -> None:
    text = data.draw(TEXT)
    tokens = list(pieces(data, text)) or [""]
    told = {"tokens": tokens, "token_logprobs": [-0.5] * len(tokens), "top_logprobs": None}
    choice = {"index": 0, "text": text, "logprobs": told, "finish_reason": "stop"}
    answer = {**HEAD, "object": "text_completion", "choices": [choice], "usage": USAGE}
    parts = [{"tokens": [token], "token_logprobs": [-0.5], "top_logprobs": None} for token in tokens]
    chunks = [
        {**HEAD, "object": "text_completion", "choices": [{"index": 0, "text": token, "logprobs": part}]}
        for token, part in zip(tokens, parts, strict=True)
    ]
    end = {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}
    last = {**HEAD, "object": "text_completion", "choices": [end], "usage": USAGE}
    assert fed(data, TextAssembly(), [*chunks, last]) == answer


@given(st.data())
def test_a_message_survives_being_streamed(data: st.DataObject) -> None:
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "support", "stop_sequence": None}
    text = data.draw(TEXT)
    given_input = data.draw(st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=3))
    use = {"type": "tool_use", "id": "call_1", "name": "f", "input": given_input}
    whole = {**head, "content": [{"type": "text", "text": text}, use], "stop_reason": "tool_use",
             "usage": {"input_tokens": 3, "output_tokens": 2}}  # fmt: skip
    start = {**head, "content": [], "stop_reason": None, "usage": {"input_tokens": 3, "output_tokens": 0}}
    events = [{"type": "message_start", "message": start}]
    events += [{"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}]
    events += [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
        for piece in pieces(data, text)
    ]
    events += [{"type": "content_block_start", "index": 1, "content_block": {**use, "input": {}}}]
    events += [
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": p}}
        for p in pieces(data, orjson.dumps(given_input).decode())
    ]
    events += [
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    assert fed(data, MessageAssembly(), events) == whole


def response_events(data: st.DataObject, text: str, arguments: str) -> list[dict[str, Any]]:
    response = {"id": "resp_1", "object": "response", "status": "in_progress", "output": []}
    message = {"type": "message", "id": "msg_1", "role": "assistant", "content": [], "status": "in_progress"}
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": ""}
    at_text = {"output_index": 0, "content_index": 0, "item_id": "msg_1"}
    return [
        {"type": "response.created", "response": response},
        {"type": "response.in_progress", "response": response},
        {"type": "response.output_item.added", "output_index": 0, "item": message},
        {"type": "response.content_part.added", **at_text, "part": {"type": "output_text", "text": ""}},
        *({"type": "response.output_text.delta", **at_text, "delta": p} for p in pieces(data, text)),
        {"type": "response.output_item.added", "output_index": 1, "item": call},
        *(
            {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": piece}
            for piece in pieces(data, arguments)
        ),
    ]


@given(st.data(), st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_a_response_that_was_cut_off_is_what_came_of_it(
    data: st.DataObject, text: str, arguments: str
) -> None:
    got = fed(data, ResponseAssembly(), response_events(data, text, arguments))
    assert got is not None
    assert (got["id"], got["status"]) == ("resp_1", "in_progress")
    message, call = got["output"]
    assert message["content"] == [{"type": "output_text", "text": text, "annotations": []}]
    assert call["arguments"] == arguments


@given(st.data())
def test_the_last_event_of_a_response_holds_the_whole(data: st.DataObject) -> None:
    final = {"id": "resp_1", "object": "response", "status": "completed", "output": [{"type": "message"}]}
    events = [*response_events(data, "text", "{}"), {"type": "response.completed", "response": final}]
    assert fed(data, ResponseAssembly(), events) == final


@pytest.mark.parametrize("path", ASSEMBLIES)
def test_where_nothing_came_there_is_no_answer(path: str) -> None:
    assembly = ASSEMBLIES[path]()
    assembly.feed(b": comment\n\ndata: [DONE]\n\ndata: {\n\n")
    assert assembly.answer() is None


def test_what_came_before_the_cut_is_there_and_says_no_reason_to_end() -> None:
    assembly = ChatAssembly()
    assembly.feed(sse({**HEAD, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Once"}}]}))
    assembly.feed(sse({**HEAD, "choices": [{"index": 0, "delta": {"content": " upon"}}]}))
    answer = assembly.answer()
    assert answer is not None
    assert answer["choices"][0]["message"]["content"] == "Once upon"
    assert answer["choices"][0]["finish_reason"] is None


EVENTS = st.dictionaries(
    st.sampled_from(["choices", "type", "delta", "item", "response", "message", "index", "usage"]), JSON
)
KINDS = st.sampled_from(["message_start", "content_block_start", "content_block_delta", "message_delta", "x"])
CHOICES = st.lists(
    st.dictionaries(st.sampled_from(["index", "delta", "logprobs", "text", "finish_reason"]), JSON),
    max_size=2,
)
DELTAS = st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "function_call"]), JSON)


@given(st.data(), st.sampled_from(sorted(ASSEMBLIES)))
def test_no_event_is_too_strange(data: st.DataObject, path: str) -> None:
    assembly = ASSEMBLIES[path]()
    for _ in range(data.draw(st.integers(1, 5))):
        event = data.draw(EVENTS)
        if data.draw(st.booleans()):
            event = {**event, "type": data.draw(KINDS), "choices": data.draw(CHOICES)}
        if data.draw(st.booleans()):
            event["choices"] = [{"index": 0, "delta": data.draw(DELTAS)}]
        assembly.feed(sse({**event, "type": str(event.get("type"))}))
        answer = assembly.answer()
        orjson.dumps(answer)
