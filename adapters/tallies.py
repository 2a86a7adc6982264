"""Counts of what only grows in the records: feedback, lost leases, gates' outcomes. Read on from where one was.

Owns how a table is counted without being read anew: once as a whole, and from then on only what has come since. Counts
never fall while a process lives: what was forgotten, or is too old to be kept, was said all the same. A process that
starts counts what there is then. Each class is for one thread at a time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from adapters import schema
from adapters.job_records import ID_PREFIXES, LOST_WORDS, TRAINING, JobState

SETTLED_SECONDS = 60.0
"""On PostgreSQL a row may be seen later than one with a higher number, as long as its transaction takes; none takes so long."""

LOOKED_AT_AGAIN = 1000
"""The last rows of the first reading that are looked at again, for the same reason."""

JOBS_AT_ONCE = 500


class Growing:
    """A table whose rows are numbered as they come; `which` of them count."""

    def __init__(self, table: sa.Table, which: sa.ColumnElement[bool] | None = None) -> None:
        self._number: sa.Column[int] = table.c.number
        self._which = sa.true() if which is None else which
        self._settled = 0  # every row up to here was seen
        self._seen: set[int] = set()  # beyond it
        self._newest: deque[tuple[float, int]] = deque()  # the last number there was, by when

    def begin(self, connection: Connection, now: float) -> None:
        """All that is there is taken for seen."""
        newest = self._last(connection)
        self._settled = max(0, newest - LOOKED_AT_AGAIN)
        self._seen = set(connection.execute(self._beyond(self._number)).scalars())
        self._newest.append((now, newest))

    def read_on(self, connection: Connection, now: float, *columns: sa.Column[Any]) -> list[Row[Any]]:
        """These columns of the rows that nobody has seen here yet."""
        newest = self._last(connection)
        rows = connection.execute(self._beyond(self._number, *columns)).all()
        fresh = [row for row in rows if row.number not in self._seen]
        self._seen.update(row.number for row in fresh)
        self._newest.append((now, newest))
        while self._newest[0][0] <= now - SETTLED_SECONDS:
            self._settled = max(self._settled, self._newest.popleft()[1])
        self._seen = {number for number in self._seen if number > self._settled}
        return fresh

    def _beyond(self, *columns: sa.Column[Any]) -> sa.Select[Any]:
        return sa.select(*columns).where(self._number > self._settled, self._which).order_by(self._number)

    def _last(self, connection: Connection) -> int:
        return connection.execute(sa.select(sa.func.max(self._number))).scalar() or 0


@dataclass(frozen=True, slots=True)
class Said:
    """What was said of one variant under one name."""

    route: str
    variant: str
    name: str  # the score's; "comment", "demonstration" or "preference" where it is no score
    count: int
    value_sum: float  # of those with a value; true is 1


class FeedbackTally:
    """Feedback by route, variant and name."""

    def __init__(self) -> None:
        self._rows = Growing(schema.feedback)
        self._sums: dict[tuple[str, str, str], tuple[int, float]] = {}
        self._has_begun = False

    def read(self, connection: Connection, now: float) -> tuple[Said, ...]:
        """All counts, what was said last at the end."""
        table = schema.feedback
        if self._has_begun:
            for row in self._rows.read_on(
                connection, now, table.c.route, table.c.variant, table.c.name, table.c.value
            ):
                self._add(row, 1, row.value or 0.0)
        else:
            self._begin(connection, now)
        return tuple(Said(*group, count, total) for group, (count, total) in self._sums.items())

    def _begin(self, connection: Connection, now: float) -> None:
        table = schema.feedback
        group = (table.c.route, table.c.variant, table.c.name)
        counts = (sa.func.count().label("count"), sa.func.sum(table.c.value).label("total"))
        query = sa.select(*group, *counts).group_by(*group).order_by(sa.func.max(table.c.number))
        found = connection.execute(query).all()
        self._rows.begin(connection, now)
        for row in found:
            self._add(row, row[3], row.total or 0.0)
        self._has_begun = True

    def _add(self, row: Row[Any], count: int, total: float) -> None:
        before = self._sums.pop((row.route, row.variant, row.name), (0, 0.0))
        self._sums[row.route, row.variant, row.name] = (before[0] + count, before[1] + total)


class LostTally:
    """How often whoever held a job was lost while it did, by the job's kind. Its events say so."""

    def __init__(self) -> None:
        table = schema.job_events
        self._which = sa.or_(table.c.message.in_(LOST_WORDS.values()), table.c.level == "error")
        self._rows = Growing(table, self._which)
        self._counts: Counter[str] = Counter(dict.fromkeys(ID_PREFIXES, 0))
        self._has_begun = False

    def read(self, connection: Connection, now: float) -> Mapping[str, int]:
        table = schema.job_events
        columns = (table.c.job_id, table.c.level, table.c.data)
        if self._has_begun:
            rows: Any = self._rows.read_on(connection, now, *columns)
        else:
            rows = connection.execute(sa.select(*columns).where(self._which)).all()
            self._rows.begin(connection, now)
            self._has_begun = True
        for row in rows:
            if row.level != "error" or row.data.get("code") == "worker_lost":  # lost once too often
                self._counts[_kind_of(row.job_id)] += 1
        return dict(self._counts)


class GateTally:
    """How gates ended, by route and outcome. An ended job stays as it is, so each is looked at once."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._counted: set[int] = set()

    def read(self, connection: Connection) -> Mapping[tuple[str, str], int]:
        table = schema.jobs
        judged = (JobState.SUCCEEDED.value, JobState.FAILED.value)
        query = sa.select(table.c.number).where(table.c.kind == TRAINING, table.c.state.in_(judged))
        new = sorted(set(connection.execute(query).scalars()) - self._counted)
        for start in range(0, len(new), JOBS_AT_ONCE):
            self._count(connection, new[start : start + JOBS_AT_ONCE])
        return dict(self._counts)

    def _count(self, connection: Connection, numbers: list[int]) -> None:
        table = schema.jobs
        outcome = table.c.result[("gate", "outcome")].as_string().label("outcome")
        rows = connection.execute(sa.select(table.c.route, outcome).where(table.c.number.in_(numbers))).all()
        for row in rows:
            if row.outcome is not None:
                self._counts[row.route or "", row.outcome] += 1
        self._counted.update(numbers)


def _kind_of(job_id: str) -> str:
    return next(kind for kind, prefix in ID_PREFIXES.items() if job_id.startswith(prefix))
