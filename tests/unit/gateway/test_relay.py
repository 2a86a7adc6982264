"""The relay: whatever the cuts between reads, the client gets the same whole events."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import EngineFailed
from gateway.relay import (
    BrokenStream,
    CompletionStream,
    EngineErrorEvent,
    Events,
    MessageStream,
    ResponseStream,
    Translator,
)

SERVED, NAME = "support@1.0123456789ab", "support"
TEXTS = st.text(max_size=30) | st.sampled_from(
    [
        '"model":"support@1.0123456789ab"',
        "data: [DONE]",
        '"usage":{',
        '"error":',
        "\n\n",
        "\r\n",
        "\u2028\u2029\x85",
        "}\n\n",
    ]
)


def sse(body: dict[str, Any] | bytes, event: str | None = None) -> bytes:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return (f"event: {event}\n".encode() if event else b"") + b"data: " + data + b"\n\n"


def chunk(content: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": content}, "logprobs": None, "finish_reason": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": SERVED,
        "choices": [choice],
        **more,
    }


def usage_chunk() -> dict[str, Any]:
    return {
        **chunk(),
        "choices": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def chat(*, shows_usage: bool = False, request: dict[str, Any] | None = None) -> CompletionStream:
    return CompletionStream(SERVED, NAME, request or {}, chat=True, shows_usage=shows_usage)


def parsed(stream: bytes) -> list[dict[str, Any]]:
    assert stream.endswith(b"\n\n") or not stream
    lines = [line for line in stream.split(b"\n") if line.startswith(b"data: ")]
    return [orjson.loads(line.removeprefix(b"data: ")) for line in lines]


def run(translator: Translator, stream: bytes, cuts: list[int]) -> bytes:
    places = [0, *sorted({cut % (len(stream) + 1) for cut in cuts}), len(stream)]
    return b"".join(translator.feed(stream[a:b]) for a, b in zip(places, places[1:], strict=False))


@given(
    texts=st.lists(TEXTS, min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 5000), max_size=12),
    shown=st.booleans(),
)
def test_any_cut_of_a_chat_stream_gives_the_same_events(
    texts: list[str], cuts: list[int], shown: bool
) -> None:
    stream = b"".join(sse(chunk(text)) for text in texts) + sse(usage_chunk()) + b"data: [DONE]\n\n"
    translator = chat(shows_usage=shown)
    events = parsed(run(translator, stream, cuts))
    assert [e["choices"][0]["delta"]["content"] for e in events if e["choices"]] == texts
    assert {e["model"] for e in events} == {NAME}
    assert translator.done
    assert translator.usage == usage_chunk()["usage"]
    if shown:
        assert [e["usage"] for e in events] == [None] * len(texts) + [usage_chunk()["usage"]]
    else:
        assert all("usage" not in e for e in events)
        assert len(events) == len(texts)


@given(texts=st.lists(TEXTS, min_size=1, max_size=6), cuts=st.lists(st.integers(0, 5000), max_size=12))
def test_an_id_that_an_engine_gives_again_is_replaced_in_every_chunk(
    texts: list[str], cuts: list[int]
) -> None:
    stream = b"".join(sse(chunk(text)) for text in [*texts, '"id":"chatcmpl-1"']) + b"data: [DONE]\n\n"
    translator = CompletionStream(SERVED, NAME, {}, chat=True, shows_usage=False, own_id="chatcmpl-own")
    events = parsed(run(translator, stream, cuts))
    assert {event["id"] for event in events} == {"chatcmpl-own"}
    said = [event["choices"][0]["delta"]["content"] for event in events]
    assert said == [*texts, '"id":"chatcmpl-1"']


def test_the_id_of_a_response_or_a_message_is_replaced_too() -> None:
    stream = response("response.created", "in_progress") + response("response.completed", "completed")
    out = parsed(ResponseStream(NAME, {}, "resp_own").feed(stream))
    assert {event["response"]["id"] for event in out} == {"resp_own"}
    start = sse({"type": "message_start", "message": {"id": "chatcmpl-7"}}, "message_start")
    assert parsed(MessageStream(NAME, "req_1", "msg_own").feed(start))[0]["message"]["id"] == "msg_own"


@given(texts=st.lists(TEXTS, min_size=1, max_size=6), cuts=st.lists(st.integers(0, 5000), max_size=12))
def test_line_ends_of_the_engine_do_not_matter(texts: list[str], cuts: list[int]) -> None:
    stream = b"".join(sse(chunk(text)) for text in texts) + b"data: [DONE]\n\n"
    crlf = stream.replace(b"\n", b"\r\n")
    assert parsed(run(chat(), crlf, cuts)) == parsed(run(chat(), stream, cuts))


@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 300), max_size=6))
def test_events_lose_and_make_up_nothing(data: bytes, cuts: list[int]) -> None:
    data = data.replace(b"\r", b"")
    events = Events()
    places = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    blocks = b"".join(events.feed(data[a:b]) for a, b in zip(places, places[1:], strict=False))
    assert blocks + events.tail == data
    assert b"\n\n" not in events.tail


def test_a_plain_event_is_forwarded_with_nothing_but_the_model_changed() -> None:
    event = sse(chunk('he said "model":"support@1.0123456789ab"'))
    out = chat().feed(event)
    assert out == event.replace(b'"model":"' + SERVED.encode() + b'"', b'"model":"support"', 1)


def test_another_models_name_is_put_right_too() -> None:
    event = sse({**chunk("hi"), "model": "gpt-4o-2024-08-06"})
    assert parsed(chat().feed(event))[0]["model"] == NAME


def test_a_comment_passes() -> None:
    assert chat().feed(b": keep-alive\n\n") == b": keep-alive\n\n"


def test_the_first_piece_of_a_tool_call_has_arguments_to_add_to() -> None:
    call = {"id": "call_1", "type": "function", "index": 0, "function": {"name": "weather"}}
    delta = {"index": 0, "delta": {"content": None, "tool_calls": [call]}, "finish_reason": None}
    out = parsed(chat().feed(sse({**chunk(), "choices": [delta]})))
    assert out[0]["choices"][0]["delta"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": ""}


def test_logprobs_of_a_chunk_have_the_refusal_key() -> None:
    body = chunk("hi")
    body["choices"][0]["logprobs"] = {"content": []}
    out = parsed(chat().feed(sse(body)))
    assert out[0]["choices"][0]["logprobs"] == {"content": [], "refusal": None}


@pytest.mark.parametrize(
    "garbage",
    [b"<html></html>\n\n", b"data: {not json}\n\n", b"data: 5\n\n", b"\xff\xfe\n\n", b'data: {"a":1}\n\n'],
)
def test_garbage_is_not_relayed(garbage: bytes) -> None:
    with pytest.raises(BrokenStream):
        chat().feed(garbage)


def test_an_engines_own_failure_is_told_without_its_words() -> None:
    body = {"error": {"message": "Traceback /opt/secret.py", "type": "InternalServerError", "code": 500}}
    with pytest.raises(EngineErrorEvent) as caught:
        chat().feed(sse(body))
    assert caught.value.error.status == 502
    assert "secret" not in caught.value.error.message


def test_an_engines_refusal_mid_stream_is_the_clients_error() -> None:
    body = {"error": {"message": "bad grammar (parameter=regex)", "type": "BadRequestError", "code": 400}}
    with pytest.raises(EngineErrorEvent) as caught:
        chat().feed(sse(body))
    assert (caught.value.error.status, caught.value.error.param) == (400, "regex")


def response(kind: str, status: str, **more: Any) -> bytes:
    body = {
        "response": {"id": "resp_1", "model": SERVED, "status": status, "output": [], **more},
        "sequence_number": 3,
    }
    return sse({**body, "type": kind}, kind)


@given(cuts=st.lists(st.integers(0, 500), max_size=8))
def test_a_response_that_was_cut_off_ends_as_incomplete(cuts: list[int]) -> None:
    asked = {"previous_response_id": "resp_0", "metadata": {"a": "b"}}
    translator = ResponseStream(NAME, asked)
    stream = response("response.created", "in_progress") + response("response.completed", "incomplete")
    out = run(translator, stream, cuts)
    assert b"event: response.incomplete\n" in out
    assert b"response.completed" not in out
    last = parsed(out)[-1]["response"]
    assert last["incomplete_details"] == {"reason": "max_output_tokens"}
    assert (last["previous_response_id"], last["metadata"], last["error"]) == ("resp_0", {"a": "b"}, None)
    assert {event["response"]["model"] for event in parsed(out)} == {NAME}
    assert translator.done


def test_a_message_stream_names_the_clients_model_and_ends_with_message_stop() -> None:
    translator = MessageStream(NAME, "req_1")
    start = {
        "type": "message_start",
        "message": {"id": "chatcmpl-7", "model": SERVED, "usage": {"input_tokens": 3}},
    }
    out = translator.feed(sse(start, "message_start"))
    assert parsed(out)[0]["message"]["model"] == NAME
    assert parsed(out)[0]["message"]["id"] == "msg_7"
    assert not translator.done
    delta = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5}}
    translator.feed(sse(delta, "message_delta"))
    translator.feed(sse({"type": "message_stop"}, "message_stop"))
    assert translator.done
    assert translator.usage == {"input_tokens": 3, "output_tokens": 5}


def test_the_error_event_of_each_api_has_that_apis_shape() -> None:
    error = EngineFailed("It broke.", code="stream_broken")
    assert parsed(chat().broken(error)) == [
        {"error": {"message": "It broke.", "type": "server_error", "param": None, "code": "stream_broken"}}
    ]
    assert parsed(ResponseStream(NAME, {}).broken(error))[0]["type"] == "error"
    assert parsed(MessageStream(NAME, "r").broken(error))[0]["error"]["type"] == "api_error"
