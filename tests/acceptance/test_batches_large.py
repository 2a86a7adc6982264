"""A batch as large as one may be: one line of 50,000 is wrong, and the others are answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, engines_config, running, wait_for

LINES = 50_000
BAD = 31_415


def line(number: int) -> str:
    body = {
        "model": "nobody" if number == BAD else MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 1,
    }
    return json.dumps(
        {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_bad_line_of_fifty_thousand_is_one_error_and_the_rest_are_answers(
    engine: FakeEngine, tmp_path: Path
) -> None:
    config = engines_config(engine, extra="[priority]\nquiet_seconds = 1\n")
    with running(tmp_path / "home", config) as server:
        client = server.client()
        text = "\n".join(line(number) for number in range(LINES)).encode()
        file = client.files.create(file=("lines.jsonl", text), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        wait_for(lambda: client.batches.retrieve(batch.id).completed_at, 800, lambda: server.log)
        ended = client.batches.retrieve(batch.id)
        assert ended.output_file_id is not None
        assert ended.error_file_id is not None
        answers, errors = (
            [json.loads(told) for told in client.files.content(id).text.splitlines()]
            for id in (ended.output_file_id, ended.error_file_id)
        )
    assert [told["custom_id"] for told in errors] == [f"line-{BAD}"]
    assert errors[0]["response"]["status_code"] == 404
    wanted = [f"line-{number}" for number in range(LINES) if number != BAD]
    assert [told["custom_id"] for told in answers] == wanted
    assert ended.request_counts is not None
    assert (ended.request_counts.completed, ended.request_counts.failed) == (LINES - 1, 1)
