"""Shadow traffic on real processes: the challenger answers too, nobody is shown it, and nobody waits for it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
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
    output_of,
    served_name,
    shown,
    stop,
)
from tests.conftest import MODEL, Server, engines_config, running, wait_for

ASK: dict[str, Any] = {
    "model": ROUTE,
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 6,
    "temperature": 0.5,
}
SLOW_SECONDS = 2.0
ALL: dict[str, Any] = {"challengers": [CHALLENGER], "policy": "shadow", "shadow_share": 1.0}


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeEngine]:
    with FakeEngine(MODEL) as engine:
        yield engine


@pytest.fixture(scope="module")
def shared(fake: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("shadow") / "home", engines_config(fake)) as server:
        for seed in (1, 2):
            server.add_adapter("support", seed=seed)
        yield server


@pytest.fixture
def server(shared: Server, fake: FakeEngine) -> Iterator[Server]:
    """A gateway over one engine, both well, without an experiment before and after."""
    fake.reset()
    yield shared
    with shared.http() as http:
        for experiment in http.get("/v1/experiments").json()["data"]:
            if experiment["state"] != "ended":
                stop(shared, experiment["name"])
    fake.set(fault=None)
    wait_for(lambda: fake.stats()["active"] == 0)


@pytest.fixture
def observed(server: Server) -> Iterator[Observed]:
    """What is observed from here on, in an empty record."""
    db = Database(f"sqlite:///{server.home / 'burnish.db'}")
    with db.begin() as connection:
        connection.exec_driver_sql("DELETE FROM observations")
    yield Observed(db)
    db.close()


def asked_of(fake: FakeEngine, variant: str) -> list[dict[str, Any]]:
    bodies = [request["body"] for request in fake.requests() if request["path"] in PATHS]
    return [body for body in bodies if str(body.get("model", "")).startswith(f"{variant}.")]


PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


@pytest.mark.parametrize("streams", [False, True])
def test_the_answer_is_the_controls_and_the_challengers_is_on_record_alone(
    server: Server, fake: FakeEngine, observed: Observed, streams: bool
) -> None:
    fake.set(
        answers={f"{CONTROL}.*": {"hello": "from the control"}, f"{CHALLENGER}.*": {"hello": "a secret"}}
    )
    name = begin(server, **ALL)
    client = server.client()
    if streams:
        options = {"include_usage": True}
        chunks = list(
            client.chat.completions.create(**ASK, stream=True, stream_options=options, user="ada")  # type: ignore[call-overload]
        )
        id, said = chunks[0].id, "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    else:
        raw = client.chat.completions.with_raw_response.create(**ASK, user="ada")
        assert raw.headers["x-burnish-adapter"].split()[0] == CONTROL
        id, said = raw.parse().id, raw.parse().choices[0].message.content
    assert said == "from the control"
    (shadow,) = observed.wait_for_shadows(1)
    own = observed.of(id)
    assert (shadow.shadow_of, shadow.variant, shadow.error, shadow.failed_over) == (
        id,
        CHALLENGER,
        0.0,
        False,
    )
    assert (own.variant, own.shadow_of, own.output) == (CONTROL, None, None)
    for column in ("experiment", "epoch", "unit", "refused", "repetition"):
        assert getattr(shadow, column) == getattr(own, column), column
    assert shadow.unit == "user:ada"
    assert shadow.id.startswith("shd_")
    assert shadow.log_length is not None
    assert shadow.log_ttft is None
    assert output_of(shadow)["choices"][0]["message"]["content"] == "a secret"
    assert shown(server, name)["state"] == "running"


def test_the_challenger_gets_the_same_words_for_one_answer(
    server: Server, fake: FakeEngine, observed: Observed
) -> None:
    begin(server, **ALL)
    asked = {**ASK, "n": 2, "seed": 7, "metadata": {"from": "a test"}}
    list(server.client().chat.completions.create(**asked, stream=True))
    observed.wait_for_shadows(1)
    (control,), (challenger,) = asked_of(fake, CONTROL), asked_of(fake, CHALLENGER)
    assert "priority" not in challenger, "an engine by URL may refuse it"
    assert challenger.pop("n") == 1
    for gone in ("stream", "stream_options", "n"):
        assert control.pop(gone)
    assert {**challenger, "model": ROUTE} == {**control, "model": ROUTE}
    # The control's length is that of both its answers.
    assert observed.shadows()[0].log_length is None


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/completions", {"prompt": "hello"}), ("/v1/responses", {"input": "hello"})],
)
def test_text_completions_and_responses_are_shadowed_too(
    server: Server, observed: Observed, path: str, body: dict[str, Any]
) -> None:
    begin(server, **ALL)
    with server.http() as http:
        answer = http.post(path, json={"model": ROUTE, **body}).raise_for_status()
    (shadow,) = observed.wait_for_shadows(1)
    assert shadow.shadow_of == answer.json()["id"]
    assert shadow.refused == 0.0
    assert shadow.log_length is not None


def test_what_is_not_recorded_not_answered_or_not_the_routes_has_no_shadow(
    server: Server, fake: FakeEngine, observed: Observed
) -> None:
    begin(server, **ALL)
    client = server.client()
    client.chat.completions.create(**ASK, store=False)
    client.chat.completions.create(**{**ASK, "model": CONTROL})
    client.chat.completions.create(**{**ASK, "model": MODEL})
    with server.http() as http:
        http.post("/v1/messages", json=ASK).raise_for_status()
        assert http.post("/v1/chat/completions", json={**ASK, "max_tokens": 10**6}).status_code == 400
    fake.set(fault="refuse", fault_models=[served_name(server, CONTROL)])
    with server.http() as http:
        assert http.post("/v1/chat/completions", json=ASK).status_code == 503
    fake.set(fault=None)
    client.chat.completions.create(**ASK)
    observed.wait_for_shadows(1)
    assert len(asked_of(fake, CHALLENGER)) == 1


def test_shadows_are_shown_among_no_completions(server: Server, observed: Observed) -> None:
    begin(server, **ALL)
    client = server.client()
    before = {completion.id for completion in observed.completions()}
    asked = {client.chat.completions.create(**ASK, store=True).id}
    (shadow,) = observed.wait_for_shadows(1)
    assert {completion.id for completion in observed.completions()} - before == asked
    with server.http() as http:
        listed = http.get("/v1/chat/completions", params={"limit": 100, "order": "desc"}).json()["data"]
        assert {entry["id"] for entry in listed} & (asked | {shadow.id}) == asked
        answered = output_of(shadow)["id"]
        for id in (shadow.id, answered):
            assert http.get(f"/v1/chat/completions/{id}").status_code == 404
        judged = http.post("/v1/feedback", json={"completion_id": shadow.id, "value": True})
        assert judged.status_code == 404


def test_a_burst_overruns_no_budget_which_ends_the_experiment(
    server: Server, fake: FakeEngine, observed: Observed
) -> None:
    name = begin(server, **ALL, shadow_requests=12, shadow_at_once=8)
    assert set(burst(server, 200)) == {200}
    found = wait_for(lambda: _if_ended(server, name))
    assert found["verdict"]["outcome"] == "inconclusive"
    assert "budget of the shadow" in found["verdict"]["rule"]
    assert len(observed.shadows()) == 12
    assert fake.stats()["models"][served_name(server, CHALLENGER)] == 12


def test_a_share_of_the_requests_is_asked_again(server: Server, fake: FakeEngine, observed: Observed) -> None:
    begin(server, **{**ALL, "shadow_share": 0.25, "shadow_at_once": 64})
    burst(server, 200)
    wait_for(lambda: fake.stats()["active"] == 0)
    asked = fake.stats()["models"][served_name(server, CHALLENGER)]
    assert 20 <= asked <= 85  # 50 are expected; this leaves five standard deviations


@pytest.mark.alone
@pytest.mark.parametrize("streams", [False, True])
def test_a_slow_challenger_slows_nobody(
    server: Server, fake: FakeEngine, observed: Observed, streams: bool
) -> None:
    fake.set(fault="slow_headers", fault_models=[served_name(server, CHALLENGER)], slow_seconds=SLOW_SECONDS)
    begin(server, **ALL)
    took = []
    with server.http() as http:
        for _ in range(5):
            began = time.monotonic()
            http.post("/v1/chat/completions", json={**ASK, "stream": streams}).raise_for_status()
            took.append(time.monotonic() - began)
    (shadow, *_) = observed.wait_for_shadows(1)
    assert shadow.error == 0.0
    assert math.exp(shadow.log_total) >= SLOW_SECONDS
    assert sorted(took)[2] < SLOW_SECONDS / 2, "the median: a busy machine may hold up any one"


@pytest.mark.alone
def test_a_challenger_that_hangs_is_given_few_requests_and_holds_up_nothing_not_even_the_end(
    gateway_on_fake: Server, engine: FakeEngine
) -> None:
    for seed in (1, 2):
        gateway_on_fake.add_adapter("support", seed=seed)
    challenger = served_name(gateway_on_fake, CHALLENGER)
    engine.reset()
    engine.set(fault="hang", fault_models=[challenger])
    begin(gateway_on_fake, **ALL, shadow_at_once=3)
    assert set(burst(gateway_on_fake, 60)) == {200}
    assert engine.stats()["models"][challenger] == 3
    engine.wait_for(active=3)
    began = time.monotonic()
    assert gateway_on_fake.stop() == 0
    assert time.monotonic() - began < 5
    engine.wait_for(active=0)  # the engine's work has ended too
    db = Database(f"sqlite:///{gateway_on_fake.home / 'burnish.db'}")
    assert Observed(db).shadows() == []
    db.close()
    for word in ("Traceback", "never retrieved", "was destroyed", "never awaited"):
        assert word not in gateway_on_fake.log


@pytest.mark.parametrize("fault", ["refuse", "close_before_headers", "html_200"])
def test_a_challenger_that_fails_is_stopped_by_its_guardrail_and_no_client_sees_an_error(
    server: Server, fake: FakeEngine, observed: Observed, fault: str
) -> None:
    fake.set(fault=fault, fault_models=[served_name(server, CHALLENGER)])
    name = begin(server, **ALL, shadow_at_once=8)
    found = None
    for _ in range(20):
        assert set(burst(server, 30)) == {200}
        if found := _if_ended(server, name):
            break
    assert found is not None, shown(server, name)
    assert found["verdict"]["outcome"] == "stopped by guardrail"
    assert "error_rate" in found["verdict"]["reasons"][0]
    shadows = observed.shadows()
    assert {(row.error, row.output, row.log_length) for row in shadows} == {(1.0, None, None)}
    assert {row.error for row in observed.rows(variant=CONTROL)} == {0.0}
    assert all(completion.status is Status.COMPLETE for completion in observed.completions()[-30:])
    with server.http() as http:
        assert http.get("/v1/engines").json()["data"][0]["state"] == "up"
    assert "engine_ejected" not in server.log


def test_what_the_control_can_answer_and_the_challengers_engine_refuses_is_the_challengers_error(
    engine: FakeEngine, tmp_path: Path
) -> None:
    with FakeEngine("small", max_model_len=40) as small:
        other = f'\n[[engines]]\nname = "other"\nkind = "openai"\nurl = "{small.url}"\nmodels = ["small"]\n'
        with running(tmp_path / "home", engines_config(engine) + other) as server:
            server.add_adapter("support", seed=1)
            wait_for(lambda: {e["state"] for e in _engines(server)} == {"up"})
            db = Database(f"sqlite:///{server.home / 'burnish.db'}")
            begin(server, **{**ALL, "challengers": ["small"]})
            server.client().chat.completions.create(**ASK)
            server.client().chat.completions.create(**{**ASK, "max_tokens": 60})
            short, long = sorted(Observed(db).wait_for_shadows(2), key=lambda row: str(row.error))
            assert (short.error, short.variant, long.error) == (0.0, "small", 1.0)
            assert all("priority" not in request["body"] for request in small.requests())
            db.close()


def test_forgetting_a_user_takes_their_shadows_too(
    server: Server, fake: FakeEngine, observed: Observed
) -> None:
    begin(server, **ALL)
    client = server.client()
    for user in ("ada", "bob"):
        client.chat.completions.create(**ASK, user=user)
        observed.wait_for_shadows(1 if user == "ada" else 2)
    forget(server, "ada")
    assert {row.unit for row in observed.rows()} == {"user:bob"}
    assert len(observed.shadows()) == 1


def test_a_user_who_is_forgotten_before_their_shadow_is_done_leaves_none(
    server: Server, fake: FakeEngine, observed: Observed
) -> None:
    challenger = served_name(server, CHALLENGER)
    fake.set(fault="slow_headers", fault_count=1, fault_models=[challenger], slow_seconds=5.0)
    begin(server, **ALL, shadow_at_once=1)
    client = server.client()
    client.chat.completions.create(**ASK, user="ada")
    wait_for(lambda: fake.stats()["models"].get(challenger))
    forget(server, "ada")
    assert fake.stats()["active"] == 1, "the shadow was over too soon to show anything"
    fake.wait_for(10, active=0)
    bob = client.chat.completions.create(**ASK, user="bob")
    wait_for(lambda: observed.rows(shadow_of=bob.id))
    assert {row.unit for row in observed.rows()} == {"user:bob"}


def forget(server: Server, user: str) -> None:
    with server.http() as http:
        http.delete(f"/v1/users/{user}").raise_for_status()


def burst(server: Server, count: int) -> list[int]:
    """The statuses of so many requests of as many users, many at once."""
    with ThreadPoolExecutor(16) as pool, server.http() as http:
        return list(pool.map(lambda number: _status(http, number), range(count)))


def _status(http: httpx.Client, number: int) -> int:
    body = {**ASK, "max_tokens": 2, "user": f"u{number}-{time.monotonic_ns()}"}
    return http.post("/v1/chat/completions", json=body).status_code


def _engines(server: Server) -> list[dict[str, Any]]:
    with server.http() as http:
        return list(http.get("/v1/engines").json()["data"])


def _if_ended(server: Server, name: str) -> dict[str, Any] | None:
    found = shown(server, name)
    return found if found["state"] == "ended" else None
