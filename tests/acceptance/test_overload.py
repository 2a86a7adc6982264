"""More is asked than there is: what gets in keeps its latency, the rest is told at once when to come again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, Server, running, wait_for

pytestmark = pytest.mark.alone

PLACES = 4
TOKENS = 10

CONFIG = """
[admission]
max_waiting = 4
max_wait_seconds = 2.0

[training]
worker = false

[[engines]]
name = "e0"
kind = "vllm"
model = "{model}"
url = "{url}"
max_concurrent = {places}
"""


def config(engine: FakeEngine, more: str = "") -> str:
    return more + CONFIG.format(model=engine.model, url=engine.url, places=PLACES)


async def ask(client: httpx.AsyncClient, key: str = "none") -> tuple[int, float, httpx.Response]:
    """The status, and the seconds that it took."""
    began = time.monotonic()
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": TOKENS}
    answer = await client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
    return answer.status_code, time.monotonic() - began, answer


def made_key(server: Server, *options: str) -> str:
    """A new key that the gateway has heard of; asking for the models costs nothing of it."""
    key = server.burnish("keys", "create", *options).stdout.strip()
    headers = {"authorization": f"Bearer {key}"}
    with server.http() as http:
        wait_for(lambda: http.get("/v1/models", headers=headers).status_code == 200)
    return key


async def many(server: Server, count: int, key: str = "none") -> list[tuple[int, float, httpx.Response]]:
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False, limits=limits) as client:
        return await asyncio.gather(*(ask(client, key) for _ in range(count)))


async def test_what_is_let_in_keeps_its_latency_and_the_rest_is_told_when_to_come(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.set(ttft_seconds=0.1, itl_seconds=0.05, crowd_seconds=0.01)
    with running(tmp_path / "home", config(engine)) as server:
        alone = await many(server, PLACES)
        assert [status for status, _, _ in alone] == [200] * PLACES
        flood = await many(server, 40)
    statuses = [status for status, _, _ in flood]
    assert set(statuses) == {200, 503}
    assert PLACES + 1 <= statuses.count(200) <= PLACES + 4
    assert engine.stats()["max_active"] <= PLACES, "the engine never had more than it takes"
    usual = max(seconds for _, seconds, _ in alone)
    served = [seconds for status, seconds, _ in flood if status == 200]
    assert max(served) < 6 * usual, "at most one wait and an answer; without the bound it would be ten"
    for status, _, answer in flood:
        if status == 503:
            assert answer.json()["error"]["code"] == "overloaded"
            assert answer.json()["error"]["type"] == "server_error"
            assert 1 <= int(answer.headers["retry-after"]) <= 60


async def test_the_sdk_comes_again_by_itself_and_gets_its_answer(engine: FakeEngine, tmp_path: Path) -> None:
    engine.set(itl_seconds=0.05)
    with running(tmp_path / "home", config(engine)) as server:
        async with server.async_client(max_retries=8) as client:
            asked = [
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=TOKENS
                )
                for _ in range(PLACES + 4 + 4)
            ]
            answers = await asyncio.gather(*asked)
    assert all(answer.choices[0].message.content for answer in answers)


async def test_one_keys_flood_does_not_starve_another_keys_single_request(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.set(itl_seconds=0.05)
    with running(tmp_path / "home", config(engine)) as server:
        flooding, single = (made_key(server, "--name", name) for name in ("flood", "single"))
        async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as client:
            flood = asyncio.create_task(many(server, 60, flooding))
            await asyncio.sleep(0.3)
            status, seconds, _ = await ask(client, single)
        answers = await flood
    assert status == 200
    assert [s for s, _, _ in answers].count(503) > 0
    answer_seconds = 0.05 * TOKENS
    assert seconds < 5 * answer_seconds, "it waited for a place, not for the flood"


async def test_a_keys_limits_are_told_and_kept(engine: FakeEngine, tmp_path: Path) -> None:
    with running(tmp_path / "home", config(engine)) as server:
        key = made_key(server, "--name", "small", "--rpm", "3")
        other = made_key(server, "--name", "other")
        async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as client:
            answers = [(await ask(client, key))[2] for _ in range(4)]
            assert (await ask(client, other))[0] == 200
        with pytest.raises(openai.RateLimitError) as refused:
            server.client(api_key=key).chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "hi"}]
            )
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"3"}
    assert answers[3].json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(answers[3].headers["retry-after"]) <= 60
    assert refused.value.code == "rate_limit_exceeded"


async def test_tokens_are_counted_as_they_were_used(engine: FakeEngine, tmp_path: Path) -> None:
    with running(tmp_path / "home", config(engine, "[key_limits]\ntokens_per_minute = 10000\n")) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as client:
            _, _, first = await ask(client)
            _, _, second = await ask(client)
    used = first.json()["usage"]["total_tokens"]
    estimate = 10_000 - int(first.headers["x-ratelimit-remaining-tokens"])
    assert estimate >= TOKENS
    left = int(second.headers["x-ratelimit-remaining-tokens"])
    assert abs(left - (10_000 - used - estimate)) <= 400, (
        "the first one's true number (a second brings 167 back)"
    )


async def test_promise_11_a_stream_that_is_refused_is_an_http_error(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.set(itl_seconds=0.1)
    with running(tmp_path / "home", config(engine)) as server:
        flood = asyncio.create_task(many(server, PLACES + 4))
        await asyncio.sleep(0.3)
        async with server.async_client() as client:
            with pytest.raises(openai.InternalServerError) as refused:
                await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "hi"}], stream=True
                )
        assert refused.value.status_code == 503
        body: Any = refused.value.body
        assert body["code"] == "overloaded"
        await flood
