"""Batches as OpenAI's batch objects, and the lines of their output and error files. Pure.

A line that got an HTTP answer has it under `response`, in the output file below status 400 and in the error file from
there on; `error` is for a line that never was asked to the end.
"""

from __future__ import annotations

import secrets
from typing import Any

from adapters.jobs import Job, JobState, Wish

STATUS = {
    JobState.VALIDATING: "validating",
    JobState.RUNNING: "in_progress",
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.EXPIRED: "expired",
}
"""OpenAI's words; a batch is never queued or paused."""

EXPIRED_LINE = ("batch_expired", "This request could not be executed before the completion window expired.")
"""Code and message of the lines that nobody had answered by then."""


def batch_shape(job: Job) -> dict[str, Any]:
    """OpenAI's batch object, of a job of kind "batch"."""
    payload, progress, result = job.payload, job.progress, job.result or {}
    return {
        "id": job.id,
        "object": "batch",
        "endpoint": payload["endpoint"],
        "model": progress.get("model"),
        "errors": _errors(job),
        "input_file_id": payload["input_file"],
        "completion_window": payload["window"],
        "status": status_of(job),
        "output_file_id": result.get("output_file"),
        "error_file_id": result.get("error_file"),
        "created_at": int(job.created),
        "in_progress_at": _whole(progress.get("in_progress_at")),
        "expires_at": int(payload["expires"]),
        "finalizing_at": _whole(progress.get("finalizing_at")),
        "completed_at": _ended(job, JobState.SUCCEEDED),
        "failed_at": _ended(job, JobState.FAILED),
        "expired_at": _ended(job, JobState.EXPIRED),
        "cancelling_at": _whole(progress.get("cancelling_at")),
        "cancelled_at": _ended(job, JobState.CANCELLED),
        "request_counts": {name: int(progress.get(name, 0)) for name in ("total", "completed", "failed")},
        "usage": usage_shape(progress.get("usage") or {}),
        "metadata": job.metadata,
    }


def status_of(job: Job) -> str:
    """OpenAI's status. Cancelling lasts until the answered lines are in their files."""
    if job.has_ended:
        return STATUS[job.state]
    if job.wish is Wish.CANCEL:
        return "cancelling"
    if job.progress.get("finalizing_at") is not None:
        return "finalizing"
    return STATUS[job.state]


def usage_shape(usage: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's usage of a batch: tokens, summed over the answered lines; zeros where none was counted."""
    read, written = (usage.get(f"{side}_tokens_details") or {} for side in ("input", "output"))
    return {
        "input_tokens": int(usage.get("input_tokens", 0)),
        "input_tokens_details": {"cached_tokens": int(read.get("cached_tokens", 0))},
        "output_tokens": int(usage.get("output_tokens", 0)),
        "output_tokens_details": {"reasoning_tokens": int(written.get("reasoning_tokens", 0))},
        "total_tokens": int(usage.get("total_tokens", 0)),
    }


def result_line(custom_id: str, status: int, request_id: str, body: Any) -> dict[str, Any]:
    """The line of a request that got an HTTP answer, whatever its status; `body` is the answer's JSON."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return {"id": _new_id(), "custom_id": custom_id, "response": response, "error": None}


def error_line(custom_id: str, code: str, message: str) -> dict[str, Any]:
    """The line of a request that never got an HTTP answer."""
    error = {"code": code, "message": message}
    return {"id": _new_id(), "custom_id": custom_id, "response": None, "error": error}


def _errors(job: Job) -> dict[str, Any] | None:
    """What was wrong with the input file; else what else has failed the batch."""
    found = list((job.result or {}).get("errors") or ())
    if not found and job.error is not None:
        found = [{"line": None, **job.error}]
    if not found:
        return None
    data = [{name: problem.get(name) for name in ("code", "line", "message", "param")} for problem in found]
    return {"object": "list", "data": data}


def _ended(job: Job, state: JobState) -> int | None:
    return _whole(job.finished) if job.state is state else None


def _whole(at: float | None) -> int | None:
    return None if at is None else int(at)


def _new_id() -> str:
    return f"batch_req_{secrets.token_hex(12)}"
