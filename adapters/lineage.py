"""Where a version comes from: its run, the dataset it learned from, the rows of that, the versions before it (promise 6).

Reads `jobs`, `datasets` and `dataset_rows`. Owns no table and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from adapters import schema
from adapters.database import Database
from adapters.versions import VersionRecord


@dataclass(frozen=True, slots=True)
class Lineage:
    """Of a version that a run has made. One imported by hand has none."""

    job_id: str
    route: str | None
    method: str | None
    start_from: str | None  # the version it was trained on from
    dataset: str | None  # sha256:…; None until the snapshot is taken
    rows: dict[str, int] = field(hash=False)  # how many of each split
    report: dict[str, Any] = field(hash=False)  # what was drawn, kept and left out
    gate: dict[str, Any] | None = field(hash=False)


def lineage_of(db: Database, version: VersionRecord) -> Lineage | None:
    """None for a version that no run has made."""
    with db.read() as connection:
        job = connection.execute(
            sa.select(schema.jobs).where(schema.jobs.c.id == version.origin)
        ).one_or_none()
        if job is None:
            return None
        table = schema.datasets
        dataset = connection.execute(
            sa.select(table).where(table.c.job_id == job.id).order_by(table.c.created.desc()).limit(1)
        ).one_or_none()
        result = job.result or {}
        return Lineage(
            job_id=job.id,
            route=job.route,
            method=result.get("method") or job.progress.get("method") or job.payload.get("method"),
            start_from=job.payload.get("start_from"),
            dataset=None if dataset is None else dataset.digest,
            rows={} if dataset is None else _counts(connection, dataset.digest, job.id),
            report={} if dataset is None else dataset.report,
            gate=result.get("gate"),
        )


def completions_behind(db: Database, version: VersionRecord) -> tuple[str, ...]:
    """The ids of the completions that its run's dataset was drawn from, forgotten ones too."""
    table = schema.dataset_rows
    query = (
        sa.select(table.c.completion_id)
        .where(table.c.job_id == version.origin, table.c.completion_id.is_not(None))
        .distinct()
        .order_by(table.c.completion_id)
    )
    with db.read() as connection:
        return tuple(connection.execute(query).scalars())


def _counts(connection: Connection, digest: str, job_id: str) -> dict[str, int]:
    table = schema.dataset_rows
    query = (
        sa.select(table.c.split, sa.func.count().label("rows"))
        .where(table.c.digest == digest, table.c.job_id == job_id)
        .group_by(table.c.split)
    )
    return {row.split: row.rows for row in connection.execute(query)}
