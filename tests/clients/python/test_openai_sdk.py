"""OpenAI's Python client against the gateway: models, chat, tools, structured output, completions.

Owns what a caller of the client sees when all goes well; refusals are in `test_openai_errors`, required keys
in `test_openai_schema`. Judges the protocol, never the wisdom of a model of 135M parameters.
"""

import json
import time
from enum import Enum

import openai
import pytest
from conftest import Gateway
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel

HELLO = [{"role": "user", "content": "Say hello."}]
WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME_TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Current time in a zone",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Paint(BaseModel):
    colour: Colour
    glossy: bool


def text_of(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index)


class TestModels:
    def test_list_names_the_base_model_and_the_route(self, client: openai.OpenAI, gateway: Gateway) -> None:
        ids = [model.id for model in client.models.list()]
        assert gateway.model in ids
        assert gateway.adapter in ids
        assert len(ids) == len(set(ids))

    @pytest.mark.parametrize("which", ["model", "adapter"])
    def test_retrieve_answers_with_the_name_asked_for(
        self, client: openai.OpenAI, gateway: Gateway, which: str
    ) -> None:
        name = getattr(gateway, which)
        model = client.models.retrieve(name)
        assert (model.id, model.object) == (name, "model")
        assert model.owned_by

    def test_created_stays_the_same_from_call_to_call(self, client: openai.OpenAI) -> None:
        first = {model.id: model.created for model in client.models.list()}

        time.sleep(1.1)
        assert {model.id: model.created for model in client.models.list()} == first

    async def test_async_list(self, aclient: openai.AsyncOpenAI, gateway: Gateway) -> None:
        assert gateway.model in [model.id async for model in aclient.models.list()]


class TestChat:
    @pytest.mark.parametrize("which", ["model", "adapter"])
    def test_answer_carries_the_model_asked_for(
        self, client: openai.OpenAI, gateway: Gateway, which: str
    ) -> None:
        name = getattr(gateway, which)
        answer = client.chat.completions.create(model=name, messages=HELLO, max_tokens=8, temperature=0)
        assert answer.model == name
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].message.content
        assert answer.choices[0].logprobs is None
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    def test_request_id_comes_back_once(self, client: openai.OpenAI, gateway: Gateway) -> None:
        raw = client.chat.completions.with_raw_response.create(
            model=gateway.model, messages=HELLO, max_tokens=1, extra_headers={"X-Request-Id": "mine"}
        )
        assert len(raw.headers.get_list("x-request-id")) == 1
        assert raw.parse().id != "chatcmpl-mine"

    def test_ids_differ_even_if_the_client_repeats_its_request_id(
        self, client: openai.OpenAI, gateway: Gateway
    ) -> None:
        ids = {
            client.chat.completions.create(
                model=gateway.model, messages=HELLO, max_tokens=1, extra_headers={"X-Request-Id": "same"}
            ).id
            for _ in range(2)
        }
        assert len(ids) == 2

    async def test_async(self, aclient: openai.AsyncOpenAI, gateway: Gateway) -> None:
        answer = await aclient.chat.completions.create(model=gateway.model, messages=HELLO, max_tokens=4)
        assert answer._request_id
        assert answer.choices[0].finish_reason in ("stop", "length")

    def test_max_completion_tokens_bounds_the_answer(self, client: openai.OpenAI, gateway: Gateway) -> None:
        answer = client.chat.completions.create(
            model=gateway.model,
            messages=[{"role": "user", "content": "Count from 1 to 50."}],
            max_completion_tokens=5,
            temperature=0,
        )
        assert answer.usage.completion_tokens == 5
        assert answer.choices[0].finish_reason == "length"

    @pytest.mark.alone
    def test_same_seed_gives_the_same_answer(self, client: openai.OpenAI, gateway: Gateway) -> None:
        answers = {
            client.chat.completions.create(
                model=gateway.model, messages=HELLO, max_tokens=12, seed=7, temperature=1.0
            )
            .choices[0]
            .message.content
            for _ in range(2)
        }
        assert len(answers) == 1

    @pytest.mark.alone
    def test_stop_ends_the_answer_and_is_left_out(self, client: openai.OpenAI, gateway: Gateway) -> None:
        whole = client.chat.completions.create(
            model=gateway.model, messages=HELLO, max_tokens=12, temperature=0
        )
        word = whole.choices[0].message.content.split()[1]
        for stop in (word, [word, "never-said"]):
            cut = client.chat.completions.create(
                model=gateway.model, messages=HELLO, max_tokens=12, temperature=0, stop=stop
            )
            assert cut.choices[0].finish_reason == "stop"
            assert word not in cut.choices[0].message.content
            assert whole.choices[0].message.content.startswith(cut.choices[0].message.content)

    def test_n_gives_that_many_choices(self, client: openai.OpenAI, gateway: Gateway) -> None:
        answer = client.chat.completions.create(model=gateway.model, messages=HELLO, max_tokens=4, n=2)
        assert sorted(choice.index for choice in answer.choices) == [0, 1]

    @pytest.mark.alone
    def test_n_greedy_choices_are_the_same(self, client: openai.OpenAI, gateway: Gateway) -> None:
        # Whose first words are no near ties: in bfloat16 two rows of one batch are not rounded alike.
        sea = [{"role": "user", "content": "Tell me about the sea."}]
        answer = client.chat.completions.create(
            model=gateway.model, messages=sea, max_tokens=2, n=2, temperature=0
        )
        first, second = answer.choices
        assert first.message.content == second.message.content

    def test_logit_bias_forces_a_token(self, client: openai.OpenAI, gateway: Gateway) -> None:
        answer = client.chat.completions.create(
            model=gateway.model, messages=HELLO, max_tokens=3, temperature=0, logit_bias={"28": 100}
        )
        content = answer.choices[0].message.content
        assert len(set(content)) == 1, f"one token, over and over, not {content!r}"

    def test_logprobs_with_alternatives(self, client: openai.OpenAI, gateway: Gateway) -> None:
        answer = client.chat.completions.create(
            model=gateway.model, messages=HELLO, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
        )
        tokens = answer.choices[0].logprobs.content
        assert len(tokens) == answer.usage.completion_tokens
        for token in tokens:
            assert token.logprob <= 0
            assert len(token.top_logprobs) == 2
            assert bytes(token.bytes).decode("utf-8", "replace") == token.token
        assert "".join(token.token for token in tokens).startswith(answer.choices[0].message.content)

    def test_logprobs_without_alternatives(self, client: openai.OpenAI, gateway: Gateway) -> None:
        answer = client.chat.completions.create(
            model=gateway.model, messages=HELLO, max_tokens=2, logprobs=True
        )
        assert [token.top_logprobs for token in answer.choices[0].logprobs.content] == [[], []]

    @pytest.mark.parametrize(
        "messages",
        [
            [{"role": "developer", "content": "Be brief."}, *HELLO],
            [{"role": "system", "content": "Be brief."}, *HELLO],
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "Say"}, {"type": "text", "text": "hello."}],
                }
            ],
            [{"role": "user", "content": "Hi", "name": "ada"}],
            [*HELLO, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Again."}],
            [
                *HELLO,
                {"role": "assistant", "content": [{"type": "text", "text": "Hello."}], "refusal": None},
                {"role": "user", "content": "Again."},
            ],
        ],
        ids=["developer", "system", "parts", "name", "turns", "assistant-parts"],
    )
    def test_message_forms_are_accepted(
        self, client: openai.OpenAI, gateway: Gateway, messages: list
    ) -> None:
        answer = client.chat.completions.create(model=gateway.model, messages=messages, max_tokens=4)
        assert answer.choices[0].message.content is not None

    def test_extra_body_reaches_the_engine(self, client: openai.OpenAI, gateway: Gateway) -> None:
        answer = client.chat.completions.create(
            model=gateway.model,
            messages=HELLO,
            max_tokens=40,
            extra_body={"min_tokens": 40, "ignore_eos": True},
        )
        assert answer.usage.completion_tokens == 40

    def test_fields_of_openai_that_mean_nothing_here_are_taken(
        self, client: openai.OpenAI, gateway: Gateway
    ) -> None:
        answer = client.chat.completions.create(
            model=gateway.model,
            messages=HELLO,
            max_tokens=2,
            user="u-1",
            metadata={"a": "b"},
            service_tier="auto",
            parallel_tool_calls=True,
            tools=[WEATHER_TOOL],
            tool_choice="none",
            presence_penalty=0.1,
            frequency_penalty=0.1,
            safety_identifier="s-1",
            prompt_cache_key="k-1",
        )
        assert answer.choices[0].message.tool_calls is None


class TestChatStream:
    @pytest.mark.alone
    def test_stream_says_what_the_plain_answer_says(self, client: openai.OpenAI, gateway: Gateway) -> None:
        asked = {"model": gateway.model, "messages": HELLO, "max_tokens": 8, "temperature": 0}
        plain = client.chat.completions.create(**asked).choices[0]
        chunks = list(client.chat.completions.create(**asked, stream=True))
        assert text_of(chunks) == plain.message.content
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == [
            plain.finish_reason
        ]

    @pytest.mark.parametrize("which", ["model", "adapter"])
    def test_every_chunk_has_one_id_one_time_and_the_model_asked_for(
        self, client: openai.OpenAI, gateway: Gateway, which: str
    ) -> None:
        name = getattr(gateway, which)
        chunks = list(
            client.chat.completions.create(
                model=name, messages=HELLO, max_tokens=4, stream=True, stream_options={"include_usage": True}
            )
        )
        assert {(chunk.id, chunk.created, chunk.model) for chunk in chunks} == {
            (chunks[0].id, chunks[0].created, name)
        }

    def test_usage_is_not_shown_unless_asked_for(self, client: openai.OpenAI, gateway: Gateway) -> None:
        chunks = list(
            client.chat.completions.create(model=gateway.model, messages=HELLO, max_tokens=4, stream=True)
        )
        assert all(chunk.choices for chunk in chunks)
        assert all("usage" not in chunk.model_fields_set for chunk in chunks)

    def test_usage_asked_for_is_the_last_chunk_and_null_before(
        self, client: openai.OpenAI, gateway: Gateway
    ) -> None:
        *others, last = client.chat.completions.create(
            model=gateway.model,
            messages=HELLO,
            max_tokens=4,
            stream=True,
            stream_options={"include_usage": True},
        )
        assert last.choices == []
        assert last.usage.completion_tokens == 4
        assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in others)
        assert all(chunk.choices for chunk in others)

    def test_each_choice_has_its_own_role_and_finish(self, client: openai.OpenAI, gateway: Gateway) -> None:
        chunks = list(
            client.chat.completions.create(
                model=gateway.model, messages=HELLO, max_tokens=4, n=2, stream=True
            )
        )
        for index in (0, 1):
            mine = [c for chunk in chunks for c in chunk.choices if c.index == index]
            assert mine[0].delta.role == "assistant"
            assert [c.finish_reason for c in mine if c.finish_reason] in (["length"], ["stop"])
            assert mine[-1].finish_reason

    def test_logprobs_are_streamed(self, client: openai.OpenAI, gateway: Gateway) -> None:
        chunks = list(
            client.chat.completions.create(
                model=gateway.model, messages=HELLO, max_tokens=3, stream=True, logprobs=True, top_logprobs=1
            )
        )
        tokens = [
            t for chunk in chunks for c in chunk.choices if c.logprobs for t in c.logprobs.content or []
        ]
        assert len(tokens) == 3
        assert all(len(token.top_logprobs) == 1 for token in tokens)

    def test_stream_ends_with_done_and_is_an_event_stream(
        self, client: openai.OpenAI, gateway: Gateway
    ) -> None:
        with client.chat.completions.with_streaming_response.create(
            model=gateway.model, messages=HELLO, max_tokens=2, stream=True
        ) as raw:
            assert raw.headers["content-type"].startswith("text/event-stream")
            assert raw.headers.get("x-request-id")
            assert "content-length" not in raw.headers
            events = [line for line in raw.iter_lines() if line]
        assert events[-1] == "data: [DONE]"

    async def test_async_stream(self, aclient: openai.AsyncOpenAI, gateway: Gateway) -> None:
        stream = await aclient.chat.completions.create(
            model=gateway.model, messages=HELLO, max_tokens=4, stream=True
        )
        assert text_of([chunk async for chunk in stream])

    def test_the_clients_own_accumulator_takes_the_stream(
        self, client: openai.OpenAI, gateway: Gateway
    ) -> None:
        with client.chat.completions.stream(
            model=gateway.model,
            messages=HELLO,
            max_tokens=100,
            stop=["!", ".", "?"],
            temperature=0,
            logprobs=True,
            stream_options={"include_usage": True},
        ) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        assert {"chunk", "content.delta", "content.done"} <= kinds
        assert final.usage.completion_tokens > 0
        assert final.choices[0].message.content


class TestTools:
    def test_required_calls_a_tool(self, client: openai.OpenAI, gateway: Gateway) -> None:
        choice = client.chat.completions.create(
            model=gateway.model,
            messages=ASK_WEATHER,
            tools=[WEATHER_TOOL, TIME_TOOL],
            tool_choice="required",
            temperature=0,
            max_tokens=100,
        ).choices[0]
        assert choice.finish_reason == "tool_calls"
        call = choice.message.tool_calls[0]
        assert (call.type, bool(call.id)) == ("function", True)
        assert call.function.name in ("get_weather", "get_time")
        assert set(json.loads(call.function.arguments)) <= {"city", "zone"}

    def test_a_named_tool_is_called_and_finishes_with_stop(
        self, client: openai.OpenAI, gateway: Gateway
    ) -> None:
        choice = client.chat.completions.create(
            model=gateway.model,
            messages=ASK_WEATHER,
            tools=[WEATHER_TOOL, TIME_TOOL],
            tool_choice={"type": "function", "function": {"name": "get_time"}},
            temperature=0,
            max_tokens=60,
        ).choices[0]
        (call,) = choice.message.tool_calls
        assert call.function.name == "get_time"
        assert json.loads(call.function.arguments)["zone"] in ("UTC", "CET")
        assert choice.finish_reason == "stop"

    def test_auto_answers_with_text_or_a_call(self, client: openai.OpenAI, gateway: Gateway) -> None:
        choice = client.chat.completions.create(
            model=gateway.model,
            messages=ASK_WEATHER,
            tools=[WEATHER_TOOL],
            tool_choice="auto",
            max_tokens=24,
            temperature=0,
        ).choices[0]
        assert choice.message.content or choice.message.tool_calls

    @pytest.mark.parametrize(
        "tool_choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
    )
    def test_streamed_arguments_add_up_as_strings(
        self, client: openai.OpenAI, gateway: Gateway, tool_choice: object
    ) -> None:
        chunks = client.chat.completions.create(
            model=gateway.model,
            messages=ASK_WEATHER,
            tools=[WEATHER_TOOL],
            tool_choice=tool_choice,
            temperature=0,
            max_tokens=100,
            stream=True,
        )
        deltas = [d for chunk in chunks for c in chunk.choices for d in c.delta.tool_calls or []]
        first = deltas[0]
        assert (first.index, first.type, bool(first.id)) == (0, "function", True)
        assert first.function.name == "get_weather"
        arguments = ""
        for delta in (d for d in deltas if d.index == 0):
            arguments += delta.function.arguments  # the loop that everybody writes: null would raise here
        assert json.loads(arguments)["city"] in ("Paris", "Rome")
        assert not any(d.id for d in deltas[1:] if d.index == 0), "the id comes once"

    @pytest.mark.parametrize("content", [None, ""])
    def test_a_tools_answer_is_taken_back(
        self, client: openai.OpenAI, gateway: Gateway, content: str | None
    ) -> None:
        called = {
            "id": "call_1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
        }
        answer = client.chat.completions.create(
            model=gateway.model,
            messages=[
                *ASK_WEATHER,
                {"role": "assistant", "content": content, "tool_calls": [called]},
                {"role": "tool", "tool_call_id": "call_1", "content": "Sunny, 20 degrees"},
            ],
            tools=[WEATHER_TOOL],
            max_tokens=8,
        )
        assert answer.choices[0].message.role == "assistant"

    def test_an_assistant_turn_without_content_is_taken(
        self, client: openai.OpenAI, gateway: Gateway
    ) -> None:
        called = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
        answer = client.chat.completions.create(
            model=gateway.model,
            messages=[
                *ASK_WEATHER,
                {"role": "assistant", "tool_calls": [called]},
                {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "Sunny"}]},
                {"role": "user", "content": "Thanks."},
            ],
            max_tokens=4,
        )
        assert answer.choices

    def test_the_clients_accumulator_sees_the_call(self, client: openai.OpenAI, gateway: Gateway) -> None:
        with client.chat.completions.stream(
            model=gateway.model,
            messages=ASK_WEATHER,
            tools=[openai.pydantic_function_tool(Paint, name="paint")],
            tool_choice={"type": "function", "function": {"name": "paint"}},
            temperature=0,
            max_tokens=60,
        ) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion()
        assert "tool_calls.function.arguments.done" in kinds
        assert isinstance(final.choices[0].message.tool_calls[0].function.parsed_arguments, Paint)


class TestStructuredOutput:
    def test_json_schema_is_kept_to(self, client: openai.OpenAI, gateway: Gateway) -> None:
        schema = {
            "type": "object",
            "properties": {"mood": {"type": "string", "enum": ["good", "bad"]}},
            "required": ["mood"],
            "additionalProperties": False,
        }
        answer = client.chat.completions.create(
            model=gateway.model,
            messages=HELLO,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "mood", "schema": schema, "strict": True},
            },
            max_tokens=40,
            temperature=0,
        )
        assert json.loads(answer.choices[0].message.content)["mood"] in ("good", "bad")

    def test_parse_gives_the_class(self, client: openai.OpenAI, gateway: Gateway) -> None:
        answer = client.chat.completions.parse(
            model=gateway.model, messages=HELLO, response_format=Paint, max_tokens=60, temperature=0
        )
        assert isinstance(answer.choices[0].message.parsed, Paint)

    async def test_async_parse_gives_the_class(self, aclient: openai.AsyncOpenAI, gateway: Gateway) -> None:
        answer = await aclient.chat.completions.parse(
            model=gateway.adapter, messages=HELLO, response_format=Paint, max_tokens=60, temperature=0
        )
        assert isinstance(answer.choices[0].message.parsed, Paint)

    def test_streamed_parse_gives_the_class(self, client: openai.OpenAI, gateway: Gateway) -> None:
        with client.chat.completions.stream(
            model=gateway.model, messages=HELLO, response_format=Paint, max_tokens=60, temperature=0
        ) as stream:
            final = stream.get_final_completion()
        assert isinstance(final.choices[0].message.parsed, Paint)

    def test_a_cut_answer_is_a_length_error(self, client: openai.OpenAI, gateway: Gateway) -> None:
        with pytest.raises(openai.LengthFinishReasonError):
            client.chat.completions.parse(
                model=gateway.model, messages=HELLO, response_format=Paint, max_tokens=2, temperature=0
            )

    def test_json_object_begins_an_object(self, client: openai.OpenAI, gateway: Gateway) -> None:
        answer = client.chat.completions.create(
            model=gateway.model,
            messages=[{"role": "user", "content": "Reply with a JSON object."}],
            response_format={"type": "json_object"},
            max_tokens=12,
            temperature=0,
        )
        assert answer.choices[0].message.content.lstrip().startswith("{")


class TestCompletions:
    @pytest.mark.parametrize("which", ["model", "adapter"])
    def test_plain(self, client: openai.OpenAI, gateway: Gateway, which: str) -> None:
        name = getattr(gateway, which)
        answer = client.completions.create(model=name, prompt="One, two,", max_tokens=4, temperature=0)
        assert (answer.object, answer.model) == ("text_completion", name)
        assert answer.usage.completion_tokens == 4
        assert answer.choices[0].finish_reason == "length"

    def test_echo_gives_the_prompt_back(self, client: openai.OpenAI, gateway: Gateway) -> None:
        answer = client.completions.create(model=gateway.model, prompt="One, two,", max_tokens=2, echo=True)
        assert answer.choices[0].text.startswith("One, two,")

    def test_echo_with_logprobs_covers_the_prompt(self, client: openai.OpenAI, gateway: Gateway) -> None:
        answer = client.completions.create(
            model=gateway.model, prompt="One, two,", max_tokens=2, echo=True, logprobs=1, temperature=0
        )
        logprobs = answer.choices[0].logprobs
        assert len(logprobs.tokens) == answer.usage.total_tokens
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)
        assert logprobs.token_logprobs[0] is None

    def test_logprobs(self, client: openai.OpenAI, gateway: Gateway) -> None:
        answer = client.completions.create(
            model=gateway.model, prompt="One,", max_tokens=3, logprobs=2, temperature=0
        )
        logprobs = answer.choices[0].logprobs
        assert len(logprobs.tokens) == len(logprobs.top_logprobs) == 3
        assert "".join(logprobs.tokens) == answer.choices[0].text

    def test_n_and_many_prompts_multiply(self, client: openai.OpenAI, gateway: Gateway) -> None:
        answer = client.completions.create(model=gateway.model, prompt=["One,", "Two,"], n=2, max_tokens=2)
        assert sorted(choice.index for choice in answer.choices) == [0, 1, 2, 3]

    def test_prompt_as_token_ids(self, client: openai.OpenAI, gateway: Gateway) -> None:
        answer = client.completions.create(model=gateway.model, prompt=[504, 260, 216], max_tokens=2)
        assert answer.usage.prompt_tokens == 3

    def test_stream_with_usage(self, client: openai.OpenAI, gateway: Gateway) -> None:
        *others, last = client.completions.create(
            model=gateway.adapter,
            prompt="One, two,",
            max_tokens=4,
            stream=True,
            stream_options={"include_usage": True},
        )
        assert last.usage.completion_tokens == 4
        assert last.choices == []
        assert {chunk.model for chunk in [*others, last]} == {gateway.adapter}
        assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in others)

    def test_stream_without_usage(self, client: openai.OpenAI, gateway: Gateway) -> None:
        chunks = list(
            client.completions.create(model=gateway.model, prompt="One,", max_tokens=3, stream=True)
        )
        assert all(chunk.choices and "usage" not in chunk.model_fields_set for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "length"

    async def test_async_stop(self, aclient: openai.AsyncOpenAI, gateway: Gateway) -> None:
        answer = await aclient.completions.create(
            model=gateway.model, prompt="1, 2, 3, 4,", stop=[","], max_tokens=16, temperature=0
        )
        assert "," not in answer.choices[0].text
        assert answer.choices[0].finish_reason == "stop"
