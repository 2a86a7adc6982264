"""LiteLLM's client, with the gateway as an OpenAI-compatible provider."""

import json
from typing import Any

import litellm
import pytest
from conftest import Gateway

HELLO = [{"role": "user", "content": "Say hello."}]
WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    },
}


@pytest.fixture
def asked(gateway: Gateway) -> dict[str, Any]:
    return {
        "model": f"openai/{gateway.model}",
        "api_base": gateway.base_url,
        "api_key": gateway.key,
        "temperature": 0,
        "max_tokens": 8,
        "num_retries": 0,
        "timeout": 60,
    }


def test_completion(asked: dict[str, Any], gateway: Gateway) -> None:
    answer = litellm.completion(messages=HELLO, **asked)
    assert answer.choices[0].message.content
    assert answer.usage.total_tokens > 0
    assert answer.model.removeprefix("openai/") == gateway.model


async def test_async_completion(asked: dict[str, Any]) -> None:
    answer = await litellm.acompletion(messages=HELLO, **asked)
    assert answer.choices[0].message.content


def test_stream_with_usage(asked: dict[str, Any]) -> None:
    chunks = list(
        litellm.completion(messages=HELLO, stream=True, stream_options={"include_usage": True}, **asked)
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert sum(1 for chunk in chunks if getattr(chunk, "usage", None)) == 1
    rebuilt = litellm.stream_chunk_builder(chunks, messages=HELLO)
    assert rebuilt.choices[0].finish_reason in ("stop", "length")


async def test_async_stream(asked: dict[str, Any]) -> None:
    stream = await litellm.acompletion(messages=HELLO, stream=True, **asked)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


@pytest.mark.parametrize("stream", [False, True])
def test_forced_tool(asked: dict[str, Any], stream: bool) -> None:
    asked["max_tokens"] = 100
    answer = litellm.completion(
        messages=HELLO, tools=[WEATHER_TOOL], tool_choice="required", stream=stream, **asked
    )
    if stream:
        answer = litellm.stream_chunk_builder(list(answer), messages=HELLO)
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_json_schema(asked: dict[str, Any]) -> None:
    asked["max_tokens"] = 40
    schema = {**WEATHER_TOOL["function"]["parameters"], "additionalProperties": False}
    answer = litellm.completion(
        messages=HELLO,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "place", "schema": schema, "strict": True},
        },
        **asked,
    )
    assert json.loads(answer.choices[0].message.content)["city"] in ("Paris", "Rome")


def test_logprobs(asked: dict[str, Any]) -> None:
    answer = litellm.completion(messages=HELLO, logprobs=True, top_logprobs=2, **asked)
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def test_text_completion(asked: dict[str, Any], gateway: Gateway) -> None:
    asked["model"] = f"text-completion-openai/{gateway.model}"
    answer = litellm.text_completion(prompt="One, two,", **asked)
    assert answer.choices[0].text


@pytest.mark.parametrize("stream", [False, True])
def test_responses(asked: dict[str, Any], stream: bool) -> None:
    del asked["max_tokens"], asked["num_retries"]
    answer = litellm.responses(input="Say hello.", max_output_tokens=16, stream=stream, **asked)
    if stream:
        answer = list(answer)[-1].response
    assert answer.output[0].content[0].text


REFUSALS: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "unknown-model": ({"model": "openai/gpt-nope"}, litellm.NotFoundError),
    "temperature": ({"temperature": 3}, litellm.BadRequestError),
    "messages": ({"messages": []}, litellm.BadRequestError),
    "context": (
        {"messages": [{"role": "user", "content": "word " * 9000}]},
        litellm.ContextWindowExceededError,
    ),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_raise_litellms_classes(asked: dict[str, Any], name: str, stream: bool) -> None:
    wrong, kind = REFUSALS[name]
    with pytest.raises(kind):
        list(litellm.completion(**{**asked, "messages": HELLO, "stream": stream, **wrong}))


async def test_async_refusal(asked: dict[str, Any]) -> None:
    asked["model"] = "openai/gpt-nope"
    with pytest.raises(litellm.NotFoundError):
        await litellm.acompletion(messages=HELLO, **asked)
