"""Promise 8 for batches: the gateway is killed at every stage of one, and every line is in its files exactly once."""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import pytest

from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, Server, engines_config, start_server, wait_for

LINES = 400


def question(number: int) -> str:
    return f"What is {number} and {number + 1}?"


def batch_file() -> bytes:
    """Each fiftieth line asks for a model that there is not."""
    lines = []
    for number in range(LINES):
        body: dict[str, Any] = {
            "model": "nobody" if number % 50 == 7 else MODEL,
            "messages": [{"role": "user", "content": question(number)}],
            "max_tokens": 4,
        }
        line = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(json.dumps(line))
    return "\n".join(lines).encode()


def kill(server: Server) -> None:
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(10)


def ready(batch: openai.types.Batch, stage: str, share: float) -> bool:
    if batch.status in ("completed", "failed"):
        return True
    if stage == "validating":
        return True
    done = (batch.request_counts.completed + batch.request_counts.failed) if batch.request_counts else 0
    if stage == "finalizing":
        return batch.status == "finalizing" or done >= LINES - 8
    return batch.status == "in_progress" and done >= share * LINES


def wait_until(client: openai.OpenAI, id: str, stage: str, share: float) -> None:
    wait_for(lambda: ready(client.batches.retrieve(id), stage, share), 60)


@pytest.mark.parametrize("seed", [1])
def test_promise_08_a_batch_survives_kills_at_every_stage(
    engine: FakeEngine, tmp_path: Path, seed: int
) -> None:
    drawn = random.Random(seed)
    engine.set(ttft_seconds=0.15)
    config = engines_config(engine, extra="[priority]\nquiet_seconds = 0.5\n")
    server = start_server(tmp_path / "home", config)
    try:
        server.wait_up()
        client = server.client()
        file = client.files.create(file=("lines.jsonl", batch_file()), purpose="batch")
        made = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        stages = [
            ("validating", 0.0),
            ("lines", 0.05),
            ("lines", 0.5 + drawn.random() / 4),
            ("finalizing", 1),
        ]
        for stage in stages:
            wait_until(client, made.id, *stage)
            kill(server)
            server = start_server(tmp_path / "home", config)
            server.wait_up()
            client = server.client()
        ended = wait_for(lambda: _ended(client.batches.retrieve(made.id)), 90, lambda: server.log)
        assert ended.status == "completed", ended
        assert ended.request_counts == openai.types.batch_request_counts.BatchRequestCounts(
            total=LINES, completed=LINES - LINES // 50, failed=LINES // 50
        )
        good = lines_of(client, ended.output_file_id)
        bad = lines_of(client, ended.error_file_id)
        ids = Counter(line["custom_id"] for line in (*good, *bad))
        assert ids == Counter(f"line-{number}" for number in range(LINES))
        assert {line["custom_id"] for line in bad} == {f"line-{n}" for n in range(LINES) if n % 50 == 7}
        assert all(line["response"]["status_code"] == 404 for line in bad)
        assert len({line["id"] for line in (*good, *bad)}) == LINES
        by_id = {line["custom_id"]: line for line in good}
        for number in drawn.sample([n for n in range(LINES) if n % 50 != 7], 10):
            asked = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": question(number)}], max_tokens=4
            )
            told = by_id[f"line-{number}"]["response"]["body"]["choices"][0]["message"]["content"]
            assert told == asked.choices[0].message.content
    finally:
        server.stop()


def _ended(batch: openai.types.Batch) -> openai.types.Batch | None:
    return batch if batch.status in ("completed", "failed", "expired", "cancelled") else None


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
