"""Idempotency keys: what a client sends again under the same key is what it made before (promise 2).

Owns the `idempotency` table. Keys of one API key are apart from another's. Does not know what was made: only its id,
and a digest of what was asked.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from adapters import schema
from adapters.errors import Conflict, InvalidRequest

#: How long a key is remembered.
REMEMBERED_SECONDS = 30 * 86400.0

MAX_KEY_CHARS = 255


def made_before(connection: Connection, key_id: str | None, key: str, body_digest: str) -> str | None:
    """The id of what the key has made. Raises InvalidRequest, Conflict where that was asked with another body."""
    if not 1 <= len(key) <= MAX_KEY_CHARS or not key.isprintable():
        raise InvalidRequest(
            f"An Idempotency-Key is 1 to {MAX_KEY_CHARS} printable characters.",
            param="Idempotency-Key",
            code="invalid_value",
        )
    table = schema.idempotency
    query = sa.select(table).where(table.c.owner == _owner(key_id), table.c.key == key)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    if row.body_digest != body_digest:
        raise Conflict(
            "This Idempotency-Key was used with another body; take a new one.",
            param="Idempotency-Key",
            code="idempotency_conflict",
        )
    return str(row.made)


def take(
    connection: Connection, key_id: str | None, key: str, body_digest: str, made: str, now: float
) -> bool:
    """Whether the key is free and now stands for `made`. Of two transactions at once one gets it; the other waits
    for that one's end and is told False."""
    table = schema.idempotency
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    row = insert(table).values(owner=_owner(key_id), key=key, body_digest=body_digest, made=made, created=now)
    taken = row.on_conflict_do_nothing().returning(table.c.made)
    return connection.execute(taken).one_or_none() is not None


def purge(connection: Connection, now: float) -> int:
    """Forgets the keys that were remembered long enough; how many they were."""
    table = schema.idempotency
    return connection.execute(sa.delete(table).where(table.c.created < now - REMEMBERED_SECONDS)).rowcount


def _owner(key_id: str | None) -> str:
    return key_id or ""
