"""The control plane over HTTP and by the CLI, on a real gateway process over a fake engine."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, Server, engines_config, running, wait_for
from tests.lora import TINY_CONFIG, write_lora

SEEDS = count(1)


@dataclass
class Gateway:
    """A gateway without keys, its one engine, and a client."""

    server: Server
    engine: FakeEngine
    http: httpx.Client

    def lora(self) -> Path:
        """A folder with an adapter that nobody has seen."""
        seed = next(SEEDS)
        return write_lora(self.server.home / "sources" / str(seed), TINY_CONFIG, seed=seed)

    def add(self, name: str) -> str:
        """A new version, proved; its ref."""
        made = self.http.post("/v1/adapters", json={"name": name, "path": str(self.lora())})
        assert made.status_code == 201, made.text
        return str(self.settled(made.json()["id"])["id"])

    def settled(self, ref: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            version: dict[str, Any] = self.http.get(f"/v1/adapters/{ref}").json()
            return version if version["state"] != "staged" else None

        found: dict[str, Any] = wait_for(look, 30)
        return found

    def answered_by(self, model: str) -> str:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        answer = self.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.headers["x-burnish-adapter"].partition(" ")[0]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("admin") / "home"
    with (
        FakeEngine(MODEL, max_loras=16) as engine,
        running(home, engines_config(engine)) as server,
        server.http() as http,
    ):
        yield Gateway(server, engine, http)


def refusal(answer: httpx.Response, status: int, code: str | None) -> dict[str, Any]:
    """The OpenAI error that an answer is."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert answer.headers["x-request-id"]
    return error


def test_an_imported_version_is_proved_by_itself_and_answers(gateway: Gateway) -> None:
    made = gateway.http.post("/v1/adapters", json={"name": "proof", "path": str(gateway.lora())})
    assert made.status_code == 201
    assert made.json()["state"] == "staged"
    version = gateway.settled("proof@1")
    assert version["state"] == "proved", version
    assert version["placements"] == [{"engine": "e0", "state": "proved", "reason": None}]
    assert (version["object"], version["base_model"], version["rank"]) == ("adapter.version", MODEL, 8)
    assert version["approval"]["by"] == "api"
    wait_for(lambda: gateway.http.get("/v1/models/proof").status_code == 200)
    assert gateway.answered_by("proof") == "proof@1"


def test_an_upload_makes_the_version_that_its_folder_would(gateway: Gateway) -> None:
    folder = gateway.lora()
    files = [("files", (file.name, file.read_bytes())) for file in sorted(folder.iterdir())]
    form = {"name": "uploaded", "base_model": MODEL}
    made = gateway.http.post("/v1/adapters", data=form, files=files)
    assert made.status_code == 201, made.text
    again = gateway.http.post("/v1/adapters", json={"name": "uploaded", "path": str(folder)})
    assert (again.json()["id"], again.json()["digest"]) == ("uploaded@1", made.json()["digest"])
    assert list((gateway.server.home / "uploads").iterdir()) == []


@pytest.mark.parametrize("name", ["evil.py", "../adapter_config.json", "/etc/passwd", ""])
def test_an_upload_may_hold_an_adapters_files_only(gateway: Gateway, name: str) -> None:
    files = [("files", (name or "adapter_model.bin", b"x"))]
    error = refusal(
        gateway.http.post("/v1/adapters", data={"name": "bad"}, files=files), 400, "file_not_allowed"
    )
    assert error["param"] == "files"
    assert list((gateway.server.home / "uploads").iterdir()) == []


def test_a_form_that_is_none_is_refused(gateway: Gateway) -> None:
    def post(content: bytes, kind: str) -> httpx.Response:
        return gateway.http.post("/v1/adapters", content=content, headers={"content-type": kind})

    part = b'--b\r\ncontent-disposition: form-data; name="%s"\r\n\r\nvalue\r\n'
    refusal(post(b"", "multipart/form-data"), 400, "invalid_multipart")
    refusal(post(b"nonsense", "multipart/form-data; boundary=b"), 400, "invalid_multipart")
    refusal(post(part % b"name", "multipart/form-data; boundary=b"), 400, "invalid_multipart")
    refusal(post(part % b"rank" + b"--b--\r\n", "multipart/form-data; boundary=b"), 400, "unknown_field")
    refusal(
        post(part % b"base_model" + b"--b--\r\n", "multipart/form-data; boundary=b"), 400, "invalid_value"
    )
    error = refusal(
        post(part % b"name" + b"--b--\r\n", "multipart/form-data; boundary=b"), 400, "adapter_invalid"
    )
    assert "adapter_model" in error["message"] or "adapter_config" in error["message"]


def test_a_body_that_is_too_large_is_refused_before_it_is_read(gateway: Gateway) -> None:
    for path, kind, length in (
        ("adapters", "multipart/form-data; boundary=b", 3 * 1024**3),
        ("adapters", "application/json", 2 * 1024**2),
        ("routes", "application/json", 2 * 1024**2),
    ):
        with socket.create_connection(("127.0.0.1", gateway.server.port), timeout=10) as client:
            head = f"POST /v1/{path} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n"
            client.sendall(head.encode())
            assert client.recv(65536).startswith(b"HTTP/1.1 413 ")
    chunks = (b" " * 65536 for _ in range(40))  # no content-length says it
    headers = {"content-type": "application/json"}
    refusal(gateway.http.post("/v1/keys", content=chunks, headers=headers), 413, "request_too_large")


def test_wrong_bodies_name_the_field(gateway: Gateway) -> None:
    post = gateway.http.post
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("adapters", {"name": "x", "path": "/x", "rank": 8}, "rank"),
        ("adapters", {"name": "x"}, "path"),
        ("adapters", {"name": "x", "path": "relative"}, "path"),
        ("routes", {"name": "x"}, "variant"),
        ("routes/x/promote", {"to": "x@1"}, "variant"),
        ("keys", {"name": "x", "scopes": ["everything"]}, "scopes.0"),
        ("keys", {"name": "x", "scopes": []}, "scopes"),
        ("keys", {"name": "x", "scopes": ["admin"], "limits": {"rpm": 1}}, "limits.rpm"),
    ]
    for path in ("adapters", "routes"):
        broken = post(f"/v1/{path}", content=b"{", headers={"content-type": "application/json"})
        assert refusal(broken, 400, "invalid_value")["param"] is None
    for path, body, param in wrong:
        assert refusal(post(f"/v1/{path}", json=body), 400, "invalid_value")["param"] == param
    refusal(post("/v1/adapters", json={"name": "Not A Name", "path": "/x"}), 400, "invalid_name")
    refusal(post("/v1/adapters", json={"name": MODEL, "path": str(gateway.lora())}), 409, "name_taken")
    refusal(post("/v1/adapters", json={"name": "x", "path": "/x", "base_model": "y"}), 400, "model_not_found")


def test_what_is_not_there_is_404(gateway: Gateway) -> None:
    get = gateway.http.get
    refusal(get("/v1/adapters/nothing"), 404, "adapter_not_found")
    refusal(get("/v1/adapters/nothing@1"), 404, "version_not_found")
    refusal(get("/v1/routes/nothing"), 404, "route_not_found")
    refusal(get("/v1/engines/nothing"), 404, "engine_not_found")
    refusal(gateway.http.delete("/v1/keys/nothing"), 404, "key_not_found")
    refusal(gateway.http.delete("/v1/adapters/nothing"), 400, "invalid_version_ref")


def test_promote_and_rollback_hold_for_the_very_next_request(gateway: Gateway) -> None:
    first, second = gateway.add("swap"), gateway.add("swap")
    for _ in range(5):
        promoted = gateway.http.post("/v1/routes/swap/promote", json={"variant": second}).json()
        assert (promoted["object"], promoted["variant"], promoted["history"]) == ("route", second, [first])
        assert gateway.answered_by("swap") == second
        assert gateway.http.post("/v1/routes/swap/rollback").json()["variant"] == first
        assert gateway.answered_by("swap") == first
    refusal(gateway.http.post("/v1/routes/swap/rollback", json={"to": None}), 409, "nothing_to_roll_back")
    assert gateway.answered_by(second) == second


def test_a_route_can_stand_for_the_base_model_and_go_away(gateway: Gateway) -> None:
    made = gateway.http.post("/v1/routes", json={"name": "plain", "variant": MODEL})
    assert made.status_code == 201
    assert gateway.answered_by("plain") == "base"
    assert "plain" in [route["id"] for route in gateway.http.get("/v1/routes").json()["data"]]
    gone = gateway.http.delete("/v1/routes/plain").json()
    assert gone == {"id": "plain", "object": "route", "deleted": True}
    refusal(gateway.http.get("/v1/models/plain"), 404, "model_not_found")


def test_a_version_that_answers_as_the_base_is_never_promoted(gateway: Gateway) -> None:
    gateway.engine.set(fault="load_as_base")
    try:
        made = gateway.http.post("/v1/adapters", json={"name": "dud", "path": str(gateway.lora())}).json()
        version = gateway.settled(made["id"])
    finally:
        gateway.engine.reset()
    assert version["state"] == "failed"
    assert "base" in version["reason"]
    error = refusal(
        gateway.http.post("/v1/routes/dud/promote", json={"variant": "dud@1"}), 409, "version_not_ready"
    )
    assert "base" in error["message"]


def test_removing_waits_for_the_requests_in_flight(gateway: Gateway) -> None:
    first, second = gateway.add("leaver"), gateway.add("leaver")
    refusal(gateway.http.delete(f"/v1/adapters/{first}"), 409, "version_in_use")
    gateway.engine.set(itl_seconds=0.1)
    try:
        body = {"model": second, "prompt": "Hello", "max_tokens": 30, "stream": True, "ignore_eos": True}
        with gateway.http.stream("POST", "/v1/completions", json=body, timeout=60) as answer:
            pieces = answer.iter_bytes()
            next(pieces)
            removed = gateway.http.delete(f"/v1/adapters/{second}")
            assert (removed.status_code, removed.json()["state"]) == (202, "removing")
            refusal(gateway.http.get(f"/v1/models/{second}"), 404, "model_not_found")
            time.sleep(1)
            assert gateway.http.get(f"/v1/adapters/{second}").json()["state"] == "removing"
            rest = b"".join(pieces)
        assert rest.endswith(b"data: [DONE]\n\n")
    finally:
        gateway.engine.reset()
    wait_for(lambda: gateway.http.get(f"/v1/adapters/{second}").json()["state"] == "removed", 20)
    kept = gateway.http.get("/v1/adapters/leaver").json()["versions"]
    assert [(version["id"], version["state"]) for version in kept] == [(first, "proved"), (second, "removed")]
    assert gateway.http.get("/v1/adapters", params={"name": "leaver"}).json()["data"][0]["id"] == first


def test_engines_tell_what_they_hold(gateway: Gateway) -> None:
    ref = gateway.add("held")
    (engine,) = gateway.http.get("/v1/engines").json()["data"]
    assert (engine["id"], engine["kind"], engine["model"], engine["state"]) == ("e0", "vllm", MODEL, "up")
    assert ref in engine["adapters"]
    assert engine == {**gateway.http.get("/v1/engines/e0").json(), "outstanding": engine["outstanding"]}


def test_every_change_is_in_the_audit_log(gateway: Gateway) -> None:
    gateway.add("audited")
    gateway.http.post("/v1/routes", json={"name": "audit", "variant": "audited@1"})
    events = gateway.http.get("/v1/events", params={"subject": "audited@1"}).json()["data"]
    assert [event["action"] for event in events][-1] == "adapter.imported"
    assert events[-1]["actor"] == "api"
    (created,) = gateway.http.get("/v1/events", params={"subject": "audit"}).json()["data"]
    assert (created["action"], created["detail"]["variant"]) == ("route.created", "audited@1")
    page = gateway.http.get("/v1/events", params={"limit": 1}).json()
    assert (len(page["data"]), page["has_more"]) == (1, True)


def test_another_sites_page_may_not_act_without_a_key(gateway: Gateway) -> None:
    def rollback(origin: str) -> httpx.Response:
        return gateway.http.post("/v1/routes/nothing/rollback", headers={"origin": origin})

    refusal(rollback("https://evil.example"), 403, "origin_not_allowed")
    refusal(rollback("null"), 403, "origin_not_allowed")
    refusal(rollback("http://localhost:3000"), 404, "route_not_found")


def test_the_surface_is_in_the_openapi_document(gateway: Gateway) -> None:
    paths = gateway.http.get("/openapi.json").json()["paths"]
    assert set(paths["/v1/adapters"]["post"]["requestBody"]["content"]) == {
        "application/json",
        "multipart/form-data",
    }
    assert {"/v1/adapters/{ref}", "/v1/routes/{name}/promote", "/v1/keys/{key_id}", "/v1/engines"} <= set(
        paths
    )


def test_the_cli_works_beside_a_living_gateway(gateway: Gateway) -> None:
    burnish = gateway.server.burnish
    for number in (1, 2):
        added = burnish("adapters", "add", "beside", str(gateway.lora()))
        assert added.stdout.startswith(f"beside@{number}  proved  sha256:")
        assert "loaded and proved it ..." in added.stderr
    assert "burnish promote beside@2" in added.stderr
    burnish("promote", "beside@2")
    wait_for(lambda: gateway.answered_by("beside") == "beside@2", 5)
    burnish("rollback", "beside")
    wait_for(lambda: gateway.answered_by("beside") == "beside@1", 5)
    assert burnish("adapters", "remove", "beside@2").stdout == "beside@2  removed\n"
    assert "e0" in burnish("engines").stdout
    (engine,) = json.loads(burnish("engines", "--json").stdout)["data"]
    assert "beside@1" in engine["adapters"]


def test_the_cli_waits_for_a_removal_that_requests_hold_up(gateway: Gateway) -> None:
    gateway.add("slow")
    ref = gateway.add("slow")
    gateway.engine.set(itl_seconds=0.1)
    try:
        body = {"model": ref, "prompt": "Hello", "max_tokens": 120, "stream": True, "ignore_eos": True}
        with gateway.http.stream("POST", "/v1/completions", json=body, timeout=60) as answer:
            pieces = answer.iter_bytes()
            next(pieces)
            command = [sys.executable, "-m", "gateway.cli", "adapters", "remove", ref]
            removing = subprocess.Popen(
                command, env=gateway.server.environ, stdout=subprocess.PIPE, text=True
            )
            wait_for(lambda: gateway.http.get(f"/v1/adapters/{ref}").json()["state"] == "removing", 20)
            assert removing.poll() is None
            assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
    finally:
        gateway.engine.reset()
    out, _ = removing.communicate(timeout=30)
    assert (removing.returncode, out) == (0, f"{ref}  removed\n")


def test_a_keys_limits_are_set_and_changed_one_by_one(gateway_on_fake: Server) -> None:
    with gateway_on_fake.http() as http:
        made = http.post("/v1/keys", json={"name": "ops", "scopes": ["admin"], "limits": {}}).json()
        limits = {"requests_per_minute": None, "tokens_per_minute": None, "concurrent_requests": None}
        assert made["limits"] == limits
        http.headers["authorization"] = f"Bearer {made['secret']}"
        app = {"name": "app", "scopes": ["inference"], "limits": {"requests_per_minute": 60}}
        made = http.post("/v1/keys", json=app).json()
        assert made["limits"] == limits | {"requests_per_minute": 60}

        def patch(**named: Any) -> httpx.Response:
            return http.patch(f"/v1/keys/{made['id']}", json={"limits": named})

        assert patch(tokens_per_minute=0).json()["limits"] == limits | {
            "requests_per_minute": 60,
            "tokens_per_minute": 0,
        }
        assert patch(requests_per_minute=None).json()["limits"] == limits | {"tokens_per_minute": 0}
        for wrong in (-1, 1.5, "60", True):
            error = refusal(patch(concurrent_requests=wrong), 400, "invalid_value")
            assert error["param"] == "limits.concurrent_requests"
        assert refusal(patch(rpm=1), 400, "invalid_value")["param"] == "limits.rpm"
        refusal(http.patch("/v1/keys/nothing", json={"limits": {}}), 404, "key_not_found")
        actions = [
            event["action"] for event in http.get("/v1/events", params={"subject": made["id"]}).json()["data"]
        ]
        assert actions == ["key.limited", "key.limited", "key.created"]
        http.delete(f"/v1/keys/{made['id']}")
        refusal(patch(requests_per_minute=1), 409, "conflict")


def test_a_limited_key_is_refused_in_openais_words_until_its_limit_is_lifted(gateway_on_fake: Server) -> None:
    with gateway_on_fake.http() as http:
        ops = http.post("/v1/keys", json={"name": "ops", "scopes": ["admin"]}).json()
        admin = {"authorization": f"Bearer {ops['secret']}"}
        app = {"name": "app", "scopes": ["inference"], "limits": {"requests_per_minute": 2}}
        made = http.post("/v1/keys", json=app, headers=admin).json()
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}

        def ask() -> httpx.Response:
            headers = {"authorization": f"Bearer {made['secret']}"}
            return http.post("/v1/chat/completions", json=body, headers=headers)

        answers = [ask(), ask()]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].headers["x-ratelimit-remaining-requests"] == "1"
        assert "x-ratelimit-limit-tokens" not in answers[0].headers
        late = ask()
        error = refusal(late, 429, "rate_limit_exceeded")
        assert error["type"] == "requests"
        assert error["message"].startswith(
            "Rate limit reached for this key on requests per min (RPM): Limit 2, "
        )
        assert 1 <= int(late.headers["retry-after"]) <= 30
        assert late.headers["x-ratelimit-remaining-requests"] == "0"

        gateway_on_fake.burnish("keys", "limit", "app", "--rpm", "0", "--tpm", "1000")
        lifted = wait_for(lambda: answer if (answer := ask()).status_code == 200 else None)
        assert "x-ratelimit-limit-requests" not in lifted.headers
        left = int(lifted.headers["x-ratelimit-remaining-tokens"])
        assert 900 < left < 1000, "what the request was estimated at is taken already"
        body["max_tokens"] = 1001
        too_large = ask()
        assert refusal(too_large, 429, "rate_limit_exceeded")["type"] == "tokens"
        assert "retry-after" not in too_large.headers


def test_keys_open_what_their_scopes_say(gateway_on_fake: Server) -> None:
    with gateway_on_fake.http() as http:
        made = http.post("/v1/keys", json={"name": "ops", "scopes": ["admin"]})
        assert made.status_code == 201
        admin = {"authorization": f"Bearer {made.json()['secret']}"}
        refusal(http.get("/v1/routes"), 401, "missing_api_key")  # the very next request needs it

        other = http.post("/v1/keys", json={"name": "app", "scopes": ["inference"]}, headers=admin).json()
        inference = {"authorization": f"Bearer {other['secret']}"}
        assert http.get("/v1/models", headers=inference).status_code == 200
        for path in ("adapters", "routes", "experiments", "keys", "engines", "events"):
            refusal(http.get(f"/v1/{path}", headers=inference), 403, "insufficient_scope")
            assert http.get(f"/v1/{path}", headers=admin).status_code == 200
        refusal(http.post("/v1/adapters", content=b"not read", headers=inference), 403, "insufficient_scope")

        listed = http.get("/v1/keys", headers=admin)
        assert other["secret"] not in listed.text
        assert "digest" not in listed.text
        (event,) = http.get("/v1/events", params={"subject": other["id"]}, headers=admin).json()["data"]
        assert event["actor"] == f"key:{made.json()['id']}"

        assert "BURNISH_API_KEY" in gateway_on_fake.burnish("engines", check=False).stderr
        gateway_on_fake.environ["BURNISH_API_KEY"] = made.json()["secret"]
        assert "e0" in gateway_on_fake.burnish("engines").stdout

        assert http.delete(f"/v1/keys/{other['id']}", headers=admin).json()["revoked"] is not None
        refusal(http.get("/v1/models", headers=inference), 401, "invalid_api_key")
        http.delete(f"/v1/keys/{made.json()['id']}", headers=admin)
        refusal(http.get("/v1/routes", headers=admin), 401, "invalid_api_key")  # it stays closed
