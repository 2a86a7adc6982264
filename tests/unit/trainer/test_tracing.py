"""The trace of a training run, against a real receiver."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from adapters.jobs import Job, JobState
from adapters.settings import Settings, Tracing
from tests.conftest import free_port
from tests.otlp import Collector, collecting
from trainer.tracing import RunTrace, ids_of

MANIFEST = {
    "recipe": {"rank": 8, "learning_rate": 1e-3, "n_epochs": 2, "method": "supervised", "packed": True},
    "metrics": {"train_loss": 0.5, "trained_tokens": 1200},
    "versions": {"torch": "2"},
    "notes": ["the secret words"],
}


def job(state: JobState = JobState.RUNNING, **more: Any) -> Job:
    values: dict[str, Any] = {
        "id": "ftjob-1",
        "kind": "training",
        "route": "support",
        "key_id": None,
        "state": state,
        "wish": None,
        "payload": {"adapter": "support", "base_model": "base-model"},
        "progress": {},
        "result": None,
        "error": None,
        "worker": "w",
        "token": 1,
        "attempts": 1,
        "lease_until": None,
        "created": 1_700_000_000.0,
        "started": None,
        "finished": None,
        "metadata": {},
    }
    return Job(**{**values, **more})


def settings(collector: Collector) -> Settings:
    return Settings(tracing=Tracing(endpoint=collector.url))


def test_a_run_is_a_span_with_its_attempt_and_its_stages_below_it() -> None:
    result = {
        "fine_tuned_model": "support@2",
        "method": "supervised",
        "dataset": "sha256:1",
        "gate": {"outcome": "pass"},
        "manifest": MANIFEST,
    }
    with collecting() as collector:
        trace = RunTrace(settings(collector), job(), {})
        for stage in ("dataset", "train", "candidate", "evaluate", "publish"):
            trace.enter(stage)
            trace.tell({"burnish.recipe.rank": 8} if stage == "train" else {})
        trace.end(job(JobState.SUCCEEDED, result=result))
        spans = {span.name: span for span in collector.wait(7)}
        assert b"secret" not in collector.everything
    run, attempt = spans["training run"], spans["attempt"]
    assert (run.trace_id, run.span_id, run.parent_id) == (*ids_of("ftjob-1"), "")
    assert attempt.parent_id == run.span_id
    stages = [spans[name] for name in ("dataset", "train", "candidate", "evaluate", "publish")]
    assert {stage.parent_id for stage in stages} == {attempt.span_id}
    assert {span.trace_id for span in spans.values()} == {run.trace_id}
    times = [time for stage in stages for time in (stage.began, stage.ended)]
    assert times == sorted(times)
    assert attempt.began <= times[0]
    assert times[-1] <= attempt.ended
    assert run.began == 1_700_000_000_000_000_000
    assert spans["train"].attributes == {
        "burnish.job.id": "ftjob-1",
        "burnish.training.stage": "train",
        "burnish.recipe.rank": 8,
    }
    assert run.attributes == {
        "burnish.job.id": "ftjob-1",
        "burnish.job.state": "succeeded",
        "burnish.route": "support",
        "burnish.adapter": "support",
        "burnish.base_model": "base-model",
        "burnish.version": "support@2",
        "burnish.method": "supervised",
        "burnish.dataset": "sha256:1",
        "burnish.gate.outcome": "pass",
        "burnish.recipe.rank": 8,
        "burnish.recipe.learning_rate": 1e-3,
        "burnish.recipe.n_epochs": 2,
        "burnish.recipe.packed": True,
        "burnish.training.train_loss": 0.5,
        "burnish.training.trained_tokens": 1200,
    }


def test_an_attempt_after_a_crash_is_in_the_same_trace() -> None:
    with collecting() as collector:
        first = RunTrace(settings(collector), job(), {})
        first.enter("dataset")
        first.enter("train")
        collector.wait(1)  # killed in the midst of training: what was finished is there
        again = job(token=2, attempts=2)
        second = RunTrace(settings(collector), again, {})
        second.enter("train")
        second.end(replace(again, state=JobState.FAILED, error={"code": "gate_failed"}))
        collector.wait(4)
        dataset, train, attempt, run = (
            collector.named(name)[0] for name in ("dataset", "train", "attempt", "training run")
        )
    assert len({span.trace_id for span in (dataset, train, attempt, run)}) == 1
    assert attempt.parent_id == run.span_id
    assert train.parent_id == attempt.span_id
    assert dataset.parent_id not in (attempt.span_id, run.span_id)
    assert attempt.attributes["burnish.attempt"] == 2
    assert run.error == "gate_failed"
    assert run.attributes["error.type"] == "gate_failed"


def test_a_paused_run_is_not_over() -> None:
    with collecting() as collector:
        trace = RunTrace(settings(collector), job(), {})
        trace.enter("train")
        trace.end(job(JobState.PAUSED))
        assert [span.name for span in collector.wait(2)] == ["train", "attempt"]
        assert not [span.error for span in collector.spans if span.error]


def test_a_worker_that_has_lost_its_claim_tells_of_its_attempt_alone() -> None:
    with collecting() as collector:
        trace = RunTrace(settings(collector), job(), {})
        trace.enter("train")
        trace.end(job(JobState.SUCCEEDED, token=2, result={}))
        assert {(span.name, span.error) for span in collector.wait(2)} == {
            ("train", "stale_worker"),
            ("attempt", "stale_worker"),
        }


@pytest.mark.parametrize(
    "tracing", [Tracing(), Tracing(endpoint="http://127.0.0.1:1", headers_env="NOT_SET")]
)
def test_without_a_collector_or_its_headers_a_run_goes_on_untold(tracing: Tracing) -> None:
    trace = RunTrace(Settings(tracing=tracing), job(), {})
    trace.enter("train")
    trace.tell({"a": 1})
    trace.end(job(JobState.SUCCEEDED))


def test_a_collector_that_is_away_costs_a_run_a_few_seconds_at_its_end() -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    trace = RunTrace(Settings(tracing=Tracing(endpoint=endpoint)), job(), {})
    trace.enter("train")
    trace.end(job(JobState.SUCCEEDED))
