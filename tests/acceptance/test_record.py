"""Promise 1, recorded before answered: what clients got is in the database, whoever breaks off, and however.

The tests read the gateway's own database while it runs, at the moment a client has the last byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from adapters.completions import Completion, Completions, Status
from adapters.database import Database
from adapters.responses import ResponseStore
from adapters.turns import answer_of, prompt_of
from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, Server, engines_config, running, start_server, wait_for

ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 6}
BODY: dict[str, Any] = {**ASK, "prompt": "hello", "input": "hello"}
"""A body for any endpoint: fields of the others pass."""

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
FIELD = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/responses": "input",
    "/v1/messages": "messages",
}


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    with FakeEngine(MODEL) as fake:
        yield fake


@pytest.fixture(scope="module")
def server(engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("record") / "home", engines_config(engine)) as server:
        server.add_adapter("support", seed=1)
        yield server


@pytest.fixture(autouse=True)
def well(engine: FakeEngine) -> None:
    engine.reset()
    engine.wait_for(active=0)


class Kept:
    """The record of a server, read by another process than the one that writes it."""

    def __init__(self, server: Server) -> None:
        self._db = Database(f"sqlite:///{server.home / 'burnish.db'}")
        self._completions = Completions(self._db)

    def get(self, id: str) -> Completion | None:
        return self._completions.get(id, None, all_keys=True)

    def one(self, id: str) -> Completion:
        found = self.get(id)
        assert found is not None, f"{id} is not on disk"
        return found

    def all(self) -> tuple[Completion, ...]:
        return self._completions.list(None, all_keys=True, limit=10_000)[0]

    def response(self, id: str) -> Any:
        return ResponseStore(self._db).get(id, None)

    def close(self) -> None:
        self._db.close()


@contextlib.contextmanager
def record_of(server: Server) -> Iterator[Kept]:
    kept = Kept(server)
    try:
        yield kept
    finally:
        kept.close()


@pytest.fixture
def kept(server: Server) -> Iterator[Kept]:
    with record_of(server) as kept:
        yield kept


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def body_for(path: str, **more: Any) -> dict[str, Any]:
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    return {"model": MODEL, limit: 6, FIELD[path]: BODY[FIELD[path]], **more}


def events_of(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def id_of(event: dict[str, Any]) -> str:
    holder = event.get("response") or event.get("message") or event
    return str(holder["id"])


def said_in(path: str, events: list[dict[str, Any]]) -> str:
    """What a client puts together of a stream."""
    if path == "/v1/chat/completions":
        deltas = [event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"]]
    elif path == "/v1/completions":
        deltas = [event["choices"][0]["text"] for event in events if event["choices"]]
    elif path == "/v1/responses":
        deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    else:
        deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    return "".join(deltas)


# -- the promise -----------------------------------------------------------------------------------
@pytest.mark.parametrize("path", PATHS)
def test_promise_01_an_answer_is_on_disk_when_the_client_has_its_last_byte(
    http: httpx.Client, kept: Kept, path: str
) -> None:
    sent = body_for(path, user="ada")
    answer = http.post(path, json=sent)
    found = kept.one(answer.json()["id"])
    assert answer.headers["x-burnish-completion"] == found.id
    assert "x-burnish-recorded" not in answer.headers
    assert (found.status, found.endpoint, found.request) == (Status.COMPLETE, path, sent)
    assert found.output == answer.json()
    assert (found.route, found.variant, found.base_model, found.digest) == (MODEL, MODEL, MODEL, None)
    assert (found.finish_reason, found.completion_tokens, found.user) == ("length", 6, "ada")
    assert (found.unit, found.propensity, found.pinned) == ("user:ada", 1.0, False)
    assert found.prompt_tokens
    assert found.ttft_seconds is None
    assert found.total_seconds
    if path == "/v1/responses":
        assert kept.response(found.id) is not None


@pytest.mark.parametrize("path", PATHS)
def test_promise_01_a_stream_is_on_disk_when_the_client_has_its_last_byte(
    engine: FakeEngine, http: httpx.Client, kept: Kept, path: str
) -> None:
    engine.set(itl_seconds=0.01)
    sent = body_for(path, stream=True)
    with http.stream("POST", path, json=sent) as answer:
        text = "".join(answer.iter_text())
    events = events_of(text)
    found = kept.one(id_of(events[0]))
    assert (found.status, found.request) == (Status.COMPLETE, sent)
    said = answer_of(found)
    assert said is not None
    assert said["content"] == said_in(path, events)
    assert (found.finish_reason, found.completion_tokens) == ("length", 6)
    assert found.prompt_tokens
    assert found.ttft_seconds is not None
    assert found.total_seconds is not None
    assert 0 < found.ttft_seconds < found.total_seconds
    whole = http.post(path, json=body_for(path)).json()
    assert found.output is not None
    assert set(found.output) - set(whole) == set()
    prompt = "hello" if path == "/v1/completions" else [{"role": "user", "content": "hello"}]
    assert prompt_of(found) == prompt


def test_promise_01_the_first_token_does_not_wait_and_the_last_byte_does(
    engine: FakeEngine, server: Server, http: httpx.Client, kept: Kept
) -> None:
    held = Database(f"sqlite:///{server.home / 'burnish.db'}")
    with contextlib.ExitStack() as stack:
        with held.begin():  # nobody else can write
            body = {**ASK, "stream": True}
            answer = stack.enter_context(http.stream("POST", "/v1/chat/completions", json=body))
            lines = (line for line in answer.iter_lines() if line)
            first = json.loads(next(lines).removeprefix("data: "))
            engine.wait_for(completed=1)
            assert kept.get(first["id"]) is None
        rest = list(lines)
    held.close()
    assert rest[-1] == "data: [DONE]"
    kept.one(first["id"])


@pytest.mark.parametrize("streams", [False, True])
def test_promise_01_a_gateway_killed_after_the_last_byte_has_lost_no_answer(
    tmp_path: Path, engine: FakeEngine, streams: bool
) -> None:
    server = start_server(tmp_path / "home", engines_config(engine))
    server.wait_up()
    answered: list[str] = []
    enough = threading.Event()

    def ask() -> None:
        with server.http() as http, contextlib.suppress(httpx.HTTPError):
            while True:
                answer = http.post("/v1/chat/completions", json={**ASK, "stream": streams})
                if not streams:
                    answered.append(answer.json()["id"])
                elif answer.text.endswith("data: [DONE]\n\n"):
                    answered.append(events_of(answer.text)[0]["id"])
                if len(answered) > 100:
                    enough.set()

    askers = [threading.Thread(target=ask) for _ in range(8)]
    for asker in askers:
        asker.start()
    assert enough.wait(60)
    server.process.kill()
    server.process.wait()
    for asker in askers:
        asker.join()
    with record_of(server) as kept:
        on_disk = {completion.id for completion in kept.all()}
    assert set(answered) <= on_disk


# -- what breaks off -------------------------------------------------------------------------------
def test_a_client_that_leaves_a_stream_leaves_what_came_of_it(
    engine: FakeEngine, http: httpx.Client, kept: Kept
) -> None:
    engine.set(itl_seconds=0.05)
    body = {**ASK, "max_tokens": 1000, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = (line for line in answer.iter_lines() if line)
        seen = [json.loads(next(lines).removeprefix("data: ")) for _ in range(5)]
    found = wait_for(lambda: kept.get(seen[0]["id"]))
    assert (found.status, found.error_code) == (Status.INCOMPLETE, "client_left")
    said = answer_of(found)
    assert said is not None
    assert said["content"].startswith(said_in("/v1/chat/completions", seen))
    assert found.finish_reason is None


def test_a_client_that_leaves_before_its_answer_is_on_record(
    engine: FakeEngine, http: httpx.Client, kept: Kept
) -> None:
    engine.set(ttft_seconds=5.0)
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/completions", json=body_for("/v1/completions", user="gone"), timeout=0.5)
    found = wait_for(lambda: [c for c in kept.all() if c.user == "gone"])[0]
    assert found.id.startswith("req_")
    assert (found.status, found.output) == (Status.INCOMPLETE, None)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fault", ["close_mid_stream", "error_event_mid_stream"])
def test_promise_09_a_stream_that_broke_is_incomplete_on_disk_when_the_client_hears_of_it(
    engine: FakeEngine, http: httpx.Client, kept: Kept, path: str, fault: str
) -> None:
    engine.set(fault=fault, fault_paths=[path], fault_after=7, itl_seconds=0.02)
    with http.stream("POST", path, json=body_for(path, stream=True)) as answer:
        events = events_of("".join(answer.iter_text()))
    found = kept.one(id_of(events[0]))
    assert found.status is Status.INCOMPLETE
    assert found.error_code in ("stream_broken", "engine_failed")
    said = answer_of(found)
    assert said is not None
    told = [event for event in events if "error" not in (event.get("type"), *event)]
    assert said["content"] == said_in(path, told) != ""


def test_a_request_that_no_engine_answered_is_an_error_on_record(
    engine: FakeEngine, http: httpx.Client, kept: Kept
) -> None:
    engine.set(fault="truncated_json")
    answer = http.post("/v1/chat/completions", json=ASK)
    assert answer.status_code == 502
    found = kept.one(answer.headers["x-request-id"])
    assert (found.status, found.error_code, found.output) == (Status.ERROR, "engine_failed", None)


def test_an_engines_refusal_is_an_error_on_record(http: httpx.Client, kept: Kept) -> None:
    answer = http.post("/v1/chat/completions", json={**ASK, "max_tokens": 100_000})
    assert answer.status_code == 400
    found = kept.one(answer.headers["x-request-id"])
    assert (found.status, found.error_code) == (Status.ERROR, answer.json()["error"]["code"])


# -- what is recorded, and what is not ---------------------------------------------------------------
def test_a_version_that_answered_is_named_with_its_digest(
    server: Server, http: httpx.Client, kept: Kept
) -> None:
    for model, pinned in (("support", False), ("support@1", True)):
        answer = http.post("/v1/chat/completions", json={**ASK, "model": model})
        found = kept.one(answer.json()["id"])
        assert (found.route, found.variant, found.base_model, found.pinned) == (
            model,
            "support@1",
            MODEL,
            pinned,
        )
        assert answer.headers["x-burnish-adapter"] == f"support@1 {found.digest}"


def test_who_asked_and_what_they_said_of_it_is_on_record(http: httpx.Client, kept: Kept) -> None:
    said = {"user": "old", "safety_identifier": "new", "metadata": {"topic": "x", "nul\x00": "a\x00b"}}
    found = kept.one(http.post("/v1/chat/completions", json={**ASK, **said}).json()["id"])
    assert found.user == "new"
    assert found.metadata == {"topic": "x", "nul\ufffd": "a\ufffdb"}
    anthropic = {**body_for("/v1/messages"), "metadata": {"user_id": "ada"}}
    assert kept.one(http.post("/v1/messages", json=anthropic).json()["id"]).user == "ada"
    nobody = kept.one(http.post("/v1/chat/completions", json=ASK).json()["id"])
    assert nobody.unit.startswith("conversation:")


def test_several_choices_are_recorded_each(http: httpx.Client, kept: Kept) -> None:
    many = {**ASK, "n": 3, "logprobs": True, "top_logprobs": 1}
    whole = http.post("/v1/chat/completions", json=many).json()
    events = events_of(http.post("/v1/chat/completions", json={**many, "stream": True}).text)
    streamed = kept.one(events[0]["id"]).output
    assert streamed is not None
    assert [choice["index"] for choice in streamed["choices"]] == [0, 1, 2]
    assert streamed["choices"] == whole["choices"]


def test_a_long_stream_is_put_together_in_parts(http: httpx.Client, kept: Kept) -> None:
    body = {**ASK, "max_tokens": 1500, "stream": True, "ignore_eos": True}
    events = events_of(http.post("/v1/chat/completions", json=body).text)
    said = answer_of(kept.one(events[0]["id"]))
    assert said is not None
    assert said["content"] == said_in("/v1/chat/completions", events)


def test_a_response_that_goes_on_is_recorded_with_what_went_before(server: Server, kept: Kept) -> None:
    client = server.client()
    first = client.responses.create(model=MODEL, input="My name is Ada.")
    second = client.responses.create(model=MODEL, input="Who am I?", previous_response_id=first.id)
    prompt = prompt_of(kept.one(second.id))
    assert isinstance(prompt, list)
    assert [message["role"] for message in prompt] == ["user", "assistant", "user"]
    assert prompt[1]["content"] == first.output_text


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("streams", [False, True])
def test_what_is_not_to_be_stored_is_not(http: httpx.Client, kept: Kept, path: str, streams: bool) -> None:
    before = len(kept.all())
    answer = http.post(path, json=body_for(path, store=False, stream=streams))
    assert answer.status_code == 200
    assert "x-burnish-completion" not in answer.headers
    http.post("/v1/messages/count_tokens", json=ASK)
    http.post("/v1/chat/completions", json={**ASK, "model": "unknown"})
    http.post("/v1/chat/completions", json={"model": MODEL})
    assert len(kept.all()) == before


def test_a_key_can_be_made_that_leaves_no_record_and_others_see_only_their_own(
    tmp_path: Path, engine: FakeEngine
) -> None:
    with running(tmp_path / "home", engines_config(engine)) as server, record_of(server) as kept:
        assert kept.all() == (), "the gateway's own question at its start is nobody's"
        secrets = {
            name: server.burnish("keys", "create", "--name", name, *options).stdout.strip()
            for name, options in {
                "silent": ("--no-record",),
                "one": (),
                "other": (),
                "boss": ("--scope", "admin"),
            }.items()
        }
        listed = json.loads(server.burnish("keys", "list", "--json").stdout)["data"]
        assert {key["name"]: key["records"] for key in listed} == {
            "silent": False,
            "one": True,
            "other": True,
            "boss": True,
        }
        clients = {name: server.client(api_key=secret) for name, secret in secrets.items()}
        wait_for(lambda: httpx.get(f"{server.base_url}/models", trust_env=False).status_code == 401)
        clients["silent"].chat.completions.create(**ASK)
        assert kept.all() == ()
        mine = clients["one"].chat.completions.create(**ASK).id
        assert clients["one"].chat.completions.retrieve(mine).id == mine
        assert clients["boss"].chat.completions.retrieve(mine).id == mine
        for foreign in (lambda: mine, lambda: "chatcmpl-unknown"):
            with pytest.raises(openai.NotFoundError) as caught:
                clients["other"].chat.completions.retrieve(foreign())
            assert caught.value.code == "completion_not_found"
        with pytest.raises(openai.NotFoundError):
            clients["other"].chat.completions.delete(mine)
        with pytest.raises(openai.NotFoundError):
            clients["other"].chat.completions.update(mine, metadata={"a": "b"})
        assert list(clients["other"].chat.completions.list()) == []
        assert [c.id for c in clients["boss"].chat.completions.list()] == [mine]
        made = clients["boss"].post(
            "/keys", body={"name": "quiet", "scopes": ["inference"], "records": False}, cast_to=object
        )
        assert isinstance(made, dict)
        assert made["records"] is False


def test_recording_can_be_switched_off(tmp_path: Path, engine: FakeEngine) -> None:
    config = engines_config(engine, extra="[recording]\nenabled = false\n")
    with running(tmp_path / "home", config) as server, record_of(server) as kept:
        client = server.client()
        client.chat.completions.create(**ASK)
        list(client.chat.completions.create(**ASK, stream=True))
        response = client.responses.create(model=MODEL, input="x")
        assert client.responses.retrieve(response.id).id == response.id
        assert kept.all() == ()


# -- a disk that is full -----------------------------------------------------------------------------
@contextlib.contextmanager
def full_disk(server: Server) -> Iterator[None]:
    """The gateway may write no file beyond the present length of SQLite's log, as on a disk that is full."""
    reader = Database(f"sqlite:///{server.home / 'burnish.db'}")
    before = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    with reader.read() as connection:
        # A reader of the present state keeps the log from being begun again at its start.
        connection.exec_driver_sql("SELECT count(*) FROM completions")
        size = (server.home / "burnish.db-wal").stat().st_size
        assert size > os.path.getsize(server.home / "serve.log") + 100_000, "the gateway's own log needs room"
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, before)
    reader.close()


def test_promise_01_with_a_full_disk_nothing_is_answered_that_is_not_on_record(
    tmp_path: Path, engine: FakeEngine
) -> None:
    with (
        running(tmp_path / "home", engines_config(engine)) as server,
        server.http() as http,
        record_of(server) as kept,
    ):
        http.post("/v1/chat/completions", json=ASK)
        engine.set(itl_seconds=0.1)
        with http.stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as answer:
            lines = (line for line in answer.iter_lines() if line)
            first = next(lines)
            with full_disk(server):
                rest = list(lines)
                assert "[DONE]" not in "".join(rest)
                assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "recording_failed"
                assert kept.get(json.loads(first.removeprefix("data: "))["id"]) is None
                engine.reset()
                for path in PATHS:
                    refused = http.post(path, json=body_for(path))
                    assert refused.status_code == 503
                    assert int(refused.headers["retry-after"]) >= 1
                with pytest.raises(openai.InternalServerError) as caught:
                    server.client().chat.completions.create(**ASK)
                assert caught.value.code == "recording_failed"
                assert engine.stats()["requests"] == 0, "known to fail, so no engine is asked"
                assert http.post("/v1/chat/completions", json={**ASK, "store": False}).status_code == 200
                assert "completion_not_recorded" in server.log
                assert "hello" not in server.log
        wait_for(lambda: http.post("/v1/chat/completions", json=ASK).status_code == 200)
        kept.one(http.post("/v1/chat/completions", json=ASK).json()["id"])


def test_with_a_full_disk_it_can_answer_on_and_says_what_is_lost(tmp_path: Path, engine: FakeEngine) -> None:
    config = engines_config(engine, extra='[recording]\non_failure = "serve"\n')
    with running(tmp_path / "home", config) as server, server.http() as http, record_of(server) as kept:
        http.post("/v1/chat/completions", json=ASK)
        with full_disk(server):
            for path in PATHS:
                answer = http.post(path, json=body_for(path))
                assert answer.status_code == 200
                assert answer.headers["x-burnish-recorded"] == "no"
                assert "x-burnish-completion" not in answer.headers
                assert answer.json()["id"] in server.log
                streamed = http.post(path, json=body_for(path, stream=True))
                assert streamed.headers["x-burnish-recorded"] == "no"
                assert "recording_failed" not in streamed.text
            assert server.log.count("completion_not_recorded") == 2 * len(PATHS)
            assert f"lost={2 * len(PATHS)}" in server.log
        answer = http.post("/v1/chat/completions", json=ASK)
        assert "x-burnish-recorded" not in answer.headers
        kept.one(answer.json()["id"])


# -- OpenAI's stored completions -----------------------------------------------------------------------
def test_stored_completions_work_from_the_sdk(server: Server) -> None:
    client = server.client()
    asked = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
    ]
    made = [
        client.chat.completions.create(
            **{**ASK, "messages": asked},
            store=True,
            metadata={"run": "sdk", "n": str(n)},
            temperature=0.5,
            stream=False,
        )
        for n in range(5)
    ]
    ids = [completion.id for completion in made]
    page = client.chat.completions.list(metadata={"run": "sdk"}, limit=2)
    assert [c.id for c in page.data] == ids[:2]
    assert page.has_more
    assert [c.id for c in client.chat.completions.list(metadata={"run": "sdk"}, limit=2)] == ids
    newest = client.chat.completions.list(metadata={"run": "sdk"}, order="desc", limit=3)
    assert [c.id for c in newest] == ids[::-1]
    assert [c.id for c in client.chat.completions.list(metadata={"run": "sdk", "n": "3"})] == [ids[3]]
    assert list(client.chat.completions.list(metadata={"run": "sdk"}, model="support")) == []

    found = client.chat.completions.retrieve(ids[0])
    assert found.choices == made[0].choices
    assert found.usage == made[0].usage
    assert found.model == MODEL
    assert (found.model_extra or {})["temperature"] == 0.5
    assert found.metadata == {"run": "sdk", "n": "0"}

    messages = client.chat.completions.messages.list(ids[0])
    assert [(m.id, m.role) for m in messages] == [(f"{ids[0]}-0", "system"), (f"{ids[0]}-1", "user")]
    assert messages.data[0].content == "Be brief."
    assert messages.data[1].content_parts
    assert [m.id for m in client.chat.completions.messages.list(ids[0], limit=1)] == [m.id for m in messages]
    assert next(m.id for m in client.chat.completions.messages.list(ids[0], order="desc")) == f"{ids[0]}-1"

    updated = client.chat.completions.update(ids[0], metadata={"run": "other"})
    assert updated.metadata == {"run": "other"}
    assert [c.id for c in client.chat.completions.list(metadata={"run": "sdk"})] == ids[1:]
    assert client.chat.completions.update(ids[0], metadata=None).metadata == {}

    deleted = client.chat.completions.delete(ids[0])
    assert (deleted.id, deleted.deleted, deleted.object) == (ids[0], True, "chat.completion.deleted")
    for again in (client.chat.completions.retrieve, client.chat.completions.delete):
        with pytest.raises(openai.NotFoundError):
            again(ids[0])


def test_stored_completions_refuse_what_they_cannot_do(http: httpx.Client) -> None:
    id = http.post("/v1/chat/completions", json=ASK).json()["id"]
    text = http.post("/v1/completions", json=body_for("/v1/completions")).json()["id"]
    path = "/v1/chat/completions"
    for method, url, body, status in (
        ("GET", f"{path}/{text}", None, 404),
        ("GET", f"{path}?after=unknown", None, 404),
        ("GET", f"{path}?limit=0", None, 400),
        ("GET", f"{path}?order=up", None, 400),
        ("GET", f"{path}/{id}/messages?after=unknown", None, 400),
        ("POST", f"{path}/{id}", {"metadata": {"a": 1}}, 400),
        ("POST", f"{path}/{id}", {"metadata": "x"}, 400),
        ("POST", f"{path}/{id}", {"model": "x"}, 400),
        ("POST", f"{path}/unknown", {"metadata": {}}, 404),
        ("GET", f"{path}/%00", None, 404),
        ("PUT", path, {}, 405),
        ("PUT", f"{path}/{id}", {}, 405),
    ):
        answer = http.request(method, url, json=body)
        assert answer.status_code == status, (method, url, answer.text)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


# -- engines that number their answers -----------------------------------------------------------------
class Numbering(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that gives every answer the same id, as Ollama does now and then."""

    def do_GET(self) -> None:
        self._send(b'{"object":"list","data":[{"id":"llama"}]}', "application/json")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/embeddings":
            vectors = [{"object": "embedding", "index": 0, "embedding": [0.5] * 384}]
            answer = {"object": "list", "model": "llama", "data": vectors, "usage": {"prompt_tokens": 1}}
            self._send(json.dumps(answer).encode(), "application/json")
            return
        head = {"id": "chatcmpl-7", "created": 1, "model": "llama"}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
            answer = {**head, "object": "chat.completion", "choices": [choice]}
            self._send(json.dumps(answer).encode(), "application/json")
            return
        chunks = [
            {**head, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
            for word in ("h", '"id":"chatcmpl-7"', "i")
        ]
        compact = [json.dumps(chunk, separators=(",", ":")) for chunk in chunks]
        self._send("".join(f"data: {c}\n\n" for c in [*compact, "[DONE]"]).encode(), "text/event-stream")

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def numbering() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Numbering) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/v1"
        http.shutdown()
        thread.join()


def test_an_engine_that_gives_ids_again_gets_its_answers_recorded_each(
    tmp_path: Path, engine: FakeEngine, numbering: str
) -> None:
    cloud = f'\n[[engines]]\nname = "cloud"\nkind = "openai"\nurl = "{numbering}"\nmodels = ["llama"]\n'
    with running(tmp_path / "home", engines_config(engine) + cloud) as server, record_of(server) as kept:
        client = server.client(max_retries=5)
        ask = {**ASK, "model": "llama"}
        ids = [client.chat.completions.create(**ask).id for _ in range(3)]
        for _ in range(3):
            chunks = list(client.chat.completions.create(**ask, stream=True))
            assert len({chunk.id for chunk in chunks}) == 1
            ids.append(chunks[0].id)
            said = answer_of(kept.one(ids[-1]))
            assert said is not None
            assert said["content"] == 'h"id":"chatcmpl-7"i'
        assert len(set(ids)) == 6
        assert all(id.startswith("chatcmpl-") for id in ids)
        assert {c.id for c in kept.all()} == set(ids)

        raw = client.embeddings.with_raw_response.create(model="llama", input="x", encoding_format="float")
        found = kept.one(raw.headers["x-burnish-completion"])
        assert found.id.startswith("emb_")
        assert found.output is not None
        assert found.output["data"] == [
            {"object": "embedding", "index": 0, "embedding": None, "size": 384}
        ], "vectors are not kept"
        assert len(raw.parse().data[0].embedding) == 384


# -- splits ----------------------------------------------------------------------------------------
@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client()


def test_a_split_route_answers_each_user_with_one_variant_and_records_which(
    client: openai.OpenAI, kept: Kept, http: httpx.Client
) -> None:
    assert http.post("/v1/routes", json={"name": "split", "variant": MODEL}).status_code == 201
    made = http.put("/v1/routes/split/challengers", json={"challengers": {"support@1": 0.5}})
    assert made.json()["challengers"] == {"support@1": 0.5}
    by_user: dict[str, set[str]] = {}
    for number in range(24):
        user = f"user-{number % 8}"
        raw = client.chat.completions.with_raw_response.create(**{**ASK, "model": "split"}, user=user)
        found = kept.one(raw.parse().id)
        assert (found.route, found.unit, found.propensity, found.pinned) == (
            "split",
            f"user:{user}",
            0.5,
            False,
        )
        assert raw.headers["x-burnish-adapter"].split()[0] == (
            "base" if found.digest is None else "support@1"
        )
        by_user.setdefault(user, set()).add(found.variant)
    assert all(len(variants) == 1 for variants in by_user.values())
    assert set.union(*by_user.values()) == {MODEL, "support@1"}


def test_a_conversation_named_in_a_header_keeps_its_variant(
    client: openai.OpenAI, kept: Kept, http: httpx.Client
) -> None:
    http.post("/v1/routes", json={"name": "talks", "variant": MODEL})
    http.put("/v1/routes/talks/challengers", json={"challengers": {"support@1": 0.5}})

    def variants(header: str | None) -> set[str]:
        headers = {} if header is None else {"x-burnish-conversation": header}
        asked = [
            client.chat.completions.create(**{**ASK, "model": "talks"}, extra_headers=headers).id
            for _ in range(12)
        ]
        return {kept.one(id).variant for id in asked}

    assert len(variants("one")) == len(variants("two")) == 1
    assert variants(None) == {MODEL, "support@1"}, "without anything to go by each request is chosen for anew"


def test_a_share_that_is_taken_away_is_gone_at_once(client: openai.OpenAI, http: httpx.Client) -> None:
    http.post("/v1/routes", json={"name": "gone", "variant": MODEL})
    http.put("/v1/routes/gone/challengers", json={"challengers": {"support@1": 0.9}})
    http.put("/v1/routes/gone/challengers", json={"challengers": {}})
    for number in range(10):
        raw = client.chat.completions.with_raw_response.create(**{**ASK, "model": "gone"}, user=str(number))
        assert raw.headers["x-burnish-adapter"] == "base"
