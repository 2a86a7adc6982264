"""Promise 7 on real processes: people's requests go first, and a batch takes what they leave."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from adapters.database import Database
from adapters.keys import Keys
from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, Server, running, wait_for

pytestmark = pytest.mark.alone

PLACES = 64

CONFIG = """
[training]
worker = false

[[engines]]
name = "e0"
kind = "vllm"
model = "{model}"
url = "{url}"
max_concurrent = {places}
priorities = true
"""

TARGETS = """
[targets]
ttft_p95_seconds = 0.6
itl_p95_seconds = 0.06
window_seconds = 5

[priority]
quiet_seconds = 2
enabled = {enabled}
"""


def config(engine: FakeEngine, enabled: bool = True) -> str:
    told = TARGETS.format(enabled=str(enabled).lower())
    return told + CONFIG.format(model=engine.model, url=engine.url, places=PLACES)


def start_batch(client: openai.OpenAI, lines: int, tokens: int) -> openai.types.Batch:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens}
    text = "\n".join(
        json.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body})
        for number in range(lines)
    )
    file = client.files.create(file=("lines.jsonl", text.encode()), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )


def traffic(server: Server) -> dict[str, Any]:
    with server.http() as http:
        found: dict[str, Any] = http.get("/v1/traffic").json()
    return found


async def people(server: Server, seconds: float, a_second: float) -> list[float]:
    """Streams that begin at even times, whatever becomes of those before them; the gaps between their tokens."""
    gaps: list[float] = []

    async def one(client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=12, stream=True
        )
        last = None
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                now = time.monotonic()
                if last is not None:
                    gaps.append(now - last)
                last = now

    async with server.async_client() as client:
        tasks = []
        for _ in range(round(seconds * a_second)):
            tasks.append(asyncio.create_task(one(client)))
            await asyncio.sleep(1 / a_second)
        await asyncio.gather(*tasks)
    return gaps


async def beside_a_batch(engine: FakeEngine, home: Path, enabled: bool) -> tuple[float, int]:
    """The 95th percentile of the gaps that people see once a batch has had time to fit in, and the batch's lines."""
    engine.reset()
    engine.set(ttft_seconds=0.05, itl_seconds=0.01, crowd_seconds=0.004)
    with running(home, config(engine, enabled)) as server:
        client = server.client()
        batch = start_batch(client, 5000, 20)
        wait_for(lambda: traffic(server)["places"][MODEL]["batch"]["running"] >= PLACES // 2, 30)
        await people(server, 5.0, 6)
        gaps = await people(server, 6.0, 6)
        counts = client.batches.retrieve(batch.id).request_counts
        client.batches.cancel(batch.id)
        assert counts is not None
        return statistics.quantiles(gaps, n=20)[-1], counts.completed


async def test_promise_07_people_keep_their_latency_beside_a_batch(
    engine: FakeEngine, tmp_path: Path
) -> None:
    with_it, lines = await beside_a_batch(engine, tmp_path / "on", True)
    without, _ = await beside_a_batch(engine, tmp_path / "off", False)
    assert without > 0.15, "a full engine takes a quarter of a second for a token"
    assert with_it < without / 2
    assert with_it < 0.06 * 1.5, "the target, and some for a shared machine"
    assert lines > 50, "the batch went on beside them"


def test_a_batch_alone_fills_the_engines(engine: FakeEngine, tmp_path: Path) -> None:
    engine.set(ttft_seconds=0.2)
    with running(tmp_path / "home", config(engine)) as server:
        client = server.client()
        batch = start_batch(client, 1500, 4)
        wait_for(lambda: engine.stats()["active"] >= PLACES * 7 // 8, 30)
        ended = wait_for(lambda: _completed(client.batches.retrieve(batch.id)), 60)
    assert ended.request_counts.completed == 1500
    assert engine.stats()["max_active"] <= PLACES


def test_promise_07_an_engine_is_told_who_goes_first(engine: FakeEngine, tmp_path: Path) -> None:
    with running(tmp_path / "home", config(engine)) as server:
        client = server.client()
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "person"}])
        batch = start_batch(client, 1, 4)
        wait_for(lambda: _completed(client.batches.retrieve(batch.id)), 30)
        db = Database(f"sqlite:///{server.home / 'burnish.db'}")
        _, secret = Keys(db).create_pass("evaluation", 60)
        db.close()
        wait_for(lambda: _answers(server, secret), 10)
    told = {
        str(request["body"]["messages"][-1]["content"]): request["body"].get("priority")
        for request in engine.requests("/v1/chat/completions")
        if request["body"].get("messages")
    }
    assert told["person"] is None
    assert told["hi"] == 100
    assert told["question"] == 200


def test_classes_are_measured_apart(engine: FakeEngine, tmp_path: Path) -> None:
    engine.set(itl_seconds=0.01)
    with running(tmp_path / "home", config(engine)) as server:
        client = server.client()
        wait_for(lambda: "Burnish is ready" in server.log, 10)  # it has asked a question of its own by then
        before = traffic(server)["classes"]["interactive"]["begun"]
        for _ in client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], stream=True, max_tokens=8
        ):
            pass
        batch = start_batch(client, 3, 4)
        wait_for(lambda: _completed(client.batches.retrieve(batch.id)), 30)
        found = traffic(server)
        with server.http() as http:
            metrics = http.get("/metrics").text
    assert found["classes"]["interactive"]["begun"] == before + 1
    assert found["classes"]["batch"]["begun"] == 3
    assert found["classes"]["interactive"]["routes"][MODEL]["ttft"]["count"] == 1
    assert found["headroom"] > 0
    labels = f'route="{MODEL}",variant="{MODEL}"'
    assert f'burnish_requests_total{{class="batch",ending="complete",{labels}}} 3.0' in metrics
    assert f'burnish_time_to_first_token_seconds_count{{class="interactive",{labels}}} 1.0' in metrics
    assert f'burnish_places_limit{{base_model="{MODEL}",class="interactive"}} {PLACES}.0' in metrics


@pytest.mark.parametrize("path", ["/metrics", "/v1/traffic"])
def test_promise_12_what_operators_read_needs_an_admins_key(
    engine: FakeEngine, tmp_path: Path, path: str
) -> None:
    with running(tmp_path / "home", config(engine)) as server:
        user = server.burnish("keys", "create", "--name", "u").stdout.strip()
        admin = server.burnish("keys", "create", "--name", "a", "--scope", "admin").stdout.strip()

        def get(key: str) -> httpx.Response:
            return httpx.get(server.url + path, headers={"authorization": f"Bearer {key}"}, trust_env=False)

        wait_for(lambda: get(admin).status_code == 200, 10)
        assert get(user).status_code == 403
        assert user not in get(admin).text


def _completed(batch: openai.types.Batch) -> openai.types.Batch | None:
    assert batch.status not in ("failed", "expired", "cancelled"), batch
    return batch if batch.status == "completed" else None


def _answers(server: Server, secret: str) -> bool:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "question"}], "max_tokens": 2}
    headers = {"authorization": f"Bearer {secret}"}
    with server.http() as http:
        return http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
