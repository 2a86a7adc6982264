"""The trace of a training run: a span for the job, one for each attempt at it, and one for each stage of an attempt.

Owns the ids, which are made of the job's, so that an attempt after a crash is in the same trace: what a killed attempt
had finished is there, and the job's own span is sent when the job is over. Tells of numbers and names, never of rows.
Does not know what the stages do; a collector that is away costs a run nothing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from adapters.errors import SettingsError
from adapters.jobs import Job, JobState
from adapters.settings import Settings
from adapters.spans import Sketch, SpanKind, Spans

log = logging.getLogger("burnish.run")

Attributes = dict[str, Any]


class RunTrace:
    """One attempt at one job. Without `tracing.endpoint` it draws nothing."""

    def __init__(self, settings: Settings, job: Job, environ: Mapping[str, str] = os.environ) -> None:
        self._job = job
        self._spans = _spans(settings, environ)
        self.trace_id, self._job_span = ids_of(job.id)
        self._attempt_span = _id(f"{job.id} {job.token}")
        self._began = time.time_ns()
        self._stage: str | None = None
        self._stage_began = self._began
        self._told: Attributes = {}

    def enter(self, stage: str) -> None:
        """The stage before it is over."""
        self._leave(None)
        self._stage, self._stage_began = stage, time.time_ns()

    def tell(self, attributes: Attributes) -> None:
        """What is known of the stage by now."""
        self._told |= attributes

    def end(self, job: Job) -> None:
        """The attempt is over, and `job` is what became of it; sends what waits, for two seconds at most."""
        if self._spans is None:
            return
        is_lost = job.token != self._job.token
        failure = "stale_worker" if is_lost else _failure(job)
        self._leave(failure)
        told = {**_job_attributes(self._job if is_lost else job), "burnish.attempt": self._job.attempts}
        attempt = self._sketch("attempt", self._attempt_span, self._job_span, self._began, told, failure)
        sketches = [attempt]
        if job.has_ended and not is_lost:
            told = {**_job_attributes(job), **result_attributes(job.result or {})}
            created = round(job.created * 1e9)
            sketches.append(self._sketch("training run", self._job_span, None, created, told, failure))
        self._spans.put(lambda: sketches)
        self._spans.close()

    def _leave(self, failure: str | None) -> None:
        if self._stage is not None and self._spans is not None:
            told = {"burnish.job.id": self._job.id, "burnish.training.stage": self._stage, **self._told}
            span_id = _id(f"{self._job.id} {self._job.token} {self._stage} {self._stage_began}")
            sketch = self._sketch(self._stage, span_id, self._attempt_span, self._stage_began, told, failure)
            self._spans.put(lambda: [sketch])
        self._stage, self._told = None, {}

    def _sketch(
        self,
        name: str,
        span_id: str,
        parent_id: str | None,
        began: int,
        attributes: Attributes,
        failure: str | None,
    ) -> Sketch:
        told = attributes if failure is None else {**attributes, "error.type": failure}
        now = time.time_ns()
        return Sketch(
            name, self.trace_id, span_id, parent_id, began, now, SpanKind.INTERNAL, told, error=failure
        )


def ids_of(job_id: str) -> tuple[str, str]:
    """The trace's id and that of the job's own span."""
    digest = hashlib.sha256(job_id.encode()).hexdigest()
    return digest[:32], digest[32:48]


def training_attributes(manifest: Mapping[str, Any]) -> Attributes:
    """The recipe's numbers and what training came to."""
    return {
        **_numbers("burnish.recipe", manifest.get("recipe") or {}),
        **_numbers("burnish.training", manifest.get("metrics") or {}),
    }


def result_attributes(result: Mapping[str, Any]) -> Attributes:
    """What a job's result says of its version and its gate."""
    gate = result.get("gate") or {}
    named = {
        "burnish.version": result.get("fine_tuned_model"),
        "burnish.method": result.get("method"),
        "burnish.dataset": result.get("dataset"),
        "burnish.gate.outcome": gate.get("outcome"),
    }
    found = {name: str(value) for name, value in named.items() if value is not None}
    return {**found, **training_attributes(result.get("manifest") or {})}


def _numbers(prefix: str, values: Mapping[str, Any]) -> Attributes:
    return {f"{prefix}.{name}": v for name, v in values.items() if isinstance(v, int | float)}


def _job_attributes(job: Job) -> Attributes:
    named = {
        "burnish.job.id": job.id,
        "burnish.job.state": job.state.value,
        "burnish.route": job.route,
        "burnish.adapter": job.payload.get("adapter"),
        "burnish.base_model": job.payload.get("base_model"),
    }
    return {name: value for name, value in named.items() if value is not None}


def _failure(job: Job) -> str | None:
    """The code of what it failed of; a gate that says no is a failure too. A job that is still running is one whose
    process is dying."""
    if job.state is JobState.RUNNING:
        return "run_died"
    if job.state is not JobState.FAILED:
        return None
    return str((job.error or {}).get("code") or "run_failed")


def _spans(settings: Settings, environ: Mapping[str, str]) -> Spans | None:
    if settings.tracing.endpoint is None:
        return None
    try:
        return Spans(settings.tracing, instance=f"run-{os.getpid()}", environ=environ)
    except SettingsError as error:  # the gateway refuses to start without it; a run goes on
        log.warning("not_traced: %s", error.message)
        return None


def _id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
