"""A load test as the last word of a gate: real runs of the tiny model, the real load test, the fake engine's known times."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.workshop import TOLERANT, Workshop, teach, workshop

pytestmark = pytest.mark.alone

TTFT_SECONDS = 0.05


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path / "home", TOLERANT, worker=True) as made:
        teach(made.engine, better=("fast", "slow"))
        made.engine.set(ttft_seconds=TTFT_SECONDS)
        yield made


def wanted(ttft_p95: str) -> dict[str, Any]:
    return {"training": {"load_test": {"targets": {"ttft_p95": ttft_p95}, "users": 2, "seconds": 6}}}


def result_of(shop: Workshop, job_id: str) -> dict[str, Any]:
    result = shop.job(job_id).result
    assert result is not None
    return result


def test_promise_04_a_version_that_does_not_stand_its_load_takes_no_traffic(shop: Workshop) -> None:
    shop.make_route("fast", wanted("30s"))
    shop.make_route("slow", wanted("1ms"))
    fast = shop.order("fast", extra_body={"route": "fast"})
    slow = shop.order("slow", extra_body={"route": "slow"})

    assert shop.until_ended(fast.id).status == "succeeded", shop.log_of(fast.id)
    assert shop.default("fast") == "fast@1"
    found = result_of(shop, fast.id)["gate"]["load_test"]
    assert (found["verdict"], found["tries"]) == ("pass", 1)
    # No request is faster than the engine.
    assert found["figures"]["ttft_seconds"]["p50"] >= TTFT_SECONDS * 0.9

    ended = shop.until_ended(slow.id)
    assert (ended.status, ended.error and ended.error.code) == ("failed", "gate_failed"), shop.log_of(slow.id)
    assert "load test" in json.dumps(shop.job(slow.id).error)
    assert shop.default("slow") != "slow@1"
    assert [version.state.value for version in shop.versions_of(slow.id)] == ["rejected"]

    card = (shop.server.home / "cards" / "fast@1.md").read_text()
    assert "Load test: **pass**" in card
