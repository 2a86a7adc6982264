"""The page that Prometheus reads: its families, its labels and its size, whatever was asked."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from adapters.engine_settings import EngineSettings
from adapters.errors import EngineFailed, NotFound
from adapters.settings import Costs, Metrics, RouteTarget, Settings, Targets
from gateway.metrics import render
from gateway.passage import Attempt, Ending
from gateway.routing import Model
from gateway.runtime import Runtime
from gateway.traffic import Traffic
from tests.migrated import migrated
from tests.unit.adapters.test_completions import completion
from tests.unit.gateway.test_tally import passage, target

LABELS = {
    "burnish_requests_total": {"class", "route", "variant", "ending"},
    "burnish_errors_total": {"class", "route", "variant", "error"},
    "burnish_request_seconds_count": {"class", "route", "variant"},
    "burnish_time_to_first_token_seconds_count": {"class", "route", "variant"},
    "burnish_inter_token_latency_seconds_count": {"class", "route", "variant"},
    "burnish_queue_seconds_count": {"class", "base_model"},
    "burnish_in_flight": {"class", "route"},
    "burnish_tokens_total": {"class", "route", "variant", "direction"},
    "burnish_answer_tokens_count": {"route", "variant"},
    "burnish_answer_texts_total": {"route", "variant"},
    "burnish_refusals_total": {"route", "variant"},
    "burnish_repetition_count": {"route", "variant"},
    "burnish_fail_overs_total": {"route", "variant"},
    "burnish_evicted_total": set(),
    "burnish_headroom": set(),
    "burnish_places_running": {"class", "base_model"},
    "burnish_places_waiting": {"class", "base_model"},
    "burnish_places_limit": {"class", "base_model"},
    "burnish_latency_target_seconds": {"route", "kind"},
    "burnish_engine_up": {"engine", "base_model"},
    "burnish_engine_state": {"engine", "state"},
    "burnish_engine_outstanding": {"engine"},
    "burnish_engine_adapters": {"engine"},
    "burnish_engine_ejections_total": {"engine"},
    "burnish_engine_retries_total": {"engine"},
    "burnish_adapter_load_seconds_count": {"engine"},
    "burnish_adapter_load_failures_total": {"engine"},
    "burnish_recording_queue": set(),
    "burnish_recording_commit_seconds_count": set(),
    "burnish_recording_failing": set(),
    "burnish_recording_lost_total": set(),
    "burnish_event_loop_lag_seconds_count": set(),
    "burnish_build_info": {"version"},
    "burnish_disk_free_bytes": {"place"},
    "burnish_disk_size_bytes": {"place"},
    "burnish_engine_hours_total": {"engine"},
    "burnish_cost_total": {"base_model", "route", "currency"},
    "process_resident_memory_bytes": set(),
    "python_info": {"version", "implementation", "major", "minor", "patchlevel"},
}
"""Of each sample: what dashboards and alerts are written against."""


@pytest.fixture
async def runtime(tmp_path: Path) -> Any:
    """The parts of a gateway that is not started; its engine answers nobody."""
    engine = EngineSettings(
        name="e0", kind="vllm", model="base", url="http://127.0.0.1:9", price_per_hour=1.0
    )
    settings = Settings(
        home=tmp_path,
        engines=(engine,),
        metrics=Metrics(max_series=5, gpus=False, scrape_engines=False),
        targets=Targets(routes={"chat": RouteTarget(ttft_p95_seconds=0.5)}),
        costs=Costs(currency="EUR"),
    )
    db = migrated(tmp_path / "burnish.db")
    made = Runtime(settings, db, {})
    yield made
    made.writer.close()
    db.close()


Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def series(runtime: Runtime) -> Series:
    families = text_string_to_metric_families(render(runtime).decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(found: Series, name: str, **labels: str) -> float:
    named = {"traffic": "class"}
    return found[name, frozenset((named.get(key, key), value) for key, value in labels.items())]


def use_everything(runtime: Runtime) -> None:
    """One of each, so that every family has a sample."""
    timing = runtime.latencies.begin("chat", Traffic.INTERACTIVE, variant="support@1")
    timing.piece()
    timing.piece()
    timing.end()
    failed_over = {"failed_over_from": target(number=2), "failed_over_for": EngineFailed("x")}
    attempts = [Attempt("e0", 1.0), Attempt("e0", 2.0)]
    runtime.tally.ended(passage(prompt_tokens=3, answer_tokens=4, attempts=attempts, **failed_over))
    output = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "I can't help you."}}]}
    runtime.answer_tally.made(completion("c", route="chat", output=output))
    runtime.costs.count()


async def test_every_family_has_the_labels_that_dashboards_and_alerts_go_by(runtime: Runtime) -> None:
    use_everything(runtime)
    found: dict[str, set[str]] = {}
    for name, labels in series(runtime):
        found.setdefault(name, set()).update(key for key, _ in labels)
    assert {name: found.get(name) for name in LABELS} == LABELS


async def test_what_was_counted_is_what_is_told(runtime: Runtime) -> None:
    use_everything(runtime)
    refused = passage(route="", call=None)
    refused.fail(NotFound("no such model"))
    runtime.tally.ended(refused)
    runtime.tally.ended(passage(traffic=Traffic.BATCH, ending=Ending.EVICTED))
    found = series(runtime)
    chat = {"route": "chat", "variant": "support@1"}
    mine = {"traffic": "interactive", **chat}
    assert value(found, "burnish_requests_total", **mine, ending="complete") == 1
    assert value(found, "burnish_requests_total", **{**mine, "traffic": "batch"}, ending="evicted") == 1
    assert value(
        found, "burnish_errors_total", traffic="interactive", route="", variant="", error="not_found"
    )
    failed = {**mine, "variant": "support@2"}
    assert value(found, "burnish_errors_total", **failed, error="engine_failed") == 1
    assert value(found, "burnish_fail_overs_total", route="chat", variant="support@2") == 1
    assert value(found, "burnish_tokens_total", **mine, direction="prompt") == 3
    assert value(found, "burnish_tokens_total", **mine, direction="completion") == 4
    assert value(found, "burnish_request_seconds_sum", **mine) == 2.0
    assert value(found, "burnish_request_seconds_bucket", **mine, le="1.0") == 0
    assert value(found, "burnish_request_seconds_bucket", **mine, le="2.5") == 1
    assert value(found, "burnish_request_seconds_bucket", **mine, le="+Inf") == 1
    assert value(found, "burnish_queue_seconds_count", traffic="interactive", base_model="base") == 1
    assert value(found, "burnish_inter_token_latency_seconds_count", **mine) == 1
    assert value(found, "burnish_in_flight", traffic="interactive", route="chat") == 0
    assert (
        value(found, "burnish_refusals_total", **chat)
        == value(found, "burnish_answer_texts_total", **chat)
        == 1
    )
    assert value(found, "burnish_engine_retries_total", engine="e0") == 1
    assert value(found, "burnish_engine_up", engine="e0", base_model="base") == 0
    states = {
        s: value(found, "burnish_engine_state", engine="e0", state=s) for s in ("starting", "up", "ejected")
    }
    assert states == {"starting": 1, "up": 0, "ejected": 0}
    assert value(found, "burnish_cost_total", base_model="base", route="", currency="EUR") > 0
    assert value(found, "burnish_disk_free_bytes", place="home") > 0


async def test_targets_are_told_of_every_name_that_can_be_asked_and_of_none(runtime: Runtime) -> None:
    names = [*(f"other-{number}" for number in range(9)), "chat"]
    models = tuple(Model(name, 0, "route", None) for name in names)
    runtime.snapshots.current = replace(runtime.snapshot, models=models)
    found = series(runtime)
    assert value(found, "burnish_latency_target_seconds", route="", kind="ttft") == 1.0
    assert value(found, "burnish_latency_target_seconds", route="chat", kind="ttft") == 0.5
    assert value(found, "burnish_latency_target_seconds", route="chat", kind="itl") == 0.2
    told = [labels for name, labels in found if name == "burnish_latency_target_seconds"]
    assert len(told) == 2 * (5 + 1), "as many names as have series, and the one for all others"


async def test_promise_12_ten_thousand_names_make_no_new_series(runtime: Runtime) -> None:
    def ask(number: int) -> None:
        route = f"route-{number}"
        timing = runtime.latencies.begin(route, Traffic.INTERACTIVE, variant=f"support@{number}")
        timing.piece()
        timing.end()
        runtime.tally.ended(passage(target(route, number), prompt_tokens=1))
        runtime.answer_tally.made(completion("c", route=route, variant=f"support@{number}"))

    for number in range(100):
        ask(number)
    before = series(runtime)
    for number in range(100, 200):
        ask(number)
    for number in range(10_000):
        runtime.tally.ended(passage(target(f"pinned-{number}", number)))
    after = series(runtime)
    assert set(after) == set(before)
    other = {"traffic": "interactive", "route": "other", "variant": "other"}
    assert value(after, "burnish_requests_total", **other, ending="complete") == 10_000 + 200 - 5
    assert value(after, "burnish_time_to_first_token_seconds_count", **other) == 200 - 5


async def test_it_can_be_read_while_requests_are_counted(runtime: Runtime) -> None:
    failures: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                render(runtime)
            except Exception as error:
                failures.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for number in range(3000):
            timing = runtime.latencies.begin(f"route-{number}", Traffic.BATCH, variant=f"support@{number}")
            runtime.tally.ended(passage(target(f"route-{number}"), attempts=[Attempt(f"e{number}", 1.0)] * 2))
            runtime.engines.begin(runtime.engines.all[0], target(f"route-{number}"))
            timing.end()
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert not failures
