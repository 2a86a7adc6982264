"""The surface over a fake engine: what every client sees of errors, keys, models and kept responses."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from adapters.database import Database
from adapters.keys import Keys, Scope
from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, Server, engines_config, running, start_server, wait_for

ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 6}


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    with FakeEngine(MODEL) as fake:
        yield fake


@pytest.fixture(scope="module")
def server(engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = engines_config(engine, extra="[limits]\nmax_body_bytes = 100000\n")
    with running(tmp_path_factory.mktemp("surface") / "home", config) as server:
        server.add_adapter("support", seed=1)
        yield server


@pytest.fixture
def http(server: Server, engine: FakeEngine) -> Iterator[httpx.Client]:
    engine.reset()
    with server.http() as client:
        yield client


def assert_openai_error(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] is None or isinstance(error["code"], str)
    if code is not None:
        assert error["code"] == code
    assert len(answer.headers.get_list("x-request-id")) == 1
    return error


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
)
def test_promise_11_an_unknown_model_is_a_404_with_the_sdks_code(http: httpx.Client, path: str) -> None:
    body = {**ASK, "model": "nope", "prompt": "x", "input": "x"}
    assert assert_openai_error(http.post(path, json=body), 404, "model_not_found")["param"] == "model"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\xfe", b'{"model": "x"'])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/adapters"])
def test_promise_11_a_bad_body_is_a_400(http: httpx.Client, path: str, raw: bytes) -> None:
    assert_openai_error(http.post(path, content=raw, headers={"content-type": "application/json"}), 400)


def test_promise_11_too_large_a_body_is_a_413_however_it_is_sent(http: httpx.Client) -> None:
    big = json.dumps({**ASK, "messages": [{"role": "user", "content": "x" * 200_000}]}).encode()
    assert_openai_error(http.post("/v1/chat/completions", content=big), 413)
    pieces = iter([big[i : i + 4096] for i in range(0, len(big), 4096)])
    assert_openai_error(http.post("/v1/chat/completions", content=pieces), 413)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/", 404),
        ("POST", "/v1/load_lora_adapter", 404),
        ("POST", "/tokenize", 404),
        ("GET", "/v1/chat/completions/unknown", 404),
        ("PUT", "/v1/models", 405),
        ("GET", "/v1/embeddings", 405),
        ("GET", "/v1/models/nope", 404),
        ("GET", "/v1/models/org/nope:8b@3", 404),
        ("GET", "/v1/responses/resp_nope", 404),
        ("DELETE", "/v1/responses/resp_nope", 404),
        ("GET", "/v1/routes/nope", 404),
        ("GET", "/v1/adapters/nope", 404),
    ],
)
def test_promise_11_every_other_refusal_has_the_same_shape(
    http: httpx.Client, method: str, path: str, status: int
) -> None:
    assert_openai_error(http.request(method, path), status)


def test_promise_11_an_endpoint_that_no_engine_has_says_so(http: httpx.Client) -> None:
    error = assert_openai_error(http.post("/v1/embeddings", json={"model": MODEL, "input": "x"}), 400)
    assert error["code"] == "unsupported_endpoint"
    assert "embeddings" in error["message"]


def test_promise_11_anthropics_clients_get_anthropics_errors(http: httpx.Client) -> None:
    refused = http.post("/v1/messages", json={**ASK, "model": "nope"})
    assert refused.status_code == 404
    assert refused.json()["error"]["type"] == "not_found_error"
    assert refused.json()["type"] == "error"
    missing = http.post("/v1/messages", json={"model": MODEL, "messages": ASK["messages"]})
    assert (missing.status_code, missing.json()["error"]["type"]) == (400, "invalid_request_error")


def test_the_model_that_was_asked_for_comes_back_in_every_chunk(server: Server, http: httpx.Client) -> None:
    client = server.client()
    for model in (MODEL, "support", "support@1"):
        assert client.chat.completions.create(**{**ASK, "model": model}).model == model
        assert {c.model for c in client.chat.completions.create(**{**ASK, "model": model}, stream=True)} == {
            model
        }
        assert client.completions.create(model=model, prompt="x", max_tokens=3).model == model
        assert client.responses.create(model=model, input="x").model == model
        events = list(client.responses.create(model=model, input="x", stream=True))
        assert {e.response.model for e in events if hasattr(e, "response")} == {model}
        message = http.post("/v1/messages", json={**ASK, "model": model}).json()
        assert message["model"] == model


def test_usage_is_shown_when_asked_for_and_only_then(server: Server, engine: FakeEngine) -> None:
    create = server.client().chat.completions.create
    assert all(chunk.usage is None and chunk.choices for chunk in create(**ASK, stream=True))
    assert engine.requests("/v1/chat/completions")[-1]["body"]["stream_options"]["include_usage"] is True
    chunks = list(create(**ASK, stream=True, stream_options={"include_usage": True}))
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert all("usage" in chunk.model_fields_set for chunk in chunks)


def test_models_are_listed_with_a_creation_time_that_stays(server: Server) -> None:
    client = server.client()
    first = {model.id: model.created for model in client.models.list()}
    assert set(first) == {MODEL, "support", "support@1"}
    assert {model.id: model.created for model in client.models.list()} == first
    assert {client.models.retrieve(name).created for name in first} == set(first.values())


def test_a_conversation_of_responses_goes_on_after_a_restart_of_the_gateway(tmp_path: Path) -> None:
    with FakeEngine(MODEL) as engine:
        with running(tmp_path / "home", engines_config(engine)) as server:
            first = server.client().responses.create(model=MODEL, input="My name is Ada.")
        with running(tmp_path / "home", engines_config(engine)) as server:
            client = server.client()
            assert client.responses.retrieve(first.id).output_text == first.output_text
            second = client.responses.create(model=MODEL, input="Who am I?", previous_response_id=first.id)
            assert second.previous_response_id == first.id
            sent = engine.requests("/v1/responses")[-1]["body"]
            assert "previous_response_id" not in sent
            assert [item["role"] for item in sent["input"]] == ["user", "assistant", "user"]
            client.responses.delete(first.id)
            with pytest.raises(openai.NotFoundError):
                client.responses.retrieve(first.id)


def test_a_response_that_is_not_to_be_stored_is_not(server: Server) -> None:
    client = server.client()
    made = client.responses.create(model=MODEL, input="x", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_promise_12_options_passes_without_a_key_and_a_strange_origin_gets_nothing(
    http: httpx.Client,
) -> None:
    answer = http.options("/v1/chat/completions", headers={"origin": "https://evil.example"})
    assert answer.status_code == 204
    assert "access-control-allow-origin" not in answer.headers


def test_promise_12_it_refuses_to_listen_beyond_loopback_without_keys(
    engine: FakeEngine, tmp_path: Path
) -> None:
    server = start_server(tmp_path / "home", engines_config(engine), {"BURNISH_HOST": "0.0.0.0"})
    assert server.process.wait(30) == 2
    assert "without keys" in server.log
    assert "burnish keys create" in server.log


def test_promise_12_keys_are_needed_once_there_is_one_and_kept_as_digests(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.reset()
    with running(tmp_path / "home", engines_config(engine)) as server:
        assert server.client().chat.completions.create(**ASK).choices
        made = server.burnish("keys", "create", "--name", "app", "--scope", "inference", "--json")
        secret = json.loads(made.stdout)["secret"]
        answers_with_key(server, secret)
        with pytest.raises(openai.AuthenticationError) as wrong:
            server.client(api_key="sk-burnish-wrong").chat.completions.create(**ASK)
        assert wrong.value.code == "invalid_api_key"
        assert "sk-burnish-wrong" not in str(wrong.value)
        bare = httpx.post(f"{server.base_url}/chat/completions", json=ASK, trust_env=False)
        assert bare.status_code == 401
        by_header = httpx.post(
            f"{server.base_url}/messages", json=ASK, headers={"x-api-key": secret}, trust_env=False
        )
        assert by_header.status_code == 200
        with pytest.raises(openai.PermissionDeniedError):
            server.client(api_key=secret).get("/adapters", cast_to=object)
        for field in ("priority", "cache_salt", "kv_transfer_params"):
            with pytest.raises(openai.BadRequestError) as refused:
                server.client(api_key=secret).chat.completions.create(**ASK, extra_body={field: 1})
            assert refused.value.param == field
    assert secret.encode() not in (server.home / "burnish.db").read_bytes()
    assert secret not in server.log


def test_a_key_is_good_from_the_moment_it_is_made(engine: FakeEngine, tmp_path: Path) -> None:
    with running(tmp_path / "home", engines_config(engine)) as server:
        keys = Keys(Database(f"sqlite:///{server.home / 'burnish.db'}"))
        _, first = keys.create("first", {Scope.INFERENCE}, "anna")
        answers_with_key(server, first)
        for name in ("one", "two", "three"):
            _, secret = keys.create(name, {Scope.INFERENCE, Scope.ADMIN}, "anna")
            assert server.client(api_key=secret).chat.completions.create(**ASK).choices
            _, secret = keys.create(name, {Scope.INFERENCE, Scope.ADMIN}, "anna")
            assert server.client(api_key=secret).get("/adapters", cast_to=object)


def answers_with_key(server: Server, secret: str) -> None:
    """Until the running gateway has seen the new key; without one it soon answers nobody else."""
    wait_for(lambda: httpx.get(f"{server.base_url}/models", trust_env=False).status_code == 401)
    assert server.client(api_key=secret).chat.completions.create(**ASK).choices


def test_another_openai_compatible_url_serves_beside_vllm_without_adapters(
    engine: FakeEngine, tmp_path: Path
) -> None:
    with FakeEngine("llama-70b", api_key="sk-upstream") as cloud:
        config = engines_config(engine) + (
            f'\n[[engines]]\nname = "cloud"\nkind = "openai"\nurl = "{cloud.url}/v1"\n'
            'models = ["llama-70b"]\napi_key_env = "CLOUD_KEY"\n'
        )
        with running(tmp_path / "home", config, {"CLOUD_KEY": "sk-upstream"}) as server:
            client = server.client()
            wait_for(lambda: cloud.stats()["paths"].get("GET /v1/models"))
            answer = client.chat.completions.with_raw_response.create(**{**ASK, "model": "llama-70b"})
            assert answer.headers["x-burnish-adapter"] == "base"
            assert cloud.stats()["loads"] == 0
            assert client.chat.completions.create(**ASK).choices


def test_a_taken_port_is_said_before_anything_is_started(server: Server, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "serve"],
        env={**server.environ, "BURNISH_HOME": str(tmp_path / "other")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "BURNISH_PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_promise_08_a_killed_gateway_leaves_a_registry_that_the_next_one_serves(tmp_path: Path) -> None:
    with FakeEngine(MODEL) as engine:
        server = start_server(tmp_path / "home", engines_config(engine))
        server.wait_up()
        digest = server.add_adapter("support", seed=1)
        answer = server.client().responses.create(model="support", input="remember")
        server.process.kill()
        server.process.wait()
        with running(tmp_path / "home", engines_config(engine)) as again:
            raw = again.client(max_retries=4).chat.completions.with_raw_response.create(
                **{**ASK, "model": "support"}
            )
            assert raw.headers["x-burnish-adapter"] == f"support@1 {digest}"
            assert again.client().responses.retrieve(answer.id).output_text == answer.output_text
            assert engine.stats()["loads"] == 1, (
                "the engine held it already, under a name that bears its digest"
            )
        database = sqlite3.connect(tmp_path / "home" / "burnish.db")
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
