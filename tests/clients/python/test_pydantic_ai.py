"""Pydantic AI: agents over chat completions and over the Responses API."""

from typing import Literal

import pytest
from conftest import Gateway
from pydantic import BaseModel
from pydantic_ai import Agent, ModelSettings, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

SHORT = ModelSettings(max_tokens=16, temperature=0)
TYPED = ModelSettings(max_tokens=100, temperature=0)


class Mood(BaseModel):
    mood: Literal["good", "bad"]


@pytest.fixture
def provider(gateway: Gateway) -> OpenAIProvider:
    return OpenAIProvider(base_url=gateway.base_url, api_key=gateway.key)


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel], ids=["chat", "responses"])
def model(request: pytest.FixtureRequest, provider: OpenAIProvider, gateway: Gateway) -> Model:
    return request.param(gateway.model, provider=provider)


async def test_run(model: Model, gateway: Gateway) -> None:
    result = await Agent(model, instructions="Be brief.").run("Say hello.", model_settings=SHORT)
    assert result.output
    assert result.usage.output_tokens > 0
    assert result.response.model_name == gateway.model


async def test_run_stream(model: Model) -> None:
    async with Agent(model).run_stream("Say hello.", model_settings=SHORT) as result:
        pieces = [piece async for piece in result.stream_text(delta=True)]
    assert "".join(pieces)
    assert result.usage.output_tokens > 0


async def test_a_conversation_goes_on(model: Model) -> None:
    agent = Agent(model)
    first = await agent.run("My name is Ada.", model_settings=SHORT)
    second = await agent.run("What is my name?", message_history=first.all_messages(), model_settings=SHORT)
    assert second.usage.input_tokens > first.usage.input_tokens


@pytest.mark.parametrize("wrap", [ToolOutput, NativeOutput], ids=["tool", "native"])
async def test_typed_output(model: Model, wrap: type) -> None:
    result = await Agent(model, output_type=wrap(Mood)).run("How are you?", model_settings=TYPED)
    assert isinstance(result.output, Mood)


@pytest.mark.parametrize("wrap", [ToolOutput, NativeOutput], ids=["tool", "native"])
async def test_typed_output_streamed(model: Model, wrap: type) -> None:
    async with Agent(model, output_type=wrap(Mood)).run_stream(
        "How are you?", model_settings=TYPED
    ) as result:
        assert isinstance(await result.get_output(), Mood)


@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel], ids=["chat", "responses"])
async def test_unknown_model_is_a_404(provider: OpenAIProvider, kind: type[Model]) -> None:
    with pytest.raises(ModelHTTPError) as caught:
        await Agent(kind("gpt-nope", provider=provider)).run("Hi.")
    assert caught.value.status_code == 404
    assert caught.value.body["code"] == "model_not_found", caught.value.body
