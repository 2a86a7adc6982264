"""Promise 5, a swap costs nothing: promotes and rollbacks under a steady load, with every answer accounted for."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

import httpx
import pytest

from loadtests.fake_engine.process import FakeEngine
from tests.conftest import Server, wait_for

SWAPS = 500
STREAMS = 8


@dataclass(frozen=True)
class Answer:
    began: float
    ended: float
    adapter: str
    weights: str


async def ask(http: httpx.AsyncClient, *, stream: bool) -> Answer:
    """One request; raises unless it is answered whole, by the weights that its header names."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    body = {
        "model": "support",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 12,
        "stream": stream,
    }
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    if stream:
        assert answer.text.endswith("data: [DONE]\n\n"), answer.text
        assert '"model":"support"' in answer.text
        said = "".join(re.findall(r'"content":"([^"]*)"', answer.text))
    else:
        assert answer.json()["model"] == "support"
        said = answer.json()["choices"][0]["message"]["content"]
    version = answer.headers["x-burnish-adapter"].split()[0]
    assert f"I am {version}." in said, (version, said)
    found = re.search(r"weights=([0-9a-f]{12})", said)
    assert found, said
    return Answer(began, loop.time(), version, found.group(1))


async def load(http: httpx.AsyncClient, done: asyncio.Event, answers: list[Answer]) -> None:
    count = 0
    while not done.is_set():
        answers.append(await ask(http, stream=count % 2 == 0))
        count += 1


def allowed(answer: Answer, defaults: list[tuple[float, float, str]]) -> bool:
    """Whether the version was the default at some moment of [began, …] that the client can tell apart.

    `defaults` are (asked, confirmed, version): between the two moments of a swap either side may be served.
    """
    for index, (asked, _, version) in enumerate(defaults):
        until = defaults[index + 1][1] if index + 1 < len(defaults) else float("inf")
        if version == answer.adapter and asked <= answer.ended and answer.began <= until:
            return True
    return False


@pytest.mark.timeout(300)
async def test_promise_05_five_hundred_swaps_under_load_fail_no_request_and_mix_no_answers(
    gateway_on_fakes: Server, engines: tuple[FakeEngine, FakeEngine]
) -> None:
    await asyncio.to_thread(gateway_on_fakes.add_adapter, "support", seed=1)
    await asyncio.to_thread(gateway_on_fakes.add_adapter, "support", seed=2)
    for engine in engines:
        engine.set(itl_seconds=0.002)
    loop = asyncio.get_running_loop()
    done, answers = asyncio.Event(), list[Answer]()
    async with httpx.AsyncClient(base_url=gateway_on_fakes.url, timeout=60, trust_env=False) as http:
        defaults = [(0.0, loop.time(), "support@1")]
        workers = [asyncio.create_task(load(http, done, answers)) for _ in range(STREAMS)]
        try:
            for swap in range(SWAPS):
                to = "support@2" if swap % 2 == 0 else "support@1"
                asked = loop.time()
                if swap % 4 == 1:
                    swapped = await http.post("/v1/routes/support/rollback", json={})
                else:
                    swapped = await http.post("/v1/routes/support/promote", json={"variant": to})
                assert swapped.status_code == 200, swapped.text
                assert swapped.json()["variant"] == to
                defaults.append((asked, loop.time(), to))
                # Nothing else swaps now, so this one can only be the new default's.
                assert (await ask(http, stream=swap % 2 == 0)).adapter == to
        finally:
            done.set()
            await asyncio.gather(*workers)
    assert len(answers) > SWAPS / 2
    assert {answer.adapter for answer in answers} == {"support@1", "support@2"}
    strangers = [answer for answer in answers if not allowed(answer, defaults)]
    assert not strangers
    pairs = {(answer.adapter, answer.weights) for answer in answers}
    assert len(pairs) == 2, "an adapter answered with another's weights"


def test_promise_05_a_request_keeps_the_version_it_began_with(
    gateway_on_fake: Server, engine: FakeEngine
) -> None:
    gateway_on_fake.add_adapter("support", seed=1)
    gateway_on_fake.add_adapter("support", seed=2)
    engine.set(itl_seconds=0.05)
    stream = gateway_on_fake.client().chat.completions.create(
        model="support", messages=[{"role": "user", "content": "hello"}], max_tokens=30, stream=True
    )
    first = next(stream)
    with gateway_on_fake.http() as http:
        assert http.post("/v1/routes/support/promote", json={"variant": "support@2"}).status_code == 200
    said = "".join(chunk.choices[0].delta.content or "" for chunk in (first, *stream))
    assert said.startswith("I am support@1.")


def test_a_removed_version_waits_for_its_requests_and_then_leaves_the_engine(
    gateway_on_fake: Server, engine: FakeEngine
) -> None:
    gateway_on_fake.add_adapter("support", seed=1)
    gateway_on_fake.add_adapter("support", seed=2)
    engine.set(itl_seconds=0.05)
    client = gateway_on_fake.client()
    stream = client.chat.completions.create(
        model="support@2", messages=[{"role": "user", "content": "hello"}], max_tokens=30, stream=True
    )
    next(stream)
    with gateway_on_fake.http() as http:
        assert http.delete("/v1/adapters/support@2").status_code in (200, 202)
        assert engine.stats()["unloads"] == 0
        assert "support@2" not in [model["id"] for model in http.get("/v1/models").json()["data"]]
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        wait_for(lambda: engine.stats()["unloads"] == 1)
        wait_for(lambda: http.get("/v1/adapters/support@2").json().get("state") in (None, "removed"))
