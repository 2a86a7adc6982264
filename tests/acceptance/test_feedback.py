"""Feedback through a real gateway, as an application's developer gives it: by the official SDK, over a fake engine.

Promise 2, acknowledged feedback is never lost; promise 6, forgetting a user; the policy and the jobs it makes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import sqlalchemy as sa

from adapters import schema
from adapters.database import Database
from adapters.jobs import Job, Jobs
from adapters.rows import parse_training
from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, Server, engines_config, running, start_server, wait_for

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeEngine]:
    with FakeEngine(MODEL) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(fake: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway without keys, with the route `support`."""
    with running(tmp_path_factory.mktemp("feedback") / "home", engines_config(fake)) as server:
        make_route(server, "support")
        yield server


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client()


def ask(client: openai.OpenAI, model: str = "support", **more: Any) -> str:
    """The id of a new completion."""
    made = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=4, **more)
    return str(made.id)


def make_route(server: Server, name: str) -> None:
    """By the command, beside the gateway; returns when the gateway has seen it."""
    server.burnish("routes", "create", name, MODEL)
    with server.http() as http:
        wait_for(lambda: name in {model["id"] for model in http.get("/v1/models").json()["data"]})


def give(client: openai.OpenAI, idempotency_key: str | None = None, **body: Any) -> dict[str, Any]:
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    made = client.post("/feedback", body=body, cast_to=object, options={"headers": headers})
    assert isinstance(made, dict)
    return made


def database(server: Server) -> Database:
    return Database(f"sqlite:///{server.home / 'burnish.db'}")


def jobs_of(server: Server, route: str) -> tuple[Job, ...]:
    db = database(server)
    try:
        return Jobs(db).list(route=route)[0]
    finally:
        db.close()


# -- giving ----------------------------------------------------------------------------------------
def test_the_official_sdk_gives_and_reads_feedback(client: openai.OpenAI) -> None:
    id = ask(client, user="u1", metadata={"page": "home"})
    made = give(client, completion_id=id, value=True, comment="nice", metadata={"screen": "3"})
    assert made["object"] == "feedback"
    assert (made["name"], made["value"], made["route"], made["variant"]) == ("rating", 1, "support", MODEL)
    assert (made["user"], made["source"], made["metadata"]) == ("u1", "api", {"screen": "3"})
    assert client.get(f"/feedback/{made['id']}", cast_to=object) == made
    listed: Any = client.get(f"/feedback?completion_id={id}", cast_to=object)
    assert listed == {
        "object": "list", "data": [made], "first_id": made["id"], "last_id": made["id"], "has_more": False,
    }  # fmt: skip


def test_feedback_is_accepted_straight_after_the_response(client: openai.OpenAI) -> None:
    for turn in range(40):
        if turn % 2:
            stream = client.chat.completions.create(
                model="support", messages=QUESTION, max_tokens=4, stream=True
            )
            id = [chunk.id for chunk in stream][-1]
        else:
            id = ask(client)
        assert give(client, completion_id=id, value=turn % 3 == 0)["completion_id"] == id


def test_answers_of_every_endpoint_can_be_judged(client: openai.OpenAI) -> None:
    text = client.completions.create(model="support", prompt="Once", max_tokens=4)
    response = client.responses.create(model="support", input="Once", max_output_tokens=16)
    for id in (text.id, response.id):
        assert give(client, completion_id=id, demonstration="upon a time")["name"] == "demonstration"


def test_of_two_answers_one_can_be_preferred(client: openai.OpenAI) -> None:
    better, worse = ask(client), ask(client)
    assert give(client, completion_id=better, preferred_over=worse)["name"] == "preference"
    with pytest.raises(openai.BadRequestError) as caught:
        give(client, completion_id=better, preferred_over="chatcmpl-nothing")
    assert (caught.value.param, caught.value.code) == ("preferred_over", "invalid_preference")


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, None, "missing_required_parameter"),
        ({"value": "yes"}, "value", "invalid_value"),
        ({"value": 10**400}, "value", "invalid_value"),
        ({"demonstration": 3}, "demonstration", "invalid_value"),
        ({"value": 3}, "value", "invalid_value"),
        ({"name": "stars", "value": 3}, "name", "unknown_score"),
        ({"rating": True}, "rating", "invalid_value"),
        ({"demonstration": {"role": "user", "content": "x"}}, "demonstration.role", "invalid_value"),
    ],
)
def test_bad_feedback_is_refused_naming_what_is_wrong(
    client: openai.OpenAI, body: dict[str, Any], param: str | None, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        give(client, completion_id=ask(client), **body)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_what_was_not_recorded_cannot_be_judged(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        give(client, completion_id=ask(client, store=False), value=True)
    assert caught.value.code == "completion_not_found"


def test_a_list_is_read_page_by_page(client: openai.OpenAI) -> None:
    id = ask(client)
    ids = [give(client, completion_id=id, comment=str(n))["id"] for n in range(5)]
    seen: list[str] = []
    page: Any = {"has_more": True, "last_id": None}
    while page["has_more"]:
        after = f"&after={page['last_id']}" if page["last_id"] else ""
        page = client.get(f"/feedback?completion_id={id}&limit=2{after}", cast_to=object)
        seen += [feedback["id"] for feedback in page["data"]]
    assert seen == ids[::-1]


# -- idempotency -----------------------------------------------------------------------------------
def test_a_repeat_is_answered_as_before_and_a_changed_body_is_a_409(
    server: Server, client: openai.OpenAI
) -> None:
    id = ask(client)
    body = {"completion_id": id, "value": True}
    with server.http() as http:
        answers = [
            http.post("/v1/feedback", json=body, headers={"idempotency-key": "once"}) for _ in range(3)
        ]
    assert [answer.status_code for answer in answers] == [201, 200, 200]
    assert len({answer.text for answer in answers}) == 1
    with pytest.raises(openai.ConflictError) as caught:
        give(client, "once", completion_id=id, value=False)
    assert caught.value.code == "idempotency_conflict"
    listed: Any = client.get(f"/feedback?completion_id={id}", cast_to=object)
    assert len(listed["data"]) == 1


def test_promise_02_acknowledged_feedback_is_never_lost(fake: FakeEngine, tmp_path: Path) -> None:
    """kill -9 while many clients give feedback: what was acknowledged is there, and what is repeated changes nothing."""
    home, config = tmp_path / "home", engines_config(fake)
    first = start_server(home, config)
    first.wait_up()
    bodies: dict[str, dict[str, Any]] = {}
    acknowledged: dict[str, str] = {}
    ids = [ask(first.client(), MODEL) for _ in range(8)]

    def post(server: Server, http: httpx.Client, key: str) -> dict[str, Any]:
        answer = http.post("/v1/feedback", json=bodies[key], headers={"idempotency-key": key})
        assert answer.status_code in (200, 201), answer.text
        made: dict[str, Any] = answer.json()
        return made

    def give_on(worker: int) -> None:
        with first.http() as http:
            for turn in range(100_000):
                key = f"{worker}-{turn}"
                bodies[key] = {"completion_id": ids[worker], "value": turn % 2 == 0, "comment": key}
                try:
                    acknowledged[key] = post(first, http, key)["id"]
                except httpx.HTTPError:
                    return

    threads = [threading.Thread(target=give_on, args=(worker,)) for worker in range(len(ids))]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(acknowledged) > 200, 30)
    first.process.kill()
    first.process.wait()
    for thread in threads:
        thread.join()

    db = Database(f"sqlite:///{home / 'burnish.db'}")
    with db.read() as connection:
        rows = connection.execute(sa.select(schema.feedback.c.id, schema.feedback.c.comment)).all()
    db.close()
    kept = {row.comment: row.id for row in rows}
    assert len(kept) == len(rows)
    assert acknowledged.items() <= kept.items()
    with running(home, config) as second, second.http() as http:
        again = {key: post(second, http, key)["id"] for key in bodies}
        assert kept.items() <= again.items()
        listed = http.get(f"/v1/feedback?completion_id={ids[0]}&limit=100").json()
        of_the_first = [key for key in bodies if key.startswith("0-")]
        assert len(listed["data"]) == min(100, len(of_the_first))
    db = Database(f"sqlite:///{home / 'burnish.db'}")
    with db.read() as connection:
        count = connection.execute(sa.select(sa.func.count()).select_from(schema.feedback)).scalar_one()
    db.close()
    assert count == len(bodies)


# -- whose -----------------------------------------------------------------------------------------
def test_foreign_and_unknown_completions_are_the_same_404(fake: FakeEngine, tmp_path: Path) -> None:
    with running(tmp_path / "home", engines_config(fake)) as server:
        secrets = {
            name: server.burnish("keys", "create", "--name", name, "--scope", scope).stdout.strip()
            for name, scope in (("a", "inference"), ("b", "inference"), ("root", "admin"))
        }
        anna, ben, root = (server.client(api_key=secret) for secret in secrets.values())
        wait_for(lambda: _may(anna) and _may(ben) and _may(root))
        id = ask(anna, MODEL)
        own = give(anna, completion_id=id, value=True)
        answers = []
        for other in (id, "chatcmpl-" + "0" * len(id.removeprefix("chatcmpl-"))):
            with pytest.raises(openai.NotFoundError) as caught:
                give(ben, completion_id=other, value=True)
            answers.append(json.dumps(caught.value.body).replace(other, "ID"))
        assert answers[0] == answers[1]
        for missing in (own["id"], "fb_" + "0" * 24):
            with pytest.raises(openai.NotFoundError) as caught:
                ben.get(f"/feedback/{missing}", cast_to=object)
            assert caught.value.code == "feedback_not_found"
        listed: Any = ben.get("/feedback", cast_to=object)
        assert listed["data"] == []
        assert give(root, completion_id=id, value=False)["completion_id"] == id
        with pytest.raises(openai.PermissionDeniedError):
            anna.delete("/users/u1", cast_to=object)


def _may(client: openai.OpenAI) -> bool:
    try:
        client.models.list()
    except openai.AuthenticationError:
        return False
    return True


# -- policy and trigger ----------------------------------------------------------------------------
def test_a_route_declares_scores_and_they_are_held_to(server: Server, client: openai.OpenAI) -> None:
    make_route(server, "stars")
    policy = {"scores": [{"name": "stars", "kind": "number", "low": 1, "high": 5}]}
    with server.http() as http:
        changed = http.patch("/v1/routes/stars", json={"policy": policy})
        assert changed.status_code == 200, changed.text
        assert http.get("/v1/routes/stars").json() == changed.json()
        bad = http.patch("/v1/routes/stars", json={"policy": {"training": {"enabeld": True}}})
        assert bad.status_code == 400
        assert bad.json()["error"]["param"] == "policy.training.enabeld"
        assert "did you mean `enabled`?" in bad.json()["error"]["message"]
    assert changed.json()["policy"]["training"]["enabled"] is False
    assert give(client, completion_id=ask(client, "stars"), name="stars", value=4)["value"] == 4
    with pytest.raises(openai.BadRequestError):
        give(client, completion_id=ask(client, "stars"), name="stars", value=6)


def test_the_command_shows_and_changes_a_policy(server: Server, tmp_path: Path) -> None:
    make_route(server, "by-command")
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"training": {"method": "kto", "hyperparameters": {"rank": 4}}}))
    done = server.burnish(
        *("routes", "policy", "by-command", "--file", str(file)),
        *("--set", "training.min_new_rows=30", "--set", "format.regex=^a+$"),
    )
    policy = json.loads(done.stdout)
    assert (policy["training"]["method"], policy["training"]["min_new_rows"]) == ("kto", 30)
    assert policy["format"]["regex"] == "^a+$"
    assert json.loads(server.burnish("routes", "policy", "by-command").stdout) == policy
    bad = server.burnish("routes", "policy", "by-command", "--set", "trainin.enabled=true", check=False)
    assert bad.returncode == 1
    assert "did you mean `training`?" in bad.stderr


def test_enough_feedback_makes_one_job_and_time_makes_the_next(server: Server, client: openai.OpenAI) -> None:
    make_route(server, "learner")
    server.burnish(
        *("routes", "policy", "learner", "--set", "training.enabled=true"),
        *("--set", "training.min_new_rows=3", "--set", "training.cooldown_seconds=0"),
    )
    for turn in range(6):
        give(client, completion_id=ask(client, "learner"), value=True)
        assert len(jobs_of(server, "learner")) == (1 if turn >= 2 else 0)
    (job,) = jobs_of(server, "learner")
    assert job.payload["source"]["route"] == "learner"
    db = database(server)
    Jobs(db).cancel(job.id, "test")
    db.close()
    wait_for(lambda: len(jobs_of(server, "learner")) == 2, 15)  # three more are there, and no click comes


# -- files -----------------------------------------------------------------------------------------
def test_feedback_goes_in_and_out_by_files(server: Server, tmp_path: Path) -> None:
    make_route(server, "files")
    rows: list[dict[str, Any]] = [
        {"prompt": "q1", "completion": "a", "label": True},
        {"prompt": "q2", "chosen": "good", "rejected": "bad", "user": "u7"},
        {"instruction": "Add.", "input": "1 2", "output": "3"},
    ]
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = server.burnish("feedback", "import", str(file), "--route", "files", "--json")
    assert json.loads(done.stdout) == {"route": "files", "new": 3, "known": 0, "bad": 0, "job": None}
    assert server.burnish("feedback", "import", str(file), "--route", "files").stdout.startswith("0 new, 3")
    server.burnish("feedback", "export", "--route", "files", "-o", str(out))
    ids = [{row.id for row in parse_training(f.read_bytes().splitlines())} for f in (file, out)]
    assert ids[0] == ids[1]
    listed = json.loads(server.burnish("feedback", "list", "--route", "files", "--json").stdout)
    assert [f["name"] for f in listed["data"]] == ["demonstration", "demonstration", "rating"]
    assert "u7" in server.burnish("feedback", "list", "--route", "files").stdout


def test_a_file_with_bad_lines_is_refused_naming_each_and_imports_nothing(
    server: Server, tmp_path: Path
) -> None:
    make_route(server, "bad-files")
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "q", "completion": "a"}\n{"prompt": "q"}\nnonsense\n')
    refused = server.burnish("feedback", "import", str(file), "--route", "bad-files", check=False)
    assert refused.returncode == 1
    assert "line 2:" in refused.stderr
    assert "line 3:" in refused.stderr
    assert (
        json.loads(server.burnish("feedback", "list", "--route", "bad-files", "--json").stdout)["data"] == []
    )
    done = server.burnish("feedback", "import", str(file), "--route", "bad-files", "--skip-bad")
    assert done.stdout.strip() == "1 new, 0 known, 2 bad"


# -- forgetting ------------------------------------------------------------------------------------
def test_promise_06_forgetting_a_user_quarantines_what_learned_from_them(
    server: Server, client: openai.OpenAI
) -> None:
    """A version made by a run over the user's rows, live on its route: it stops serving, and the route goes on."""
    server.add_adapter("tutor", seed=61)
    server.add_adapter("tutor", seed=62)
    server.burnish("promote", "tutor@2")
    id = ask(client, "tutor", user="u/61")
    give(client, completion_id=id, value=True)
    pretend_it_learned(server, "tutor@2", id)
    told = json.loads(server.burnish("forget", "--user", "u/61", "--dry-run", "--json").stdout)
    assert told["quarantined"] == ["tutor@2"]
    assert answered_by(client, "tutor") == "tutor@2"
    done: Any = client.delete("/users/u%2F61", cast_to=object)
    assert {**done, "deleted": False} == told
    assert done["routes"] == [{"id": "tutor", "from": "tutor@2", "to": "tutor@1"}]
    assert answered_by(client, "tutor") == "tutor@1"
    with pytest.raises(openai.APIStatusError):
        ask(client, "tutor@2")
    with pytest.raises(openai.NotFoundError):
        give(client, completion_id=id, value=True)
    assert server.burnish("forget", "--user", "u/61").stdout.split()[:2] == ["completions", "0"]


def answered_by(client: openai.OpenAI, model: str) -> str:
    answer = client.chat.completions.with_raw_response.create(model=model, messages=QUESTION, max_tokens=4)
    return answer.headers["x-burnish-adapter"].partition(" ")[0]


def pretend_it_learned(server: Server, ref: str, completion_id: str) -> None:
    """The records as a training run would have left them."""
    db = database(server)
    job = Jobs(db).enqueue(kind="training", route="tutor", payload={"source": {"kind": "feedback"}})
    Jobs(db).cancel(job.id, "test")
    name, _, number = ref.partition("@")
    table = schema.versions
    with db.begin() as connection:
        connection.execute(
            sa.update(table).where(table.c.name == name, table.c.number == int(number)).values(origin=job.id)
        )
        row = {"digest": "d", "job_id": job.id, "position": 0, "row_id": "row_1", "split": "train"}
        connection.execute(sa.insert(schema.dataset_rows).values(**row, completion_id=completion_id))
    db.close()
