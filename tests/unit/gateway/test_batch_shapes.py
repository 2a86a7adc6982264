"""Batches as OpenAI's objects, and the lines of their files."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import Batch

from adapters.jobs import Job, JobState, Wish
from gateway.batch_shapes import EXPIRED_LINE, STATUS, batch_shape, error_line, result_line, status_of

PAYLOAD = {
    "endpoint": "/v1/chat/completions",
    "input_file": "file-1",
    "window": "24h",
    "expires": 86_500.9,
    "output_seconds": None,
}
RUNNING = {"total": 10, "completed": 3, "failed": 1, "model": "m", "in_progress_at": 101.5}
USAGE = {
    "input_tokens": 5,
    "input_tokens_details": {"cached_tokens": 2},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 1},
    "total_tokens": 12,
}


def batch(state: JobState = JobState.VALIDATING, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "id": "batch_1",
        "kind": "batch",
        "route": None,
        "key_id": None,
        "state": state,
        "wish": None,
        "payload": PAYLOAD,
        "progress": {},
        "result": None,
        "error": None,
        "worker": None,
        "token": 0,
        "attempts": 0,
        "lease_until": None,
        "created": 100.9,
        "started": None,
        "finished": None,
        "metadata": {},
    }
    return Job(**{**values, **changes})


def shown(*arguments: Any, **changes: Any) -> dict[str, Any]:
    """The object, which is OpenAI's to the letter whatever state it is in."""
    shape = batch_shape(batch(*arguments, **changes))
    Batch.model_validate(shape, strict=True)
    assert set(shape) == set(Batch.model_fields)
    return shape


def test_a_new_batch_has_counted_nothing_yet() -> None:
    shape = shown()
    assert (shape["status"], shape["created_at"], shape["expires_at"]) == ("validating", 100, 86_500)
    assert shape["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert shape["usage"]["total_tokens"] == 0
    assert (shape["model"], shape["errors"], shape["output_file_id"]) == (None, None, None)


def test_a_batch_on_its_way_shows_how_far_it_is() -> None:
    shape = shown(JobState.RUNNING, progress={**RUNNING, "usage": USAGE})
    assert (shape["status"], shape["model"], shape["in_progress_at"]) == ("in_progress", "m", 101)
    assert shape["request_counts"] == {"total": 10, "completed": 3, "failed": 1}
    assert shape["usage"] == USAGE


@pytest.mark.parametrize("state", [JobState.VALIDATING, JobState.RUNNING])
def test_a_batch_that_is_to_end_is_cancelling_until_it_has(state: JobState) -> None:
    told = {"cancelling_at": 110.0, "finalizing_at": 111.0}
    shape = shown(state, wish=Wish.CANCEL, progress=told)
    assert (shape["status"], shape["cancelling_at"], shape["cancelled_at"]) == ("cancelling", 110, None)


def test_a_batch_whose_files_are_being_written_is_finalizing() -> None:
    assert shown(JobState.RUNNING, progress={**RUNNING, "finalizing_at": 120.0})["status"] == "finalizing"


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (JobState.SUCCEEDED, "completed"),
        (JobState.FAILED, "failed"),
        (JobState.EXPIRED, "expired"),
        (JobState.CANCELLED, "cancelled"),
    ],
)
def test_an_ended_batch_has_the_time_of_its_own_end_and_no_other(state: JobState, status: str) -> None:
    progress = {**RUNNING, "finalizing_at": 120.0}
    result = {"output_file": "file-2", "error_file": None, "errors": []}
    shape = shown(state, progress=progress, result=result, finished=130.7)
    assert shape["status"] == status
    ends = {name: shape[f"{name}_at"] for name in ("completed", "failed", "expired", "cancelled")}
    assert ends == {name: 130 if name == status else None for name in ends}
    assert (shape["output_file_id"], shape["error_file_id"]) == ("file-2", None)


def test_a_bad_file_has_its_bad_lines_listed() -> None:
    problem = {"code": "invalid_json_line", "line": 7, "message": "no JSON", "param": None}
    error = {"code": "invalid_json_line", "message": "no JSON", "param": None}
    shape = shown(JobState.FAILED, result={"errors": [problem]}, error=error, finished=130.0)
    assert shape["errors"] == {"object": "list", "data": [problem]}


def test_another_failure_is_told_as_an_error_without_a_line() -> None:
    error = {"code": "lost", "message": "why", "param": None}
    shape = shown(JobState.FAILED, error=error, finished=130.0)
    assert shape["errors"]["data"] == [{"code": "lost", "line": None, "message": "why", "param": None}]


def test_every_state_that_a_batch_can_be_in_has_a_status() -> None:
    for state in set(JobState) - {JobState.QUEUED, JobState.PAUSED}:
        assert status_of(batch(state)) == STATUS[state]


def test_a_line_has_its_answer_or_its_error_and_an_id_of_its_own() -> None:
    answered = result_line("a", 404, "req_1", {"error": {"code": "model_not_found"}})
    never = error_line("a", *EXPIRED_LINE)
    assert answered["response"] == {
        "status_code": 404,
        "request_id": "req_1",
        "body": {"error": {"code": "model_not_found"}},
    }
    assert (answered["custom_id"], answered["error"]) == ("a", None)
    assert (never["custom_id"], never["response"]) == ("a", None)
    assert never["error"]["code"] == "batch_expired"
    assert answered["id"] != never["id"]
    assert len(answered["id"]) == len("batch_req_") + 24
