"""Datasets: immutable snapshots of the rows that runs learned from.

Owns the `datasets` and `dataset_rows` tables: a digest, a report and the ids of the rows, so that lineage and
forgetting can follow them after the completions are gone. The rows' text is in the run's folder, not here.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from adapters import schema
from adapters.database import Database
from adapters.jobs import check
from adapters.rows import Row, Split, user_digest

#: Fewer than any database's limit on the parameters of one statement.
IDS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    digest: str  # sha256:<64 hex> of the rows, their order and their split
    job_id: str
    route: str | None
    created: float
    report: dict[str, Any] = field(hash=False)  # counts of what was drawn, kept and left out, and why


@dataclass(frozen=True, slots=True)
class DatasetRow:
    position: int
    row_id: str
    completion_id: str | None
    feedback_id: str | None
    user_digest: str | None
    split: Split


class Datasets:
    """The datasets of a database, to be read."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def of_job(self, job_id: str) -> DatasetRecord | None:
        """What a job learned from; None while it has drawn nothing."""
        with self._db.read() as connection:
            return _of_job(connection, job_id)

    def rows(self, digest: str, job_id: str) -> tuple[DatasetRow, ...]:
        """In the order they were put."""
        table = schema.dataset_rows
        query = sa.select(table).where(table.c.digest == digest, table.c.job_id == job_id)
        with self._db.read() as connection:
            return tuple(
                DatasetRow(
                    row.position,
                    row.row_id,
                    row.completion_id,
                    row.feedback_id,
                    row.user_digest,
                    Split(row.split),
                )
                for row in connection.execute(query.order_by(table.c.position))
            )


def put_dataset(
    connection: Connection,
    digest: str,
    job_id: str,
    route: str | None,
    report: Mapping[str, Any],
    rows: Sequence[tuple[Row, Split]],
    now: float | None = None,
    *,
    token: int | None = None,
) -> DatasetRecord:
    """Puts it on record, in the caller's transaction; the same one again changes nothing, but that it is the job's
    newest. With a `token`, only for the worker that holds the job (raises StaleWorker), so that a job which was stopped
    because somebody is forgotten records no rows."""
    if token is not None:
        check(connection, job_id, token)
    known = _of_job(connection, job_id)
    if known is not None and known.digest == digest:
        return known
    record = DatasetRecord(digest, job_id, route, time.time() if now is None else now, dict(report))
    table = schema.datasets
    again = sa.update(table).where(table.c.digest == digest, table.c.job_id == job_id)
    if not connection.execute(again.values(created=record.created)).rowcount:
        _insert(connection, record, rows)
    return record


def completions_still_there(connection: Connection, ids: Collection[str]) -> set[str]:
    """Those of these completions that nobody has deleted."""
    column = schema.completions.c.id
    every, found = list(ids), set[str]()
    for start in range(0, len(every), IDS_AT_ONCE):
        some = column.in_(every[start : start + IDS_AT_ONCE])
        found.update(connection.execute(sa.select(column).where(some)).scalars())
    return found


def _of_job(connection: Connection, job_id: str) -> DatasetRecord | None:
    """The newest of the job, should its rows have been drawn twice."""
    table = schema.datasets
    query = sa.select(table).where(table.c.job_id == job_id).order_by(table.c.created.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else DatasetRecord(row.digest, row.job_id, row.route, row.created, row.report)


def _insert(connection: Connection, record: DatasetRecord, rows: Sequence[tuple[Row, Split]]) -> None:
    connection.execute(
        sa.insert(schema.datasets).values(
            digest=record.digest,
            job_id=record.job_id,
            route=record.route,
            created=record.created,
            report=record.report,
        )
    )
    values = [
        {
            "digest": record.digest,
            "job_id": record.job_id,
            "position": position,
            "row_id": row.id,
            "completion_id": row.completion_id,
            "feedback_id": row.feedback_id,
            "user_digest": user_digest(row.user) if row.user else None,
            "split": split.value,
        }
        for position, (row, split) in enumerate(rows)
    ]
    if values:
        connection.execute(sa.insert(schema.dataset_rows), values)
