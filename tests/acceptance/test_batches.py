"""Batches as the official SDK sees them, on a real gateway over a fake engine; and many requests in one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch, CreateEmbeddingResponse

from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, Server, engines_config, running, wait_for

CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    with FakeEngine(MODEL) as fake:
        yield fake


@pytest.fixture(scope="module")
def server(engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("batches") / "home", engines_config(engine)) as server:
        yield server


@pytest.fixture(autouse=True)
def as_new(engine: FakeEngine) -> None:
    engine.reset()


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client()


def chat(question: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": question}], "max_tokens": 4, **more}


def line(custom_id: str, body: dict[str, Any] | None = None, url: str = CHAT, **more: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": url,
        "body": chat() if body is None else body,
        **more,
    }


def chats(count: int) -> list[dict[str, Any]]:
    return [line(f"line-{n}", chat(f"What is {n}?")) for n in range(count)]


def send(client: openai.OpenAI, lines: list[dict[str, Any]] | bytes, purpose: Any = "batch") -> str:
    data = lines if isinstance(lines, bytes) else "\n".join(json.dumps(one) for one in lines).encode()
    return client.files.create(file=("lines.jsonl", data), purpose=purpose).id


def create(client: openai.OpenAI, file: str, endpoint: Any = CHAT, window: Any = "24h", **more: Any) -> Batch:
    return client.batches.create(
        input_file_id=file, endpoint=endpoint, completion_window=window, extra_body=more
    )


def ended(client: openai.OpenAI, batch: Batch, seconds: float = 60.0) -> Batch:
    def look() -> Batch | None:
        found = client.batches.retrieve(batch.id)
        return found if found.status in ENDED else None

    found = wait_for(look, seconds)
    assert isinstance(found, Batch)
    return found


def done(client: openai.OpenAI, lines: list[dict[str, Any]] | bytes, endpoint: Any = CHAT) -> Batch:
    return ended(client, create(client, send(client, lines), endpoint))


def rows(client: openai.OpenAI, file: str | None) -> dict[str, dict[str, Any]]:
    """The lines of an output or an error file, by `custom_id`; each id is there once."""
    if file is None:
        return {}
    found = [json.loads(text) for text in client.files.content(file).text.splitlines()]
    for row in found:
        assert set(row) == {"id", "custom_id", "response", "error"}
        assert row["id"].startswith("batch_req_")
    assert len({row["id"] for row in found}) == len({row["custom_id"] for row in found}) == len(found)
    return {row["custom_id"]: row for row in found}


def counts(batch: Batch) -> tuple[int, int, int]:
    assert batch.request_counts is not None
    return batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed


def refused(act: Callable[[], Any], kind: type[openai.APIStatusError]) -> openai.APIStatusError:
    with pytest.raises(kind) as caught:
        act()
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    return caught.value


# -- a batch from file to files --------------------------------------------------------------------
def test_a_batch_is_answered_line_by_line_and_its_files_hold_every_answer(
    server: Server, client: openai.OpenAI
) -> None:
    file = send(client, chats(40))
    made = create(client, file, metadata={"team": "a"})
    assert (made.object, made.status, made.endpoint, made.input_file_id) == (
        "batch",
        "validating",
        CHAT,
        file,
    )
    assert (made.completion_window, made.metadata, made.errors) == ("24h", {"team": "a"}, None)
    assert made.expires_at == made.created_at + 86400
    batch = ended(client, made)
    assert (batch.status, batch.model, counts(batch)) == ("completed", MODEL, (40, 40, 0))
    assert batch.error_file_id is None
    moments = [made.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert moments == sorted(moment for moment in moments if moment is not None)
    assert [batch.failed_at, batch.expired_at, batch.cancelling_at, batch.cancelled_at] == [None] * 4
    answers = rows(client, batch.output_file_id)
    assert set(answers) == {f"line-{n}" for n in range(40)}
    tokens = 0
    for row in answers.values():
        response = row["response"]
        assert (row["error"], response["status_code"]) == (None, 200)
        assert response["request_id"].startswith("req_")
        answer = openai.types.chat.ChatCompletion.model_validate(response["body"], strict=True)
        assert answer.model == MODEL
        assert answer.usage is not None
        tokens += answer.usage.total_tokens
    assert batch.usage is not None
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens == tokens
    output = client.files.retrieve(batch.output_file_id or "")
    assert (output.purpose, output.expires_at) == ("batch_output", None)
    with server.http() as web:  # as it is on the wire: no field more, none less, no coercion
        shown = web.get(f"/v1/batches/{batch.id}").json()
    Batch.model_validate(shown, strict=True)
    assert set(shown) == set(Batch.model_fields)


def test_equal_questions_get_the_answer_that_they_get_without_a_batch(client: openai.OpenAI) -> None:
    batch = done(client, [line("a", chat("the same?", temperature=0))])
    said = rows(client, batch.output_file_id)["a"]["response"]["body"]["choices"]
    alone = client.chat.completions.create(**chat("the same?", temperature=0))
    assert said[0]["message"]["content"] == alone.choices[0].message.content


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        ("/v1/completions", {"model": MODEL, "prompt": "Once", "max_tokens": 4}, "text_completion"),
        ("/v1/responses", {"model": MODEL, "input": "Hello", "max_output_tokens": 4}, "response"),
    ],
)
def test_the_other_endpoints_are_asked_too(
    client: openai.OpenAI, endpoint: str, body: dict[str, Any], kind: str
) -> None:
    batch = done(client, [line(f"l{n}", body, endpoint) for n in range(3)], endpoint)
    assert (batch.status, batch.endpoint, counts(batch)) == ("completed", endpoint, (3, 3, 0))
    assert {row["response"]["body"]["object"] for row in rows(client, batch.output_file_id).values()} == {
        kind
    }
    assert batch.usage is not None
    assert batch.usage.output_tokens > 0


def test_a_batch_whose_lines_all_fail_is_completed_without_an_output_file(client: openai.OpenAI) -> None:
    body = {"model": MODEL, "input": "Hello"}  # the fake engine has no embeddings, as vLLM with this model
    batch = done(client, [line(f"l{n}", body, "/v1/embeddings") for n in range(3)], "/v1/embeddings")
    assert (batch.status, batch.output_file_id, counts(batch)) == ("completed", None, (3, 0, 3))
    for row in rows(client, batch.error_file_id).values():
        assert (row["error"], row["response"]["status_code"]) == (None, 400)
        assert row["response"]["body"]["error"]["code"] == "unsupported_endpoint"


def test_embeddings_are_asked_line_by_line_and_each_line_has_its_own(tmp_path: Path) -> None:
    with (
        FakeEngine(MODEL, embedding_size=16) as engine,
        running(tmp_path / "home", engines_config(engine)) as server,
    ):
        client, texts = server.client(), {f"text-{n}": f"the {n} words of line {n}" for n in range(25)}
        lines = [
            line(id, {"model": MODEL, "input": text, "dimensions": 8}, "/v1/embeddings")
            for id, text in texts.items()
        ]
        batch = done(client, lines, "/v1/embeddings")
        assert (batch.status, batch.endpoint, counts(batch)) == ("completed", "/v1/embeddings", (25, 25, 0))
        assert batch.error_file_id is None
        found = rows(client, batch.output_file_id)
        assert set(found) == set(texts)
        tokens = 0
        for id, text in texts.items():
            response = found[id]["response"]
            assert (found[id]["error"], response["status_code"]) == (None, 200)
            answer = CreateEmbeddingResponse.model_validate(response["body"], strict=True)
            alone = client.embeddings.create(model=MODEL, input=text, dimensions=8, encoding_format="float")
            assert answer.model == MODEL
            assert [row.embedding for row in answer.data] == [row.embedding for row in alone.data]
            tokens += answer.usage.prompt_tokens
        assert batch.usage is not None
        assert (batch.usage.input_tokens, batch.usage.output_tokens) == (tokens, 0)


def test_one_bad_request_of_many_costs_the_others_nothing(client: openai.OpenAI) -> None:
    lines = chats(30)
    lines[7]["body"]["model"] = "nobody"
    lines[8]["body"]["temperature"] = 99
    batch = done(client, lines)
    assert (batch.status, batch.model, counts(batch)) == ("completed", None, (30, 28, 2))
    answers, errors = rows(client, batch.output_file_id), rows(client, batch.error_file_id)
    assert set(errors) == {"line-7", "line-8"}
    assert set(answers) | set(errors) == {f"line-{n}" for n in range(30)}
    told = {name: row["response"] for name, row in errors.items()}
    assert told["line-7"]["status_code"] == 404
    assert told["line-7"]["body"]["error"]["code"] == "model_not_found"
    assert told["line-8"]["status_code"] == 400
    assert told["line-8"]["body"]["error"]["param"] == "temperature"


def test_a_line_that_an_engine_fails_is_asked_again(engine: FakeEngine, client: openai.OpenAI) -> None:
    engine.set(fault="close_before_headers", fault_count=2)
    batch = done(client, chats(5))
    assert (batch.status, counts(batch)) == ("completed", (5, 5, 0))


def test_a_bad_file_fails_the_batch_and_each_bad_line_is_named(
    engine: FakeEngine, client: openai.OpenAI
) -> None:
    good = chats(6)
    lines = [
        good[0],
        line("line-0"),  # its id is taken
        good[1],
        line("", chat()),
        line("other", chat(), "/v1/completions"),
        line("streams", chat(stream=True)),
        line("nameless", {"messages": []}),
    ]
    data = "\n".join(json.dumps(one) for one in lines).encode() + b"\n{nope\n"
    batch = done(client, data)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert batch.errors.object == "list"
    told = [(error.line, error.code, error.param) for error in batch.errors.data or ()]
    assert told == [
        (2, "duplicate_custom_id", "custom_id"),
        (4, "invalid_value", "custom_id"),
        (5, "invalid_url", "url"),
        (6, "invalid_value", "body.stream"),
        (7, "missing_required_parameter", "body.model"),
        (8, "invalid_json_line", None),
    ]
    assert engine.stats()["requests"] == 0


# -- the end before its time -----------------------------------------------------------------------
def test_a_cancelled_batch_keeps_what_was_answered(engine: FakeEngine, client: openai.OpenAI) -> None:
    engine.set(ttft_seconds=0.3)
    batch = create(client, send(client, chats(2000)))
    wait_for(lambda: counts(client.batches.retrieve(batch.id))[1] > 0, 30)
    asked = client.batches.cancel(batch.id)
    assert (asked.status, asked.cancelling_at is not None) == ("cancelling", True)
    found = ended(client, batch)
    total, completed, failed = counts(found)
    assert (found.status, total, failed) == ("cancelled", 2000, 0)
    assert 0 < completed < 2000
    assert len(rows(client, found.output_file_id)) == completed
    assert (found.cancelled_at is not None, found.completed_at) == (True, None)
    wait_for(lambda: engine.stats()["active"] == 0)
    again = refused(lambda: client.batches.cancel(batch.id), openai.ConflictError)
    assert again.code == "batch_state_conflict"


def test_an_expired_batch_says_so_of_every_line_that_was_left(
    engine: FakeEngine, client: openai.OpenAI
) -> None:
    engine.set(ttft_seconds=0.5)
    batch = ended(client, create(client, send(client, chats(1500)), window="3s"))
    assert (batch.status, batch.completion_window) == ("expired", "3s")
    assert batch.expired_at is not None
    assert batch.expires_at == batch.created_at + 3
    answers, errors = rows(client, batch.output_file_id), rows(client, batch.error_file_id)
    assert counts(batch) == (1500, len(answers), len(errors))
    assert set(answers) | set(errors) == {f"line-{n}" for n in range(1500)}
    assert len(errors) > 0
    for row in errors.values():
        assert (row["response"], row["error"]["code"]) == (None, "batch_expired")


def test_output_files_are_kept_for_as_long_as_was_asked(client: openai.OpenAI) -> None:
    batch = create(
        client, send(client, chats(1)), output_expires_after={"anchor": "created_at", "seconds": 3600}
    )
    file = client.files.retrieve(ended(client, batch).output_file_id or "")
    assert file.expires_at == file.created_at + 3600


# -- what cannot be --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"input_file_id": "file-none"}, "input_file_id", "invalid_input_file"),
        ({"input_file_id": "TUNE"}, "input_file_id", "invalid_input_file"),
        ({"endpoint": "/v1/moderations"}, "endpoint", "invalid_value"),
        ({"endpoint": "/v1/messages"}, "endpoint", "invalid_value"),
        ({"completion_window": "1w"}, "completion_window", "invalid_value"),
        ({"completion_window": "31d"}, "completion_window", "invalid_value"),
        ({"metadata": {"k" * 65: "v"}}, "metadata", "invalid_value"),
        ({"metadata": {"k": "\x00"}}, "metadata", "invalid_value"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 60}},
            "output_expires_after.seconds",
            "invalid_value",
        ),
        ({"input_file_id": None}, "input_file_id", "invalid_value"),
        ({"more": 1}, "more", "invalid_value"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_with_the_field(
    client: openai.OpenAI, changes: dict[str, Any], param: str, code: str
) -> None:
    if changes.get("input_file_id") == "TUNE":
        changes = {"input_file_id": send(client, b"{}", "fine-tune")}
    body = {"input_file_id": send(client, chats(1)), "endpoint": CHAT, "completion_window": "24h", **changes}
    error = refused(lambda: client.post("/batches", body=body, cast_to=object), openai.BadRequestError)
    assert (error.param, error.code) == (param, code)


def test_a_batch_that_never_was_is_a_404(client: openai.OpenAI) -> None:
    for act in (client.batches.retrieve, client.batches.cancel):
        assert refused(lambda act=act: act("batch_none"), openai.NotFoundError).code == "batch_not_found"  # type: ignore[misc]


def test_batches_are_paged_newest_first(client: openai.OpenAI) -> None:
    made = [create(client, send(client, chats(1))).id for _ in range(3)]
    page = client.batches.list(limit=2)
    assert [batch.id for batch in page.data] == made[:0:-1]
    assert page.has_more is True
    listed = [batch.id for batch in client.batches.list(limit=1)]
    assert listed[:3] == made[::-1]
    assert len(listed) == len(set(listed))
    refused(lambda: client.batches.list(after="batch_none"), openai.BadRequestError)
    assert list(client.fine_tuning.jobs.list()) == [], "a batch is no training job"


def test_files_and_lists_are_bounded_by_the_settings(engine: FakeEngine, tmp_path: Path) -> None:
    bounds = "[batches]\nmax_lines = 3\nmax_file_bytes = 2000\nmax_list = 2\n"
    with running(tmp_path / "home", engines_config(engine, extra=bounds)) as server:
        client = server.client()
        lines = [line(f"{n}", {"model": MODEL, "messages": []}) for n in range(4)]
        many = done(client, lines)
        assert many.status == "failed"
        assert many.errors is not None
        assert [(e.line, e.code) for e in many.errors.data or ()] == [(4, "too_many_requests")]
        large = send(client, [line("a", chat("x" * 2000))])
        error = refused(lambda: create(client, large), openai.BadRequestError)
        assert (error.param, error.code) == ("input_file_id", "above_max_value")
        error = refused(lambda: ask_all(client, [chat()] * 3), openai.BadRequestError)
        assert (error.param, error.code) == ("requests", "above_max_value")


def test_keys_have_their_own_batches(engine: FakeEngine, tmp_path: Path) -> None:
    with running(tmp_path / "home", engines_config(engine)) as server:
        keys = {
            name: server.burnish("keys", "create", "--name", name, "--scope", scope).stdout.strip()
            for name, scope in (("ann", "inference"), ("bob", "inference"), ("root", "admin"))
        }
        wait_for(lambda: _is_refused(server))
        ann, bob, root = (server.client(api_key=keys[name]) for name in ("ann", "bob", "root"))
        file = send(ann, chats(3))
        batch = create(ann, file)
        for act in (
            lambda: bob.batches.retrieve(batch.id),
            lambda: bob.batches.cancel(batch.id),
        ):
            refused(act, openai.NotFoundError)
        assert list(bob.batches.list()) == []
        error = refused(lambda: create(bob, file), openai.BadRequestError)
        assert (error.param, error.code) == ("input_file_id", "invalid_input_file")
        found = ended(ann, batch)
        assert len(rows(ann, found.output_file_id)) == 3
        refused(lambda: bob.files.content(found.output_file_id or ""), openai.NotFoundError)
        assert [b.id for b in root.batches.list()] == [batch.id]
        assert root.batches.retrieve(batch.id).status == "completed"
        recorded = {c.id for c in ann.chat.completions.list()}
        assert {row["response"]["body"]["id"] for row in rows(ann, found.output_file_id).values()} == recorded
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as web:
            for path in ("/v1/batches", "/v1/batch"):
                assert web.post(path, json=[chat()]).status_code == 401


def _is_refused(server: Server) -> bool:
    with server.http() as web:
        return web.get("/v1/files").status_code == 401


# -- many requests in one --------------------------------------------------------------------------
def ask_all(client: openai.OpenAI, body: Any) -> Any:
    return client.post("/batch", body=body, cast_to=object)


def test_a_list_is_answered_in_its_order_whatever_some_of_it_fails_with(client: openai.OpenAI) -> None:
    requests = [
        chat("first", temperature=0),
        chat("second", model="nobody"),
        "a text",
        chat("fourth", stream=True),
        chat("fifth", temperature=99),
        chat("sixth", temperature=0),
    ]
    found = ask_all(client, requests)
    assert found["object"] == "list"
    assert [(row["index"], row["status_code"]) for row in found["data"]] == list(
        enumerate([200, 404, 400, 400, 400, 200])
    )
    told = [row["body"].get("error") for row in found["data"]]
    assert [error and (error["code"], error["param"]) for error in told] == [
        None,
        ("model_not_found", "model"),
        ("invalid_type", None),
        ("unsupported_parameter", "stream"),
        ("decimal_above_max_value", "temperature"),
        None,
    ]
    for question, index in (("first", 0), ("sixth", 5)):
        alone = client.chat.completions.create(**chat(question, temperature=0)).choices[0].message.content
        assert found["data"][index]["body"]["choices"][0]["message"]["content"] == alone


@pytest.mark.alone
def test_a_list_is_asked_at_once_and_may_name_its_endpoint(engine: FakeEngine, client: openai.OpenAI) -> None:
    engine.set(ttft_seconds=0.5)
    prompts = [{"model": MODEL, "prompt": f"{n}", "max_tokens": 2} for n in range(16)]
    found = ask_all(client, {"requests": prompts, "endpoint": "/v1/completions"})
    assert {row["body"]["object"] for row in found["data"]} == {"text_completion"}
    assert engine.stats()["max_active"] > 1


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"{nope", None, "invalid_json"),
        (b"7", None, "invalid_json"),
        (b"[]", "requests", "empty_array"),
        (b"{}", "requests", "missing_required_parameter"),
        (b'{"requests": {}}', "requests", "invalid_type"),
        (b'{"requests": [{}], "endpoint": "/v1/messages"}', "endpoint", "invalid_value"),
        (b'{"requests": [{}], "model": "x"}', "model", "unsupported_parameter"),
    ],
)
def test_a_list_that_is_none_is_refused(server: Server, body: bytes, param: str | None, code: str) -> None:
    with server.http() as web:
        answer = web.post("/v1/batch", content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)


def test_a_list_larger_than_a_body_may_be_is_refused(server: Server) -> None:
    with server.http() as web:
        answer = web.post("/v1/batch", content=b"[" + b" " * (33 * 1024 * 1024) + b"]")
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_a_client_that_leaves_ends_the_whole_list(engine: FakeEngine, server: Server) -> None:
    engine.set(fault="hang")
    with server.http() as web, pytest.raises(httpx.ReadTimeout):
        web.post("/v1/batch", json=[chat(f"{n}") for n in range(8)], timeout=1.0)
    wait_for(lambda: engine.stats()["active"] == 0)
    stats = engine.stats()
    assert stats["aborted"] == stats["requests"] > 0


@pytest.mark.alone
def test_others_are_answered_while_a_large_list_is(engine: FakeEngine, server: Server) -> None:
    engine.set(ttft_seconds=0.02)
    requests = [chat("x " * 1000) for _ in range(128)]
    answers: list[int] = []

    def ask() -> None:
        with server.http() as web:
            found = web.post("/v1/batch", json=requests).json()["data"]
            answers.extend(row["status_code"] for row in found)

    asking = threading.Thread(target=ask)
    asking.start()
    slowest = 0.0
    with server.http() as web:
        while asking.is_alive():
            began = time.monotonic()
            assert web.get("/healthz").status_code == 200
            slowest = max(slowest, time.monotonic() - began)
    asking.join()
    assert answers == [200] * 128
    assert slowest < 2.0, "generous: this machine is shared"


# -- the command -----------------------------------------------------------------------------------
def test_the_command_makes_a_batch_that_the_gateway_answers(server: Server, tmp_path: Path) -> None:
    source, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(json.dumps(one) for one in [*chats(20), line("bad", chat(model="nobody"))]))
    made = server.burnish("batches", "create", str(source), "--watch", "--output", str(answers))
    id, status, *_ = made.stdout.split()
    assert status == "completed"
    assert "completed 21/21, 1 failed" in made.stderr
    assert "\x1b" not in made.stderr
    assert len(answers.read_text().splitlines()) == 20
    errors = [
        json.loads(row) for row in server.burnish("batches", "results", id, "--errors").stdout.splitlines()
    ]
    assert [row["custom_id"] for row in errors] == ["bad"]
    assert json.loads(server.burnish("batches", "show", id, "--json").stdout)["request_counts"] == {
        "total": 21,
        "completed": 20,
        "failed": 1,
    }
