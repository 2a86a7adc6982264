"""What a client may ask: OpenAI's words for what is wrong, and limits that keep one client from starving the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import BurnishError, InvalidRequest
from adapters.settings import Limits
from gateway.protocol import requests

LIMITS = Limits()
USER = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [dict(message) for message in USER], **fields}


def refused(prepare: Callable[[dict[str, Any], Limits], None], body: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        prepare(body, LIMITS)
    return caught.value


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temperature": 3}, "temperature", "decimal_above_max_value"),
        ({"temperature": -1}, "temperature", "decimal_below_min_value"),
        ({"temperature": float("nan")}, "temperature", "decimal_below_min_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"top_p": 1.5}, "top_p", "decimal_above_max_value"),
        ({"presence_penalty": 5}, "presence_penalty", "decimal_above_max_value"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": 1000}, "n", "integer_above_max_value"),
        ({"n": 1.5}, "n", "invalid_type"),
        ({"max_tokens": -1}, "max_tokens", "integer_below_min_value"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "integer_below_min_value"),
        ({"stop": ["a"] * 17}, "stop", "above_max_value"),
        ({"stop": 5}, "stop", "invalid_type"),
        ({"logprobs": 3}, "logprobs", "invalid_type"),
        ({"top_logprobs": 5}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"logit_bias": {"1": 500}}, "logit_bias.1", "decimal_above_max_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_type"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "above_max_value"),
        ({"prompt_logprobs": 1000}, "prompt_logprobs", "integer_above_max_value"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type", "missing_required_parameter"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "missing_required_parameter"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": nested(20)}}},
            "response_format.json_schema.schema",
            "above_max_value",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 70_000]}}}},
            "response_format.json_schema.schema",
            "above_max_value",
        ),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "missing_required_parameter"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": nested(20)}}]}, "tools[0].function.parameters", "above_max_value"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 129}, "tools", "above_max_value"),
        ({"structured_outputs": {"regex": "a" * 3000}}, "structured_outputs.regex", "above_max_value"),
        ({"structured_outputs": {"grammar": "a" * 20_000}}, "structured_outputs.grammar", "above_max_value"),
        ({"structured_outputs": {"json": nested(20)}}, "structured_outputs.json", "above_max_value"),
        ({"guided_regex": "a" * 3000}, "guided_regex", "above_max_value"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"pattern": "a" * 3000}}}}, "response_format.json_schema.schema", "above_max_value"),
        ({"chat_template": "{{ x }}"}, "chat_template", "unsupported_parameter"),
    ],
)  # fmt: skip
def test_a_bad_chat_request_is_refused_with_its_field(fields: dict[str, Any], param: str, code: str) -> None:
    error = refused(requests.prepare_chat, chat(**fields))
    assert (error.status, error.param, error.code) == (400, param, code)
    assert error.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["x"] * 65}, "prompt"),
        ({"prompt": "x", "best_of": 9}, "best_of"),
        ({"prompt": "x", "logprobs": 100}, "logprobs"),
    ],
)
def test_a_bad_completion_request_is_refused_with_its_field(fields: dict[str, Any], param: str) -> None:
    assert refused(requests.prepare_completion, {"model": "m", **fields}).param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "previous_response_id": 5}, "previous_response_id"),
    ],
)
def test_a_bad_response_request_is_refused_with_its_field(fields: dict[str, Any], param: str) -> None:
    assert refused(requests.prepare_response, {"model": "m", **fields}).param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"response_format": {"type": "structural_tag", "structures": [{"schema": nested(20)}]}},
            "response_format",
        ),
        ({"structured_outputs": {"structural_tag": nested(20)}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"json": orjson.dumps(nested(20)).decode()}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "{no json"}}, "structured_outputs.json"),
        ({"structured_outputs": {"choice": ["x" * 70_000]}}, "structured_outputs.choice"),
        ({"guided_choice": ["x" * 70_000]}, "guided_choice"),
    ],
)
def test_no_other_door_lets_a_huge_grammar_in(fields: dict[str, Any], param: str) -> None:
    assert refused(requests.prepare_chat, chat(**fields)).param == param


@pytest.mark.parametrize("tools", [5, "x", ["x"], {"a": 1}])
def test_a_message_requests_tools_are_an_array_of_objects(tools: Any) -> None:
    body = {"model": "m", "messages": USER, "max_tokens": 5, "tools": tools}
    assert (refused(requests.prepare_message, body).param or "").startswith("tools")


def test_a_message_request_needs_max_tokens() -> None:
    assert refused(requests.prepare_message, {"model": "m", "messages": USER}).param == "max_tokens"


def test_usage_is_asked_of_the_engine_whatever_the_client_wants_to_see() -> None:
    body = chat(stream=True)
    assert not requests.wants_usage(body)
    requests.prepare_chat(body, LIMITS)
    assert body["stream_options"] == {"include_usage": True}
    assert requests.wants_usage(chat(stream=True, stream_options={"include_usage": True}))


def test_a_developer_is_the_system_to_a_chat_template() -> None:
    body = chat(messages=[{"role": "developer", "content": "be brief"}])
    requests.prepare_chat(body, LIMITS)
    assert body["messages"][0]["role"] == "system"


def test_how_an_answer_is_to_be_kept_is_not_the_engines_business() -> None:
    body = chat(store=True, metadata={"a": "b"})
    requests.prepare_chat(body, LIMITS)
    assert body == chat()
    body = chat(store=False)
    requests.prepare_chat(body, LIMITS)
    assert body["store"] is False, "an engine that keeps answers must hear it"


@pytest.mark.parametrize(
    ("metadata", "param"),
    [
        ("text", "metadata"),
        ({"a": 1}, "metadata.a"),
        ({"a" * 65: "x"}, f"metadata.{'a' * 64}"),
        ({"a": "x" * 513}, "metadata.a"),
        ({str(i): "x" for i in range(17)}, "metadata"),
    ],
)
def test_metadata_is_bounded_as_openais_is(metadata: Any, param: str) -> None:
    for prepare, body in ((requests.prepare_chat, chat()), (requests.prepare_response, {"input": "x"})):
        with pytest.raises(InvalidRequest) as caught:
            prepare({**body, "metadata": metadata}, LIMITS)
        assert caught.value.param == param


def test_preparing_leaves_the_clients_own_messages_as_they_are() -> None:
    body = chat(messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "x"}])
    asked = dict(body)
    requests.prepare_chat(body, LIMITS)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert [message["role"] for message in asked["messages"]] == ["developer", "user"]


def test_what_the_gateway_does_not_know_passes() -> None:
    body = chat(
        min_tokens=5,
        ignore_eos=True,
        structured_outputs={"choice": ["a", "b"]},
        user="u",
    )
    before = orjson.dumps(body)
    requests.prepare_chat(body, LIMITS)
    assert orjson.dumps(body) == before


@pytest.mark.parametrize("param", requests.PRIVILEGED)
def test_scheduling_and_cache_fields_need_an_admin(param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests.refuse_privileged({param: 1})
    assert caught.value.param == param


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"5", b'"x"', b"\xff", b"null", b"{'a': 1}"])
def test_a_body_that_is_no_json_object_is_a_400(raw: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests.parse(raw)
    assert caught.value.code == "invalid_json"


@pytest.mark.parametrize("body", [{}, {"model": None}, {"model": 5}, {"model": ""}])
def test_the_model_must_be_named(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests.model_name(body)
    assert caught.value.param == "model"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "messages",
        "prompt",
        "input",
        "tools",
        "stop",
        "n",
        "logit_bias",
        "response_format",
        "structured_outputs",
    ]
    + [
        "stream_options",
        "stream",
        "temperature",
        "text",
        "max_tokens",
        "logprobs",
        "top_logprobs",
        "chat_template",
    ]
)


@given(st.dictionaries(FIELDS, JSON, max_size=6))
def test_promise_11_no_body_makes_anything_but_an_openai_error(body: dict[str, Any]) -> None:
    prepares = (
        requests.prepare_chat,
        requests.prepare_completion,
        requests.prepare_response,
        requests.prepare_message,
        requests.prepare_count,
        requests.prepare_embedding,
    )
    for prepare in prepares:
        try:
            valid = {"messages": USER, "prompt": "hi", "input": "hi", "max_tokens": 5}
            prepare(orjson.loads(orjson.dumps(valid | body)), LIMITS)
        except BurnishError as error:
            assert 400 <= error.status < 500
            assert error.message
        except orjson.JSONEncodeError:
            return  # an integer that JSON from a client cannot carry
