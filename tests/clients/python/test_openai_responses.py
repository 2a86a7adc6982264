"""The Responses API through OpenAI's Python client: create, stream, keep, chain, delete.

Owns the life of a response as a caller sees it. Required keys are in `test_openai_schema`.
"""

import json
from typing import Literal

import openai
import pytest
from conftest import Gateway
from openai_error import assert_openai_error
from pydantic import BaseModel

WEATHER_TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Current weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Mood(BaseModel):
    mood: Literal["good", "bad"]


class TestCreate:
    @pytest.mark.parametrize("which", ["model", "adapter"])
    def test_answer_carries_the_model_asked_for(
        self, client: openai.OpenAI, gateway: Gateway, which: str
    ) -> None:
        name = getattr(gateway, which)
        made = client.responses.create(model=name, input="Say hello.", max_output_tokens=16, temperature=0)
        assert made.model == name
        assert made.id.startswith("resp_")
        assert made.output_text
        assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
        assert made._request_id

    def test_a_cut_answer_is_incomplete(self, client: openai.OpenAI, gateway: Gateway) -> None:
        made = client.responses.create(
            model=gateway.model, input="Count from 1 to 100.", max_output_tokens=16, temperature=0
        )
        assert made.status == "incomplete"
        assert made.incomplete_details.reason == "max_output_tokens"
        assert made.error is None

    def test_instructions_are_taken_and_shown(self, client: openai.OpenAI, gateway: Gateway) -> None:
        made = client.responses.create(
            model=gateway.model, input="Hi.", instructions="Be brief.", max_output_tokens=16, temperature=0
        )
        assert made.instructions == "Be brief."

    @pytest.mark.parametrize(
        "given",
        [
            [{"role": "user", "content": "Hi."}],
            [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi."}]}],
            [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi."}],
            [
                {"role": "user", "content": "Weather in Paris?"},
                {
                    "type": "function_call",
                    "call_id": "c1",
                    "name": "get_weather",
                    "arguments": '{"city":"Paris"}',
                },
                {"type": "function_call_output", "call_id": "c1", "output": "Sunny"},
            ],
        ],
        ids=["short", "typed", "developer", "call"],
    )
    def test_input_forms_are_accepted(self, client: openai.OpenAI, gateway: Gateway, given: list) -> None:
        made = client.responses.create(model=gateway.model, input=given, max_output_tokens=16)
        assert made.output

    def test_what_was_not_asked_for_is_shown_as_openais_default(
        self, client: openai.OpenAI, gateway: Gateway
    ) -> None:
        made = client.responses.create(model=gateway.model, input="Hi.", max_output_tokens=16)
        assert (made.tool_choice, made.tools, made.metadata) == ("auto", [], {})
        assert made.text.format.type == "text"

    def test_metadata_comes_back(self, client: openai.OpenAI, gateway: Gateway) -> None:
        made = client.responses.create(
            model=gateway.model, input="Hi.", metadata={"ticket": "7"}, max_output_tokens=16
        )
        assert made.metadata == {"ticket": "7"}

    def test_parse_gives_the_class(self, client: openai.OpenAI, gateway: Gateway) -> None:
        made = client.responses.parse(
            model=gateway.model, input="How are you?", text_format=Mood, max_output_tokens=40, temperature=0
        )
        assert isinstance(made.output_parsed, Mood)

    @pytest.mark.parametrize("tool_choice", ["required", {"type": "function", "name": "get_weather"}])
    def test_a_forced_tool_is_called(
        self, client: openai.OpenAI, gateway: Gateway, tool_choice: object
    ) -> None:
        made = client.responses.create(
            model=gateway.model,
            input="Weather in Paris?",
            tools=[WEATHER_TOOL],
            tool_choice=tool_choice,
            max_output_tokens=100,
            temperature=0,
        )
        (call,) = [item for item in made.output if item.type == "function_call"]
        assert call.name == "get_weather"
        assert call.call_id
        assert json.loads(call.arguments)["city"] in ("Paris", "Rome")

    async def test_async(self, aclient: openai.AsyncOpenAI, gateway: Gateway) -> None:
        made = await aclient.responses.create(model=gateway.model, input="Hi.", max_output_tokens=16)
        assert made.output_text


class TestStream:
    def test_events_come_in_openais_order(self, client: openai.OpenAI, gateway: Gateway) -> None:
        events = list(
            client.responses.create(
                model=gateway.adapter, input="Say hello.", max_output_tokens=200, temperature=0, stream=True
            )
        )
        kinds = [event.type for event in events]
        assert kinds[:4] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
        ]
        assert kinds[-4:-1] == [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
        ]
        assert kinds[-1] in ("response.completed", "response.incomplete")
        assert [event.sequence_number for event in events] == list(range(len(events)))

    def test_the_text_adds_up_and_the_names_stay(self, client: openai.OpenAI, gateway: Gateway) -> None:
        events = list(
            client.responses.create(
                model=gateway.adapter, input="Say hello.", max_output_tokens=16, temperature=0, stream=True
            )
        )
        whole = [event.response for event in events if hasattr(event, "response")]
        assert {(response.id, response.model) for response in whole} == {(whole[0].id, gateway.adapter)}
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == whole[-1].output_text
        assert whole[-1].usage.output_tokens > 0

    def test_a_cut_stream_ends_incomplete(self, client: openai.OpenAI, gateway: Gateway) -> None:
        *_, last = client.responses.create(
            model=gateway.model,
            input="Count from 1 to 100.",
            max_output_tokens=16,
            temperature=0,
            stream=True,
        )
        assert last.type == "response.incomplete"
        assert last.response.status == "incomplete"
        assert last.response.incomplete_details.reason == "max_output_tokens"

    def test_a_tool_call_is_streamed(self, client: openai.OpenAI, gateway: Gateway) -> None:
        events = list(
            client.responses.create(
                model=gateway.model,
                input="Weather in Paris?",
                tools=[WEATHER_TOOL],
                tool_choice="required",
                max_output_tokens=100,
                temperature=0,
                stream=True,
            )
        )
        deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
        (done,) = [e for e in events if e.type == "response.function_call_arguments.done"]
        assert "".join(deltas) == done.arguments
        assert json.loads(done.arguments)["city"] in ("Paris", "Rome")
        assert done.name == "get_weather"

    def test_the_clients_own_accumulator_takes_the_stream(
        self, client: openai.OpenAI, gateway: Gateway
    ) -> None:
        with client.responses.stream(
            model=gateway.model, input="How are you?", text_format=Mood, max_output_tokens=40, temperature=0
        ) as stream:
            for _ in stream:
                pass
            final = stream.get_final_response()
        assert isinstance(final.output_parsed, Mood)

    async def test_async_stream(self, aclient: openai.AsyncOpenAI, gateway: Gateway) -> None:
        stream = await aclient.responses.create(
            model=gateway.model, input="Hi.", max_output_tokens=16, stream=True
        )
        assert "response.created" in [event.type async for event in stream]


class TestStored:
    def test_retrieve_gives_back_what_was_made(self, client: openai.OpenAI, gateway: Gateway) -> None:
        made = client.responses.create(
            model=gateway.adapter, input="Hi.", max_output_tokens=16, temperature=0
        )
        found = client.responses.retrieve(made.id)
        assert (found.id, found.model, found.output_text) == (made.id, gateway.adapter, made.output_text)
        assert found.usage == made.usage

    def test_retrieve_gives_back_what_was_streamed(self, client: openai.OpenAI, gateway: Gateway) -> None:
        *_, last = client.responses.create(
            model=gateway.model, input="Hi.", max_output_tokens=16, stream=True
        )
        assert client.responses.retrieve(last.response.id).output_text == last.response.output_text

    def test_input_items_are_listed(self, client: openai.OpenAI, gateway: Gateway) -> None:
        made = client.responses.create(
            model=gateway.model,
            input=[{"role": "user", "content": "One."}, {"role": "user", "content": "Two."}],
            max_output_tokens=16,
        )
        items = list(client.responses.input_items.list(made.id))
        assert [item.content[0].text for item in items] == ["Two.", "One."], "newest first"
        assert all(item.id and item.type == "message" for item in items)
        oldest_first = client.responses.input_items.list(made.id, order="asc", limit=1)
        assert [item.content[0].text for item in oldest_first] == ["One.", "Two."], (
            "paging goes on after limit"
        )

    def test_delete_forgets_it(self, client: openai.OpenAI, gateway: Gateway) -> None:
        made = client.responses.create(model=gateway.model, input="Hi.", max_output_tokens=16)
        client.responses.delete(made.id)
        for ask in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                ask(made.id)

    def test_store_false_is_not_kept(self, client: openai.OpenAI, gateway: Gateway) -> None:
        made = client.responses.create(model=gateway.model, input="Hi.", max_output_tokens=16, store=False)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(made.id)

    def test_unknown_id_is_not_found(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            client.responses.retrieve("resp_nope")
        assert_openai_error(caught.value, 404)
        assert caught.value.type == "invalid_request_error"

    def test_previous_response_goes_on_from_there(self, client: openai.OpenAI, gateway: Gateway) -> None:
        first = client.responses.create(
            model=gateway.model, input="My name is Ada.", max_output_tokens=16, temperature=0
        )
        second = client.responses.create(
            model=gateway.adapter,
            input="What is my name?",
            previous_response_id=first.id,
            max_output_tokens=16,
            temperature=0,
        )
        alone = client.responses.create(
            model=gateway.adapter, input="What is my name?", max_output_tokens=16, temperature=0
        )
        assert second.previous_response_id == first.id
        assert second.usage.input_tokens > alone.usage.input_tokens

    def test_unknown_previous_response_is_refused(self, client: openai.OpenAI, gateway: Gateway) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model=gateway.model, input="Hi.", previous_response_id="resp_nope")
        assert_openai_error(
            caught.value, 400, code="previous_response_not_found", param="previous_response_id"
        )
