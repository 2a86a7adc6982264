"""Base models and adapter versions as rows, read and written inside a caller's transaction.

Owns the mapping between these rows and their dataclasses. Knows no files and begins no transaction: `registry`
does, and decides; these functions only hold what the tables must always agree on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from adapters import schema
from adapters.changes import record
from adapters.errors import Conflict, NotFound
from adapters.versions import MOVES, VersionRecord, VersionState, parse_ref

#: States whose files somebody may still ask for, and that an import of the same files may join.
LIVE = frozenset(VersionState) - {VersionState.REMOVING, VersionState.REMOVED}


@dataclass(frozen=True, slots=True)
class BaseModel:
    name: str
    digest: str | None  # of its weights; None: a remote engine did not say
    created: float  # epoch seconds


def find_base_model(connection: Connection, name: str) -> BaseModel | None:
    return next((base for base in all_base_models(connection) if base.name == name), None)


def all_base_models(connection: Connection) -> tuple[BaseModel, ...]:
    query = sa.select(schema.base_models).order_by(schema.base_models.c.name)
    return tuple(BaseModel(row.name, row.digest, row.created) for row in connection.execute(query))


def put_base_model(connection: Connection, base: BaseModel) -> None:
    """A new base model, or what is now known of a known one."""
    table = schema.base_models
    if find_base_model(connection, base.name) is None:
        connection.execute(sa.insert(table).values(name=base.name, digest=base.digest, created=base.created))
    else:
        connection.execute(sa.update(table).where(table.c.name == base.name).values(digest=base.digest))


def adapter_base(connection: Connection, name: str) -> str | None:
    """The base model that an adapter's name belongs to; None: there is no such adapter."""
    query = sa.select(schema.adapters.c.base_model).where(schema.adapters.c.name == name)
    base: str | None = connection.execute(query).scalar_one_or_none()
    return base


def insert_adapter(connection: Connection, name: str, base_model: str, now: float) -> None:
    connection.execute(sa.insert(schema.adapters).values(name=name, base_model=base_model, created=now))


def find_versions(
    connection: Connection, name: str | None = None, *, removed: bool
) -> tuple[VersionRecord, ...]:
    """By name and number; of one adapter if named."""
    table = schema.versions
    query = sa.select(table).order_by(table.c.name, table.c.number)
    if name is not None:
        query = query.where(table.c.name == name)
    if not removed:
        query = query.where(table.c.state != VersionState.REMOVED.value)
    return tuple(_version(row) for row in connection.execute(query))


def existing_version(connection: Connection, ref: str) -> VersionRecord:
    """Raises InvalidRequest, NotFound(code="version_not_found")."""
    name, number = parse_ref(ref)
    table = schema.versions
    query = sa.select(table).where(table.c.name == name, table.c.number == number)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"there is no adapter version {ref}", code="version_not_found")
    return _version(row)


def insert_version(connection: Connection, version: VersionRecord) -> None:
    connection.execute(
        sa.insert(schema.versions).values(
            name=version.name,
            number=version.number,
            digest=version.digest,
            base_model=version.base_model,
            base_digest=version.base_digest,
            rank=version.rank,
            target_modules=list(version.target_modules),
            size_bytes=version.size_bytes,
            state=version.state.value,
            reason=version.reason,
            origin=version.origin,
            approval=version.approval,
            fingerprint=version.fingerprint,
            created=version.created,
        )
    )


def update_version(connection: Connection, version: VersionRecord, **values: Any) -> None:
    table = schema.versions
    this = sa.and_(table.c.name == version.name, table.c.number == version.number)
    connection.execute(sa.update(table).where(this).values(**values))


def move_version(
    connection: Connection,
    version: VersionRecord,
    state: VersionState,
    reason: str | None,
    actor: str,
    now: float,
) -> VersionRecord:
    """The version in its new state; no change and no event if it is in it already.

    Raises Conflict(code="state_conflict").
    """
    if version.state is state:
        return version
    if state not in MOVES[version.state]:
        raise Conflict(f"{version.ref} is {version.state} and cannot become {state}", code="state_conflict")
    update_version(connection, version, state=state.value, reason=reason)
    detail = {"from": version.state.value, "reason": reason}
    record(connection, actor=actor, action=f"adapter.{state}", subject=version.ref, detail=detail, now=now)
    return replace(version, state=state, reason=reason)


def next_number(connection: Connection, name: str) -> int:
    """One above the highest ever given, removed versions too (promise 3)."""
    query = sa.select(sa.func.max(schema.versions.c.number)).where(schema.versions.c.name == name)
    return int(connection.execute(query).scalar_one() or 0) + 1


def used_digests(connection: Connection) -> frozenset[str]:
    """Artifacts that a version which is not removed still needs."""
    return frozenset(version.digest for version in find_versions(connection, removed=False))


def _version(row: Row[Any]) -> VersionRecord:
    return VersionRecord(
        name=row.name,
        number=row.number,
        digest=row.digest,
        base_model=row.base_model,
        base_digest=row.base_digest,
        rank=row.rank,
        target_modules=tuple(row.target_modules),
        size_bytes=row.size_bytes,
        state=VersionState(row.state),
        reason=row.reason,
        origin=row.origin,
        approval=row.approval,
        fingerprint=row.fingerprint,
        created=row.created,
    )
