"""Requests in the words of the GenAI conventions."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from gateway import gen_ai, tracing
from tests.judged import completion


def test_every_attribute_is_one_of_the_installed_conventions() -> None:
    known = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    used: set[str] = set()
    for module in (gen_ai, tracing):
        used |= set(re.findall(r'"(gen_ai\.[a-z_.]+)"', Path(module.__file__).read_text()))
    assert len(used) > 15
    assert used <= known


def test_an_operation_is_one_of_the_conventions() -> None:
    known = {each.value for each in gen_ai_attributes.GenAiOperationNameValues}
    assert set(gen_ai.OPERATIONS.values()) <= known


def test_a_request_is_told_of_by_its_numbers_and_by_none_of_its_words() -> None:
    asked = {
        "model": "m",
        "user": "anna",
        "stop": ["secret"],
        "messages": [{"role": "user", "content": "secret"}],
        "max_completion_tokens": 5,
        "temperature": True,  # no number
        "n": 2,
        "top_k": 3,
    }
    assert gen_ai.request_attributes(asked) == {
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.top_k": 3,
    }


def test_messages_have_roles_and_parts() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"a": 1}'}}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    made = replace(
        completion(),
        finish_reason="stop",
        request={
            "messages": [
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": [{"type": "text", "text": "look"}, picture]},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "found"},
            ]
        },
        output={"choices": [{"message": {"role": "assistant", "content": "here \ud800"}}]},
    )
    found = gen_ai.message_attributes(made)
    assert json.loads(found["gen_ai.system_instructions"]) == [{"type": "text", "content": "be kind"}]
    assert json.loads(found["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "look"}, {"type": "image_url"}]},
        {
            "role": "assistant",
            "parts": [{"type": "tool_call", "id": "c1", "name": "find", "arguments": '{"a": 1}'}],
        },
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "found"}]},
    ]
    assert json.loads(found["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "here ?"}], "finish_reason": "stop"}
    ]


def test_a_completion_of_a_text_is_a_message_of_the_user() -> None:
    made = replace(
        completion(),
        endpoint="/v1/completions",
        request={"prompt": "once upon"},
        output={"choices": [{"text": " a time"}]},
    )
    found = gen_ai.message_attributes(made)
    assert "once upon" in found["gen_ai.input.messages"]
    assert " a time" in found["gen_ai.output.messages"]
