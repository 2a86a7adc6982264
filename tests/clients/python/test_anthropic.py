"""Anthropic's Python client against `/v1/messages`."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from conftest import Gateway
from pydantic import TypeAdapter

HELLO = [{"role": "user", "content": "Say hello."}]
GREEDY = {"temperature": 0}  # the client no longer has the argument; the API takes it
WEATHER_TOOL = {
    "name": "get_weather",
    "description": "Current weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def claude(gateway: Gateway) -> Iterator[anthropic.Anthropic]:
    """Sends the key as `x-api-key`, to the URL without /v1."""
    with anthropic.Anthropic(
        base_url=gateway.root_url, api_key=gateway.key, max_retries=0, timeout=60
    ) as made:
        yield made


@pytest.mark.parametrize("which", ["model", "adapter"])
def test_create(claude: anthropic.Anthropic, gateway: Gateway, which: str) -> None:
    name = getattr(gateway, which)
    raw = claude.messages.with_raw_response.create(
        model=name, max_tokens=8, messages=HELLO, extra_body=GREEDY
    )
    TypeAdapter(Message).validate_json(raw.text())
    message = raw.parse()
    assert (message.model, message.role, message.type) == (name, "assistant", "message")
    assert message.content[0].text
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert message.usage.output_tokens > 0


def test_system_stop_sequences_and_blocks(claude: anthropic.Anthropic, gateway: Gateway) -> None:
    message = claude.messages.create(
        model=gateway.model,
        max_tokens=16,
        system="Be brief.",
        stop_sequences=["!"],
        extra_body=GREEDY,
        messages=[{"role": "user", "content": [{"type": "text", "text": "Say hello!"}]}],
    )
    assert "!" not in "".join(block.text for block in message.content)


def test_request_id(claude: anthropic.Anthropic, gateway: Gateway) -> None:
    assert claude.messages.create(model=gateway.model, max_tokens=1, messages=HELLO)._request_id


def test_stream(claude: anthropic.Anthropic, gateway: Gateway) -> None:
    with claude.messages.stream(
        model=gateway.adapter, max_tokens=8, messages=HELLO, extra_body=GREEDY
    ) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == message.content[0].text
    assert message.model == gateway.adapter
    assert message.usage.output_tokens > 0


def test_stream_events_are_anthropics(claude: anthropic.Anthropic, gateway: Gateway) -> None:
    events = list(claude.messages.create(model=gateway.model, max_tokens=4, messages=HELLO, stream=True))
    kinds = [event.type for event in events if event.type != "ping"]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    for event in events:
        TypeAdapter(RawMessageStreamEvent).validate_python(event.to_dict())


async def test_async_stream(gateway: Gateway) -> None:
    async with (
        anthropic.AsyncAnthropic(base_url=gateway.root_url, api_key=gateway.key, max_retries=0) as claude,
        claude.messages.stream(model=gateway.model, max_tokens=4, messages=HELLO) as stream,
    ):
        assert "".join([piece async for piece in stream.text_stream])


def test_count_tokens(claude: anthropic.Anthropic, gateway: Gateway) -> None:
    few = claude.messages.count_tokens(model=gateway.model, messages=HELLO).input_tokens
    more = claude.messages.count_tokens(
        model=gateway.adapter, messages=HELLO, system="Be very brief."
    ).input_tokens
    used = claude.messages.create(model=gateway.model, max_tokens=1, messages=HELLO).usage.input_tokens
    assert few == used
    assert more != few


@pytest.mark.parametrize("tool_choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_forced_tool(claude: anthropic.Anthropic, gateway: Gateway, tool_choice: Any) -> None:
    message = claude.messages.create(
        model=gateway.model,
        max_tokens=100,
        extra_body=GREEDY,
        tools=[WEATHER_TOOL],
        tool_choice=tool_choice,
        messages=[{"role": "user", "content": "Weather in Paris?"}],
    )
    (use,) = [block for block in message.content if block.type == "tool_use"]
    assert use.name == "get_weather"
    assert use.input["city"] in ("Paris", "Rome")
    assert message.stop_reason == "tool_use"


def test_forced_tool_streamed(claude: anthropic.Anthropic, gateway: Gateway) -> None:
    with claude.messages.stream(
        model=gateway.model,
        max_tokens=100,
        extra_body=GREEDY,
        tools=[WEATHER_TOOL],
        tool_choice={"type": "any"},
        messages=[{"role": "user", "content": "Weather in Paris?"}],
    ) as stream:
        message = stream.get_final_message()
    (use,) = [block for block in message.content if block.type == "tool_use"]
    assert use.input["city"] in ("Paris", "Rome")


def test_a_tools_result_is_taken_back(claude: anthropic.Anthropic, gateway: Gateway) -> None:
    use = {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Paris"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "Sunny"}
    message = claude.messages.create(
        model=gateway.model,
        max_tokens=4,
        tools=[WEATHER_TOOL],
        messages=[
            {"role": "user", "content": "Weather in Paris?"},
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result]},
        ],
    )
    assert message.role == "assistant"


def assert_anthropic_error(error: anthropic.APIStatusError, kind: str) -> None:
    body = error.response.json()
    assert set(body) <= {"type", "error", "request_id"}, body
    assert body.get("type") == "error", body
    assert body["error"]["type"] == kind, body
    assert isinstance(body["error"]["message"], str), body
    assert body["error"]["message"], body
    assert error.request_id


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_model_is_not_found(claude: anthropic.Anthropic, stream: bool) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.create(model="claude-nope", max_tokens=4, messages=HELLO, stream=stream)
    assert_anthropic_error(caught.value, "not_found_error")


def test_count_tokens_of_an_unknown_model_is_not_found(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.count_tokens(model="claude-nope", messages=HELLO)
    assert_anthropic_error(caught.value, "not_found_error")


REFUSALS: dict[str, dict[str, Any]] = {
    "max_tokens": {"max_tokens": -1},
    "max_tokens-missing": {"max_tokens": None},
    "temperature": {"temperature": 3},
    "messages-string": {"messages": "hello"},
    "messages-empty": {"messages": []},
    "role": {"messages": [{"role": "wizard", "content": "hi"}]},
    "context": {"messages": [{"role": "user", "content": "word " * 9000}]},
}


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_requests(claude: anthropic.Anthropic, gateway: Gateway, name: str) -> None:
    body = {"model": gateway.model, "max_tokens": 4, "messages": HELLO, **REFUSALS[name]}
    body = {key: value for key, value in body.items() if value is not None}
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.post("/v1/messages", cast_to=object, body=body)
    assert_anthropic_error(caught.value, "invalid_request_error")


def test_a_wrong_key_is_an_authentication_error(gateway: Gateway) -> None:
    if not gateway.needs_key:
        pytest.skip("the gateway needs no key (BURNISH_TEST_KEY is not set)")
    claude = anthropic.Anthropic(base_url=gateway.root_url, api_key="sk-wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError) as caught:
        claude.messages.create(model=gateway.model, max_tokens=4, messages=HELLO)
    assert_anthropic_error(caught.value, "authentication_error")
