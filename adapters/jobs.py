"""Jobs: durable background work, claimed under a lease, with a fencing token. The database is the queue.

Owns the life of a training job, each step of it one transaction; its rows are `job_records`' affair. A claim raises the
job's token; every write of a worker carries the token it claimed with, and a stale one is refused (promise 8). Does not
know what a job does. A batch is a job too, with a life of its own (`batches`): here nobody sees it.

    validating_files ──> queued <──> running ──> succeeded, failed or cancelled
                            └──> paused <──┘
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from adapters import schema
from adapters.database import Database
from adapters.errors import Conflict, InvalidRequest
from adapters.job_records import (
    ENDED,
    LOST_WORDS,
    TRAINING,
    EventDraft,
    Job,
    JobEvent,
    JobState,
    Wish,
    active_job_of,
    add_events,
    check,
    end_job,
    enqueue,
    event_of,
    existing_job,
    finish,
    job_of,
    latest_job_of,
    moment,
    page_of_jobs,
    plain_id,
    stop,
    update_job,
)

__all__ = [
    "ENDED",
    "TRAINING",
    "EventDraft",
    "Job",
    "JobEvent",
    "JobState",
    "Jobs",
    "Wish",
    "active_job_of",
    "check",
    "enqueue",
    "events_after",
    "finish",
    "latest_job_of",
    "stop",
]

#: How often a job may be taken up after its worker was lost, where the settings do not say otherwise.
MAX_ATTEMPTS = 5

#: A worker that has not asked for a job for so long, and holds none, is gone; it asks about once a second.
WORKER_SILENT_SECONDS = 15.0

#: How often an idle worker's sign of life is written down.
SIGN_SECONDS = 5.0

#: What a run says of itself for good, whichever stage it is in.
LASTING = ("method", "hyperparameters")

#: One number for all Burnish processes on a PostgreSQL server: claims queue up behind it.
CLAIM_LOCK = 0x6A6F6273  # "jobs"


class Jobs:
    """The training jobs of a database. Each method is one transaction."""

    def __init__(self, db: Database, max_attempts: int = MAX_ATTEMPTS) -> None:
        """A job that was claimed `max_attempts` times and lost each time is failed, not claimed again."""
        self._db = db
        self._max_attempts = max_attempts

    # -- what anybody may ask ----------------------------------------------------------------------
    def enqueue(self, **values: Any) -> Job:
        """`enqueue` in a transaction of its own."""
        with self._db.begin() as connection:
            return enqueue(connection, **values)

    def get(self, id: str, key_id: str | None = None, all_keys: bool = True) -> Job:
        """Raises NotFound(code="job_not_found"), for another key's job and for a batch too."""
        with self._db.read() as connection:
            return existing_job(connection, id, key_id, all_keys, kind=TRAINING)

    def list(
        self,
        key_id: str | None = None,
        *,
        all_keys: bool = True,
        route: str | None = None,
        states: Collection[JobState] | None = None,
        metadata: Mapping[str, str] | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> tuple[tuple[Job, ...], bool]:
        """A page of jobs, newest first, and whether there are more. `after` is the last id of the page before.

        Raises InvalidRequest for an `after` that is no job of the caller's.
        """
        table = schema.jobs
        which = [table.c.metadata[name].as_string() == value for name, value in (metadata or {}).items()]
        if route is not None:
            which.append(table.c.route == route)
        if states is not None:
            which.append(table.c.state.in_([state.value for state in states]))
        with self._db.read() as connection:
            return page_of_jobs(connection, TRAINING, key_id, all_keys, *which, after=after, limit=limit)

    def events(
        self, id: str, *, kinds: Collection[str] | None = None, after: str | None = None, limit: int = 20
    ) -> tuple[tuple[JobEvent, ...], bool]:
        """A page of a job's events, newest first, and whether there are more. Raises InvalidRequest for a bad `after`."""
        table = schema.job_events
        query = sa.select(table).where(table.c.job_id == id).order_by(table.c.number.desc())
        if kinds is not None:
            query = query.where(table.c.kind.in_(list(kinds)))
        with self._db.read() as connection:
            if after is not None:
                place = connection.execute(
                    sa.select(table.c.number).where(table.c.job_id == id, table.c.id == plain_id(after))
                ).scalar_one_or_none()
                if place is None:
                    raise InvalidRequest(f"There is no event '{after}'.", param="after", code="invalid_value")
                query = query.where(table.c.number < place)
            rows = connection.execute(query.limit(limit + 1)).all()
        return tuple(event_of(row) for row in rows[:limit]), len(rows) > limit

    # -- what a worker does ------------------------------------------------------------------------
    def claim(
        self, worker: str, kinds: Collection[str], lease_seconds: float, now: float | None = None
    ) -> Job | None:
        """The oldest job that waits, or whose worker is lost; never a second running one of a route.

        The job's token is one higher than any that a worker of it ever had.
        """
        at = moment(now)
        table = schema.jobs
        with self._db.begin() as connection:
            _one_claim_at_a_time(connection)
            _sign_of_life(connection, worker, at)
            self._settle_lost(connection, kinds, at)
            busy = table.alias("busy")
            free = ~sa.exists().where(busy.c.state == JobState.RUNNING.value, busy.c.route == table.c.route)
            waits = sa.and_(table.c.state == JobState.QUEUED.value, free)
            lost = sa.and_(table.c.state == JobState.RUNNING.value, table.c.lease_until < at)
            query = (
                sa.select(table)
                .where(table.c.kind.in_(list(kinds)), waits | lost)
                .order_by(table.c.number)
                .limit(1)
                .with_for_update()
            )
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            job = job_of(row)
            first = job.started is None
            add_events(connection, job.id, [EventDraft(_claimed_words(job))], at)
            return update_job(
                connection,
                job.id,
                state=JobState.RUNNING.value,
                worker=worker,
                token=job.token + 1,
                attempts=job.attempts + 1,
                lease_until=at + lease_seconds,
                started=at if first else job.started,
            )

    def claim_validating(self, worker: str, lease_seconds: float, now: float | None = None) -> Job | None:
        """The oldest job whose files nobody looks through just now, under a lease and a token as by `claim`."""
        at = moment(now)
        table = schema.jobs
        with self._db.begin() as connection:
            _one_claim_at_a_time(connection)
            query = (
                sa.select(table)
                .where(table.c.kind == TRAINING, table.c.state == JobState.VALIDATING.value)
                .where(table.c.lease_until.is_(None) | (table.c.lease_until < at))
                .order_by(table.c.number)
                .with_for_update()
            )
            for row in connection.execute(query).all():
                job = job_of(row)
                if (
                    job.attempts >= self._max_attempts
                ):  # a file that ends whoever reads it must not do so for ever
                    end_job(connection, job, JobState.FAILED, None, _lost(job), at)
                    continue
                return update_job(
                    connection,
                    job.id,
                    worker=worker,
                    token=job.token + 1,
                    attempts=job.attempts + 1,
                    lease_until=at + lease_seconds,
                )
            return None

    def workers(self, now: float | None = None) -> tuple[str, ...]:
        """The workers that are alive: they asked for a job just now, or hold one under a lease."""
        at = moment(now)
        workers, table = schema.workers, schema.jobs
        idle = sa.select(workers.c.name).where(workers.c.seen >= at - WORKER_SILENT_SECONDS)
        busy = sa.select(table.c.worker).where(
            table.c.kind == TRAINING, table.c.state == JobState.RUNNING.value, table.c.lease_until >= at
        )
        with self._db.read() as connection:
            return tuple(sorted(connection.execute(idle.union(busy)).scalars()))

    def heartbeat(self, id: str, token: int, lease_seconds: float, now: float | None = None) -> Wish | None:
        """Extends the lease; what a person wishes of the job meanwhile. Raises StaleWorker."""
        with self._db.begin() as connection:
            job = check(connection, id, token, (JobState.RUNNING, JobState.VALIDATING))
            update_job(connection, id, lease_until=moment(now) + lease_seconds)
            return job.wish

    def report(
        self,
        id: str,
        token: int,
        progress: Mapping[str, Any],
        events: Sequence[EventDraft] = (),
        now: float | None = None,
    ) -> Wish | None:
        """Progress and events together. `progress` is laid over what was reported before; None takes a key away, and
        another `stage` all that was said of the one before it, but for LASTING.

        Returns what a person wishes of the job. Raises StaleWorker.
        """
        at = moment(now)
        with self._db.begin() as connection:
            job = check(connection, id, token)
            goes_on = progress.get("stage", job.progress.get("stage")) == job.progress.get("stage")
            before = {name: job.progress[name] for name in job.progress if goes_on or name in LASTING}
            merged = {**before, **progress, "at": at}
            kept = {name: value for name, value in merged.items() if value is not None}
            update_job(connection, id, progress=kept)
            add_events(connection, id, events, at)
            return job.wish

    def event(
        self,
        id: str,
        token: int | None,
        level: str,
        kind: str,
        message: str,
        data: Mapping[str, Any] | None = None,
        now: float | None = None,
    ) -> None:
        """One event; by a worker with its token, or by somebody who holds none. Raises StaleWorker, NotFound."""
        with self._db.begin() as connection:
            if token is None:
                existing_job(connection, id, kind=TRAINING)
            else:
                check(connection, id, token, (JobState.RUNNING, JobState.VALIDATING))
            add_events(connection, id, [EventDraft(message, level, kind, dict(data or {}))], moment(now))

    def validated(
        self,
        id: str,
        token: int,
        *,
        changes: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
        now: float | None = None,
    ) -> Job:
        """Ends the look through a job's files: queued (with `changes` to its payload), or failed with `error`.

        A pause that was wished meanwhile holds. Raises StaleWorker.
        """
        at = moment(now)
        with self._db.begin() as connection:
            job = check(connection, id, token, (JobState.VALIDATING,))
            if error is not None:
                return end_job(connection, job, JobState.FAILED, None, error, at)
            state = JobState.PAUSED if job.wish is Wish.PAUSE else JobState.QUEUED
            words = f"Files validated, moving job to {state.value} state"
            add_events(connection, id, [EventDraft(words)], at)
            payload = {**job.payload, **(changes or {})}
            return update_job(
                connection,
                id,
                state=state.value,
                payload=payload,
                attempts=0,
                worker=None,
                lease_until=None,
                wish=None,
            )

    def release(
        self,
        id: str,
        token: int,
        state: JobState = JobState.QUEUED,
        *,
        counts: bool = True,
        now: float | None = None,
    ) -> Job:
        """Gives a running job back: queued, or paused as was wished. Raises StaleWorker.

        Queued again, the attempt counts against the job, and the last one fails it, unless the worker says that it
        ended in good order (`counts=False`): it was asked to stop.
        """
        if state not in (JobState.PAUSED, JobState.QUEUED):
            raise ValueError("finish and fail do that")
        at = moment(now)
        with self._db.begin() as connection:
            job = check(connection, id, token)
            if job.wish is Wish.CANCEL:
                return end_job(connection, job, JobState.CANCELLED, None, None, at)
            counts = counts and state is JobState.QUEUED
            if counts and job.attempts >= self._max_attempts:
                return end_job(connection, job, JobState.FAILED, None, _lost(job), at)
            words = "Job paused" if state is JobState.PAUSED else "Job goes back to the queue"
            add_events(connection, id, [EventDraft(words)], at)
            attempts = job.attempts if counts else job.attempts - 1
            return update_job(
                connection,
                id,
                state=state.value,
                attempts=attempts,
                worker=None,
                lease_until=None,
                wish=None,
            )

    def fail(self, id: str, token: int, error: Mapping[str, Any], now: float | None = None) -> Job:
        """Raises StaleWorker. `error`: {"code", "message", "param"}."""
        with self._db.begin() as connection:
            return finish(connection, id, token, state=JobState.FAILED, error=error, now=now)

    # -- what a person does ------------------------------------------------------------------------
    def pause(self, id: str, actor: str, now: float | None = None) -> Job:
        """A waiting job is paused at once, a running one as soon as its worker obeys. Raises Conflict, NotFound."""
        at = moment(now)
        with self._db.begin() as connection:
            job = self._open(connection, id, "paused")
            if job.state is JobState.PAUSED or job.wish is not None:
                return job
            if job.state is JobState.QUEUED or _is_lost(job, at):
                add_events(connection, id, [_asked("Job paused", actor)], at)
                return update_job(connection, id, state=JobState.PAUSED.value, worker=None, lease_until=None)
            add_events(connection, id, [_asked("Job is asked to pause", actor)], at)
            return update_job(connection, id, wish=Wish.PAUSE.value)

    def resume(self, id: str, actor: str, now: float | None = None) -> Job:
        """A paused job waits again; a wish to pause is taken back. Raises Conflict, NotFound."""
        at = moment(now)
        with self._db.begin() as connection:
            job = self._open(connection, id, "resumed")
            if job.state is JobState.PAUSED:
                add_events(connection, id, [_asked("Job resumed", actor)], at)
                return update_job(connection, id, state=JobState.QUEUED.value)
            if job.wish is Wish.PAUSE:
                add_events(connection, id, [_asked("Job goes on", actor)], at)
                return update_job(connection, id, wish=None)
            return job

    def cancel(self, id: str, actor: str, now: float | None = None) -> Job:
        """A job that no worker holds is cancelled at once, a running one as soon as its worker obeys.

        Cancelling a cancelled one changes nothing. Raises Conflict for one that has ended otherwise, NotFound.
        """
        at = moment(now)
        with self._db.begin() as connection:
            job = existing_job(connection, id, kind=TRAINING, lock=True)
            if job.state is JobState.CANCELLED or job.wish is Wish.CANCEL:
                return job
            job = self._open(connection, id, "cancelled")
            add_events(connection, id, [_asked("Job is asked to end", actor)], at)
            if job.state is JobState.RUNNING and not _is_lost(job, at):
                return update_job(connection, id, wish=Wish.CANCEL.value)
            return end_job(connection, job, JobState.CANCELLED, None, None, at)

    def _open(self, connection: Connection, id: str, done: str) -> Job:
        job = existing_job(connection, id, kind=TRAINING, lock=True)
        if job.has_ended:
            raise Conflict(
                f"Job {id} has {_ended_words(job)} and cannot be {done}.", code="job_state_conflict"
            )
        return job

    def _settle_lost(self, connection: Connection, kinds: Collection[str], now: float) -> None:
        """Jobs of these kinds whose lease has ended get what a person wished of them, or fail where they were lost too often."""
        table = schema.jobs
        lost = sa.and_(table.c.state == JobState.RUNNING.value, table.c.lease_until < now)
        query = sa.select(table).where(table.c.kind.in_(list(kinds)), lost)
        for row in connection.execute(query.with_for_update()).all():
            job = job_of(row)
            if job.wish is Wish.CANCEL:
                end_job(connection, job, JobState.CANCELLED, None, None, now)
            elif job.wish is Wish.PAUSE:
                update_job(
                    connection, job.id, state=JobState.PAUSED.value, worker=None, lease_until=None, wish=None
                )
            elif job.attempts >= self._max_attempts:
                end_job(connection, job, JobState.FAILED, None, _lost(job), now)


def events_after(db: Database, id: str, number: int) -> tuple[JobEvent, ...]:
    """The events of a job after the one of that number, oldest first; 0 for all."""
    table = schema.job_events
    query = sa.select(table).where(table.c.job_id == id, table.c.number > number).order_by(table.c.number)
    with db.read() as connection:
        return tuple(event_of(row) for row in connection.execute(query))


def _one_claim_at_a_time(connection: Connection) -> None:
    """What a claim reads (which routes are busy) stays true until it commits. On SQLite every write is alone."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": CLAIM_LOCK})


def _sign_of_life(connection: Connection, worker: str, now: float) -> None:
    """That a worker asks for jobs; not written down each time, since an idle one asks often."""
    table = schema.workers
    seen = connection.execute(sa.select(table.c.seen).where(table.c.name == worker)).scalar_one_or_none()
    if seen is not None and seen > now - SIGN_SECONDS:
        return
    gone = table.c.seen < now - WORKER_SILENT_SECONDS
    connection.execute(sa.delete(table).where((table.c.name == worker) | gone))
    connection.execute(sa.insert(table).values(name=worker, seen=now))


def _is_lost(job: Job, now: float) -> bool:
    """Running, but its worker has not been heard of in time."""
    return job.state is JobState.RUNNING and job.lease_until is not None and job.lease_until < now


def _lost(job: Job) -> dict[str, Any]:
    times = "once" if job.attempts == 1 else f"{job.attempts} times"
    return {"code": "worker_lost", "message": f"The worker was lost {times} while it ran the job."}


def _claimed_words(job: Job) -> str:
    if job.started is None:
        return "Fine-tuning job started"
    return "Job goes on" if job.state is JobState.QUEUED else LOST_WORDS[TRAINING]


def _ended_words(job: Job) -> str:
    return "been cancelled" if job.state is JobState.CANCELLED else job.state.value


def _asked(words: str, actor: str) -> EventDraft:
    return EventDraft(words, data={"actor": actor})
