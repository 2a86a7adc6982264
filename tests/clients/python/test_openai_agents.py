"""OpenAI's Agents SDK, over chat completions and over the Responses API."""

from typing import Literal

import openai
import pytest
from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    StopAtTools,
    function_tool,
    set_tracing_disabled,
)
from conftest import Gateway
from pydantic import BaseModel

set_tracing_disabled(True)
SHORT = ModelSettings(
    max_tokens=160, temperature=0
)  # room to finish: a cut response is an error to this client


class Mood(BaseModel):
    mood: Literal["good", "bad"]


@function_tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """Current weather in a city."""
    return f"sunny in {city}"


@pytest.fixture(params=[OpenAIChatCompletionsModel, OpenAIResponsesModel], ids=["chat", "responses"])
def model(request: pytest.FixtureRequest, aclient: openai.AsyncOpenAI, gateway: Gateway) -> Model:
    return request.param(model=gateway.model, openai_client=aclient)


async def test_run(model: Model) -> None:
    agent = Agent(name="Greeter", instructions="Be brief.", model=model, model_settings=SHORT)
    result = await Runner.run(agent, "Say hello.")
    assert result.final_output
    assert result.raw_responses[0].usage.output_tokens > 0


async def test_run_streamed(model: Model) -> None:
    result = Runner.run_streamed(Agent(name="Greeter", model=model, model_settings=SHORT), "Say hello.")
    kinds = [event.data.type async for event in result.stream_events() if event.type == "raw_response_event"]
    assert "response.output_text.delta" in kinds
    assert result.final_output


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_forced_tool_is_run(model: Model, streamed: bool) -> None:
    agent = Agent(
        name="Weather",
        model=model,
        tools=[get_weather],
        tool_use_behavior=StopAtTools(stop_at_tool_names=["get_weather"]),
        model_settings=ModelSettings(tool_choice="required", max_tokens=100, temperature=0),
    )
    if streamed:
        result = Runner.run_streamed(agent, "Weather in Paris?")
        async for _ in result.stream_events():
            pass
    else:
        result = await Runner.run(agent, "Weather in Paris?")
    assert result.final_output in ("sunny in Paris", "sunny in Rome")


async def test_a_tools_answer_goes_back_to_the_model(model: Model) -> None:
    agent = Agent(
        name="Weather",
        model=model,
        tools=[get_weather],
        model_settings=ModelSettings(tool_choice="get_weather", max_tokens=60, temperature=0),
    )
    result = await Runner.run(agent, "Weather in Paris?", max_turns=2)
    assert len(result.raw_responses) == 2


async def test_output_type(model: Model) -> None:
    agent = Agent(
        name="Mood", model=model, output_type=Mood, model_settings=ModelSettings(max_tokens=40, temperature=0)
    )
    assert isinstance((await Runner.run(agent, "How are you?")).final_output, Mood)


async def test_unknown_model_is_not_found(aclient: openai.AsyncOpenAI) -> None:
    for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        with pytest.raises(openai.NotFoundError):
            await Runner.run(Agent(name="A", model=kind(model="gpt-nope", openai_client=aclient)), "Hi.")
