"""Batches: many requests from a file, answered when there is room for them, their answers put into files.

Owns the life of a batch, each step of it one transaction. A batch is a job of its own kind (`job_records`) that a
gateway holds under a lease, with a token that each of its writes carries; what is answered stays in `batch_lines`
until the batch has ended, so that whoever takes it up goes on where it was (promise 8). Does not know what a line asks,
nor what is in a file.

    validating_files ──> running ──> succeeded, cancelled or expired
            └────────────────┴─────> failed

"Finalizing" is running with `finalizing_at` in its progress; "cancelling" is the wish to cancel. Unlike a training job
a batch stays in its state while nobody holds it: the lease alone says whether it can be claimed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from adapters import schema
from adapters.batch_lines import (
    Done,
    LineResult,
    add_usage,
    delete_lines,
    ended_with_lines,
    find_done,
    find_results,
    no_usage,
    put_results,
)
from adapters.database import Database
from adapters.errors import Conflict
from adapters.files import StoredFile, insert_file
from adapters.job_records import (
    BATCH,
    ENDED,
    LOST_WORDS,
    EventDraft,
    Job,
    JobState,
    Wish,
    add_events,
    check,
    end_job,
    enqueue,
    existing_job,
    job_of,
    moment,
    page_of_jobs,
    update_job,
)

__all__ = ["KIND", "Batches", "Done", "LineResult", "add_usage", "no_usage", "put_results"]

KIND = BATCH

#: States in which a gateway holds a batch, or may take it.
OPEN = (JobState.VALIDATING, JobState.RUNNING)

log = logging.getLogger("burnish.batches")


class Batches:
    """The batches of a database. Each method is one transaction, but those that read or delete many lines."""

    def __init__(self, db: Database) -> None:
        self._db = db

    # -- what anybody may ask ----------------------------------------------------------------------
    def create(
        self,
        *,
        input_file: str,
        endpoint: str,
        window: str,
        window_seconds: float,
        metadata: Mapping[str, str] | None,
        key_id: str | None,
        output_seconds: int | None = None,
        now: float | None = None,
    ) -> Job:
        """A batch whose file is still to be looked through. `window` is the client's word for `window_seconds`, after
        which the batch expires; `output_seconds` is how long its output files are kept (None: for ever).

        Whether there is such a file, and whose it is, is the caller's to check.
        """
        at = moment(now)
        payload = {
            "endpoint": endpoint,
            "input_file": input_file,
            "window": window,
            "expires": at + window_seconds,
            "output_seconds": output_seconds,
        }
        with self._db.begin() as connection:
            return enqueue(
                connection,
                kind=KIND,
                route=None,
                payload=payload,
                key_id=key_id,
                metadata=metadata,
                state=JobState.VALIDATING,
                events=[EventDraft(f"Validating input file: {input_file}")],
                now=at,
            )

    def get(self, id: str, key_id: str | None = None, all_keys: bool = True) -> Job:
        """Raises NotFound(code="batch_not_found"), for another key's batch and for a training job too."""
        with self._db.read() as connection:
            return existing_job(connection, id, key_id, all_keys, kind=KIND)

    def list(
        self, key_id: str | None = None, *, all_keys: bool = True, after: str | None = None, limit: int = 20
    ) -> tuple[tuple[Job, ...], bool]:
        """A page of batches, newest first, and whether there are more. `after` is the last id of the page before.

        Raises InvalidRequest for an `after` that is no batch of the caller's.
        """
        with self._db.read() as connection:
            return page_of_jobs(connection, KIND, key_id, all_keys, after=after, limit=limit)

    def cancel(
        self, id: str, actor: str, key_id: str | None = None, all_keys: bool = True, now: float | None = None
    ) -> Job:
        """Asks for a batch's end: who holds it, or takes it up next, puts what is answered into files and ends it. One
        that nobody has begun to look at ends at once. Asking again changes nothing.

        Raises NotFound, and Conflict(code="batch_state_conflict") for a batch that has ended.
        """
        at = moment(now)
        with self._db.begin() as connection:
            job = existing_job(connection, id, key_id, all_keys, kind=KIND, lock=True)
            if job.has_ended:
                status = "completed" if job.state is JobState.SUCCEEDED else job.state.value
                raise Conflict(f"Cannot cancel a batch with status '{status}'.", code="batch_state_conflict")
            if job.wish is Wish.CANCEL:
                return job
            add_events(connection, job.id, [EventDraft("Batch is asked to end", data={"actor": actor})], at)
            progress = {**job.progress, "cancelling_at": at}
            asked = update_job(connection, job.id, wish=Wish.CANCEL.value, progress=progress)
            if job.state is JobState.VALIDATING and not _is_held(job, at):
                return end_job(connection, asked, JobState.CANCELLED, _result(), None, at)
            return asked

    # -- what the gateway does that holds a batch --------------------------------------------------
    def claim(self, worker: str, lease_seconds: float, now: float | None = None) -> Job | None:
        """The oldest batch that nobody holds, in the state it is in; None where there is none.

        One whose end was asked for is claimed too, since its files are still to be written. However often a batch is
        claimed, it goes on: its window bounds it. Its token is one higher than any that a holder of it ever had.
        """
        at = moment(now)
        table = schema.jobs
        is_open = table.c.state.in_([state.value for state in OPEN])
        is_free = table.c.lease_until.is_(None) | (table.c.lease_until < at)
        # A claim reads nothing but the row it takes, so that on PostgreSQL the row's own lock is enough: two claims at
        # once take two batches, and a row that a holder's heartbeat has locked is not free. On SQLite each is alone.
        query = (
            sa.select(table)
            .where(table.c.kind == KIND, is_open, is_free)
            .order_by(table.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        with self._db.begin() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            job = job_of(row)
            if job.worker is not None:  # whoever gives a batch back signs off
                add_events(connection, job.id, [EventDraft(LOST_WORDS[KIND])], at)
            return update_job(
                connection,
                job.id,
                worker=worker,
                token=job.token + 1,
                attempts=job.attempts + 1,
                lease_until=at + lease_seconds,
                started=at if job.started is None else job.started,
            )

    def heartbeat(
        self,
        id: str,
        token: int,
        lease_seconds: float,
        progress: Mapping[str, Any] | None = None,
        now: float | None = None,
    ) -> Wish | None:
        """Extends the lease and lays `progress` over what was told before; what a person wishes of the batch.

        Raises StaleWorker.
        """
        with self._db.begin() as connection:
            job = check(connection, id, token, OPEN)
            told = {**job.progress, **(progress or {})}
            update_job(connection, id, lease_until=moment(now) + lease_seconds, progress=told)
            return job.wish

    def begin(self, id: str, token: int, *, total: int, model: str | None, now: float | None = None) -> Job:
        """The input file is sound, and has `total` lines: the batch runs. Raises StaleWorker."""
        at = moment(now)
        with self._db.begin() as connection:
            job = check(connection, id, token, (JobState.VALIDATING,))
            counts = {"total": total, "completed": 0, "failed": 0, "usage": no_usage()}
            progress = {**job.progress, **counts, "model": model, "in_progress_at": at}
            requests = "1 request" if total == 1 else f"{total} requests"
            add_events(connection, id, [EventDraft(f"Batch in progress: {requests}")], at)
            return update_job(connection, id, state=JobState.RUNNING.value, progress=progress)

    def refuse(
        self, id: str, token: int, errors: Sequence[Mapping[str, Any]], now: float | None = None
    ) -> Job:
        """Fails a batch that cannot be answered, without files: {"code", "line", "message", "param"} of each reason,
        the first of which its events tell. Cancelled instead if that was asked for. Raises StaleWorker."""
        return self._end(id, token, JobState.FAILED, _result(errors=errors), (), {}, now)

    def finalizing(self, id: str, token: int, now: float | None = None) -> Job:
        """All lines are answered, or no more of them will be: the files are being written. Raises StaleWorker."""
        at = moment(now)
        with self._db.begin() as connection:
            job = check(connection, id, token)
            if "finalizing_at" in job.progress:  # by a holder before this one
                return job
            add_events(connection, id, [EventDraft("Batch is finalizing")], at)
            return update_job(connection, id, progress={**job.progress, "finalizing_at": at})

    def finish(
        self,
        id: str,
        token: int,
        *,
        state: JobState,
        output: StoredFile | None,
        errors: StoredFile | None,
        progress: Mapping[str, Any],
        problems: Sequence[Mapping[str, Any]] = (),
        now: float | None = None,
    ) -> Job:
        """Ends a batch: the rows of its files, whose bytes are in their place (`Files.place`), and its end are one
        transaction; its lines go afterwards. Raises StaleWorker, and then there is nothing of either.

        A batch whose end was asked for is cancelled, whatever `state` says, and keeps its files. `problems` are reasons
        as in `refuse`, for a batch that fails half-way.
        """
        if state not in ENDED:
            raise ValueError(f"{state} ends no batch")
        files = tuple(file for file in (output, errors) if file is not None)
        return self._end(id, token, state, _result(output, errors, problems), files, progress, now)

    def release(self, id: str, token: int, now: float | None = None) -> None:
        """Gives a batch back as it is, for whoever claims next; this token writes no more. Raises StaleWorker."""
        with self._db.begin() as connection:
            check(connection, id, token, OPEN)
            add_events(connection, id, [EventDraft("Batch is given back by its gateway")], moment(now))
            update_job(connection, id, worker=None, lease_until=None)

    # -- its lines ---------------------------------------------------------------------------------
    def done(self, id: str) -> Done:
        """What is answered already, read a page at a time: for who takes up a batch that was begun."""
        return find_done(self._db, id)

    def results(self, id: str, *, is_error: bool, after: int, limit: int) -> tuple[LineResult, ...]:
        """The first results of lines after number `after`, by line, of those that go to one of the two files."""
        return find_results(self._db, id, is_error=is_error, after=after, limit=limit)

    def sweep(self) -> int:
        """Deletes the lines of ended batches that a crash has left; how many. For the start, and now and then."""
        with self._db.read() as connection:
            ended = ended_with_lines(connection)
        return sum(delete_lines(self._db, id) for id in ended)

    def _end(
        self,
        id: str,
        token: int,
        state: JobState,
        result: Mapping[str, Any],
        files: Sequence[StoredFile],
        progress: Mapping[str, Any],
        now: float | None,
    ) -> Job:
        at = moment(now)
        with self._db.begin() as connection:
            job = check(connection, id, token, OPEN)
            for file in files:
                insert_file(connection, file)
            if progress:
                job = update_job(connection, id, progress={**job.progress, **progress})
            if job.wish is Wish.CANCEL:
                state = JobState.CANCELLED
            ended = end_job(connection, job, state, result, _error(state, result), at)
        self._forget_lines(id)
        return ended

    def _forget_lines(self, id: str) -> None:
        """Nobody may write or read them any more. Not in the transaction of the end: other writers would wait for it."""
        try:
            delete_lines(self._db, id)
        except SQLAlchemyError:  # the batch has ended all the same, and `sweep` comes by
            log.exception("batch_lines_left batch=%s", id)


def _is_held(job: Job, now: float) -> bool:
    return job.lease_until is not None and job.lease_until >= now


def _result(
    output: StoredFile | None = None,
    error: StoredFile | None = None,
    errors: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    return {
        "output_file": None if output is None else output.id,
        "error_file": None if error is None else error.id,
        "errors": [dict(problem) for problem in errors],
    }


def _error(state: JobState, result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The job's own error: the first reason of a batch that failed."""
    if state is not JobState.FAILED or not result["errors"]:
        return None
    first = result["errors"][0]
    return {"code": first["code"], "message": first["message"], "param": first.get("param")}
