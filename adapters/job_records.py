"""Jobs as values and as rows, read and written inside a caller's transaction.

Owns the mapping between the `jobs` and `job_events` tables and their dataclasses, and what every write of a worker
passes first: `check`. Begins no transaction: `jobs` does, and so does whoever enqueues or finishes a job together
with something else.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from adapters import schema
from adapters.errors import InvalidRequest, NotFound, StaleWorker

#: The kinds of jobs there are. A worker runs trainings (`jobs`), a gateway batches (`batches`); neither sees the other's.
TRAINING, BATCH = "training", "batch"


class JobState(StrEnum):
    """The same words as OpenAI's fine-tuning statuses, with `paused`; only a batch expires."""

    VALIDATING = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


#: States that a job leaves no more.
ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})


class Wish(StrEnum):
    """What a person asked of a job that a worker holds; the worker obeys within one optimizer step."""

    PAUSE = "pause"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Job:
    id: str  # ftjob-<24 hex> for training, batch_<24 hex> for a batch
    kind: str  # "training", "batch"
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

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class EventDraft:
    """An event before it is stored."""

    message: str
    level: str = "info"  # "info", "warn", "error"
    kind: str = "message"  # "message", "metrics", "checkpoint"
    data: dict[str, Any] = field(default_factory=dict, hash=False)


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


#: What ended jobs say in their events, in OpenAI's words.
LAST_WORDS = {
    JobState.SUCCEEDED: "has successfully completed",
    JobState.FAILED: "has failed",
    JobState.CANCELLED: "has been cancelled",
    JobState.EXPIRED: "has expired",
}

#: How the id of a job begins, by its kind.
ID_PREFIXES = {TRAINING: "ftjob-", BATCH: "batch_"}

#: What the events of a job say when it is taken up from somebody who was lost, by its kind. Metrics count them.
LOST_WORDS = {TRAINING: "Job goes on: its worker was lost", BATCH: "Batch goes on: its gateway was lost"}


def enqueue(
    connection: Connection,
    *,
    kind: str,
    route: str | None,
    payload: Mapping[str, Any],
    key_id: str | None = None,
    metadata: Mapping[str, str] | None = None,
    state: JobState = JobState.QUEUED,
    events: Sequence[EventDraft] = (),
    now: float | None = None,
) -> Job:
    """A new job in the caller's transaction, queued or still to be validated."""
    at = moment(now)
    id = ID_PREFIXES[kind] + secrets.token_hex(12)
    connection.execute(
        sa.insert(schema.jobs).values(
            id=id,
            kind=kind,
            route=route,
            key_id=key_id,
            state=state.value,
            payload=dict(payload),
            progress={},
            token=0,
            attempts=0,
            created=at,
            metadata=dict(metadata or {}),
        )
    )
    created = EventDraft(f"Created {'fine-tuning job' if kind == TRAINING else kind}: {id}")
    add_events(connection, id, [created, *events], at)
    return existing_job(connection, id)


def active_job_of(connection: Connection, route: str) -> Job | None:
    """The route's newest job that has not ended, whether it waits, runs or is paused."""
    return _newest(connection, route, schema.jobs.c.state.not_in([state.value for state in ENDED]))


def open_jobs(connection: Connection) -> frozenset[str]:
    """The ids of the jobs that have not ended."""
    table = schema.jobs
    query = sa.select(table.c.id).where(table.c.state.not_in([state.value for state in ENDED]))
    return frozenset(connection.execute(query).scalars())


def latest_job_of(connection: Connection, route: str) -> Job | None:
    """The route's newest job, ended or not."""
    return _newest(connection, route, sa.true())


def check(
    connection: Connection, id: str, token: int, states: Collection[JobState] = (JobState.RUNNING,)
) -> Job:
    """The job, locked until the caller's transaction ends, if it is still that worker's: not given back, ended or
    claimed by another. Raises StaleWorker."""
    table = schema.jobs
    row = connection.execute(
        sa.select(table).where(table.c.id == plain_id(id)).with_for_update()
    ).one_or_none()
    job = None if row is None else job_of(row)
    if job is None or job.token != token or job.lease_until is None or job.state not in states:
        raise StaleWorker(f"Job {id} is no longer this worker's.")
    return job


def finish(
    connection: Connection,
    id: str,
    token: int,
    *,
    state: JobState,
    result: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
    now: float | None = None,
) -> Job:
    """Ends a running job in the caller's transaction: once, by the worker that holds it. Raises StaleWorker.

    A job whose end somebody wished for does not succeed any more: StaleWorker then undoes what its worker was about
    to publish, and any other end is its cancellation.
    """
    if state not in ENDED:
        raise ValueError(f"{state} ends no job")
    job = check(connection, id, token)
    if job.wish is Wish.CANCEL:
        if state is JobState.SUCCEEDED:
            raise StaleWorker(f"Job {id} is to be cancelled: it publishes nothing.")
        state, error = JobState.CANCELLED, None
    return end_job(connection, job, state, result, error, moment(now))


def stop(connection: Connection, id: str, error: Mapping[str, Any], now: float | None = None) -> Job:
    """Ends a job at once, whoever holds it, in the caller's transaction: its worker's next write is refused.

    One that has ended stays as it is. Raises NotFound.
    """
    job = existing_job(connection, id, lock=True)
    return job if job.has_ended else end_job(connection, job, JobState.FAILED, None, error, moment(now))


def existing_job(
    connection: Connection,
    id: str,
    key_id: str | None = None,
    all_keys: bool = True,
    *,
    kind: str | None = None,
    lock: bool = False,
) -> Job:
    """Raises NotFound for another key's job and for one of another kind too: code "job_not_found", or
    "batch_not_found" where a batch was looked for. With `lock` it is held until the commit."""
    table = schema.jobs
    query = sa.select(table).where(table.c.id == plain_id(id))
    if kind is not None:
        query = query.where(table.c.kind == kind)
    if not all_keys:
        query = query.where(table.c.key_id.is_not_distinct_from(key_id))
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise _no_job(plain_id(id), kind)
    return job_of(row)


def page_of_jobs(
    connection: Connection,
    kind: str,
    key_id: str | None,
    all_keys: bool,
    *which: sa.ColumnElement[bool],
    after: str | None,
    limit: int,
) -> tuple[tuple[Job, ...], bool]:
    """The jobs of a kind that are the caller's and are as `which` says, newest first, and whether there are more.

    `after` is the last id of the page before it. Raises InvalidRequest for one that is no such job of the caller's.
    """
    table = schema.jobs
    query = sa.select(table).where(table.c.kind == kind, *which).order_by(table.c.number.desc())
    if not all_keys:
        query = query.where(table.c.key_id.is_not_distinct_from(key_id))
    if after is not None:
        try:
            last = existing_job(connection, after, key_id, all_keys, kind=kind)
        except NotFound:
            noun = kind if kind == BATCH else "job"
            raise InvalidRequest(
                f"There is no {noun} '{after}'.", param="after", code="invalid_value"
            ) from None
        query = query.where(table.c.number < last.number)
    rows = connection.execute(query.limit(limit + 1)).all()
    return tuple(job_of(row) for row in rows[:limit]), len(rows) > limit


def end_job(
    connection: Connection,
    job: Job,
    state: JobState,
    result: Mapping[str, Any] | None,
    error: Mapping[str, Any] | None,
    now: float,
) -> Job:
    """The job in its last state, with the words that its events end with."""
    noun = job.kind if job.kind == BATCH else "job"
    if error is None:
        last = EventDraft(f"The {noun} {LAST_WORDS[state]}")
    else:
        last = EventDraft(f"The {noun} failed: {error['message']}", "error", data={"code": error["code"]})
    add_events(connection, job.id, [last], now)
    return update_job(
        connection,
        job.id,
        state=state.value,
        result=None if result is None else dict(result),
        error=None if error is None else {"param": None, **error},
        finished=now,
        lease_until=None,
        wish=None,
    )


def update_job(connection: Connection, id: str, **values: Any) -> Job:
    """The job with these columns changed. Whoever calls has seen to it that they may be."""
    table = schema.jobs
    connection.execute(sa.update(table).where(table.c.id == id).values(**values))
    return existing_job(connection, id)


def add_events(connection: Connection, id: str, events: Sequence[EventDraft], now: float) -> None:
    """Stores the events, in their order."""
    rows = [
        {
            "id": f"ftevent-{secrets.token_hex(12)}",
            "job_id": id,
            "at": now,
            "level": event.level,
            "kind": event.kind,
            "message": event.message,
            "data": event.data,
        }
        for event in events
    ]
    if rows:
        connection.execute(sa.insert(schema.job_events), rows)


def job_of(row: Row[Any]) -> Job:
    return Job(
        id=row.id,
        kind=row.kind,
        route=row.route,
        key_id=row.key_id,
        state=JobState(row.state),
        wish=None if row.wish is None else Wish(row.wish),
        payload=row.payload,
        progress=row.progress,
        result=row.result,
        error=row.error,
        worker=row.worker,
        token=row.token,
        attempts=row.attempts,
        lease_until=row.lease_until,
        created=row.created,
        started=row.started,
        finished=row.finished,
        metadata=row.metadata,
        number=row.number,
    )


def event_of(row: Row[Any]) -> JobEvent:
    return JobEvent(row.id, row.job_id, row.at, row.level, row.kind, row.message, row.data, row.number)


def plain_id(id: str) -> str:
    """The id, or "" for what can be none: no database compares NUL or half a surrogate pair; no id of ours has one."""
    return id if id.isprintable() else ""


def moment(now: float | None) -> float:
    """Epoch seconds: those given, else now."""
    return time.time() if now is None else now


def _no_job(id: str, kind: str | None) -> NotFound:
    if kind == BATCH:
        return NotFound(f"No batch found with id '{id}'.", param="batch_id", code="batch_not_found")
    return NotFound(f"Could not find fine tune: {id}", param="fine_tuning_job_id", code="job_not_found")


def _newest(connection: Connection, route: str, which: sa.ColumnElement[bool]) -> Job | None:
    table = schema.jobs
    query = sa.select(table).where(table.c.route == route, which).order_by(table.c.number.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else job_of(row)
