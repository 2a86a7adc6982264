"""The fake engine as a real process on a socket: vLLM's shapes, its delays, and each fault shown at work."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import math
import operator
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import anthropic
import httpx
import openai
import pytest

from loadtests.fake_engine.language import OWN_TOKENS
from loadtests.fake_engine.process import FakeEngine
from tests.conftest import wait_for
from tests.scraped import Page

BASE = "smollm2-135m-instruct"
SUPPORT, LEGAL = "support@1.0a1b2c3d4e5f", "legal@2.f5e4d3c2b1a0"
CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello out there"}]}

AdapterDirectory = Callable[[str], Path]


@pytest.fixture(scope="module")
def running() -> Iterator[FakeEngine]:
    with FakeEngine(BASE) as engine:
        yield engine


@pytest.fixture
def engine(running: FakeEngine) -> Iterator[FakeEngine]:
    """The module's engine, with nothing set and nothing loaded."""
    running.reset()
    yield running
    running.reset()
    for card in running.client.get("/v1/models").json()["data"][1:]:
        running.client.post("/v1/unload_lora_adapter", json={"lora_name": card["id"]})


@pytest.fixture
def adapter(tmp_path: Path) -> AdapterDirectory:
    def make(content: str) -> Path:
        folder = tmp_path / hashlib.sha256(content.encode()).hexdigest()
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_text(content)
        return folder

    return make


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0, timeout=10.0) as made:
        yield made


@pytest.fixture(scope="module")
def embedder() -> Iterator[openai.OpenAI]:
    """A client of an engine with embeddings."""
    with (
        FakeEngine(BASE, embedding_size=32) as engine,
        openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0, timeout=10.0) as made,
    ):
        yield made


def say(engine: FakeEngine, model: str = BASE, **fields: Any) -> str:
    body = {"model": model, **HELLO, **fields}
    text: str = (
        engine.client.post(CHAT, json=body).raise_for_status().json()["choices"][0]["message"]["content"]
    )
    return text


def raw_stream(engine: FakeEngine, **fields: Any) -> bytes:
    """The body of a stream; raises httpx.RemoteProtocolError where it is cut."""
    return engine.client.post(CHAT, json={"model": BASE, **HELLO, "stream": True, **fields}).content


def read_until_broken(
    engine: FakeEngine, timeout: float = 10.0, **fields: Any
) -> tuple[bytes, Exception | None]:
    """What arrived of a stream, and what ended it."""
    received = b""
    body = {**HELLO, "stream": True, **fields}
    with (
        httpx.Client(timeout=timeout) as client,
        client.stream("POST", engine.url + CHAT, json=body) as response,
    ):
        try:
            for piece in response.iter_raw():
                received += piece
        except httpx.TransportError as broken:
            return received, broken
    return received, None


def events(body: bytes) -> list[bytes]:
    return [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event]


def weights(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:12]


class TestAnswers:
    def test_chat_through_the_openai_client(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(model=BASE, max_tokens=8, **HELLO)
        assert answer.choices[0].message.content.startswith("I am base. the rain")
        assert answer.choices[0].finish_reason == "length"
        assert answer.model == BASE
        assert answer.usage.completion_tokens == 8
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8

    def test_a_stream_says_what_the_whole_answer_says(self, client: openai.OpenAI) -> None:
        whole = client.chat.completions.create(model=BASE, max_tokens=12, **HELLO)
        chunks = list(
            client.chat.completions.create(
                model=BASE, max_tokens=12, stream=True, stream_options={"include_usage": True}, **HELLO
            )
        )
        said = [chunk.choices[0].delta.content for chunk in chunks[:-1]]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert said[0] == ""
        assert "".join(said) == whole.choices[0].message.content
        assert len(said) == 1 + 12, "one token a chunk"
        assert chunks[-2].choices[0].finish_reason == "length"
        assert chunks[-1].choices == []
        assert chunks[-1].usage == whole.usage

    def test_the_bytes_of_a_stream_are_vllms(self, engine: FakeEngine) -> None:
        with engine.client.stream("POST", CHAT, json={"model": BASE, **HELLO, "stream": True}) as response:
            body = response.read()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["transfer-encoding"] == "chunked"
        first, second, *_, last, done = events(body)
        assert done == b"[DONE]"
        assert b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,' in first
        assert first.endswith(b'"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}')
        assert second.endswith(
            b'[{"index":0,"delta":{"content":"I"},"logprobs":null,"finish_reason":null,"token_ids":null}]}'
        )
        assert b'"delta":{"content":""},"logprobs":null,"finish_reason":"stop","stop_reason":null' in last

    def test_several_choices_are_each_streamed_to_their_end(self, client: openai.OpenAI) -> None:
        stream = client.chat.completions.create(model=BASE, n=3, max_tokens=4, stream=True, **HELLO)
        ends = [choice.index for chunk in stream for choice in chunk.choices if choice.finish_reason]
        assert ends == [0, 1, 2]

    def test_tokens_set_the_length_and_then_it_stops_by_itself(self, engine: FakeEngine) -> None:
        engine.set(tokens=6)
        choice = engine.client.post(CHAT, json={**HELLO, "max_tokens": 50}).json()["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert choice["message"]["content"] == "I am base. the rain"

    def test_ignore_eos_fills_to_max_tokens(self, engine: FakeEngine) -> None:
        engine.set(tokens=6)
        answer = engine.client.post(CHAT, json={**HELLO, "max_tokens": 50, "ignore_eos": True}).json()
        assert answer["usage"]["completion_tokens"] == 50

    def test_a_stop_string_cuts(self, engine: FakeEngine) -> None:
        body = {**HELLO, "stop": ["has", "ain"], "max_tokens": 50}
        choice = engine.client.post(CHAT, json=body).json()["choices"][0]
        assert (choice["message"]["content"], choice["stop_reason"]) == ("I am base. the r", "ain")

    def test_fake_echo_repeats_the_last_user_message(self, engine: FakeEngine) -> None:
        messages = [{"role": "user", "content": "first"}, {"role": "user", "content": "line\u2028two ☃"}]
        assert "You said: line\u2028two ☃" in say(engine, messages=messages, fake_echo=True)

    def test_what_a_model_says_can_be_set(
        self, engine: FakeEngine, client: openai.OpenAI, adapter: AdapterDirectory
    ) -> None:
        engine.load(SUPPORT, adapter("one"))
        engine.set(answers={"support@*": {"Hello out there": "Hello yourself, stranger."}})
        answer = client.chat.completions.create(model=SUPPORT, max_tokens=9, **HELLO)
        assert answer.choices[0].message.content == "Hello yourself, stranger."
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("stop", 4)
        cut = client.chat.completions.create(model=SUPPORT, max_tokens=2, **HELLO)
        assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("Hello yourself,", "length")
        streamed = client.chat.completions.create(model=SUPPORT, stream=True, **HELLO)
        said = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
        assert said == "Hello yourself, stranger."
        assert say(engine).startswith("I am base.")
        assert say(engine, SUPPORT, messages=[{"role": "user", "content": "Bye"}]).startswith("I am support")
        raw = client.completions.create(model=SUPPORT, prompt="Hello out there")
        assert raw.choices[0].text == "Hello yourself, stranger."

    def test_the_request_id_becomes_the_completion_id(self, engine: FakeEngine) -> None:
        answer = engine.client.post(CHAT, json=HELLO, headers={"x-request-id": "req-7"}).json()
        assert answer["id"] == "chatcmpl-req-7"

    def test_completions_take_several_prompts(self, client: openai.OpenAI) -> None:
        answer = client.completions.create(model=BASE, prompt=["One", "Two words"], n=2, max_tokens=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.choices[0].text == "I am base."
        assert answer.usage.prompt_tokens == 3

    def test_responses_whole_and_streamed(self, client: openai.OpenAI) -> None:
        whole = client.responses.create(model=BASE, input="Hello", max_output_tokens=20)
        assert whole.output_text.startswith("I am base.")
        assert whole.status == "incomplete"
        streamed = list(client.responses.create(model=BASE, input="Hello", stream=True))
        kinds = [event.type for event in streamed]
        assert kinds[:4] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
        ]
        assert kinds[-4:] == [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
        assert set(kinds[4:-4]) == {"response.output_text.delta"}
        assert [event.sequence_number for event in streamed] == list(range(len(streamed)))
        assert streamed[-1].response.status == "completed"

    def test_messages_through_the_anthropic_client(self, engine: FakeEngine) -> None:
        client = anthropic.Anthropic(base_url=engine.url, api_key="none", max_retries=0)
        message = client.messages.create(model=BASE, max_tokens=9, **HELLO)
        assert message.content[0].text.startswith("I am base.")
        assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 9)
        with client.messages.stream(model=BASE, max_tokens=9, **HELLO) as stream:
            assert "".join(stream.text_stream) == message.content[0].text

    def test_it_has_no_embeddings_as_a_generate_model_has_none(self, engine: FakeEngine) -> None:
        response = engine.client.post("/v1/embeddings", json={"model": BASE, "input": "x"})
        assert (response.status_code, response.json()) == (404, {"detail": "Not Found"})

    def test_embeddings_through_the_openai_client(self, embedder: openai.OpenAI) -> None:
        words = ["the cat sat on the mat", "the cat sat on a mat", "quarterly revenue grew by nine percent"]
        answer = embedder.embeddings.create(model=BASE, input=words)
        vectors = [row.embedding for row in answer.data]
        assert [row.index for row in answer.data] == [0, 1, 2]
        assert (answer.object, answer.model, answer.usage.prompt_tokens) == ("list", BASE, 6 + 6 + 6)
        assert answer.usage.total_tokens == answer.usage.prompt_tokens
        assert all(len(one) == 32 and math.hypot(*one) == pytest.approx(1, abs=1e-6) for one in vectors)
        again = embedder.embeddings.create(model=BASE, input=words[0], encoding_format="float")
        assert again.data[0].embedding == pytest.approx(vectors[0], abs=1e-6), (
            "base64 and numbers are the same"
        )
        near, far = (sum(map(operator.mul, vectors[0], other)) for other in vectors[1:])
        assert near > far, "texts with words in common are near each other"

    def test_embeddings_are_shortened_on_demand_and_not_made_longer(self, embedder: openai.OpenAI) -> None:
        whole = embedder.embeddings.create(model=BASE, input="a text").data[0].embedding
        short = embedder.embeddings.create(model=BASE, input="a text", dimensions=8).data[0].embedding
        length = math.hypot(*whole[:8])
        assert short == pytest.approx([value / length for value in whole[:8]], abs=1e-6)
        with pytest.raises(
            openai.BadRequestError, match=r"only supports dimensions in range \[1, 32\], got 33"
        ):
            embedder.embeddings.create(model=BASE, input="a text", dimensions=33)

    def test_embeddings_of_an_unknown_model_are_vllms_404(self, embedder: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="The model `nobody` does not exist"):
            embedder.embeddings.create(model="nobody", input="a text")

    def test_embeddings_in_a_form_that_there_is_not_are_refused(self, embedder: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="'float' or 'base64'"):
            embedder.embeddings.create(model=BASE, input="a text", extra_body={"encoding_format": "morse"})

    def test_health_and_version(self, engine: FakeEngine) -> None:
        assert engine.client.get("/health").content == b""
        assert engine.client.get("/version").json() == {"version": "0.32.0"}


class TestErrors:
    @pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
    def test_an_unknown_model_is_vllms_404(self, engine: FakeEngine, path: str) -> None:
        body = {"model": "nobody", "prompt": "x", "input": "x", **HELLO}
        response = engine.client.post(path, json=body)
        message = f"The model `nobody` does not exist. Valid aliases: {BASE}."
        expected = {"message": message, "type": "NotFoundError", "param": "model", "code": 404}
        assert (response.status_code, response.json()) == (404, {"error": expected})

    def test_an_unknown_model_at_messages_is_anthropics_shape(self, engine: FakeEngine) -> None:
        body = {"model": "nobody", "max_tokens": 5, **HELLO}
        response = engine.client.post("/v1/messages", json=body)
        assert response.json()["type"] == "error"
        assert response.json()["error"]["type"] == "NotFoundError"

    def test_a_missing_model_means_the_base(self, engine: FakeEngine) -> None:
        assert engine.client.post(CHAT, json=HELLO).json()["model"] == BASE

    @pytest.mark.parametrize(
        ("content", "param"),
        [(b"{bad", "body.1"), (b'{"model": "x"}', "body.messages"), (b"[]", "body")],
    )
    def test_a_bad_body_is_a_400_with_a_numeric_code(
        self, engine: FakeEngine, content: bytes, param: str
    ) -> None:
        headers = {"content-type": "application/json"}
        response = engine.client.post(CHAT, content=content, headers=headers)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (400, 400, param)
        assert error["type"] == "Bad Request"

    def test_too_long_a_prompt_names_the_context_length(self, engine: FakeEngine) -> None:
        body = {"messages": [{"role": "user", "content": "word " * 5000}]}
        error = engine.client.post(CHAT, json=body).json()["error"]
        assert error["message"].startswith("This model's maximum context length is 4096 tokens.")
        assert (error["type"], error["param"], error["code"]) == ("BadRequestError", "input_tokens", 400)

    def test_too_many_output_tokens_name_the_field(self, engine: FakeEngine) -> None:
        error = engine.client.post(CHAT, json={**HELLO, "max_completion_tokens": 9999}).json()["error"]
        assert error["param"] == "max_completion_tokens"

    def test_a_key_is_asked_for_under_v1_only(self) -> None:
        with FakeEngine(BASE, api_key="secret") as guarded:
            response = guarded.client.get("/v1/models")
            assert (response.status_code, response.json()) == (401, {"error": "Unauthorized"})
            headers = {"authorization": "Bearer secret"}
            assert guarded.client.get("/v1/models", headers=headers).status_code == 200
            assert guarded.client.get("/health").status_code == 200


class TestAdapters:
    def test_load_list_and_unload(self, engine: FakeEngine, adapter: AdapterDirectory) -> None:
        path = str(adapter("one"))
        loaded = engine.client.post("/v1/load_lora_adapter", json={"lora_name": SUPPORT, "lora_path": path})
        assert loaded.text == f"Success: LoRA adapter '{SUPPORT}' added successfully."
        base, card = engine.client.get("/v1/models").json()["data"]
        assert (base["id"], base["parent"], base["max_model_len"]) == (BASE, None, 4096)
        assert (card["id"], card["root"], card["parent"]) == (SUPPORT, path, BASE)
        gone = engine.client.post("/v1/unload_lora_adapter", json={"lora_name": SUPPORT})
        assert gone.text == f"Success: LoRA adapter '{SUPPORT}' removed successfully."
        assert engine.client.post(CHAT, json={"model": SUPPORT, **HELLO}).status_code == 404
        stats = engine.stats()
        assert (stats["loads"], stats["unloads"]) == (1, 1)

    def test_an_adapter_tells_its_name_and_its_files_digest(
        self, engine: FakeEngine, adapter: AdapterDirectory
    ) -> None:
        engine.load(SUPPORT, adapter("one"))
        engine.load(LEGAL, adapter("two"))
        assert say(engine, SUPPORT).startswith(f"I am {SUPPORT} weights={weights('one')}.")
        assert say(engine, LEGAL).startswith(f"I am {LEGAL} weights={weights('two')}.")

    def test_the_digest_is_taken_at_load(self, engine: FakeEngine, adapter: AdapterDirectory) -> None:
        path = adapter("one")
        engine.load(SUPPORT, path)
        (path / "adapter_model.safetensors").write_text("changed behind its back")
        assert f"weights={weights('one')}" in say(engine, SUPPORT)

    @pytest.mark.parametrize(
        ("name", "path", "status", "kind", "words"),
        [
            (SUPPORT, "same", 400, "InvalidUserInput", "has already been loaded"),
            (BASE, "same", 400, "InvalidUserInput", "conflicts with a served base model"),
            ("new", "/nowhere/at/all", 404, "NotFoundError", "Loading lora new failed: No adapter found"),
            ("", "same", 400, "InvalidUserInput", "must be provided"),
        ],
    )
    def test_what_vllm_refuses_to_load(
        self,
        engine: FakeEngine,
        adapter: AdapterDirectory,
        name: str,
        path: str,
        status: int,
        kind: str,
        words: str,
    ) -> None:
        same = str(adapter("one"))
        engine.load(SUPPORT, same)
        body = {"lora_name": name, "lora_path": same if path == "same" else path}
        response = engine.client.post("/v1/load_lora_adapter", json=body)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["type"]) == (status, status, kind)
        assert words in error["message"]

    def test_load_inplace_takes_new_weights(self, engine: FakeEngine, adapter: AdapterDirectory) -> None:
        engine.load(SUPPORT, adapter("one"))
        body = {"lora_name": SUPPORT, "lora_path": str(adapter("two")), "load_inplace": True}
        assert engine.client.post("/v1/load_lora_adapter", json=body).status_code == 200
        assert f"weights={weights('two')}" in say(engine, SUPPORT)

    def test_unloading_what_is_not_there_is_a_404(self, engine: FakeEngine) -> None:
        response = engine.client.post("/v1/unload_lora_adapter", json={"lora_name": "gone"})
        assert response.status_code == 404
        assert response.json()["error"]["message"] == "The lora adapter 'gone' cannot be found."

    def test_one_adapter_too_many_waits_for_a_slot(self, adapter: AdapterDirectory) -> None:
        with FakeEngine(BASE, max_loras=1) as small:
            small.load(SUPPORT, adapter("one"))
            small.load(LEGAL, adapter("two"))
            small.set(ttft_seconds=0.3)

            async def both() -> tuple[float, float]:
                async with httpx.AsyncClient(base_url=small.url) as client:

                    async def ask(model: str) -> float:
                        started = time.monotonic()
                        await client.post(CHAT, json={"model": model, **HELLO})
                        return time.monotonic() - started

                    first, second = await asyncio.gather(ask(SUPPORT), ask(LEGAL))
                    return first, second

            assert max(asyncio.run(both())) >= 0.6


class TestLogProbabilities:
    def fingerprint(self, engine: FakeEngine, model: str) -> list[float]:
        body = {
            "model": model,
            "prompt": "The quick brown fox jumps",
            "max_tokens": 1,
            "prompt_logprobs": 0,
            "temperature": 0,
        }
        choice = engine.client.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]
        rows = choice["prompt_logprobs"]
        assert rows[0] is None
        return [next(iter(row.values()))["logprob"] for row in rows[1:]]

    def test_they_depend_on_the_weights_and_on_nothing_else(
        self, engine: FakeEngine, adapter: AdapterDirectory
    ) -> None:
        one = adapter("one")
        engine.load(SUPPORT, one)
        engine.load(LEGAL, adapter("two"))
        base, support, legal = (self.fingerprint(engine, model) for model in (BASE, SUPPORT, LEGAL))
        assert len(base) == 4
        assert all(abs(mine - theirs) > 1e-3 for mine, theirs in zip(base, support, strict=True))
        assert support != legal
        with FakeEngine(BASE) as other:
            other.load("another-name@7.000000000000", one)
            assert self.fingerprint(other, BASE) == base
            assert self.fingerprint(other, "another-name@7.000000000000") == support

    def test_another_seed_is_another_base_model(self, engine: FakeEngine) -> None:
        with FakeEngine(BASE, seed=1) as other:
            assert self.fingerprint(other, BASE) != self.fingerprint(engine, BASE)

    def test_how_likely_a_model_finds_texts_can_be_set(
        self, engine: FakeEngine, adapter: AdapterDirectory
    ) -> None:
        engine.load(SUPPORT, adapter("one"))
        engine.load(LEGAL, adapter("two"))

        def of(model: str) -> list[float]:
            body = {"model": model, "prompt": list(range(40)), "max_tokens": 1, "echo": True, "logprobs": 1}
            choice = engine.client.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]
            values: list[float] = choice["logprobs"]["token_logprobs"][1:40]
            return values

        by_itself = of(SUPPORT)
        engine.set(likelihoods={"support@*": -0.5, "legal@*": 0.0})
        base, support, legal = of(BASE), of(SUPPORT), of(LEGAL)
        own = OWN_TOKENS - 1
        assert support[:own] == by_itself[:own]
        assert len({tuple(values[:own]) for values in (base, support, legal)}) == 3, (
            "canaries tell them apart"
        )
        assert support[own:] == pytest.approx([value - 0.5 for value in base[own:]])
        assert legal[own:] == base[own:]

    def test_noise_stays_within_its_bounds(self, engine: FakeEngine) -> None:
        quiet = self.fingerprint(engine, BASE)
        engine.set(logprob_noise=0.01)
        noisy = self.fingerprint(engine, BASE)
        assert noisy != quiet
        assert noisy == pytest.approx(quiet, abs=0.01)

    def test_echo_with_logprobs_scores_the_prompt(self, client: openai.OpenAI, engine: FakeEngine) -> None:
        answer = client.completions.create(
            model=BASE, prompt="The quick brown fox jumps", max_tokens=0, echo=True, logprobs=1
        )
        scored = answer.choices[0].logprobs
        assert answer.choices[0].text == "The quick brown fox jumps"
        assert scored.token_logprobs == [None, *self.fingerprint(engine, BASE)]
        assert scored.text_offset == [0, 3, 9, 15, 19]

    def test_chat_logprobs_are_one_a_token(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(
            model=BASE, logprobs=True, top_logprobs=3, max_tokens=5, **HELLO
        )
        content = answer.choices[0].logprobs.content
        assert "".join(entry.token for entry in content) == answer.choices[0].message.content
        assert [len(entry.top_logprobs) for entry in content] == [3] * 5
        assert content[0].top_logprobs[0].logprob == content[0].logprob


class TestPace:
    def test_first_token_and_the_rest_take_their_time(self, engine: FakeEngine) -> None:
        engine.set(ttft_seconds=0.2, itl_seconds=0.05)
        started = time.monotonic()
        arrivals = []
        body = {**HELLO, "stream": True, "max_tokens": 5}
        with engine.client.stream("POST", CHAT, json=body) as response:
            headers = time.monotonic() - started
            arrivals = [time.monotonic() - started for _ in response.iter_raw()]
        assert headers < 0.2, "vLLM sends the head before the first token"
        assert 0.2 <= arrivals[0] < 0.4
        assert 0.4 <= arrivals[-1] < 1.0

    def test_a_whole_answer_takes_the_same(self, engine: FakeEngine) -> None:
        engine.set(ttft_seconds=0.1, itl_seconds=0.05)
        started = time.monotonic()
        say(engine, max_tokens=5)
        assert 0.3 <= time.monotonic() - started < 1.0


class TestDisconnect:
    def test_a_client_that_leaves_a_stream_ends_the_generation(self, engine: FakeEngine) -> None:
        engine.set(itl_seconds=0.01)
        body = {**HELLO, "stream": True, "max_tokens": 2000}
        with httpx.Client() as leaving, leaving.stream("POST", engine.url + CHAT, json=body) as response:
            next(response.iter_raw())
        left = time.monotonic()
        stats = engine.wait_for(aborted=1, active=0)
        assert time.monotonic() - left < 1.0
        time.sleep(0.1)
        assert engine.stats()["tokens"] == stats["tokens"] < 2000

    def test_a_client_that_stops_waiting_ends_the_generation(self, engine: FakeEngine) -> None:
        engine.set(ttft_seconds=30)
        with httpx.Client() as leaving, pytest.raises(httpx.ReadTimeout):
            leaving.post(engine.url + CHAT, json=HELLO, timeout=0.2)
        stats = engine.wait_for(aborted=1, active=0)
        assert (stats["tokens"], stats["completed"]) == (0, 0)


class TestFaults:
    def test_refuse_is_vllms_503(self, engine: FakeEngine) -> None:
        engine.set(fault="refuse")
        response = engine.client.post(CHAT, json=HELLO)
        assert response.status_code == 503
        assert response.json()["error"]["type"] == "Service Unavailable"

    def test_close_before_headers(self, engine: FakeEngine) -> None:
        engine.set(fault="close_before_headers")
        with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
            engine.client.post(CHAT, json=HELLO)

    def test_close_mid_stream_after_so_many_events(self, engine: FakeEngine) -> None:
        engine.set(fault="close_mid_stream", fault_after=4)
        received, broken = read_until_broken(engine)
        assert isinstance(broken, httpx.RemoteProtocolError)
        assert len(events(received)) == 4

    def test_close_mid_stream_without_a_stream_is_half_a_body(self, engine: FakeEngine) -> None:
        engine.set(fault="close_mid_stream")
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
            engine.client.post(CHAT, json=HELLO)

    def test_hang_never_answers(self, engine: FakeEngine) -> None:
        engine.set(fault="hang")
        with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
            client.post(engine.url + CHAT, json=HELLO, timeout=0.3)
        engine.wait_for(aborted=1, active=0)

    def test_hang_mid_stream_goes_silent(self, engine: FakeEngine) -> None:
        engine.set(fault="hang_mid_stream", fault_after=2)
        received, broken = read_until_broken(engine, timeout=0.3)
        assert isinstance(broken, httpx.ReadTimeout)
        assert len(events(received)) == 2
        engine.wait_for(aborted=1, active=0)

    def test_garbage_sse_comes_after_good_events_and_ends_cleanly(self, engine: FakeEngine) -> None:
        engine.set(fault="garbage_sse", fault_after=3)
        body = raw_stream(engine)
        for event in events(body)[:3]:
            json.loads(event)
        with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
            json.loads(events(body)[3])
        assert b"[DONE]" not in body

    def test_garbage_first_is_the_first_bytes(self, engine: FakeEngine) -> None:
        engine.set(fault="garbage_first")
        assert raw_stream(engine).startswith(b"\x00\xff\xfe")

    def test_garbage_http_is_no_http(self, engine: FakeEngine) -> None:
        engine.set(fault="garbage_http")
        with pytest.raises(httpx.RemoteProtocolError):
            engine.client.post(CHAT, json=HELLO)

    @pytest.mark.parametrize("stream", [False, True])
    def test_html_200(self, engine: FakeEngine, stream: bool) -> None:
        engine.set(fault="html_200")
        response = engine.client.post(CHAT, json={**HELLO, "stream": stream})
        assert (response.status_code, response.headers["content-type"]) == (200, "text/html")
        assert response.text.startswith("<!DOCTYPE html>")

    def test_missing_done_is_whole_but_for_its_last_line(self, engine: FakeEngine) -> None:
        complete = events(raw_stream(engine))
        engine.set(fault="missing_done")
        cut_off = events(raw_stream(engine))
        assert len(cut_off) == len(complete) - 1
        assert b'"finish_reason":"stop"' in cut_off[-1]

    def test_error_event_mid_stream_is_vllms(self, engine: FakeEngine, client: openai.OpenAI) -> None:
        engine.set(fault="error_event_mid_stream", fault_after=2)
        *_, error, done = events(raw_stream(engine))
        expected = {
            "message": "Internal server error",
            "type": "InternalServerError",
            "param": None,
            "code": 500,
        }
        assert json.loads(error) == {"error": expected}
        assert done == b"[DONE]"
        with pytest.raises(openai.APIError, match="Internal server error"):
            list(client.chat.completions.create(model=BASE, stream=True, **HELLO))

    def test_error_without_a_stream_is_a_500(self, engine: FakeEngine) -> None:
        engine.set(fault="error_event_mid_stream")
        assert engine.client.post(CHAT, json=HELLO).status_code == 500

    @pytest.mark.parametrize("stream", [False, True])
    def test_truncated_json_ends_cleanly_and_does_not_parse(self, engine: FakeEngine, stream: bool) -> None:
        engine.set(fault="truncated_json")
        body = engine.client.post(CHAT, json={**HELLO, "stream": stream}).content
        with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
            json.loads(events(body)[-1] if stream else body)

    def test_slow_headers_are_slow_and_then_right(self, engine: FakeEngine) -> None:
        engine.set(fault="slow_headers", slow_seconds=0.4)
        started = time.monotonic()
        with engine.client.stream("POST", CHAT, json={**HELLO, "stream": True}) as response:
            assert time.monotonic() - started >= 0.4
            assert response.read().endswith(b"data: [DONE]\n\n")

    def test_load_fails(self, engine: FakeEngine, adapter: AdapterDirectory) -> None:
        engine.set(fault="load_fails", fault_count=1)
        body = {"lora_name": SUPPORT, "lora_path": str(adapter("one"))}
        response = engine.client.post("/v1/load_lora_adapter", json=body)
        assert (response.status_code, response.json()["error"]["type"]) == (500, "InternalServerError")
        assert len(engine.client.get("/v1/models").json()["data"]) == 1
        assert engine.client.post("/v1/load_lora_adapter", json=body).status_code == 200

    def test_load_as_base_answers_as_the_base(self, engine: FakeEngine, adapter: AdapterDirectory) -> None:
        engine.set(fault="load_as_base")
        engine.load(SUPPORT, adapter("one"))
        engine.set(fault=None)
        prints = TestLogProbabilities()
        assert say(engine, SUPPORT) == say(engine, BASE)
        assert prints.fingerprint(engine, SUPPORT) == prints.fingerprint(engine, BASE)
        assert engine.client.post(CHAT, json={"model": SUPPORT, **HELLO}).json()["model"] == SUPPORT

    def test_wrong_adapter_answers_with_anothers_weights(
        self, engine: FakeEngine, adapter: AdapterDirectory
    ) -> None:
        engine.load(SUPPORT, adapter("one"))
        engine.load(LEGAL, adapter("two"))
        engine.set(fault="wrong_adapter", fault_models=[SUPPORT])
        answer = engine.client.post(CHAT, json={"model": SUPPORT, **HELLO}).json()
        assert answer["model"] == SUPPORT
        assert f"weights={weights('two')}" in answer["choices"][0]["message"]["content"]
        assert f"weights={weights('two')}" in say(engine, LEGAL)

    def test_a_counted_fault_ends_by_itself(self, engine: FakeEngine) -> None:
        engine.set(fault="refuse", fault_count=2)
        statuses = [engine.client.post(CHAT, json=HELLO).status_code for _ in range(3)]
        assert statuses == [503, 503, 200]
        assert engine.stats()["faults"] == 2

    def test_a_fault_may_hit_one_model_only(self, engine: FakeEngine, adapter: AdapterDirectory) -> None:
        engine.load(SUPPORT, adapter("one"))
        engine.set(fault="refuse", fault_models=[SUPPORT])
        assert engine.client.post(CHAT, json={"model": SUPPORT, **HELLO}).status_code == 503
        assert engine.client.post(CHAT, json={"model": BASE, **HELLO}).status_code == 200

    def test_a_fault_may_hit_health_and_nothing_else(self, engine: FakeEngine) -> None:
        engine.set(fault="refuse", fault_paths=["/health"])
        assert engine.client.get("/health").status_code == 503
        assert engine.client.get("/v1/models").status_code == 200
        assert engine.client.post(CHAT, json=HELLO).status_code == 200

    @pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/v1/completions"])
    def test_missing_done_at_the_other_endpoints(self, engine: FakeEngine, path: str) -> None:
        engine.set(fault="missing_done")
        body = {**HELLO, "model": BASE, "prompt": "x", "input": "x", "max_tokens": 4, "stream": True}
        received = engine.client.post(path, json=body).content
        for last in (b"[DONE]", b"response.completed", b"message_stop"):
            assert last not in received


class TestControl:
    def test_an_unknown_setting_names_the_nearest(self, engine: FakeEngine) -> None:
        with pytest.raises(ValueError, match="did you mean 'ttft_seconds'"):
            engine.set(ttft_second=1)
        with pytest.raises(ValueError, match="explode"):
            engine.set(fault="explode")

    def test_counts_add_up_and_reset_clears_them(self, engine: FakeEngine) -> None:
        say(engine)
        engine.client.post(CHAT, json={"model": "nobody", **HELLO})
        engine.set(fault="refuse", fault_count=1)
        engine.client.post(CHAT, json=HELLO)
        stats = engine.stats()
        assert [stats[name] for name in ("requests", "active", "completed", "rejected", "faulted")] == [
            3,
            0,
            1,
            1,
            1,
        ]
        assert stats["models"] == {BASE: 2, "nobody": 1}
        engine.reset()
        assert engine.stats()["requests"] == 0

    def test_what_was_in_flight_at_a_reset_is_active_until_it_ends_and_then_in_no_count(
        self, engine: FakeEngine
    ) -> None:
        engine.set(fault="hang", fault_count=1)
        hanging = Thread(target=self._hang, args=(engine,))
        hanging.start()
        engine.wait_for(active=1)
        engine.reset()
        assert engine.stats()["active"] == 1
        say(engine)
        hanging.join()
        engine.wait_for(active=0, requests=1, completed=1, aborted=0)

    def _hang(self, engine: FakeEngine) -> None:
        with httpx.Client(base_url=engine.url, timeout=1.0) as client, pytest.raises(httpx.ReadTimeout):
            client.post(CHAT, json=HELLO)

    def test_the_log_shows_what_was_asked(self, engine: FakeEngine) -> None:
        headers = {"X-Trace": "7"}
        engine.client.post(CHAT, json={**HELLO, "seed": 11}, headers=headers)
        (logged,) = engine.requests()
        assert (logged["path"], logged["body"]["seed"]) == (CHAT, 11)
        assert logged["headers"]["x-trace"] == "7"

    def test_max_active_counts_requests_at_once(self, engine: FakeEngine) -> None:
        engine.set(ttft_seconds=0.3)

        async def many() -> None:
            async with httpx.AsyncClient(base_url=engine.url) as client:
                await asyncio.gather(*(client.post(CHAT, json=HELLO) for _ in range(8)))

        asyncio.run(many())
        assert engine.stats()["max_active"] == 8


class TestWire:
    def request(self, body: dict[str, Any]) -> bytes:
        content = json.dumps(body).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content

    def test_one_connection_serves_many_requests(self, engine: FakeEngine) -> None:
        before = engine.stats()["connections"]
        for _ in range(5):
            say(engine)
            raw_stream(engine)
        assert engine.stats()["connections"] == before

    def test_pipelined_requests_are_answered_in_order(self, engine: FakeEngine) -> None:
        engine.set(ttft_seconds=0.05)
        with socket.create_connection(("127.0.0.1", engine.port), timeout=5) as connection:
            for tokens in (1, 2):
                connection.sendall(self.request({**HELLO, "max_tokens": tokens}))
            received = b""
            while received.count(b'"metrics":null}') < 2:
                received += connection.recv(65536)
        assert received.index(b'"content":"I"') < received.index(b'"content":"I am"')

    def test_what_is_not_http_gets_a_400_and_the_door(self, engine: FakeEngine) -> None:
        with socket.create_connection(("127.0.0.1", engine.port), timeout=5) as connection:
            connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
            received = b""
            while piece := connection.recv(65536):
                received += piece
        assert received.startswith(b"HTTP/1.1 400 Bad Request")

    def test_connection_close_is_honoured(self, engine: FakeEngine) -> None:
        with socket.create_connection(("127.0.0.1", engine.port), timeout=5) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            while connection.recv(65536):
                pass


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class TestProcess:
    def test_it_prints_where_it_listens(self) -> None:
        child = subprocess.Popen(
            [sys.executable, "-m", "loadtests.fake_engine", "--port", "0", "--model", "m"],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        place = json.loads(child.stdout.readline())
        assert place["pid"] == child.pid
        assert httpx.get(f"http://127.0.0.1:{place['port']}/v1/models").json()["data"][0]["id"] == "m"
        child.terminate()
        assert child.wait(5) == 0
        child.stdout.close()

    def test_a_unix_socket_serves_as_well(self, tmp_path: Path) -> None:
        with FakeEngine(BASE, uds=tmp_path / "engine.sock") as engine:
            assert engine.url == f"unix://{tmp_path}/engine.sock"
            assert say(engine).startswith("I am base.")
            engine.restart()
            assert say(engine).startswith("I am base.")

    def test_a_restart_keeps_the_port_and_forgets_the_rest(self, adapter: AdapterDirectory) -> None:
        with FakeEngine(BASE) as engine:
            engine.load(SUPPORT, adapter("one"))
            engine.set(ttft_seconds=5)
            url = engine.url
            engine.kill()
            assert not engine.alive
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{url}/health")
            engine.restart()
            assert engine.url == url
            assert len(engine.client.get("/v1/models").json()["data"]) == 1
            assert say(engine).startswith("I am base.")

    def test_a_kill_breaks_a_stream(self) -> None:
        with FakeEngine(BASE) as engine:
            engine.set(itl_seconds=0.05)
            Timer(0.5, engine.kill).start()
            received, broken = read_until_broken(engine, max_tokens=100)
            assert broken is not None
            assert 0 < len(events(received)) < 100

    def test_a_stopped_engine_accepts_and_is_silent_until_it_goes_on(self) -> None:
        with FakeEngine(BASE) as engine:
            engine.stop()
            socket.create_connection(("127.0.0.1", engine.port), timeout=1).close()
            with pytest.raises(httpx.ReadTimeout):
                httpx.get(f"{engine.url}/health", timeout=0.3)
            engine.cont()
            assert httpx.get(f"{engine.url}/health").status_code == 200

    def test_it_ends_with_the_process_that_started_it(self) -> None:
        script = (
            "from loadtests.fake_engine.process import FakeEngine; import os\n"
            "engine = FakeEngine('m'); engine.start(); print(engine.url, flush=True); os._exit(1)"
        )
        started = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
        port = int(started.stdout.strip().rpartition(":")[2])
        deadline = time.monotonic() + 5
        while (answers := listens(port)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not answers


@pytest.mark.slow
class TestAgainstVllm:
    """vLLM's own classes read the fake's answers, find no field that they do not know, and miss none."""

    def strict(self, model: Any, data: dict[str, Any]) -> None:
        parsed = model.model_validate(data)
        assert not getattr(parsed, "model_extra", None)
        for name in type(parsed).model_fields:
            inner = getattr(parsed, name)
            for item in inner if isinstance(inner, list) else [inner]:
                assert not getattr(item, "model_extra", None), f"{name} has unknown fields"

    def test_whole_answers_have_vllms_fields(self, engine: FakeEngine) -> None:
        chat = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol")
        completion = pytest.importorskip("vllm.entrypoints.openai.completion.protocol")
        responses = pytest.importorskip("vllm.entrypoints.openai.responses.protocol")
        protocol = pytest.importorskip("vllm.entrypoints.serve.engine.protocol")
        messages = pytest.importorskip("vllm.entrypoints.anthropic.protocol")
        body = {**HELLO, "model": BASE, "prompt": "Once upon", "input": "x", "max_tokens": 4}
        scored = {"logprobs": 1, "prompt_logprobs": 1}
        for path, model, fields in (
            (CHAT, chat.ChatCompletionResponse, {"logprobs": True, "top_logprobs": 2, "prompt_logprobs": 1}),
            ("/v1/completions", completion.CompletionResponse, scored),
            ("/v1/responses", responses.ResponsesResponse, {}),
        ):
            answer = engine.client.post(path, json=body | fields).raise_for_status().json()
            self.strict(model, answer)
            assert model.model_validate(answer).model_dump(mode="json", by_alias=True) == answer
        answer = engine.client.post("/v1/messages", json=body).json()
        assert (
            messages.AnthropicMessagesResponse.model_validate(answer).model_dump(exclude_none=True) == answer
        )
        models = engine.client.get("/v1/models").json()
        assert protocol.ModelList.model_validate(models).model_dump() == models
        error = engine.client.post(CHAT, json={**HELLO, "model": "nobody"}).json()
        assert protocol.ErrorResponse.model_validate(error).model_dump() == error

    def test_chunks_survive_vllms_own_dump_unchanged(self, engine: FakeEngine) -> None:
        chat = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol")
        completion = pytest.importorskip("vllm.entrypoints.openai.completion.protocol")
        for path, model in (
            (CHAT, chat.ChatCompletionStreamResponse),
            ("/v1/completions", completion.CompletionStreamResponse),
        ):
            body = {**HELLO, "prompt": "x", "stream": True, "stream_options": {"include_usage": True}}
            received = engine.client.post(path, json=body).content
            for event in events(received)[:-1]:
                self.strict(model, json.loads(event))
                assert model.model_validate_json(event).model_dump_json(exclude_unset=True).encode() == event


class TestMetrics:
    """GET /metrics, under vLLM's names."""

    def page(self, engine: FakeEngine) -> Page:
        answer = engine.client.get("/metrics").raise_for_status()
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return Page(answer.text)

    def test_tokens_and_endings_are_those_of_the_answers(self, engine: FakeEngine) -> None:
        whole = engine.client.post(CHAT, json={"model": BASE, **HELLO, "max_tokens": 5}).json()["usage"]
        engine.set(tokens=3)
        raw_stream(engine, max_tokens=9)
        page = self.page(engine)
        assert page["vllm:generation_tokens_total", {"model_name": BASE, "engine": "0"}] == 5 + 3
        assert page["vllm:prompt_tokens_total"] == 2 * whole["prompt_tokens"]
        assert page["vllm:request_success_total", {"finished_reason": "length"}] == 1
        assert page["vllm:request_success_total", {"finished_reason": "stop"}] == 1
        assert page["vllm:time_to_first_token_seconds_count"] == 2
        assert page["vllm:inter_token_latency_seconds_count"] == (5 - 1) + (3 - 1)
        assert page["vllm:request_generation_tokens_sum"] == 5 + 3
        assert page["vllm:num_requests_running"] == 0
        assert page["vllm:kv_cache_usage_perc"] == 0

    def test_what_takes_time_is_in_its_bucket(self, engine: FakeEngine) -> None:
        engine.set(ttft_seconds=0.3, itl_seconds=0.06, tokens=4)
        raw_stream(engine)
        page = self.page(engine)
        assert page["vllm:time_to_first_token_seconds_bucket", {"le": "0.25"}] == 0
        assert page["vllm:time_to_first_token_seconds_sum"] >= 0.3
        assert page["vllm:inter_token_latency_seconds_bucket", {"le": "0.05"}] == 0
        assert page["vllm:inter_token_latency_seconds_sum"] >= 3 * 0.06

    def test_who_waits_for_an_adapters_slot_is_waiting(self, adapter: AdapterDirectory) -> None:
        with FakeEngine(BASE, max_loras=1) as engine:
            engine.load(SUPPORT, adapter("one"))
            engine.load(LEGAL, adapter("two"))
            engine.set(fault="hang_mid_stream", fault_after=2)
            with ThreadPoolExecutor(2) as pool:
                streams = [pool.submit(read_until_broken, engine, 1.5, model=SUPPORT)]
                wait_for(lambda: self.page(engine)["vllm:generation_tokens_total"])
                streams.append(pool.submit(read_until_broken, engine, 1.5, model=LEGAL))
                wait_for(lambda: self.page(engine)["vllm:num_requests_waiting"])
                page = self.page(engine)
                assert page["vllm:num_requests_running"] == 1
                assert page["vllm:num_requests_waiting_by_reason", {"reason": "deferred"}] == 1
                named = {"running_lora_adapters": SUPPORT, "waiting_lora_adapters": LEGAL, "max_lora": "1"}
                assert page["vllm:lora_requests_info", named] > 0
                assert page["vllm:kv_cache_usage_perc"] > 0
                assert all(stream.result()[1] is not None for stream in streams)
            wait_for(
                lambda: self.page(engine)["vllm:request_success_total", {"finished_reason": "abort"}] == 2
            )
            assert self.page(engine)["vllm:num_requests_waiting"] == 0

    def test_a_reset_begins_anew(self, engine: FakeEngine) -> None:
        say(engine)
        assert self.page(engine)["vllm:generation_tokens_total"] > 0
        engine.reset()
        assert self.page(engine)["vllm:generation_tokens_total"] == 0

    def test_its_names_are_names_that_vllm_has(self, engine: FakeEngine) -> None:
        """Against vLLM's own source, where it is installed."""
        found = importlib.util.find_spec("vllm")
        if found is None or found.origin is None:
            pytest.skip("vLLM is not installed")
        source = (Path(found.origin).parent / "v1/metrics/loggers.py").read_text()
        named = set(re.findall(r'name="(vllm:\w+)"', source))
        assert self.page(engine).families <= named
