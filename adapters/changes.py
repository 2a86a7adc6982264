"""The registry's revision and its audit log: every change of what ought to be is an event and a new revision.

Owns the `registry` and `events` tables and the order of changes. Does not know what is changed: `registry`,
`routes` and `keys` do that inside a `changing` transaction and say so with `record`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from adapters import schema
from adapters.database import Database


@dataclass(frozen=True, slots=True)
class Event:
    id: int
    at: float  # epoch seconds
    actor: str
    action: str  # "adapter.imported", "route.promoted", …
    subject: str  # what was changed: NAME@N, a route, a key's id
    detail: dict[str, Any] = field(hash=False)


@contextmanager
def changing(db: Database) -> Iterator[Connection]:
    """A transaction that no other change runs beside, on any database, in any process."""
    with db.begin() as connection:
        # PostgreSQL queues changes up on this row's lock as SQLite's BEGIN IMMEDIATE does by itself,
        # so that what is read below (the highest number, a route's default) stays true until the commit.
        connection.execute(sa.select(schema.registry.c.revision).with_for_update()).one()
        yield connection


def record(
    connection: Connection,
    *,
    actor: str,
    action: str,
    subject: str,
    now: float,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """One event and the next revision, in the caller's transaction: both or neither with the change itself."""
    connection.execute(sa.update(schema.registry).values(revision=schema.registry.c.revision + 1))
    connection.execute(
        sa.insert(schema.events).values(
            at=now, actor=actor, action=action, subject=subject, detail=dict(detail or {})
        )
    )


def revision(connection: Connection) -> int:
    return int(connection.execute(sa.select(schema.registry.c.revision)).scalar_one())


def events(db: Database, *, subject: str | None = None, limit: int = 100) -> tuple[Event, ...]:
    """The newest events first, of one subject or of all."""
    query = sa.select(schema.events).order_by(schema.events.c.id.desc()).limit(limit)
    if subject is not None:
        query = query.where(schema.events.c.subject == subject)
    with db.read() as connection:
        return tuple(_event(row) for row in connection.execute(query))


def _event(row: Row[Any]) -> Event:
    return Event(row.id, row.at, row.actor, row.action, row.subject, row.detail)
