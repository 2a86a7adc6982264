"""Every answer holds the keys that OpenAI's published schema requires, also those that may be null.

Owns the strict reading of raw JSON: the types of OpenAI's client with its leniency off (a field without a
default must be there, a literal must be one of its words), and the table `REQUIRED_NULLABLE` of keys that the
OpenAPI document requires but lets be null, which the Python types cannot express (the Node types do: `T | null`
without `?`). Knows nothing of what the answers say.
"""

import json
from collections.abc import Iterator
from typing import Any, get_args

import httpx
import pytest
from conftest import Gateway
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import TypeAdapter

HELLO = [{"role": "user", "content": "Say hello."}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
FORCED_TOOL = {
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}],
    "tool_choice": "required",
    "max_tokens": 100,
}
LOGPROBS = {"logprobs": True, "top_logprobs": 2}

# Where in an answer -> keys that must stand there, null or not. `[]` goes into each item of a list; a place that
# is null or absent has no keys to hold.
REQUIRED_NULLABLE: dict[str, dict[str, set[str]]] = {
    "chat.completion": {
        "choices[]": {"finish_reason", "index", "logprobs", "message"},
        "choices[].message": {"role", "content", "refusal"},
        "choices[].logprobs": {"content", "refusal"},
        "choices[].logprobs.content[]": {"token", "logprob", "bytes", "top_logprobs"},
        "choices[].logprobs.content[].top_logprobs[]": {"token", "logprob", "bytes"},
    },
    "chat.completion.chunk": {
        "choices[]": {"delta", "finish_reason", "index"},
        "choices[].logprobs": {"content", "refusal"},
        "choices[].logprobs.content[]": {"token", "logprob", "bytes", "top_logprobs"},
        "choices[].logprobs.content[].top_logprobs[]": {"token", "logprob", "bytes"},
        "choices[].delta.tool_calls[]": {"index"},
    },
    "text_completion": {"choices[]": {"finish_reason", "index", "logprobs", "text"}},
    "response": {
        "": {"error", "incomplete_details", "instructions", "metadata", "temperature", "top_p"},
        "output[].content[]": {"type"},
    },
}


def places(value: Any, path: str) -> Iterator[dict[str, Any]]:
    """The objects of `value` at `path`."""
    if value is None:
        return
    if not path:
        yield value
        return
    head, _, rest = path.partition(".")
    inner = value.get(head.removesuffix("[]"))
    for one in (inner or []) if head.endswith("[]") else [inner]:
        yield from places(one, rest)


def assert_required(answer: dict[str, Any]) -> None:
    for path, keys in REQUIRED_NULLABLE[answer["object"]].items():
        for place in places(answer, path):
            missing = keys - set(place)
            assert not missing, f"{answer['object']}: {path or 'top'} lacks {sorted(missing)}: {place}"


EVENT_TYPES = {
    get_args(event.model_fields["type"].annotation)[0]: event
    for event in get_args(get_args(ResponseStreamEvent)[0])
}


def strict(type_: Any, answer: dict[str, Any]) -> Any:
    """`answer` as OpenAI's own type, validated and not, as the client does it, merely constructed."""
    return TypeAdapter(type_).validate_python(answer)


def post(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(http: httpx.Client, path: str, **body: Any) -> list[dict[str, Any]]:
    """The data of every event but `[DONE]`, split on newlines only (text may hold U+2028)."""
    with http.stream("POST", path, json={**body, "stream": True}) as answer:
        raw = answer.read()
        assert answer.status_code == 200, raw
    data = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(piece) for piece in data if piece != b"[DONE]"]


CHAT_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "logprobs": LOGPROBS,
    "logprobs-only": {"logprobs": True},
    "n": {"n": 2, "temperature": 1},
    "tool": FORCED_TOOL,
    "tool-logprobs": {**FORCED_TOOL, **LOGPROBS},
    "named-tool": {**FORCED_TOOL, "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    "json": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": PARAMETERS}},
        "max_tokens": 40,
    },
}


class TestChat:
    @pytest.mark.parametrize("case", CHAT_CASES)
    def test_completion(self, http: httpx.Client, gateway: Gateway, case: str) -> None:
        body = {"max_tokens": 3, "temperature": 0, **CHAT_CASES[case]}
        answer = post(http, "/chat/completions", model=gateway.model, messages=HELLO, **body)
        strict(ChatCompletion, answer)
        assert_required(answer)

    @pytest.mark.parametrize("case", CHAT_CASES)
    @pytest.mark.parametrize("usage", [False, True], ids=["no-usage", "usage"])
    def test_chunks(self, http: httpx.Client, gateway: Gateway, case: str, usage: bool) -> None:
        body = {"max_tokens": 3, "temperature": 0, **CHAT_CASES[case]}
        if usage:
            body["stream_options"] = {"include_usage": True}
        chunks = events(http, "/chat/completions", model=gateway.model, messages=HELLO, **body)
        for chunk in chunks:
            strict(ChatCompletionChunk, chunk)
            assert_required(chunk)
            assert ("usage" in chunk) is usage, chunk
        assert [bool(chunk.get("usage")) for chunk in chunks] == [False] * (len(chunks) - 1) + [usage]

    def test_tool_calls_have_no_null_among_their_strings(self, http: httpx.Client, gateway: Gateway) -> None:
        chunks = events(
            http, "/chat/completions", model=gateway.model, messages=HELLO, temperature=0, **FORCED_TOOL
        )
        calls = [
            call
            for chunk in chunks
            for choice in chunk["choices"]
            for call in choice["delta"].get("tool_calls") or []
        ]
        assert calls
        for call in calls:
            assert all(call.get(key, "") is not None for key in ("id", "type")), call
            assert all(value is not None for value in call["function"].values()), call
        assert calls[0]["function"].get("arguments") == "", calls[0]

    def test_delta_keys_are_left_out_rather_than_null(self, http: httpx.Client, gateway: Gateway) -> None:
        chunks = events(http, "/chat/completions", model=gateway.model, messages=HELLO, max_tokens=3)
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        assert all(
            delta.get(key, 0) is not None
            for delta in deltas
            for key in ("role", "tool_calls", "function_call")
        )


class TestCompletions:
    @pytest.mark.parametrize(
        "case",
        [{}, {"logprobs": 2}, {"echo": True}, {"echo": True, "logprobs": 1}, {"n": 2}],
        ids=["plain", "logprobs", "echo", "echo-logprobs", "n"],
    )
    def test_completion(self, http: httpx.Client, gateway: Gateway, case: dict[str, Any]) -> None:
        answer = post(http, "/completions", model=gateway.model, prompt="One, two,", max_tokens=3, **case)
        strict(Completion, without_null_first_logprob(answer))
        assert_required(answer)

    @pytest.mark.parametrize("usage", [False, True], ids=["no-usage", "usage"])
    def test_chunks(self, http: httpx.Client, gateway: Gateway, usage: bool) -> None:
        options = {"stream_options": {"include_usage": True}} if usage else {}
        chunks = events(
            http, "/completions", model=gateway.model, prompt="One, two,", max_tokens=3, **options
        )
        for chunk in chunks:
            assert_required(chunk)
            assert ("usage" in chunk) is usage, chunk
            assert chunk["object"] == "text_completion"
        assert [bool(chunk.get("usage")) for chunk in chunks] == [False] * (len(chunks) - 1) + [usage]


def without_null_first_logprob(answer: dict[str, Any]) -> dict[str, Any]:
    """With `echo` the prompt's first token has no log-probability: OpenAI sends null, its types forget to."""
    for choice in answer["choices"]:
        for key in ("token_logprobs", "top_logprobs"):
            values = (choice["logprobs"] or {}).get(key)
            if values and values[0] is None:
                del values[0]
    return answer


RESPONSE_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "instructions": {"instructions": "Be brief."},
    "logprobs": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "tool": {
        "tools": [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}],
        "tool_choice": "required",
        "max_output_tokens": 100,
    },
    "json": {
        "text": {"format": {"type": "json_schema", "name": "place", "schema": PARAMETERS, "strict": True}},
        "max_output_tokens": 40,
    },
}


def assert_response(answer: dict[str, Any]) -> None:
    strict(Response, answer)
    assert_required(answer)
    for item in answer["output"]:
        for part in item.get("content") or []:
            assert isinstance(part["logprobs"], list), f"output_text's logprobs is a list, if empty: {part}"


class TestResponses:
    @pytest.mark.parametrize("case", RESPONSE_CASES)
    def test_response(self, http: httpx.Client, gateway: Gateway, case: str) -> None:
        body = {"max_output_tokens": 16, "temperature": 0, **RESPONSE_CASES[case]}
        answer = post(http, "/responses", model=gateway.model, input="Say hello.", **body)
        assert_response(answer)
        assert_response(http.get(f"/responses/{answer['id']}").json())

    @pytest.mark.parametrize("case", RESPONSE_CASES)
    def test_events(self, http: httpx.Client, gateway: Gateway, case: str) -> None:
        body = {"max_output_tokens": 16, "temperature": 0, **RESPONSE_CASES[case]}
        got = events(http, "/responses", model=gateway.model, input="Say hello.", **body)
        for event in got:
            strict(EVENT_TYPES[event["type"]], event)
            if "response" in event:
                assert_response(event["response"])
        assert got[-1]["response"]["usage"]["output_tokens"] > 0

    def test_input_items(self, http: httpx.Client, gateway: Gateway) -> None:
        made = post(http, "/responses", model=gateway.model, input="Say hello.", max_output_tokens=16)
        listed = http.get(f"/responses/{made['id']}/input_items").json()
        strict(ResponseItemList, listed)
        assert listed["data"][0]["content"] == [{"type": "input_text", "text": "Say hello."}]

    def test_delete_says_so(self, http: httpx.Client, gateway: Gateway) -> None:
        made = post(http, "/responses", model=gateway.model, input="Say hello.", max_output_tokens=16)
        deleted = http.delete(f"/responses/{made['id']}").json()
        assert deleted["id"] == made["id"]
        assert deleted["deleted"] is True
        assert deleted["object"] in ("response", "response.deleted")


class TestModels:
    def test_list_and_each_model(self, http: httpx.Client) -> None:
        listed = http.get("/models").json()
        assert listed["object"] == "list"
        for model in listed["data"]:
            strict(Model, model)
            assert http.get(f"/models/{model['id']}").json() == model
