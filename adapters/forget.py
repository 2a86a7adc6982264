"""Forgetting an end user: their rows go, and what has learned from them stops serving (promise 6).

Owns the way from a user to the versions that learned from them: rows -> datasets -> jobs -> versions -> the versions
that went on from those. Nothing of the user's name is kept, the audit log has a digest of it. Cannot tell whose a
/v1/responses object is that was not recorded as a completion, nor unmake what has left this machine.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from adapters import schema
from adapters.changes import changing, record
from adapters.database import Database
from adapters.experiment_records import open_experiments, stop_experiment
from adapters.jobs import ENDED, stop
from adapters.records import find_versions, move_version
from adapters.routes import Route, Routes, all_routes, move_route
from adapters.rows import user_digest
from adapters.versions import MOVES, VersionRecord, VersionState

REASON = "learned from a user whose data was forgotten"

#: What holds rows or answers in a run's folder.
TEXT_FILES = ("*.jsonl", "report.json")

STOPPED = {
    "code": "data_forgotten",
    "message": "A user whose data it was learning from was forgotten. Start it again, on what is left.",
}


@dataclass(frozen=True, slots=True)
class Moved:
    """A route that must do without its default, or without a challenger."""

    route: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was done, or would be."""

    user_digest: str
    completions: int
    feedback: int
    responses: int
    jobs: tuple[str, ...]  # that learned from the user, or went on from a version that did
    stopped: tuple[str, ...]  # those of them that had not ended
    versions: tuple[str, ...]  # that came of these jobs, removed ones too
    quarantined: tuple[str, ...]  # those of them that are so by this
    routes: tuple[Moved, ...]


def forget_user(
    db: Database,
    routes: Routes,
    user: str,
    actor: str,
    *,
    run_root: Path,
    dry_run: bool = False,
    now: float | None = None,
) -> Forgotten:
    """Deletes a user's rows, quarantines what learned from them, and moves routes off it: all in one transaction.

    Forgetting somebody unknown does nothing, and says so by its counts.
    """
    at = time.time() if now is None else now
    if dry_run:
        with db.read() as connection:
            return _find(connection, routes, user).told
    with changing(db) as connection:
        _hold(connection, user)
        found = _find(connection, routes, user)
        _quarantine(connection, found, actor, at)
        _delete_rows(connection, user)
        _delete_examples(connection, found.told.jobs)
        told = found.told
        if told.completions or told.feedback or told.jobs:
            counts = {"completions": told.completions, "feedback": told.feedback, "jobs": list(told.jobs)}
            subject = f"user:{told.user_digest}"
            record(connection, actor=actor, action="user.forgotten", subject=subject, detail=counts, now=at)
        # Before the commit: after a crash right here the rows are still there, and forgetting again does the rest.
        _delete_files(run_root, told.jobs)
    return told


@dataclass(frozen=True, slots=True)
class _Found:
    told: Forgotten
    versions: tuple[VersionRecord, ...]  # to be quarantined
    moves: tuple[tuple[Route, Route], ...]


def _find(connection: Connection, routes: Routes, user: str) -> _Found:
    starts = _starts(connection)
    every = find_versions(connection, removed=True)
    jobs, learned = spread(_jobs_that_learned(connection, user), starts, every)
    refs = frozenset(version.ref for version in learned)
    open_jobs = _open(connection, jobs) | _drawing(connection, user)
    to_move = tuple(version for version in learned if VersionState.QUARANTINED in MOVES[version.state])
    bases = {version.ref: version.base_model for version in learned}
    moves = tuple(
        (route, routes.without(connection, route, refs, bases.get(route.variant, route.variant)))
        for route in all_routes(connection)
        if refs & {*route.variants}
    )
    told = Forgotten(
        user_digest=user_digest(user),
        completions=_count(connection, schema.completions, _asked_by(user)),
        feedback=_count(connection, schema.feedback, _said_by(user)),
        responses=_count(connection, schema.responses, _kept_of(user)),
        jobs=tuple(sorted(jobs | open_jobs)),
        stopped=tuple(sorted(open_jobs)),
        versions=tuple(version.ref for version in learned),
        quarantined=tuple(version.ref for version in to_move),
        routes=tuple(Moved(before.name, before.variant, after.variant) for before, after in moves),
    )
    return _Found(told, to_move, moves)


def spread(
    jobs: Collection[str], starts: Mapping[str, str | None], versions: Iterable[VersionRecord]
) -> tuple[set[str], tuple[VersionRecord, ...]]:
    """All jobs and versions that descend from these jobs. `starts`: the version that each job went on from.

    The same files under another name are the same weights.
    """
    every = tuple(versions)
    found = set(jobs)
    while True:
        digests = {version.digest for version in every if version.origin in found}
        learned = tuple(version for version in every if version.origin in found or version.digest in digests)
        refs = {version.ref for version in learned}
        more = {job for job, start in starts.items() if start in refs} - found
        if not more:
            return found, learned
        found |= more


# -- whose rows they are ---------------------------------------------------------------------------
def _asked_by(user: str) -> sa.ColumnElement[bool]:
    return schema.completions.c.end_user == user


def _completions_of(user: str) -> sa.Select[tuple[str]]:
    return sa.select(schema.completions.c.id).where(_asked_by(user))


def _said_by(user: str) -> sa.ColumnElement[bool]:
    """What they said, what was said of theirs, and what was preferred over theirs."""
    table = schema.feedback
    theirs = _completions_of(user)
    return sa.or_(
        table.c.end_user == user, table.c.completion_id.in_(theirs), table.c.preferred_over.in_(theirs)
    )


def _kept_of(user: str) -> sa.ColumnElement[bool]:
    """A kept response has the id of its completion."""
    return schema.responses.c.id.in_(_completions_of(user))


def _jobs_that_learned(connection: Connection, user: str) -> set[str]:
    """By the rows of their datasets: by completion, by feedback, and by user where neither is there any more."""
    table = schema.dataset_rows
    feedback = sa.select(schema.feedback.c.id).where(_said_by(user))
    ways = (
        table.c.completion_id.in_(_completions_of(user)),
        table.c.feedback_id.in_(feedback),
        table.c.user_digest == user_digest(user),
    )
    found: set[str] = set()
    for way in ways:
        found.update(connection.execute(sa.select(table.c.job_id).distinct().where(way)).scalars())
    return found


def _drawing(connection: Connection, user: str) -> set[str]:
    """Open jobs that have begun, on routes where the user was, and whose rows are not on record yet."""
    jobs, asked, said = schema.jobs, schema.completions, schema.feedback
    recorded = sa.select(schema.datasets.c.job_id)
    where = sa.union(
        sa.select(asked.c.route).where(_asked_by(user)), sa.select(said.c.route).where(_said_by(user))
    )
    query = sa.select(jobs.c.id).where(
        _is_open(), jobs.c.started.is_not(None), jobs.c.id.not_in(recorded), jobs.c.route.in_(where)
    )
    return set(connection.execute(query).scalars())


def _open(connection: Connection, ids: Collection[str]) -> set[str]:
    open_ids = connection.execute(sa.select(schema.jobs.c.id).where(_is_open())).scalars()
    return set(open_ids) & set(ids)


def _is_open() -> sa.ColumnElement[bool]:
    return schema.jobs.c.state.not_in([state.value for state in ENDED])


def _starts(connection: Connection) -> dict[str, str | None]:
    jobs = schema.jobs
    start = jobs.c.payload["start_from"].as_string()
    return {row.id: row.start for row in connection.execute(sa.select(jobs.c.id, start.label("start")))}


def _count(connection: Connection, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(table).where(which)).scalar_one())


# -- what is done ----------------------------------------------------------------------------------
def _hold(connection: Connection, user: str) -> None:
    """Feedback on these completions that is being given just now is stored first and then found, or refused."""
    connection.execute(_completions_of(user).with_for_update()).all()


def _quarantine(connection: Connection, found: _Found, actor: str, now: float) -> None:
    for job in found.told.stopped:
        stop(connection, job, STOPPED, now)
    refs = {*found.told.versions}
    for experiment in open_experiments(connection):
        if refs & {*experiment.variants}:
            why = "a variant learned from a user who is to be forgotten"
            stop_experiment(connection, experiment, actor, why, now)
    for before, after in found.moves:
        move_route(connection, before, after, actor, now)
    for version in found.versions:
        move_version(connection, version, VersionState.QUARANTINED, REASON, actor, now)


def _delete_rows(connection: Connection, user: str) -> None:
    """Feedback before completions: it is found through them. Row ids in datasets stay, without a way to the user."""
    made = schema.idempotency.c.made.in_(sa.select(schema.feedback.c.id).where(_said_by(user)))
    connection.execute(sa.delete(schema.idempotency).where(made))
    connection.execute(sa.delete(schema.responses).where(_kept_of(user)))
    connection.execute(sa.delete(schema.feedback).where(_said_by(user)))
    seen = schema.observations
    asked = _completions_of(user)
    connection.execute(sa.delete(seen).where(sa.or_(seen.c.id.in_(asked), seen.c.shadow_of.in_(asked))))
    connection.execute(sa.delete(schema.completions).where(_asked_by(user)))
    rows = schema.dataset_rows
    theirs = rows.c.user_digest == user_digest(user)
    connection.execute(sa.update(rows).where(theirs).values(user_digest=None))


def _delete_examples(connection: Connection, jobs: Collection[str]) -> None:
    """Reports of datasets show rows that were left out; the counts stay."""
    table = schema.datasets
    for row in connection.execute(sa.select(table)).all():
        if row.job_id in jobs:
            this = sa.and_(table.c.digest == row.digest, table.c.job_id == row.job_id)
            shown = without_examples(row.report)
            connection.execute(sa.update(table).where(this).values(report=shown))


def without_examples(report: Any) -> Any:
    """A report without what it holds under `examples`, at any depth."""
    if isinstance(report, dict):
        return {name: without_examples(part) for name, part in report.items() if name != "examples"}
    return [without_examples(part) for part in report] if isinstance(report, list) else report


def _delete_files(run_root: Path, jobs: Iterable[str]) -> None:
    """The rows' text in the folders of runs: datasets, their reports, and what was answered in evaluations."""
    for job in jobs:
        for pattern in TEXT_FILES:
            for file in (run_root / job).rglob(pattern):
                file.unlink(missing_ok=True)
