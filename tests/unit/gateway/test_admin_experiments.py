"""Experiments over HTTP, on a real gateway process over a fake engine: begun, looked at, stopped, decided."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import httpx
import pytest

from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, Server, engines_config, running, wait_for

NUMBERS = count(1)


@dataclass
class Gateway:
    """A gateway without keys whose routes stand for the base model, and one proved version, `rival@1`."""

    server: Server
    http: httpx.Client

    def route(self) -> str:
        """A route that nobody has asked yet."""
        name = f"route-{next(NUMBERS)}"
        made = self.http.post("/v1/routes", json={"name": name, "variant": MODEL})
        assert made.status_code == 201, made.text
        return name

    def begin(self, route: str, **plan: Any) -> dict[str, Any]:
        body = {"route": route, "plan": {"challengers": ["rival@1"], **plan}}
        made = self.http.post("/v1/experiments", json=body)
        assert made.status_code == 201, made.text
        found: dict[str, Any] = made.json()
        return found

    def ask(self, route: str, user: str) -> tuple[str, str]:
        """The answer's id, and the variant that gave it."""
        body = {"model": route, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        answer = self.http.post("/v1/chat/completions", json={**body, "user": user})
        assert answer.status_code == 200, answer.text
        variant = answer.headers["x-burnish-adapter"].partition(" ")[0]
        return answer.json()["id"], MODEL if variant == "base" else variant

    def judge(self, route: str, users: int, liked: str | None = None) -> Counter[str]:
        """So many users ask once and say what they think; how many got each variant."""
        met: Counter[str] = Counter()
        for user in range(users):
            id, variant = self.ask(route, f"user-{user}")
            value = user % 2 == 0 if liked is None else variant == liked
            said = self.http.post("/v1/feedback", json={"completion_id": id, "value": value})
            assert said.status_code == 201, said.text
            met[variant] += 1
        return met

    def post(self, path: str, body: Any) -> httpx.Response:
        """Also what httpx would not send, such as an infinity or half a character."""
        headers = {"content-type": "application/json"}
        return self.http.post(path, content=json.dumps(body), headers=headers)

    def get(self, name: str, **query: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/v1/experiments/{name}", params=query).json()
        return found


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("experiments") / "home"
    with (
        FakeEngine(MODEL, max_loras=16) as engine,
        running(home, engines_config(engine)) as server,
        server.http() as http,
    ):
        server.add_adapter("rival")
        yield Gateway(server, http)


def refusal(answer: httpx.Response, status: int, code: str | None) -> dict[str, Any]:
    """The OpenAI error that an answer is."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return error


# -- seen ----------------------------------------------------------------------------------------
def test_an_experiment_splits_the_very_next_requests(gateway: Gateway) -> None:
    route = gateway.route()
    made = gateway.begin(route)
    assert (made["object"], made["name"], made["route"]) == ("experiment", f"{route}-1", route)
    assert (made["state"], made["policy"], made["control"]) == ("running", "test", MODEL)
    assert made["shares"] == {MODEL: 0.5, "rival@1": 0.5}
    assert (made["actor"], made["verdict"], made["ended"], made["dropped"]) == ("api", None, None, {})
    assert made["plan"]["challengers"] == {"rival@1": None}
    assert made["plan"]["alpha"] == 0.05
    first = [gateway.ask(route, f"user-{n}")[1] for n in range(40)]
    assert set(first) == {MODEL, "rival@1"}
    assert first == [gateway.ask(route, f"user-{n}")[1] for n in range(40)], "who got a variant keeps it"


def test_what_there_is_to_see_is_as_fresh_as_the_last_click(gateway: Gateway) -> None:
    route = gateway.route()
    made = gateway.begin(route, least_voices=10)
    before = gateway.get(made["name"])["current"]
    assert before["comparisons"][0]["difference"]["cannot_tell"]
    met = gateway.judge(route, 60)
    found = gateway.get(made["name"])
    assert found == gateway.get(made["id"])
    assert {"current", "shares"} <= set(found)
    assert "looks" not in found
    arms = found["current"]["arms"]
    for variant, units in met.items():
        arm = arms[variant]
        assert (arm["units"], arm["answers"], arm["share"]) == (units, units, 0.5)
        assert arm["scores"]["rating"]["voices"] == units
        assert 0 <= arm["scores"]["rating"]["lower"] <= arm["scores"]["rating"]["upper"] <= 1
        assert arm["metrics"]["error_rate"] == 0.0
        assert arm["metrics"]["output_tokens"] == pytest.approx(4)
    (comparison,) = found["current"]["comparisons"]
    assert (comparison["variant"], comparison["score"]) == ("rival@1", "rating")
    difference = comparison["difference"]
    assert difference["lower"] < difference["estimate"] < difference["upper"]
    guarded = {each["metric"] for each in found["current"]["guardrails"]}
    assert guarded == {"error_rate", "ttft_seconds", "inter_token_seconds"}
    assert found["current"]["sample_ratio"]["broken"] is False


def test_the_looks_that_were_kept_can_be_had(gateway: Gateway) -> None:
    route = gateway.route()
    name = gateway.begin(route)["name"]
    gateway.judge(route, 10)
    found = wait_for(lambda: gateway.get(name, looks=True)["looks"])
    assert [look["at"] for look in found] == sorted(look["at"] for look in found)
    assert set(found[0]) == {"at", "arms", "comparisons", "guardrails", "sample_ratio"}


def test_an_ended_experiment_shows_the_numbers_of_its_verdict(gateway: Gateway) -> None:
    route = gateway.route()
    name = gateway.begin(route, horizon_seconds=0.2)["name"]
    ended = wait_for(lambda: found if (found := gateway.get(name))["state"] == "ended" else None)
    verdict = ended["verdict"]
    assert (verdict["outcome"], verdict["by"]) == ("inconclusive", "experiment")
    assert set(verdict) == {"outcome", "variant", "reasons", "rule", "by", "at", "done", "numbers"}
    assert ended["current"] == verdict["numbers"]
    assert ended["ended"] >= ended["created"]


def test_of_a_route_that_is_gone_there_is_nothing_to_see(gateway: Gateway) -> None:
    route = gateway.route()
    name = gateway.begin(route)["name"]
    gateway.http.delete(f"/v1/routes/{route}")
    found = gateway.get(name)
    assert (found["state"], found["current"]) == ("ended", None)
    assert found["verdict"]["reasons"] == ["its route was deleted"]


def test_experiments_are_listed_by_route_the_newest_first(gateway: Gateway) -> None:
    route = gateway.route()
    for _ in range(2):
        name = gateway.begin(route)["name"]
        gateway.http.post(f"/v1/experiments/{name}/stop")
    listed = gateway.http.get("/v1/experiments", params={"route": route}).json()
    assert (listed["object"], listed["has_more"]) == ("list", False)
    assert [each["name"] for each in listed["data"]] == [f"{route}-2", f"{route}-1"]
    assert {each["current"] for each in listed["data"]} == {None}
    every = [each["name"] for each in gateway.http.get("/v1/experiments").json()["data"]]
    assert f"{route}-1" in every
    for nowhere in ("nothing", "\0", "\ud7ff"):
        assert gateway.http.get("/v1/experiments", params={"route": nowhere}).json()["data"] == []


# -- steered -------------------------------------------------------------------------------------
def test_stopping_gives_all_traffic_back_to_the_default_and_says_why(gateway: Gateway) -> None:
    route = gateway.route()
    name = gateway.begin(route)["name"]
    stopped = gateway.http.post(f"/v1/experiments/{name}/stop", json={"reason": "a holiday"}).json()
    assert (stopped["state"], stopped["verdict"]["outcome"]) == ("ended", "stopped by a person")
    assert (stopped["verdict"]["reasons"], stopped["verdict"]["by"]) == (["a holiday"], "api")
    assert {gateway.ask(route, f"user-{n}")[1] for n in range(20)} == {MODEL}
    refusal(gateway.http.post(f"/v1/experiments/{name}/stop"), 409, "experiment_ended")
    refusal(
        gateway.http.post(f"/v1/experiments/{name}/decide", json={"variant": MODEL}), 409, "experiment_ended"
    )
    assert gateway.get(name)["current"]["arms"][MODEL]["answers"] == 0


def test_a_person_decides_and_the_next_request_goes_by_it(gateway: Gateway) -> None:
    route = gateway.route()
    name = gateway.begin(route)["name"]
    error = refusal(
        gateway.http.post(f"/v1/experiments/{name}/decide", json={"variant": "x@1"}), 400, "invalid_value"
    )
    assert error["param"] == "variant"
    decided = gateway.http.post(f"/v1/experiments/{name}/decide", json={"variant": "rival@1"}).json()
    assert (decided["state"], decided["verdict"]["outcome"]) == ("ended", "promote")
    assert decided["verdict"]["done"] == "promoted rival@1"
    assert {gateway.ask(route, f"user-{n}")[1] for n in range(20)} == {"rival@1"}
    assert gateway.http.get(f"/v1/routes/{route}").json()["history"] == [MODEL]
    actions = [
        event["action"] for event in gateway.http.get("/v1/events", params={"subject": route}).json()["data"]
    ]
    assert {"experiment.started", "experiment.ended", "route.moved"} <= set(actions)


def test_the_control_can_be_kept(gateway: Gateway) -> None:
    route = gateway.route()
    name = gateway.begin(route)["name"]
    decided = gateway.http.post(f"/v1/experiments/{name}/decide", json={"variant": MODEL}).json()
    assert (decided["verdict"]["outcome"], decided["verdict"]["variant"]) == ("keep", MODEL)
    assert gateway.http.get(f"/v1/routes/{route}").json()["history"] == []


# -- estimated -----------------------------------------------------------------------------------
def test_what_was_logged_speaks_for_a_variant_or_a_mixture(gateway: Gateway) -> None:
    route = gateway.route()
    gateway.begin(route, least_voices=1000)
    gateway.judge(route, 120, liked="rival@1")

    def estimated(target: Any, **more: Any) -> dict[str, Any]:
        body = {"route": route, "target": target, **more}
        answer = gateway.http.post("/v1/experiments/estimate", json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    better = estimated("rival@1")
    assert (better["target"], better["score"], better["alpha"]) == ({"rival@1": 1.0}, "rating", 0.05)
    assert (better["rows"], better["cannot_tell"]) == (120, None)
    assert better["value"]["doubly_robust"]["estimate"] == pytest.approx(1.0, abs=0.02)
    mixture = {"rival@1": 0.5, MODEL: 0.5}
    assert estimated(mixture)["value"]["doubly_robust"]["estimate"] == pytest.approx(0.5, abs=0.02)
    narrow, wide = (estimated(mixture, alpha=a)["value"]["inverse_propensity"] for a in (0.05, 0.01))
    assert wide["lower"] < narrow["lower"] < narrow["upper"] < wide["upper"]
    refused = estimated("rival@1", since=4e9)
    assert refused["value"] is None
    assert "begin an experiment" in refused["cannot_tell"]
    assert "x@9" in estimated("x@9")["cannot_tell"]


# -- refused -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"plan": {"challengers": ["rival@1"]}}, 400, "invalid_value", "route"),
        ({"route": "ROUTE"}, 400, "invalid_value", "plan"),
        ({"route": "ROUTE", "plan": ["rival@1"]}, 400, "invalid_value", "plan"),
        ({"route": "ROUTE", "plan": {}, "policy": "test"}, 400, "invalid_value", "policy"),
        ({"route": "ROUTE", "plan": {}}, 400, "invalid_value", "plan.challengers"),
        ({"route": "ROUTE", "plan": {"alpah": 0.1}}, 400, "unknown_field", "plan.alpah"),
        (
            {"route": "ROUTE", "plan": {"challengers": ["rival@1"], "alpha": 10**400}},
            400,
            "invalid_value",
            "plan.alpha",
        ),
        (
            {"route": "ROUTE", "plan": {"challengers": {"rival@1": 10**400}}},
            400,
            "invalid_value",
            "plan.challengers.rival@1",
        ),
        (
            {"route": "ROUTE", "plan": {"challengers": {"\ud800": 2}}},
            400,
            "invalid_value",
            None,
        ),
        ({"route": "ROUTE", "plan": {"challengers": [MODEL]}}, 400, "invalid_value", "plan.challengers"),
        ({"route": "ROUTE", "plan": {"challengers": ["x@1"]}}, 404, "version_not_found", "plan.challengers"),
        (
            {"route": "ROUTE", "plan": {"challengers": ["rival@1"], "scores": ["fun"]}},
            400,
            "invalid_value",
            "plan.scores",
        ),
        ({"route": "nowhere", "plan": {"challengers": ["rival@1"]}}, 404, "route_not_found", None),
        (
            {"route": "ROUTE", "name": "No Name", "plan": {"challengers": ["rival@1"]}},
            400,
            "invalid_name",
            None,
        ),
    ],
)
def test_a_wrong_declaration_is_refused_with_its_field(
    gateway: Gateway, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    route = gateway.route()
    named = {**body, "route": route} if body.get("route") == "ROUTE" else body
    error = refusal(gateway.post("/v1/experiments", named), status, code)
    if param is not None:
        assert error["param"] == param
    assert gateway.http.get("/v1/experiments", params={"route": route}).json()["data"] == []


def test_a_route_has_one_experiment_and_a_name_is_given_once(gateway: Gateway) -> None:
    route, other = gateway.route(), gateway.route()
    body = {"name": f"of-{route}", "route": route, "plan": {"challengers": ["rival@1"]}}
    assert gateway.http.post("/v1/experiments", json=body).json()["name"] == f"of-{route}"
    refusal(gateway.http.post("/v1/experiments", json={**body, "name": None}), 409, "experiment_open")
    refusal(gateway.http.post("/v1/experiments", json={**body, "route": other}), 409, "experiment_exists")
    gateway.http.put(f"/v1/routes/{other}/challengers", json={"challengers": {"rival@1": 0.1}})
    challenged = {"route": other, "plan": {"challengers": ["rival@1"]}}
    refusal(gateway.http.post("/v1/experiments", json=challenged), 409, "route_challenged")


def test_what_is_not_there_is_404(gateway: Gateway) -> None:
    for name in ("nothing", "exp_000000000000000000000000", "%00"):
        refusal(gateway.http.get(f"/v1/experiments/{name}"), 404, "experiment_not_found")
        refusal(gateway.http.post(f"/v1/experiments/{name}/stop"), 404, "experiment_not_found")
        decision = {"variant": "rival@1"}
        refusal(
            gateway.http.post(f"/v1/experiments/{name}/decide", json=decision), 404, "experiment_not_found"
        )


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"route": "nowhere"}, 404, "route_not_found", None),
        ({"score": "fun"}, 400, "invalid_value", "score"),
        ({"alpha": 1}, 400, "invalid_value", "alpha"),
        ({"alpha": "much"}, 400, "invalid_value", "alpha"),
        ({"target": {}}, 400, "invalid_value", "target"),
        ({"target": None}, 400, "invalid_value", "target"),
        ({"target": ["rival@1"]}, 400, "invalid_value", "target"),
        ({"target": {"rival@1": 0.5}}, 400, "invalid_value", "target"),
        ({"target": {"rival@1": 1.5, MODEL: -0.5}}, 400, "invalid_value", "target"),
        ({"target": {"rival@1": 1e999}}, 400, "invalid_value", "target.rival@1"),
        ({"since": "yesterday"}, 400, "invalid_value", "since"),
        ({"until": 5}, 400, "invalid_value", "until"),
    ],
)
def test_a_wrong_question_is_refused_with_its_field(
    gateway: Gateway, change: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    body = {"route": gateway.route(), "target": "rival@1", **change}
    error = refusal(gateway.post("/v1/experiments/estimate", body), status, code)
    assert error["param"] == param


def test_the_surface_is_in_the_openapi_document(gateway: Gateway) -> None:
    paths = gateway.http.get("/openapi.json").json()["paths"]
    assert {"/v1/experiments", "/v1/experiments/{name}/decide", "/v1/experiments/estimate"} <= set(paths)
