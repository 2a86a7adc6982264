"""Fail-over in an experiment: where the challenger cannot answer, the control does, and only the challenger is blamed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from adapters.completions import Status
from adapters.database import Database
from loadtests.fake_engine.process import FakeEngine
from tests.acceptance.experimenting import (
    CHALLENGER,
    CONTROL,
    ROUTE,
    Observed,
    begin,
    served_name,
    shown,
    user_of,
)
from tests.conftest import MODEL, Server, engines_config, free_port, running, wait_for

ASK: dict[str, Any] = {"model": ROUTE, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 6}
HALF: dict[str, Any] = {"challengers": [CHALLENGER], "guardrails": {"error_rate": None}}


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeEngine]:
    with FakeEngine(MODEL) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(fake: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway over one engine, with an experiment that no guardrail ends."""
    with running(tmp_path_factory.mktemp("failed-over") / "home", engines_config(fake)) as server:
        for seed in (1, 2):
            server.add_adapter("support", seed=seed)
        begin(server, **HALF)
        yield server


@pytest.fixture(autouse=True)
def well(fake: FakeEngine) -> None:
    fake.reset()
    fake.wait_for(active=0)


@pytest.fixture
def observed(server: Server) -> Iterator[Observed]:
    db = Database(f"sqlite:///{server.home / 'burnish.db'}")
    yield Observed(db)
    db.close()


@pytest.fixture
def challenged(server: Server, fake: FakeEngine) -> str:
    """A user whom the challenger answers."""
    return someone(server, fake, CHALLENGER)


def someone(server: Server, fake: FakeEngine, variant: str) -> str:
    """A user whom this variant answers; the engine has forgotten how that was found out."""
    user = user_of(server, variant)
    fake.reset()
    return user


def spoil(fake: FakeEngine, server: Server, fault: str, variant: str = CHALLENGER, **more: Any) -> None:
    fake.set(fault=fault, fault_models=[served_name(server, variant)], **more)


# -- before the first byte -------------------------------------------------------------------------
@pytest.mark.parametrize("fault", ["refuse", "close_before_headers", "html_200"])
def test_the_control_answers_for_a_challenger_that_cannot(
    server: Server, fake: FakeEngine, observed: Observed, challenged: str, fault: str
) -> None:
    spoil(fake, server, fault)
    raw = server.client().chat.completions.with_raw_response.create(**ASK, user=challenged)
    answered_by_control(server, raw.headers["x-burnish-adapter"], raw.headers["x-burnish-route"])
    blamed_on_challenger(observed, raw.parse().id, challenged)


@pytest.mark.parametrize("fault", ["refuse", "garbage_first"])
def test_the_control_streams_for_a_challenger_that_cannot_begin(
    server: Server, fake: FakeEngine, observed: Observed, challenged: str, fault: str
) -> None:
    spoil(fake, server, fault)
    with server.client().chat.completions.with_streaming_response.create(
        **ASK, user=challenged, stream=True
    ) as raw:
        answered_by_control(server, raw.headers["x-burnish-adapter"], raw.headers["x-burnish-route"])
        text = raw.read().decode()
    assert text.endswith("data: [DONE]\n\n")
    chunks = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert {chunk["model"] for chunk in chunks} == {ROUTE}
    blamed_on_challenger(observed, chunks[0]["id"], challenged)


def answered_by_control(server: Server, adapter: str, route: str) -> None:
    with server.http() as http:
        digest = http.get(f"/v1/adapters/{CONTROL}").json()["digest"]
    assert (adapter, route) == (f"{CONTROL} {digest}", ROUTE)


def blamed_on_challenger(observed: Observed, id: str, user: str) -> None:
    """The answer is the control's on record, and all that it says in the experiment is that the challenger failed."""
    row = observed.of(id)
    assert (row.variant, row.failed_over, row.error, row.unit) == (CHALLENGER, True, 1.0, f"user:{user}")
    assert (row.log_total, row.log_length, row.refused, row.repetition) == (None, None, None, None)
    (completion,) = [each for each in observed.completions() if each.id == id]
    assert (completion.status, completion.variant) == (Status.COMPLETE, CONTROL)


def test_what_was_said_of_an_answer_that_failed_over_is_evidence_for_nobody(
    server: Server, fake: FakeEngine, observed: Observed, challenged: str
) -> None:
    (name,) = {experiment["name"] for experiment in _experiments(server)}
    controlled = someone(server, fake, CONTROL)
    spoil(fake, server, "refuse")
    client = server.client()
    id = client.chat.completions.create(**ASK, user=challenged).id
    client.post("/feedback", body={"completion_id": id, "value": True}, cast_to=object)
    other = client.chat.completions.create(**ASK, user=controlled).id
    client.post("/feedback", body={"completion_id": other, "value": True}, cast_to=object)
    arms = wait_for(lambda: _heard(shown(server, name)["current"]))
    assert {variant: arm["scores"]["rating"]["voices"] for variant, arm in arms.items()} == {
        CONTROL: 1,
        CHALLENGER: 0,
    }


def _heard(current: dict[str, Any] | None) -> dict[str, Any] | None:
    """The arms, once the control has been judged."""
    arms: dict[str, Any] = {} if current is None else current["arms"]
    return arms if arms and arms[CONTROL]["scores"]["rating"]["voices"] else None


def test_the_control_itself_has_nobody_to_fail_over_to(
    server: Server, fake: FakeEngine, observed: Observed
) -> None:
    user = someone(server, fake, CONTROL)
    spoil(fake, server, "refuse", CONTROL)
    with pytest.raises(openai.InternalServerError) as refused:
        server.client().chat.completions.create(**ASK, user=user)
    assert refused.value.status_code == 503
    row = observed.rows(unit=f"user:{user}")[-1]
    assert (row.variant, row.failed_over, row.error) == (CONTROL, False, 1.0)


def test_where_the_control_cannot_either_the_client_is_told_once(
    server: Server, fake: FakeEngine, observed: Observed, challenged: str
) -> None:
    fake.set(fault="refuse")
    with pytest.raises(openai.InternalServerError):
        server.client().chat.completions.create(**ASK, user=challenged)
    (*_, row) = observed.rows(unit=f"user:{challenged}")
    assert (row.variant, row.failed_over, row.error) == (CHALLENGER, True, 1.0)


# -- after it --------------------------------------------------------------------------------------
def test_a_stream_that_has_begun_is_not_failed_over(
    server: Server, fake: FakeEngine, observed: Observed, challenged: str
) -> None:
    fake.set(itl_seconds=0.02)
    spoil(fake, server, "close_mid_stream", fault_after=3)
    stream = server.client().chat.completions.create(**ASK, user=challenged, stream=True)
    first = next(stream)
    with pytest.raises(openai.APIError, match="middle of its answer"):
        list(stream)
    row = observed.of(first.id)
    assert (row.variant, row.failed_over, row.error) == (CHALLENGER, False, 1.0)
    assert served_name(server, CONTROL) not in fake.stats()["models"]
    (completion,) = [each for each in observed.completions() if each.id == first.id]
    assert (completion.status, completion.variant) == (Status.INCOMPLETE, CHALLENGER)


# -- whose fault it is -----------------------------------------------------------------------------
@pytest.mark.parametrize("variant", [CONTROL, CHALLENGER])
def test_a_clients_own_mistake_is_nobodys_error(
    server: Server, fake: FakeEngine, observed: Observed, variant: str
) -> None:
    user = someone(server, fake, variant)
    with pytest.raises(openai.BadRequestError):
        server.client().chat.completions.create(**{**ASK, "max_tokens": 10**6}, user=user)
    row = observed.rows(unit=f"user:{user}")[-1]
    assert (row.variant, row.failed_over, row.error, row.log_total) == (variant, False, 0.0, None)
    assert set(fake.stats()["models"]) == {served_name(server, variant)}


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_is_nobodys_error(
    server: Server, fake: FakeEngine, observed: Observed, challenged: str, streams: bool
) -> None:
    before = len(observed.rows(unit=f"user:{challenged}"))
    fake.set(ttft_seconds=0.05, itl_seconds=0.2)
    body = {**ASK, "user": challenged, "max_tokens": 100, "stream": streams}
    with server.http() as http:
        if streams:
            with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/chat/completions", json=body, timeout=0.5)
    rows = wait_for(lambda: observed.rows(unit=f"user:{challenged}")[before:])
    assert [(row.variant, row.failed_over, row.error) for row in rows] == [(CHALLENGER, False, 0.0)]
    assert rows[0].log_length is None
    assert served_name(server, CONTROL) not in fake.stats()["models"]


def test_pinned_and_unrecorded_requests_are_no_evidence(server: Server, observed: Observed) -> None:
    before = len(observed.rows())
    client = server.client()
    for variant in (CONTROL, CHALLENGER):
        client.chat.completions.create(**{**ASK, "model": variant}, user="ada")
    client.chat.completions.create(**{**ASK, "model": MODEL}, user="ada")
    client.chat.completions.create(**ASK, user="ada", store=False)
    assert len(observed.rows()) == before
    counted = client.chat.completions.create(**ASK, user="ada").id
    assert [row.id for row in observed.rows()[before:]] == [counted]


# -- an engine of another kind ---------------------------------------------------------------------
@pytest.mark.alone
def test_an_engine_that_is_not_there_costs_clients_no_wait(engine: FakeEngine, tmp_path: Path) -> None:
    cloud = f'\n[[engines]]\nname = "cloud"\nkind = "openai"\nurl = "http://127.0.0.1:{free_port()}"\nmodels = ["llama"]\n'
    with running(tmp_path / "home", engines_config(engine) + cloud) as server:
        server.add_adapter("support", seed=1)
        begin(server, challengers={"llama": 0.9})
        _fails_over_to_control(server, "llama")


class Busy(BaseHTTPRequestHandler):
    """A provider whose quota is spent: it lists its models and answers nothing."""

    def do_GET(self) -> None:
        self._say(200, {"object": "list", "data": [{"id": "llama", "object": "model"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._say(
            429, {"error": {"message": "quota", "type": "rate_limit_error", "param": None, "code": None}}
        )

    def _say(self, status: int, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_provider_whose_quota_is_spent_is_stood_in_for(engine: FakeEngine, tmp_path: Path) -> None:
    busy = ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=busy.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{busy.server_port}"
    cloud = f'\n[[engines]]\nname = "cloud"\nkind = "openai"\nurl = "{url}"\nmodels = ["llama"]\n'
    try:
        with running(tmp_path / "home", engines_config(engine) + cloud) as server:
            server.add_adapter("support", seed=1)
            begin(server, challengers={"llama": 0.9})
            _fails_over_to_control(server, "llama")
    finally:
        busy.shutdown()
        busy.server_close()


def _fails_over_to_control(server: Server, variant: str) -> None:
    """Every request is answered by the control at once, and the variant has errors alone."""
    db = Database(f"sqlite:///{server.home / 'burnish.db'}")
    client = server.client()
    for number in range(10):
        began = time.monotonic()
        raw = client.chat.completions.with_raw_response.create(**ASK, user=f"u{number}")
        assert time.monotonic() - began < 2
        assert raw.headers["x-burnish-adapter"].split()[0] == CONTROL
    rows = Observed(db).rows()
    db.close()
    assert len(rows) == 10
    failed = {(row.failed_over, row.error) for row in rows if row.variant == variant}
    assert failed == {(True, 1.0)}
    assert {(row.failed_over, row.error) for row in rows if row.variant != variant} <= {(False, 0.0)}


def _experiments(server: Server) -> list[dict[str, Any]]:
    with server.http() as http:
        return list(http.get("/v1/experiments").json()["data"])
