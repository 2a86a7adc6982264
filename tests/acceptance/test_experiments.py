"""Experiments on real processes: simulated users judge answers, and the experiment decides, acts, and lets go in time.

The fake engine gives the answers; its faults make a variant slow. Numbers that a person may want are printed (`-s`).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtests.fake_engine.process import FakeEngine
from tests.acceptance.experimenting import CHALLENGER, begin, served_name, shown
from tests.conftest import Server, engines_config, running, wait_for

LIKED = {"support@1": 0.3, "support@2": 0.8, "support@3": 0.05}
"""How often simulated users like each version's answers."""

AT_ONCE = 16
SLOW_SECONDS = 0.3
GONE_SECONDS = 2.0
"""From the decision to the last assignment, at most, on every gateway."""


@pytest.fixture
def server(gateway_on_fake: Server) -> Server:
    """A gateway with three versions of `support`, of which the first is the route's default."""
    for seed in (1, 2, 3):
        gateway_on_fake.add_adapter("support", seed=seed)
    return gateway_on_fake


def judge(server: Server, user: str, rng: random.Random) -> str:
    """One user asks, and gives a thumb by how good the version is that answered; which one that was."""
    client = server.client()
    raw = client.chat.completions.with_raw_response.create(
        model="support",
        messages=[{"role": "user", "content": f"hello from {user}"}],
        max_tokens=8,
        safety_identifier=user,
    )
    version = raw.headers["x-burnish-adapter"].split()[0]
    thumb = {"completion_id": raw.parse().id, "value": rng.random() < LIKED[version]}
    client.post("/feedback", body=thumb, cast_to=object)
    return version


def users_until_decided(server: Server, name: str, most: int, state: str = "ended") -> dict[str, Any]:
    """New users come, a hundred at a time, until the experiment is in that state."""
    rng = random.Random(name)
    with ThreadPoolExecutor(8) as pool:
        for first in range(0, most, 100):
            users = [f"{name}-{number}" for number in range(first, first + 100)]
            list(pool.map(lambda user: judge(server, user, rng), users))
            time.sleep(1.2)  # a look
            found = shown(server, name)
            if found["state"] == state:
                return found
    raise AssertionError(f"{most} users, and no decision: {json.dumps(shown(server, name), indent=1)}")


def default_of(server: Server) -> str:
    with server.http() as http:
        return str(http.get("/v1/routes/support").json()["variant"])


def test_the_better_version_is_promoted_by_what_users_say(server: Server) -> None:
    name = begin(server, challengers=["support@2"], on_promote="act")
    found = users_until_decided(server, name, 1000)
    assert found["verdict"]["outcome"] == "promote"
    assert found["verdict"]["variant"] == "support@2"
    assert found["verdict"]["numbers"]["comparisons"][0]["difference"]["lower"] > 0
    assert default_of(server) == "support@2"
    with server.http() as http:
        events = http.get("/v1/events", params={"subject": "support"}).json()["data"]
    assert {"experiment.started", "experiment.ended", "route.moved"} <= {event["action"] for event in events}


def test_a_person_decides_where_the_plan_says_so(server: Server) -> None:
    name = begin(server, challengers=["support@2"])
    found = users_until_decided(server, name, 1000, "awaiting")
    assert default_of(server) == "support@1"
    assert f"burnish experiments decide {name} support@2" in found["verdict"]["done"]
    server.burnish("experiments", "decide", name, "support@2")
    assert default_of(server) == "support@2"
    assert shown(server, name)["state"] == "ended"


def test_a_worse_canary_is_gone_before_it_has_grown(server: Server) -> None:
    name = begin(
        server,
        challengers=["support@3"],
        policy="canary",
        steps=[0.2, 0.5],
        step_seconds=3600,
        on_promote="act",
    )
    found = users_until_decided(server, name, 3000)
    assert found["verdict"]["outcome"] == "stopped by guardrail"
    assert "score" in found["verdict"]["reasons"][0]
    assert default_of(server) == "support@1"
    assert judge(server, "somebody", random.Random(0)) == "support@1"


def test_a_harmless_canary_grows_step_by_step_to_the_whole(server: Server) -> None:
    name = begin(
        server,
        challengers=["support@2"],
        policy="canary",
        steps=[0.2, 0.6],
        step_seconds=2,
        step_units=10,
        on_promote="act",
    )
    found = users_until_decided(server, name, 2000)
    assert found["verdict"]["outcome"] == "promote"
    assert default_of(server) == "support@2"
    with server.http() as http:
        events = http.get("/v1/events", params={"subject": "support"}).json()["data"]
    shares = [e["detail"]["shares"]["support@2"] for e in events if e["action"] == "experiment.reshared"]
    assert shares == [0.6]


def test_an_adaptive_experiment_gives_the_better_version_more_and_more(server: Server) -> None:
    name = begin(server, challengers=["support@2"], policy="adaptive", reallocate_seconds=1)
    rng = random.Random(5)
    with ThreadPoolExecutor(8) as pool:
        for first in range(0, 400, 100):
            list(pool.map(lambda n: judge(server, f"u{n}", rng), range(first, first + 100)))
            time.sleep(1.5)
    found = wait_for(lambda: _if(shown(server, name), lambda f: f["shares"]["support@2"] > 0.6), 10)
    assert found["shares"]["support@2"] > 0.8, found


def test_an_experiment_that_ends_in_the_middle_of_a_process_goes_on_after_it(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """kill -9 of the gateway while an experiment runs: the next one looks at the same evidence."""
    config = engines_config(engine)
    with running(tmp_path / "home", config) as first:
        for seed in (1, 2):
            first.add_adapter("support", seed=seed)
        name = begin(first, challengers=["support@2"], on_promote="act")
        rng = random.Random(1)
        before = [judge(first, f"u{n}", rng) for n in range(40)]
        first.process.kill()
        first.process.wait()
        with running(tmp_path / "home", config) as second:
            wait_for(lambda: _answers(second), 20)
            again = [judge(second, f"u{n}", rng) for n in range(40)]
            assert again == before, "a restart moved users to other variants"
            found = shown(second, name)
            arms = found["current"]["arms"]
            assert sum(arm["units"] for arm in arms.values()) == 40
            assert sum(arm["answers"] for arm in arms.values()) == 80


def _answers(server: Server) -> bool:
    with server.http() as http:
        body = {"model": "support@2", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        return http.post("/v1/chat/completions", json=body).status_code == 200


def _if(value: Any, check: Any) -> Any:
    return value if check(value) else None


# -- a breach under load ---------------------------------------------------------------------------
@dataclass
class Load:
    """Users who stream answers, all the time, from every gateway; what came of it."""

    servers: list[Server]
    answers: list[tuple[float, str]] = field(default_factory=list)  # (when it began, the version)
    failures: list[str] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    async def run(self, done: asyncio.Event) -> None:
        async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
            await asyncio.gather(*(self._worker(http, server, done) for server in self.servers * AT_ONCE))

    async def _worker(self, http: httpx.AsyncClient, server: Server, done: asyncio.Event) -> None:
        while not done.is_set():
            user = f"load-{next(self.numbers) % 2000}"
            body = {
                "model": "support",
                "messages": [{"role": "user", "content": "hello"}],
                "max_tokens": 8,
                "stream": True,
                "safety_identifier": user,
            }
            began = time.time()
            answer = await http.post(f"{server.base_url}/chat/completions", json=body)
            if answer.status_code != 200 or not answer.text.endswith("data: [DONE]\n\n"):
                self.failures.append(f"{answer.status_code} {answer.text[-200:]}")
            self.answers.append((began, answer.headers.get("x-burnish-adapter", "").split(" ")[0]))


@pytest.mark.alone
@pytest.mark.timeout(240)
async def test_a_guardrail_breach_under_load_ends_the_challengers_traffic_on_every_gateway(
    server: Server, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    config = engines_config(engine)
    with running(server.home, config) as other:
        await asyncio.to_thread(wait_for, lambda: _answers(other), 20)
        served = await asyncio.to_thread(served_name, server, CHALLENGER)
        name = await asyncio.to_thread(lambda: begin(server, challengers=["support@2"]))
        load, done = Load([server, other]), asyncio.Event()
        running_load = asyncio.create_task(load.run(done))
        try:
            await asyncio.sleep(5)
            assert (await asyncio.to_thread(shown, server, name))["state"] == "running"
            slowed = time.time()
            engine.set(fault="slow_headers", slow_seconds=SLOW_SECONDS, fault_models=[served])
            found = await asyncio.to_thread(
                wait_for, lambda: _if(shown(server, name), lambda f: f["state"] == "ended"), 120
            )
            await asyncio.sleep(GONE_SECONDS + 2)
        finally:
            done.set()
            await running_load
    verdict = found["verdict"]
    assert verdict["outcome"] == "stopped by guardrail"
    assert "ttft_seconds" in verdict["reasons"][0]
    assert load.failures == []
    last = max(began for began, version in load.answers if version == "support@2")
    after = [began for began, _ in load.answers if began > verdict["at"] + GONE_SECONDS]
    assert len(after) > 50, "the load ended too soon to show anything"
    with capsys.disabled():
        print(
            f"\nbreach: {verdict['at'] - slowed:.1f} s from the slowdown to the decision, "
            f"{last - verdict['at']:.2f} s from the decision to the last assignment on two gateways; "
            f"{len(load.answers)} streams, none failed"
        )
    assert last <= verdict["at"] + GONE_SECONDS
