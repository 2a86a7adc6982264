"""Promise 7, the trainer's part, on real processes: a run rests while people wait too long, and then ends as it would have."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from tests.acceptance.workshop import TOLERANT, Workshop, teach, workshop
from tests.conftest import MODEL, Server, wait_for

pytestmark = pytest.mark.alone

TARGETS = """
[targets]
ttft_p95_seconds = 0.02
window_seconds = 2
"""

SLOW_SECONDS = 0.2
"""A first token takes ten times as long as it should, whoever asks."""

BETWEEN = """
[targets]
ttft_p95_seconds = 0.4
window_seconds = 2
[priority]
full_above = 0.95
"""
"""With the same first token people have half of their headroom left: a run may work beside them, though not all the time."""


@contextmanager
def visitors(server: Server) -> Iterator[None]:
    """Somebody asks, again and again, for as long as the block lasts."""
    stopping = threading.Event()

    def ask(client: openai.OpenAI) -> None:
        while not stopping.is_set():
            stream = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=2, stream=True
            )
            for _ in stream:
                pass

    threads = [threading.Thread(target=ask, args=(server.client(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def step_of(shop: Workshop, id: str) -> int:
    return int(shop.job(id).progress.get("step", 0))


def test_promise_07_a_run_rests_while_people_wait_and_then_goes_on(tmp_path: Path) -> None:
    with workshop(tmp_path / "home", TARGETS + TOLERANT, worker=True) as shop:
        teach(shop.engine, better=["rested"])
        shop.engine.set(ttft_seconds=SLOW_SECONDS)
        with visitors(shop.server):
            job = shop.order("rested")
            wait_for(lambda: shop.job(job.id).progress.get("resting"), 120, lambda: shop.log_of(job.id))
            before = step_of(shop, job.id)
            wait_for(lambda: shop.job(job.id).progress.get("paused_seconds", 0) > 5, 60)
            assert step_of(shop, job.id) == before, "it has done nothing meanwhile"
            assert shop.job(job.id).progress["headroom"] < 0
            assert shop.job(job.id).progress["stage"] == "train"
        shop.engine.set(ttft_seconds=0)
        ended = shop.until_ended(job.id)
    assert ended.status == "succeeded", ended


def order_batch(client: openai.OpenAI, count: int) -> str:
    """The id of a batch of so many lines."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    text = "".join(json.dumps({"custom_id": str(number), **line}) + "\n" for number in range(count))
    file = client.files.create(file=("lines.jsonl", text.encode()), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    ).id


def test_promise_07_a_run_leaves_what_people_leave_to_lines_that_wait(tmp_path: Path) -> None:
    with workshop(tmp_path / "home", BETWEEN + TOLERANT, worker=True) as shop:
        teach(shop.engine, better=["rested"])
        shop.engine.set(ttft_seconds=SLOW_SECONDS)
        with visitors(shop.server):
            batch = order_batch(shop.client, 20_000)
            job = shop.order("rested")
            wait_for(
                lambda: shop.job(job.id).progress.get("paused_seconds", 0) > 5,
                120,
                lambda: shop.log_of(job.id),
            )
            rested = shop.job(job.id).progress
            assert "step" not in rested, "it has done nothing"
            assert 0.1 < rested["headroom"] < 0.95, "beside people alone it would have"
            shop.client.batches.cancel(batch)
            ended = shop.until_ended(job.id)
    assert ended.status == "succeeded", ended
