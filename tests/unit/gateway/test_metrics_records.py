"""The records on /metrics: their names, their bounds, and a page that is there while the database is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from adapters.batches import Batches
from adapters.database import Database
from adapters.experiment_records import ExperimentState
from adapters.jobs import JobState
from adapters.settings import EngineSettings, Settings
from adapters.standings import (
    Estimated,
    ExperimentStanding,
    Guardrail,
    JobCount,
    RunStanding,
    Standing,
)
from adapters.tallies import Said
from gateway.metrics import render
from gateway.metrics.records import bounded, families
from gateway.runtime import Runtime
from gateway.serve import open_database
from tests.scraped import Page

NOTHING = Standing((), (), (), {}, (), {}, (), {}, 0, 0)
A, B = "support@1", "support@2"


def page_of(standing: Standing, max_series: int = 500) -> Page:
    class Told(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from families(standing, max_series)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Told())
    return Page(generate_latest(registry).decode())


def of(**parts: Any) -> Standing:
    values = {name: getattr(NOTHING, name) for name in Standing.__slots__}
    return Standing(**{**values, **parts})


def test_feedback_has_its_count_and_its_sum() -> None:
    page = page_of(of(feedback=(Said("support", A, "rating", 4, 3.0),)))
    labels = {"route": "support", "variant": A, "name": "rating"}
    assert page["burnish_feedback_total", labels] == 4
    assert page["burnish_feedback_value_sum", labels] == 3


def test_ten_thousand_variants_make_no_more_series_than_the_settings_allow() -> None:
    said = tuple(Said("support", f"support@{n}", "rating", 1, 1.0) for n in range(10_000))
    kept = bounded(said, 500)
    assert len(kept) == 500
    assert kept[0] == Said("other", "other", "other", 9501, 9501.0)
    assert kept[1:] == said[-499:], "what was said last has series of its own"
    assert len(page_of(of(feedback=said)).all("burnish_feedback_total")) == 500
    assert bounded(said[:500], 500) == said[:500]


def test_an_experiment_has_its_state_shares_estimates_and_findings() -> None:
    experiment = ExperimentStanding(
        name="thumbs",
        route="support",
        state=ExperimentState.AWAITING,
        shares={A: 0.75, B: 0.25},
        units={A: 30, B: 10},
        means=(Estimated(A, "rating", 0.5, 0.4, 0.6), Estimated(A, "ttft_seconds", 0.2)),
        differences=(Estimated(B, "rating", 0.1, -0.1, 0.3),),
        guardrails=(Guardrail(B, "error_rate", True), Guardrail(B, "ttft_seconds", False)),
        is_ratio_broken=True,
        verdict="promote",
    )
    page = page_of(of(experiments=(experiment,)))
    it, b = {"experiment": "thumbs"}, {"experiment": "thumbs", "variant": B}
    states = {
        s.labels["state"]: s.value for s in page.all("burnish_experiment_state", {**it, "route": "support"})
    }
    assert states == {"running": 0, "awaiting": 1, "measuring": 0, "ended": 0}
    assert page["burnish_experiment_share", b] == 0.25
    assert page["burnish_experiment_units", b] == 10
    found = [
        page[f"burnish_experiment_{name}", {**b, "metric": "rating"}] for name in ("estimate", "low", "high")
    ]
    assert found == [0.1, -0.1, 0.3]
    assert page["burnish_experiment_mean", {"variant": A, "metric": "ttft_seconds"}] == 0.2
    assert page["burnish_experiment_mean_low", {"variant": A}] == 0.4, "what has no bounds has none here"
    assert page["burnish_experiment_verdict", {**it, "verdict": "promote"}] == 1
    assert page["burnish_experiment_sample_ratio_mismatch", it] == 1
    assert page["burnish_experiment_guardrail_breached", {**b, "guardrail": "error_rate"}] == 1
    assert page["burnish_experiment_guardrail_breached", {**b, "guardrail": "ttft_seconds"}] == 0


def test_jobs_have_a_number_in_every_state_and_an_age_where_they_have_not_ended() -> None:
    jobs = (
        JobCount("training", JobState.QUEUED, 2, 60.0),
        JobCount("training", JobState.FAILED, 3, None),
        JobCount("batch", JobState.SUCCEEDED, 5, None),
    )
    page = page_of(of(jobs=jobs, attempts_lost={"training": 2, "batch": 0}, gates={("support", "pass"): 7}))
    assert page["burnish_jobs", {"kind": "training", "state": "queued"}] == 2
    assert page["burnish_jobs", {"kind": "training", "state": "running"}] == 0
    assert page["burnish_job_age_seconds", {"kind": "training", "state": "queued"}] == 60
    assert page["burnish_job_age_seconds", {"kind": "batch", "state": "running"}] == 0
    assert page.all("burnish_job_age_seconds", {"state": "failed"}) == []
    assert page["burnish_job_attempts_lost_total", {"kind": "training"}] == 2
    assert page["burnish_training_gate_total", {"route": "support", "outcome": "pass"}] == 7
    assert page["burnish_batches", {"state": "completed"}] == 5
    assert page["burnish_batches", {"state": "in_progress"}] == 0


def test_a_run_has_what_it_tells_and_no_stage_once_it_is_over() -> None:
    runs = (
        RunStanding("support", "train", {"loss": 1.5, "step": 4.0, "resting": 1.0}),
        RunStanding("sales", None, {"loss": 0.5}),
    )
    page = page_of(of(runs=runs))
    assert {s.labels["route"]: s.value for s in page.all("burnish_training_loss")} == {
        "support": 1.5,
        "sales": 0.5,
    }
    assert page["burnish_training_step"] == 4
    assert page["burnish_training_resting", {"route": "support"}] == 1
    assert page["burnish_training_stage"] == 1
    assert page.all("burnish_training_stage")[0].labels == {"route": "support", "stage": "train"}


# -- a whole gateway's page ------------------------------------------------------------------------
@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = open_database(settings(tmp_path))
    yield database
    database.close()


def settings(home: Path, **more: Any) -> Settings:
    engine = EngineSettings(name="e0", kind="openai", models=("some-model",), url="http://127.0.0.1:9")
    return Settings(home=home, engines=(engine,), metrics={"records_seconds": 0.001, **more})


async def test_the_page_has_open_batches_by_openais_words_and_their_lines(
    tmp_path: Path, db: Database
) -> None:
    runtime, batches = Runtime(settings(tmp_path), db, {}), Batches(db)
    for _ in range(3):
        batches.create(
            input_file="file-1", endpoint="/v1/chat/completions", window="24h", window_seconds=1e6,
            metadata=None, key_id=None,
        )  # fmt: skip
    first, second = batches.claim("g", 60.0), batches.claim("g", 60.0)
    assert first
    assert second
    for job in (first, second):
        batches.begin(job.id, job.token, total=10, model="m")
    batches.heartbeat(first.id, first.token, 60.0, {"completed": 6, "failed": 1})
    batches.cancel(second.id, "anna")
    page = Page(render(runtime).decode())
    states = {s.labels["state"]: s.value for s in page.all("burnish_batches") if s.value}
    assert states == {"validating": 1, "in_progress": 1, "cancelling": 1}
    lines = {s.labels["state"]: s.value for s in page.all("burnish_batch_lines")}
    assert lines == {"done": 6, "failed": 1, "left": 13}
    assert page["burnish_workers"] == page["burnish_gateways"] == 0


async def test_while_the_database_is_away_the_page_has_everything_else_and_says_so(
    tmp_path: Path, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = Runtime(settings(tmp_path), db, {})
    assert Page(render(runtime).decode())["burnish_records_stale_seconds"] < 60
    with db.begin() as connection:
        connection.execute(sa.text("ALTER TABLE jobs RENAME TO gone"))
    await asyncio.sleep(0.01)
    first = Page(render(runtime).decode())
    assert first["burnish_workers"] == 0, "what was read last, for a while"
    await asyncio.sleep(0.01)
    second = Page(render(runtime).decode())
    assert second["burnish_records_stale_seconds"] > first["burnish_records_stale_seconds"]
    assert second.all("burnish_build_info")
    assert "reading_failed of=records" in caplog.text


async def test_a_database_that_was_never_readable_leaves_the_rest_of_the_page(
    tmp_path: Path, db: Database
) -> None:
    with db.begin() as connection:
        connection.execute(sa.text("ALTER TABLE jobs RENAME TO gone"))
    page = Page(render(Runtime(settings(tmp_path), db, {})).decode())
    assert page.all("burnish_workers") == []
    assert page.all("burnish_build_info")
    assert page["burnish_records_stale_seconds"] >= 0
