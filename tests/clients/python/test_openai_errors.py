"""Refusals: the exception class that OpenAI's client raises, and the body behind it.

Owns status, `type`, `param` and `code`. Every refusal here is of a request that OpenAI refuses too; the words
of `message` are left to the gateway.
"""

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from conftest import Gateway
from openai_error import assert_openai_body, assert_openai_error

HELLO = [{"role": "user", "content": "Say hello."}]


CHAT_REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "temperature-high": ({"temperature": 3}, "temperature"),
    "temperature-negative": ({"temperature": -1}, "temperature"),
    "temperature-word": ({"temperature": "hot"}, "temperature"),
    "top_p": ({"top_p": 1.5}, "top_p"),
    "presence_penalty": ({"presence_penalty": 9}, "presence_penalty"),
    "frequency_penalty": ({"frequency_penalty": -9}, "frequency_penalty"),
    "max_tokens": ({"max_tokens": -1}, "max_tokens"),
    "max_tokens-zero": ({"max_tokens": 0}, "max_tokens"),
    "max_completion_tokens": ({"max_completion_tokens": -1}, "max_completion_tokens"),
    "n": ({"n": 1000}, "n"),
    "n-zero": ({"n": 0}, "n"),
    "top_logprobs": ({"logprobs": True, "top_logprobs": 1000}, "top_logprobs"),
    "top_logprobs-alone": ({"top_logprobs": 2}, "top_logprobs"),
    "logit_bias-value": ({"logit_bias": {"5": "much"}}, "logit_bias*"),
    "logit_bias-range": ({"logit_bias": {"5": 101}}, "logit_bias*"),
    "stream": ({"stream": "maybe"}, "stream"),
    "stream_options-alone": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "messages-string": ({"messages": "hello"}, "messages"),
    "messages-empty": ({"messages": []}, "messages"),
    "messages-null": ({"messages": None}, "messages"),
    "messages-item": ({"messages": ["hello"]}, "messages[0]"),
    "role-unknown": ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
    "role-missing": ({"messages": [*HELLO, {"content": "hi"}]}, "messages[1].role"),
    "content-number": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content*"),
    "content-missing": ({"messages": [{"role": "user"}]}, "messages[0]*"),
    "part-unknown": (
        {"messages": [{"role": "user", "content": [{"type": "smell", "text": "x"}]}]},
        "messages[0].content*",
    ),
    "tool-without-id": (
        {"messages": [*HELLO, {"role": "tool", "content": "x"}]},
        "messages[1]*",
    ),
    "tools-word": ({"tools": "hammer"}, "tools"),
    "tools-no-function": ({"tools": [{"type": "function"}]}, "tools[0]*"),
    "tool_choice-alone": ({"tool_choice": "required"}, "tool_choice"),
    "tool_choice-unknown": (
        {
            "tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "object"}}}],
            "tool_choice": {"type": "function", "function": {"name": "b"}},
        },
        "tool_choice*",
    ),
    "response_format-word": ({"response_format": "json"}, "response_format"),
    "response_format-type": ({"response_format": {"type": "xml"}}, "response_format*"),
    "response_format-no-schema": ({"response_format": {"type": "json_schema"}}, "response_format*"),
    "seed-word": ({"seed": "lucky"}, "seed"),
    "stop-number": ({"stop": 5}, "stop"),
}

COMPLETION_REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "temperature": ({"temperature": 3}, "temperature"),
    "max_tokens": ({"max_tokens": -1}, "max_tokens"),
    "n": ({"n": 1000}, "n"),
    "best_of": ({"best_of": 1000}, "best_of"),
    "logprobs": ({"logprobs": 1000}, "logprobs"),
    "prompt": ({"prompt": {"text": "x"}}, "prompt"),
    "stream_options-alone": ({"stream_options": {"include_usage": True}}, "stream_options"),
}

RESPONSE_REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "temperature": ({"temperature": 3}, "temperature"),
    "max_output_tokens": ({"max_output_tokens": -1}, "max_output_tokens"),
    "input": ({"input": 5}, "input"),
    "top_logprobs": ({"top_logprobs": 1000}, "top_logprobs"),
    "stream": ({"stream": "maybe"}, "stream"),
}


class TestValues:
    @pytest.mark.parametrize("name", CHAT_REFUSALS)
    def test_chat_names_the_field(self, client: openai.OpenAI, gateway: Gateway, name: str) -> None:
        wrong, param = CHAT_REFUSALS[name]
        body = {"model": gateway.model, "messages": HELLO, "max_tokens": 2, **wrong}
        if "max_completion_tokens" in wrong:
            del body["max_tokens"]
        with pytest.raises(openai.BadRequestError) as caught:
            client.post("/chat/completions", cast_to=object, body=body)
        assert_openai_error(caught.value, 400, param=param)

    @pytest.mark.parametrize("name", COMPLETION_REFUSALS)
    def test_completions_name_the_field(self, client: openai.OpenAI, gateway: Gateway, name: str) -> None:
        wrong, param = COMPLETION_REFUSALS[name]
        with pytest.raises(openai.BadRequestError) as caught:
            client.post(
                "/completions",
                cast_to=object,
                body={"model": gateway.model, "prompt": "One,", "max_tokens": 2, **wrong},
            )
        assert_openai_error(caught.value, 400, param=param)

    @pytest.mark.parametrize("name", RESPONSE_REFUSALS)
    def test_responses_name_the_field(self, client: openai.OpenAI, gateway: Gateway, name: str) -> None:
        wrong, param = RESPONSE_REFUSALS[name]
        with pytest.raises(openai.BadRequestError) as caught:
            client.post(
                "/responses",
                cast_to=object,
                body={"model": gateway.model, "input": "Hi", "max_output_tokens": 16, **wrong},
            )
        assert_openai_error(caught.value, 400, param=param)

    def test_a_refusal_of_a_stream_is_an_http_error(self, client: openai.OpenAI, gateway: Gateway) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=gateway.model, messages=HELLO, temperature=3, stream=True)
        assert_openai_error(caught.value, 400, param="temperature")

    async def test_the_async_client_raises_the_same(
        self, aclient: openai.AsyncOpenAI, gateway: Gateway
    ) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            await aclient.chat.completions.create(model=gateway.model, messages=HELLO, n=1000)
        assert_openai_error(caught.value, 400, param="n")


Endpoint = Callable[[openai.OpenAI, str], object]
ENDPOINTS: dict[str, Endpoint] = {
    "chat": lambda c, model: c.chat.completions.create(model=model, messages=HELLO),
    "chat-stream": lambda c, model: c.chat.completions.create(model=model, messages=HELLO, stream=True),
    "completions": lambda c, model: c.completions.create(model=model, prompt="One,"),
    "completions-stream": lambda c, model: c.completions.create(model=model, prompt="One,", stream=True),
    "responses": lambda c, model: c.responses.create(model=model, input="Hi"),
    "responses-stream": lambda c, model: c.responses.create(model=model, input="Hi", stream=True),
    "embeddings": lambda c, model: c.embeddings.create(model=model, input="Hi"),
    "retrieve": lambda c, model: c.models.retrieve(model),
}
MISSING_MODELS = ["gpt-nope", "nobody@1", "org/nope:latest", "ft:gpt-4o:me:x:1"]


class TestModel:
    @pytest.mark.parametrize("endpoint", ENDPOINTS)
    def test_unknown_model_is_not_found(self, client: openai.OpenAI, endpoint: str) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            ENDPOINTS[endpoint](client, "gpt-nope")
        assert_openai_error(caught.value, 404, code="model_not_found")
        assert "gpt-nope" in caught.value.message

    @pytest.mark.parametrize("name", MISSING_MODELS)
    def test_odd_names_are_not_found_either(self, client: openai.OpenAI, name: str) -> None:
        for endpoint in ("chat", "retrieve"):
            with pytest.raises(openai.NotFoundError) as caught:
                ENDPOINTS[endpoint](client, name)
            assert_openai_error(caught.value, 404, code="model_not_found")

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/chat/completions", {"messages": HELLO, "max_tokens": 1}),
            ("/completions", {"prompt": "One,", "max_tokens": 1}),
            ("/responses", {"input": "Hi", "max_output_tokens": 16}),
            ("/chat/completions", {"messages": HELLO, "max_tokens": 1, "model": None}),
            ("/chat/completions", {"messages": HELLO, "max_tokens": 1, "model": 5}),
            ("/chat/completions", {"messages": HELLO, "max_tokens": 1, "model": ""}),
        ],
        ids=["chat", "completions", "responses", "null", "number", "empty"],
    )
    def test_missing_model_names_the_field(
        self, client: openai.OpenAI, path: str, body: dict[str, Any]
    ) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.post(path, cast_to=object, body=body)
        assert_openai_error(caught.value, 400, param="model")

    def test_embeddings_of_a_chat_model_are_refused_clearly(
        self, client: openai.OpenAI, gateway: Gateway
    ) -> None:
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
            client.embeddings.create(model=gateway.model, input="Hi")
        assert_openai_error(caught.value, caught.value.status_code)
        assert "embedding" in caught.value.message.lower()


class TestSize:
    @pytest.mark.parametrize("stream", [False, True])
    def test_too_long_a_conversation(self, client: openai.OpenAI, gateway: Gateway, stream: bool) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model=gateway.model, messages=[{"role": "user", "content": "word " * 9000}], stream=stream
            )
        assert_openai_error(caught.value, 400, code="context_length_exceeded", param="messages")
        assert "maximum context length" in caught.value.message

    def test_too_long_a_prompt(self, client: openai.OpenAI, gateway: Gateway) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=gateway.adapter, prompt="word " * 9000)
        assert_openai_error(caught.value, 400, code="context_length_exceeded", param="prompt")

    def test_too_long_an_input(self, client: openai.OpenAI, gateway: Gateway) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model=gateway.model, input="word " * 9000)
        assert_openai_error(caught.value, 400, code="context_length_exceeded", param="input")

    def test_too_large_a_body(self, client: openai.OpenAI, gateway: Gateway) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(
                model=gateway.model, messages=HELLO, max_tokens=1, user="x" * (33 * 2**20)
            )
        assert_openai_error(caught.value, 413)


class TestHttp:
    @pytest.mark.parametrize(
        "content", [b'{"model": ', b"not json", b"", b"[1, 2]", b'"text"', b"\xff\xfe{}"], ids=repr
    )
    @pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/responses"])
    def test_what_is_no_json_object_is_a_bad_request(
        self, http: httpx.Client, path: str, content: bytes
    ) -> None:
        answer = http.post(path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert_openai_body(answer.json())
        assert answer.headers["x-request-id"]

    @pytest.mark.parametrize("path", ["/nope", "/chat/nope", "/chat/completions/extra/parts"])
    def test_unknown_path(self, http: httpx.Client, path: str) -> None:
        answer = http.post(path, json={"model": "m"})
        assert answer.status_code == 404
        assert_openai_body(answer.json())
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert answer.headers["x-request-id"]

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("PUT", "/chat/completions"),
            ("DELETE", "/completions"),
            ("PATCH", "/responses"),
            ("POST", "/models"),
        ],
    )
    def test_method_not_allowed(self, http: httpx.Client, method: str, path: str) -> None:
        answer = http.request(method, path, json={})
        assert answer.status_code == 405
        assert_openai_body(answer.json())
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert answer.headers["x-request-id"]

    @pytest.mark.parametrize(
        "path",
        [
            "/load_lora_adapter",
            "/unload_lora_adapter",
            "/invocations",
            "/tokenize",
            "/inference/v1/generate",
            "/metrics",
        ],
    )
    def test_the_engines_own_endpoints_are_out_of_reach(
        self, http: httpx.Client, gateway: Gateway, path: str
    ) -> None:
        bodies = {"lora_name": "x", "lora_path": "/tmp", "model": gateway.model, "prompt": "x"}
        for base in (gateway.base_url, gateway.root_url):
            answer = http.post(f"{base}{path}", json=bodies)
            assert answer.status_code in (404, 405), f"{base}{path}: {answer.text[:200]}"


class TestKeys:
    @pytest.mark.parametrize("key", ["sk-wrong", "sk-burnish-" + "A" * 43])
    def test_a_wrong_key_is_an_authentication_error(self, gateway: Gateway, key: str) -> None:
        if not gateway.needs_key:
            pytest.skip("the gateway needs no key (BURNISH_TEST_KEY is not set)")
        client = openai.OpenAI(base_url=gateway.base_url, api_key=key, max_retries=0)
        for call in (client.models.list, lambda: ENDPOINTS["chat"](client, gateway.model)):
            with pytest.raises(openai.AuthenticationError) as caught:
                call()
            assert_openai_error(caught.value, 401, code="invalid_api_key")
            assert "A" * 43 not in caught.value.message, "a key is never said back"

    def test_no_key_is_an_authentication_error(self, gateway: Gateway) -> None:
        if not gateway.needs_key:
            pytest.skip("the gateway needs no key (BURNISH_TEST_KEY is not set)")
        answer = httpx.get(f"{gateway.base_url}/models")
        assert answer.status_code == 401
        assert_openai_body(answer.json())
        assert answer.headers["x-request-id"]
