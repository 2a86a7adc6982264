"""What is, as the gateways saw it: which engine holds which adapter version, which gateways are alive, how far their
interactive latency is from its target, and whether batch lines wait there.

Owns the `placements` and `gateways` tables. Knows nothing of what ought to be: that is `registry`. Nothing here
moves the registry's revision, since no gateway's snapshot depends on it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from adapters import schema
from adapters.database import Database
from adapters.versions import parse_ref, version_ref

#: A gateway that has been silent for so long is gone, or hangs; it gives a sign of life every 2 s.
SILENT_SECONDS = 6.0


class PlacementState(StrEnum):
    LOADING = "loading"
    PROVED = "proved"  # the engine holds it, and its canary has passed there
    FAILED = "failed"  # `reason` says why


@dataclass(frozen=True, slots=True)
class Placement:
    engine: str
    name: str
    number: int
    state: PlacementState
    reason: str | None
    updated: float  # epoch seconds

    @property
    def ref(self) -> str:
        return version_ref(self.name, self.number)


@dataclass(frozen=True, slots=True)
class Gateway:
    id: str
    url: str
    heartbeat: float  # epoch seconds of its last sign of life


class Placements:
    def __init__(self, db: Database) -> None:
        self._db = db

    def put(
        self,
        engine: str,
        ref: str,
        state: PlacementState,
        reason: str | None = None,
        now: float | None = None,
    ) -> Placement:
        """Says what `engine` does with version `ref`, whatever was said before."""
        name, number = parse_ref(ref)
        placement = Placement(engine, name, number, state, reason, time.time() if now is None else now)
        values = {"state": state.value, "reason": reason, "updated": placement.updated}
        with self._db.begin() as connection:
            identity = {"engine": engine, "name": name, "number": number}
            _upsert(connection, schema.placements, identity, values)
        return placement

    def remove(self, engine: str, ref: str) -> None:
        """`engine` no longer holds version `ref`."""
        name, number = parse_ref(ref)
        table = schema.placements
        here = sa.and_(table.c.engine == engine, table.c.name == name, table.c.number == number)
        with self._db.begin() as connection:
            connection.execute(sa.delete(table).where(here))

    def forget_engine(self, engine: str) -> None:
        """`engine` holds nothing: it is new, gone or was restarted."""
        with self._db.begin() as connection:
            connection.execute(sa.delete(schema.placements).where(schema.placements.c.engine == engine))

    def list(self, engine: str | None = None, ref: str | None = None) -> tuple[Placement, ...]:
        with self._db.read() as connection:
            return placements_of(connection, ref, engine)

    def heartbeat(
        self,
        gateway: str,
        url: str,
        *,
        headroom: float | None = None,
        lines_wait: bool = False,
        now: float | None = None,
    ) -> None:
        """The gateway of that id is alive and listens at `url`. `headroom`: 1 - the worst of its interactive latencies
        over their targets, so below 0 where one is missed; None where it does not measure. `lines_wait`: batch lines
        wait for a place there."""
        at = time.time() if now is None else now
        values = {"url": url, "heartbeat": at, "headroom": headroom, "lines_wait": lines_wait}
        with self._db.begin() as connection:
            _upsert(connection, schema.gateways, {"id": gateway}, values)

    def leave(self, gateway: str) -> None:
        """The gateway of that id has stopped in good order."""
        with self._db.begin() as connection:
            connection.execute(sa.delete(schema.gateways).where(schema.gateways.c.id == gateway))

    def live_gateways(self, max_age_seconds: float, now: float | None = None) -> tuple[Gateway, ...]:
        """Those heard of in the last `max_age_seconds`, the latest first."""
        since = (time.time() if now is None else now) - max_age_seconds
        table = schema.gateways
        query = (
            sa.select(table).where(table.c.heartbeat >= since).order_by(table.c.heartbeat.desc(), table.c.id)
        )
        with self._db.read() as connection:
            return tuple(Gateway(row.id, row.url, row.heartbeat) for row in connection.execute(query))

    def headroom(
        self,
        max_age_seconds: float = SILENT_SECONDS,
        now: float | None = None,
        *,
        beside: str | None = None,
    ) -> float | None:
        """`lowest_headroom` in a transaction of its own."""
        at = time.time() if now is None else now
        with self._db.read() as connection:
            return lowest_headroom(connection, max_age_seconds, at, beside=beside)

    def lines_wait(self, max_age_seconds: float = SILENT_SECONDS, now: float | None = None) -> bool:
        """Whether batch lines wait for a place at any gateway heard of in the last `max_age_seconds`."""
        since = (time.time() if now is None else now) - max_age_seconds
        table = schema.gateways
        query = sa.select(sa.exists().where(table.c.heartbeat >= since, table.c.lines_wait))
        with self._db.read() as connection:
            return bool(connection.execute(query).scalar_one())


def lowest_headroom(
    connection: Connection, max_age_seconds: float, now: float, *, beside: str | None = None
) -> float | None:
    """Of the gateways heard of in the last `max_age_seconds`, but for the one that asks (`beside`); None: none of them
    measures, or there is none."""
    table = schema.gateways
    query = sa.select(sa.func.min(table.c.headroom)).where(table.c.heartbeat >= now - max_age_seconds)
    if beside is not None:
        query = query.where(table.c.id != beside)
    lowest: float | None = connection.execute(query).scalar_one()
    return lowest


def placements_of(
    connection: Connection, ref: str | None = None, engine: str | None = None
) -> tuple[Placement, ...]:
    """Of one version, of one engine, or all, in the caller's transaction."""
    table = schema.placements
    query = sa.select(table).order_by(table.c.engine, table.c.name, table.c.number)
    if engine is not None:
        query = query.where(table.c.engine == engine)
    if ref is not None:
        name, number = parse_ref(ref)
        query = query.where(table.c.name == name, table.c.number == number)
    return tuple(_placement(row) for row in connection.execute(query))


def _upsert(
    connection: Connection, table: sa.Table, identity: dict[str, Any], values: dict[str, Any]
) -> None:
    from sqlalchemy.dialects import postgresql, sqlite  # slow to import, and the CLI never writes here

    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    insert = dialect.insert(table).values(identity | values)
    connection.execute(insert.on_conflict_do_update(index_elements=list(identity), set_=values))


def _placement(row: Row[Any]) -> Placement:
    state = PlacementState(row.state)
    return Placement(row.engine, row.name, row.number, state, row.reason, row.updated)
