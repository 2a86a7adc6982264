"""Jobs: durable background work, claimed under a lease, with a fencing token. The database is the queue.

Owns the `jobs` and `job_events` tables. A claim raises the job's token; every write of a worker carries the token it
claimed with, and a stale one is refused (promise 8). Does not know what a job does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class JobState(StrEnum):
    """The same words as OpenAI's fine-tuning statuses, with `paused`."""

    VALIDATING = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Wish(StrEnum):
    """What a person asked of a job that a worker holds; the worker obeys within one optimizer step."""

    PAUSE = "pause"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Job:
    id: str  # ftjob-<24 hex> for training
    kind: str  # "training"
    route: str | None  # one running job a route
    key_id: str | None  # whose; None: made while no keys were in use, or by a trigger
    state: JobState
    wish: Wish | None
    payload: dict[str, Any] = field(hash=False)
    progress: dict[str, Any] = field(hash=False)
    result: dict[str, Any] | None = field(hash=False)
    error: dict[str, Any] | None = field(hash=False)  # {"code", "message", "param"}
    worker: str | None
    token: int
    attempts: int
    lease_until: float | None
    created: float
    started: float | None
    finished: float | None
    metadata: dict[str, str] = field(hash=False)
    number: int | None = None


@dataclass(frozen=True, slots=True)
class JobEvent:
    id: str  # ftevent-<24 hex>
    job_id: str
    at: float
    level: str  # "info", "warn", "error"
    kind: str  # "message", "metrics", "checkpoint"
    message: str
    data: dict[str, Any] = field(hash=False)
    number: int | None = None
