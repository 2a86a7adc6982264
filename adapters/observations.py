"""What is measured of the answers that count in an experiment: one narrow row each, beside the completion.

Owns the `observations` table. Rows are written in the transaction of their completion, those of its shadow later, and
go when it goes. Does not know how they are measured (`measuring`), nor what is made of them (`evidence`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from adapters import schema
from adapters.packed import pack
from adapters.plans import Metric
from adapters.policy import FormatCheck

#: The column of each metric. Times and lengths are logarithms: their tails are long, and ratios are what matters.
COLUMNS = {
    Metric.ERRORS: "error",
    Metric.TTFT: "log_ttft",
    Metric.INTER_TOKEN: "log_inter_token",
    Metric.TOTAL: "log_total",
    Metric.LENGTH: "log_length",
    Metric.REFUSALS: "refused",
    Metric.REPETITION: "repetition",
    Metric.MALFORMED: "malformed",
}


@dataclass(frozen=True, slots=True)
class Assignment:
    """What an experiment gave a request, and why that request counts."""

    experiment: str
    epoch: int
    variant: str
    unit: str  # what keeps this variant: "user:…", "conversation:…", else the request's own id
    form: FormatCheck = field(default_factory=FormatCheck)  # that the route's answers should have
    failed_over: bool = False  # the control answered, since the variant could not


@dataclass(frozen=True, slots=True)
class Observation:
    id: str  # the completion's; shd_… for an answer in the shadow of one
    experiment: str
    epoch: int
    variant: str  # that was chosen; where it failed over, not what answered
    unit: str
    created: float  # epoch seconds
    failed_over: bool
    error: float  # 1: no whole answer, and not by the client's doing
    #: None: not measured on this answer.
    log_ttft: float | None = None
    log_inter_token: float | None = None
    log_total: float | None = None
    log_length: float | None = None
    refused: float | None = None
    repetition: float | None = None
    malformed: float | None = None
    shadow_of: str | None = None  # the completion's id
    output: dict[str, Any] | None = field(default=None, hash=False)  # of a shadow alone


def insert_observations(connection: Connection, observations: Sequence[Observation]) -> None:
    """In the caller's transaction. By the driver itself, as completions are."""
    if observations:
        connection.exec_driver_sql(_INSERT[connection.dialect.name], [_row(each) for each in observations])


def insert_shadow(connection: Connection, *, shadow_of: str, make: Callable[[], Observation]) -> bool:
    """Stores what was measured of an answer in the shadow of a completion, in the caller's transaction; False where
    that completion is gone: nothing made of it may stay. Whoever deletes it waits for this, and then finds it."""
    table = schema.completions
    is_there = sa.select(table.c.id).where(table.c.id == shadow_of).with_for_update(read=True, key_share=True)
    if connection.execute(is_there).one_or_none() is None:
        return False
    insert_observations(connection, [make()])
    return True


def delete_observations(connection: Connection, completion_ids: Collection[str]) -> None:
    """Those of these completions, and their shadows'. `completion_ids` are few enough for one statement."""
    table, ids = schema.observations, list(completion_ids)
    connection.execute(sa.delete(table).where(sa.or_(table.c.id.in_(ids), table.c.shadow_of.in_(ids))))


_NAMES = tuple(each.name for each in fields(Observation))


def _insert(placeholder: str) -> str:
    values = ", ".join([placeholder] * len(_NAMES))
    return f"INSERT INTO observations ({', '.join(_NAMES)}) VALUES ({values})"


_INSERT = {"sqlite": _insert("?"), "postgresql": _insert("%s")}


def _row(observation: Observation) -> tuple[Any, ...]:
    output = observation.output
    values = [getattr(observation, name) for name in _NAMES if name != "output"]
    return (*values, None if output is None else pack(output))
