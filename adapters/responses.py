"""Stored /v1/responses objects, so that `previous_response_id` works on any engine and after any restart.

Owns the `responses` table. Does not know what is in a response, nor who asks: a key sees
only what the same key stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from adapters import schema
from adapters.database import Database
from adapters.packed import pack, unpack


@dataclass(frozen=True, slots=True)
class StoredResponse:
    id: str  # resp_…
    created: float  # epoch seconds
    key_id: str | None  # whose it is; None: it was made while no keys were in use
    request_input: list[Any] = field(hash=False)  # the input items of this request alone
    body: dict[str, Any] = field(hash=False)  # the response object as the client got it

    @property
    def previous_id(self) -> str | None:
        """The response that this one goes on from."""
        previous = self.body.get("previous_response_id")
        return previous if isinstance(previous, str) else None


class ResponseStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    def put(self, response: StoredResponse) -> None:
        """Stores a new response, or its later state (queued, then completed) under the same id."""
        with self._db.begin() as connection:
            put_response(connection, response)

    def get(self, id: str, key_id: str | None) -> StoredResponse | None:
        """None for an unknown id and for another key's alike."""
        if not id.isprintable():  # no database compares NUL or half a surrogate pair; no id of ours has one
            return None
        with self._db.read() as connection:
            row = connection.execute(sa.select(schema.responses).where(_owned(id, key_id))).one_or_none()
        return None if row is None else _stored(row)

    def delete(self, id: str, key_id: str | None) -> bool:
        """Whether there was one."""
        if not id.isprintable():
            return False
        with self._db.begin() as connection:
            return connection.execute(sa.delete(schema.responses).where(_owned(id, key_id))).rowcount == 1

    def purge(self, older_than: float) -> int:
        """Deletes what was created before `older_than` (epoch seconds); how many they were."""
        with self._db.begin() as connection:
            old = sa.delete(schema.responses).where(schema.responses.c.created < older_than)
            return connection.execute(old).rowcount


def put_response(connection: Connection, response: StoredResponse) -> None:
    """As `ResponseStore.put`, in the caller's transaction."""
    values = {
        "id": response.id,
        "key_id": response.key_id,
        "created": response.created,
        "body": pack(response.body),
        "input": pack(response.request_input),
    }
    connection.execute(sa.delete(schema.responses).where(_owned(response.id, response.key_id)))
    connection.execute(sa.insert(schema.responses).values(values))


def _owned(id: str, key_id: str | None) -> sa.ColumnElement[bool]:
    return sa.and_(schema.responses.c.id == id, schema.responses.c.key_id.is_not_distinct_from(key_id))


def _stored(row: Row[Any]) -> StoredResponse:
    return StoredResponse(
        id=row.id,
        created=row.created,
        key_id=row.key_id,
        request_input=unpack(row.input),
        body=unpack(row.body),
    )
