"""Promise 9, an engine's death is contained: every way to fail that the fake engine knows, seen by the official SDK."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, Server, engines_config, running, wait_for
from tests.lora import TINY_CONFIG, write_lora

pytestmark = pytest.mark.alone

ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 6}

BEFORE_THE_FIRST_BYTE = ["refuse", "close_before_headers", "garbage_http", "html_200"]


@pytest.fixture(scope="module")
def pair_of_engines() -> Iterator[tuple[FakeEngine, FakeEngine]]:
    with FakeEngine(MODEL) as first, FakeEngine(MODEL) as second:
        yield first, second


@pytest.fixture(scope="module")
def shared_pair(
    pair_of_engines: tuple[FakeEngine, FakeEngine], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("pair") / "home", engines_config(*pair_of_engines)) as server:
        yield server


@pytest.fixture(scope="module")
def lone_engine() -> Iterator[FakeEngine]:
    with FakeEngine(MODEL) as fake:
        yield fake


@pytest.fixture(scope="module")
def shared_lone(lone_engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("lone") / "home", engines_config(lone_engine)) as server:
        yield server


@pytest.fixture
def engines(
    shared_pair: Server, pair_of_engines: tuple[FakeEngine, FakeEngine]
) -> Iterator[tuple[FakeEngine, FakeEngine]]:
    """Two engines behind one gateway, both well; whatever a test does to them is undone."""
    for engine in pair_of_engines:
        engine.reset()
        engine.wait_for(active=0)
    wait_for(lambda: states(shared_pair) == ["up", "up"])
    yield pair_of_engines
    for engine in pair_of_engines:
        if not engine.alive:
            engine.start()


@pytest.fixture
def gateway_on_fakes(shared_pair: Server, engines: tuple[FakeEngine, FakeEngine]) -> Server:
    return shared_pair


@pytest.fixture
def engine(shared_lone: Server, lone_engine: FakeEngine) -> FakeEngine:
    """The one engine behind a gateway, well."""
    lone_engine.reset()
    lone_engine.wait_for(active=0)
    wait_for(lambda: states(shared_lone) == ["up"])
    return lone_engine


@pytest.fixture
def gateway_on_fake(shared_lone: Server, engine: FakeEngine) -> Server:
    return shared_lone


def states(server: Server) -> list[str]:
    with server.http() as http:
        return [engine["state"] for engine in http.get("/v1/engines").json()["data"]]


def other(engines: tuple[FakeEngine, FakeEngine], one: FakeEngine) -> FakeEngine:
    return engines[1] if one is engines[0] else engines[0]


def taker(engines: tuple[FakeEngine, FakeEngine], server: Server) -> FakeEngine:
    """The engine that takes this conversation: affinity sends it the same way again."""
    for engine in engines:
        engine.reset()
    server.client().chat.completions.create(**ASK)
    return next(engine for engine in engines if engine.stats()["models"])


@pytest.mark.parametrize("fault", [*BEFORE_THE_FIRST_BYTE, "truncated_json", "close_mid_stream"])
def test_promise_09_a_request_without_an_answer_is_retried_on_another_engine(
    gateway_on_fakes: Server, engines: tuple[FakeEngine, FakeEngine], fault: str
) -> None:
    bad = taker(engines, gateway_on_fakes)
    bad.set(fault=fault, fault_paths=["/v1/chat/completions"])
    answer = gateway_on_fakes.client().chat.completions.create(**ASK)
    assert answer.choices[0].message.content
    assert bad.stats()["faults"] >= 1  # a reused connection that closes is dialled once more
    assert other(engines, bad).stats()["completed"] >= 1


@pytest.mark.parametrize("fault", [*BEFORE_THE_FIRST_BYTE, "garbage_first"])
def test_promise_09_a_stream_without_a_first_event_is_retried_on_another_engine(
    gateway_on_fakes: Server, engines: tuple[FakeEngine, FakeEngine], fault: str
) -> None:
    bad = taker(engines, gateway_on_fakes)
    bad.set(fault=fault, fault_paths=["/v1/chat/completions"])
    chunks = list(gateway_on_fakes.client().chat.completions.create(**ASK, stream=True))
    assert chunks[-1].choices[0].finish_reason == "length"
    assert bad.stats()["faults"] >= 1  # a reused connection that closes is dialled once more


@pytest.mark.parametrize(
    "fault", ["close_mid_stream", "garbage_sse", "missing_done", "error_event_mid_stream", "truncated_json"]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_promise_09_a_stream_cut_in_the_middle_ends_with_an_error_event_and_no_done(
    gateway_on_fake: Server, engine: FakeEngine, fault: str, path: str
) -> None:
    engine.set(fault=fault, fault_paths=[path], fault_after=2, itl_seconds=0.05)
    body = {**ASK, "prompt": "hello", "stream": True}
    with gateway_on_fake.http() as http:
        answer = http.post(path, json=body)
    assert answer.status_code == 200
    events = [event for event in answer.text.split("\n\n") if event]
    assert "[DONE]" not in answer.text
    assert all(event.startswith("data: {") for event in events)
    last = httpx.Response(200, text=events[-1].removeprefix("data: ")).json()
    assert last["error"]["code"] in ("stream_broken", "engine_failed")
    assert last["error"]["type"] == "server_error"
    assert len(events) > 1


def test_promise_09_the_sdk_raises_on_a_stream_that_was_cut(
    gateway_on_fake: Server, engine: FakeEngine
) -> None:
    engine.set(fault="close_mid_stream", fault_after=2, itl_seconds=0.05)
    with pytest.raises(openai.APIError) as caught:
        list(gateway_on_fake.client().chat.completions.create(**ASK, stream=True))
    assert caught.value.code == "stream_broken"


@pytest.mark.parametrize("fault", ["close_mid_stream", "missing_done", "garbage_sse"])
def test_promise_09_a_response_stream_that_is_cut_ends_with_an_error_event(
    gateway_on_fake: Server, engine: FakeEngine, fault: str
) -> None:
    engine.set(fault=fault, fault_after=7, itl_seconds=0.05)  # the first four events come at once
    with gateway_on_fake.http() as http:
        text = http.post("/v1/responses", json={"model": MODEL, "input": "hi", "stream": True}).text
    assert "event: error\n" in text.strip().rpartition("\n\n")[2] + "\n"
    assert "response.completed" not in text


def test_promise_09_a_message_stream_that_is_cut_ends_with_anthropics_error_event(
    gateway_on_fake: Server, engine: FakeEngine
) -> None:
    engine.set(fault="close_mid_stream", fault_after=3, itl_seconds=0.05)
    body = {**ASK, "stream": True}
    with gateway_on_fake.http() as http:
        text = http.post("/v1/messages", json=body).text
    assert (
        text.strip()
        .rpartition("\n\n")[2]
        .startswith('event: error\ndata: {"type":"error","error":{"type":"api_error"')
    )
    assert "message_stop" not in text


def test_promise_09_an_engine_killed_mid_stream_ends_its_stream_and_is_not_asked_again(
    gateway_on_fakes: Server, engines: tuple[FakeEngine, FakeEngine]
) -> None:
    bad = taker(engines, gateway_on_fakes)
    bad.set(itl_seconds=0.2)
    client = gateway_on_fakes.client()
    stream = client.chat.completions.create(**{**ASK, "max_tokens": 100}, stream=True)
    next(stream)
    bad.kill()
    with pytest.raises(openai.APIError):
        list(stream)
    for _ in range(10):
        assert client.chat.completions.create(**ASK).choices


def test_promise_09_a_stopped_engine_is_found_out_and_its_requests_go_elsewhere(
    gateway_on_fakes: Server, engines: tuple[FakeEngine, FakeEngine]
) -> None:
    bad = taker(engines, gateway_on_fakes)
    bad.stop()  # it still accepts connections
    try:
        began = time.monotonic()
        answer = gateway_on_fakes.client().chat.completions.create(**ASK)
        assert answer.choices[0].message.content
        assert time.monotonic() - began < 10
        wait_for(lambda: "ejected" in states(gateway_on_fakes))
    finally:
        bad.cont()
    wait_for(lambda: states(gateway_on_fakes) == ["up", "up"])
    assert taker(engines, gateway_on_fakes) is bad


def test_promise_09_a_stream_on_a_stopped_engine_ends_with_an_error(
    gateway_on_fake: Server, engine: FakeEngine
) -> None:
    engine.set(itl_seconds=0.05)
    stream = gateway_on_fake.client().chat.completions.create(**{**ASK, "max_tokens": 1000}, stream=True)
    next(stream)
    engine.stop()
    try:
        with pytest.raises(openai.APIError):
            list(stream)
    finally:
        engine.cont()


def test_promise_09_an_engine_that_restarts_gets_its_adapters_before_it_gets_requests(
    gateway_on_fake: Server, engine: FakeEngine
) -> None:
    digest = gateway_on_fake.add_adapter("support", seed=1)
    client = gateway_on_fake.client(max_retries=5)
    ask = {**ASK, "model": "support"}
    weights = client.chat.completions.create(**ask).choices[0].message.content
    engine.kill()
    wait_for(lambda: httpx.get(f"{gateway_on_fake.url}/healthz", trust_env=False).status_code == 503)
    engine.start()
    engine.set(load_seconds=0.3)
    answer = client.chat.completions.with_raw_response.create(**ask)
    assert answer.headers["x-burnish-adapter"] == f"support@1 {digest}"
    assert answer.parse().choices[0].message.content == weights
    assert engine.requests()[0]["path"] == "/v1/completions"  # our own question, then the load
    first_chat = next(i for i, r in enumerate(engine.requests()) if r["path"] == "/v1/chat/completions")
    first_load = next(i for i, r in enumerate(engine.requests()) if r["path"] == "/v1/load_lora_adapter")
    assert first_load < first_chat


def test_no_engine_is_a_503_that_says_when_to_come_back(gateway_on_fake: Server, engine: FakeEngine) -> None:
    engine.kill()
    try:
        wait_for(lambda: httpx.get(f"{gateway_on_fake.url}/healthz", trust_env=False).status_code == 503)
        with gateway_on_fake.http() as http:
            for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
                answer = http.post(path, json={**ASK, "prompt": "x", "input": "x"})
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["error"]["code"] == "engine_unavailable"
        with pytest.raises(openai.InternalServerError):
            gateway_on_fake.client().chat.completions.create(**ASK)
    finally:
        engine.start()


def test_a_request_that_breaks_engines_does_not_take_the_last_one_away(
    gateway_on_fakes: Server, engines: tuple[FakeEngine, FakeEngine]
) -> None:
    for engine in engines:
        engine.set(fault="error_event_mid_stream", fault_paths=["/v1/chat/completions"])
    client = gateway_on_fakes.client()
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**ASK)
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**ASK)
    for engine in engines:
        engine.set(fault=None)
    assert client.chat.completions.create(**ASK).choices


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_the_engines_work_within_a_second(
    gateway_on_fake: Server, engine: FakeEngine, stream: bool
) -> None:
    engine.set(itl_seconds=0.05)
    body = {**ASK, "max_tokens": 2000, "stream": stream}
    with gateway_on_fake.http() as http:
        if stream:
            request = http.build_request("POST", "/v1/chat/completions", json=body)
            http.send(request, stream=True).close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/chat/completions", json=body, timeout=httpx.Timeout(10, read=0.5))
    left = time.monotonic()
    engine.wait_for(aborted=1, active=0)
    assert time.monotonic() - left < 1.0


def test_requests_in_flight_finish_when_the_server_is_told_to_stop(tmp_path: Path) -> None:
    with FakeEngine(MODEL) as engine, running(tmp_path / "home", engines_config(engine)) as server:
        engine.set(itl_seconds=0.05)
        stream = server.client().chat.completions.create(**{**ASK, "max_tokens": 30}, stream=True)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert server.process.wait(20) == 0


@pytest.mark.parametrize(
    ("fault", "words"),
    [("load_fails", ""), ("load_as_base", "as the base model does"), ("wrong_adapter", "answers as")],
)
def test_promise_04_an_engine_that_does_not_answer_with_the_adapter_proves_nothing(
    tmp_path: Path, fault: str, words: str
) -> None:
    with FakeEngine(MODEL) as engine, running(tmp_path / "home", engines_config(engine)) as server:
        server.add_adapter("other", seed=9)
        engine.set(fault=fault, fault_paths=None if fault.startswith("load") else ["/v1/completions"])
        folder = write_lora(tmp_path / "lora", TINY_CONFIG, seed=1)
        with server.http() as http:
            add = {"name": "support", "path": str(folder)}
            assert http.post("/v1/adapters", json=add).status_code == 201
            found = wait_for(lambda: settled(http.get("/v1/adapters/support@1").json()), 20)
            assert found["state"] == "failed"
            assert words in found["reason"]
            refused = http.post("/v1/chat/completions", json={**ASK, "model": "support"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
            assert http.post("/v1/chat/completions", json={**ASK, "model": "other"}).status_code == 200
            engine.set(fault=None)
            assert http.post("/v1/adapters", json=add).json()["id"] == "support@1"
            assert (
                wait_for(lambda: settled(http.get("/v1/adapters/support@1").json()), 20)["state"] == "proved"
            )


def settled(version: dict[str, Any]) -> dict[str, Any] | None:
    return version if version["state"] != "staged" else None
