"""Training jobs as OpenAI's fine-tuning objects: the job, its events, its checkpoints. Pure.

Beyond OpenAI's fields a job shows `route`, `adapter`, `progress`, `gate` and `release`. The status of a paused job is
`paused`, as OpenAI's is; one whose end was asked for is `cancelled` at once, since it publishes nothing any more.
"""

from __future__ import annotations

from typing import Any

from adapters.jobs import Job, JobEvent, JobState, Wish

ORGANIZATION = "burnish"

SHOWN_ALWAYS = ("batch_size", "learning_rate_multiplier", "n_epochs")
"""Hyper-parameters that OpenAI's object always has."""

CHECKPOINT_METRICS = {
    "train_loss": ("train_loss", "loss"),
    "train_mean_token_accuracy": ("train_mean_token_accuracy", "mean_token_accuracy", "token_accuracy"),
    "valid_loss": ("valid_loss", "eval_loss", "validation_loss"),
    "valid_mean_token_accuracy": ("valid_mean_token_accuracy", "eval_mean_token_accuracy"),
    "full_valid_loss": ("full_valid_loss",),
    "full_valid_mean_token_accuracy": ("full_valid_mean_token_accuracy",),
}
"""OpenAI's names, and those that trainers log them under."""


def job_shape(job: Job) -> dict[str, Any]:
    payload, result = job.payload, job.result or {}
    source = payload.get("source", {})
    hyperparameters = shown_hyperparameters(job)
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created),
        "finished_at": None if job.finished is None else int(job.finished),
        "status": status_of(job),
        "error": job.error,
        "model": payload.get("base_model", ""),
        "fine_tuned_model": result.get("fine_tuned_model") if job.state is JobState.SUCCEEDED else None,
        "organization_id": ORGANIZATION,
        "training_file": source.get("training_file") or "",
        "validation_file": source.get("validation_file"),
        "result_files": result.get("result_files", []),
        "trained_tokens": result.get("trained_tokens"),
        "seed": payload.get("seed", 0),
        "hyperparameters": {name: hyperparameters[name] for name in SHOWN_ALWAYS},
        "method": _method(job, hyperparameters),
        "estimated_finish": _estimated_finish(job),
        "integrations": payload.get("integrations", []),
        "metadata": job.metadata,
        "user_provided_suffix": payload.get("suffix"),
        "route": job.route,
        "adapter": payload.get("adapter"),
        "progress": job.progress,
        "gate": {"mode": payload.get("gate", "require"), "report": result.get("gate")},
        "release": payload.get("release"),
    }


def status_of(job: Job) -> str:
    return JobState.CANCELLED.value if job.wish is Wish.CANCEL else job.state.value


def method_of(job: Job) -> str:
    """The method that the run takes: what it told of itself, else what was ordered."""
    return str(job.progress.get("method") or job.payload.get("method", "auto"))


def shown_hyperparameters(job: Job) -> dict[str, Any]:
    """As ordered, and in place of "auto" what the run has made of it, once it has."""
    ordered = {**dict.fromkeys(SHOWN_ALWAYS, "auto"), **job.payload.get("hyperparameters", {})}
    told = job.progress.get("hyperparameters", {})
    return {name: told.get(name, value) if value == "auto" else value for name, value in ordered.items()} | {
        name: value for name, value in told.items() if name not in ordered
    }


def event_shape(event: JobEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": int(event.at),
        "level": event.level,
        "message": event.message,
        "type": "metrics" if event.kind == "metrics" else "message",
        "data": event.data,
    }


def checkpoint_shape(job: Job, event: JobEvent) -> dict[str, Any]:
    """`event` is one of kind "checkpoint"."""
    step = int(event.data.get("step", 0))
    model = (job.result or {}).get("fine_tuned_model") or job.payload.get("adapter", job.id)
    metrics: dict[str, Any] = {"step": step}
    for shown, names in CHECKPOINT_METRICS.items():
        metrics[shown] = next((event.data[name] for name in names if name in event.data), None)
    return {
        "id": checkpoint_id(event.id),
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(event.at),
        "fine_tuned_model_checkpoint": f"{model}:ckpt-step-{step}",
        "fine_tuning_job_id": job.id,
        "metrics": metrics,
        "step_number": step,
    }


def checkpoint_id(event_id: str) -> str:
    return "ftckpt_" + event_id.removeprefix("ftevent-")


def event_id(checkpoint_id: str) -> str:
    return "ftevent-" + checkpoint_id.removeprefix("ftckpt_")


def _method(job: Job, hyperparameters: dict[str, Any]) -> dict[str, Any] | None:
    """None while it is still to be told from the data: OpenAI's object knows no "auto"."""
    method = method_of(job)
    return None if method == "auto" else {"type": method, method: {"hyperparameters": hyperparameters}}


def _estimated_finish(job: Job) -> int | None:
    eta, told = job.progress.get("eta_seconds"), job.progress.get("at")
    if job.state is not JobState.RUNNING or eta is None or told is None:
        return None
    return int(told + eta)
