"""API keys: made once, shown once, stored as digests (promise 12).

Owns the `keys` table. Does not know what a scope opens: `gateway.access` does.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from adapters import schema
from adapters.changes import changing, record
from adapters.database import Database
from adapters.errors import InvalidRequest, NotFound

SECRET_PREFIX = "sk-burnish-"

MAX_NAME_CHARS = 100

#: Characters of a secret kept in clear, so that a person can tell their keys apart.
SHOWN_CHARS = len(SECRET_PREFIX) + 4


class Scope(StrEnum):
    INFERENCE = "inference"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Key:
    id: str  # key_<24 hex>
    name: str
    prefix: str  # the secret's first characters
    digest: str = field(repr=False)  # sha256:<64 hex> of the secret
    scopes: frozenset[Scope]
    created: float  # epoch seconds
    revoked: float | None  # epoch seconds; None: in use


class Keys:
    def __init__(self, db: Database) -> None:
        self._db = db

    def create(
        self, name: str, scopes: Collection[Scope | str], actor: str, now: float | None = None
    ) -> tuple[Key, str]:
        """A new key and its secret, which is nowhere stored. Raises InvalidRequest."""
        secret = SECRET_PREFIX + secrets.token_urlsafe(32)
        key = Key(
            id=f"key_{secrets.token_hex(12)}",
            name=_checked_name(name),
            prefix=secret[:SHOWN_CHARS],
            digest=digest_of(secret),
            scopes=_scopes(scopes),
            created=time.time() if now is None else now,
            revoked=None,
        )
        with changing(self._db) as connection:
            connection.execute(sa.insert(schema.keys).values(_values(key)))
            detail = {"name": name, "scopes": sorted(key.scopes)}
            record(
                connection, actor=actor, action="key.created", subject=key.id, detail=detail, now=key.created
            )
        return key, secret

    def list(self) -> tuple[Key, ...]:
        """All keys, revoked ones too, in the order they were made."""
        with self._db.read() as connection:
            return all_keys(connection)

    def revoke(self, id_or_name: str, actor: str, now: float | None = None) -> Key:
        """Ends a key for ever; revoking it again changes nothing. A name must be that of one key in use.

        Raises NotFound(code="key_not_found"), InvalidRequest(code="key_ambiguous").
        """
        at = time.time() if now is None else now
        with changing(self._db) as connection:
            key = _one(all_keys(connection), id_or_name)
            if key.revoked is None:
                table = schema.keys
                connection.execute(sa.update(table).where(table.c.id == key.id).values(revoked=at))
                record(connection, actor=actor, action="key.revoked", subject=key.id, now=at)
            return _one(all_keys(connection), key.id)


def digest_of(secret: str) -> str:
    """What is stored of a secret. Plain SHA-256 will do: 256 random bits leave nothing to guess."""
    return "sha256:" + hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def all_keys(connection: Connection) -> tuple[Key, ...]:
    query = sa.select(schema.keys).order_by(schema.keys.c.created, schema.keys.c.id)
    return tuple(_key(row) for row in connection.execute(query))


def _checked_name(name: str) -> str:
    if not (name.isprintable() and name.strip() and len(name) <= MAX_NAME_CHARS):
        raise InvalidRequest(
            f"a key's name is 1 to {MAX_NAME_CHARS} printable characters", param="name", code="invalid_name"
        )
    return name


def _scopes(scopes: Collection[Scope | str]) -> frozenset[Scope]:
    try:
        chosen = frozenset(Scope(scope) for scope in scopes)
    except ValueError as error:
        known = ", ".join(Scope)
        raise InvalidRequest(
            f"{error}; the scopes are {known}", param="scopes", code="invalid_scope"
        ) from None
    if not chosen:
        raise InvalidRequest("a key needs a scope", param="scopes", code="invalid_scope")
    return chosen


def _one(keys: Collection[Key], id_or_name: str) -> Key:
    by_id = [key for key in keys if key.id == id_or_name]
    found = by_id or [key for key in keys if key.name == id_or_name and key.revoked is None]
    if not found:
        raise NotFound(f"there is no key {id_or_name!r}", code="key_not_found")
    if len(found) > 1:
        raise InvalidRequest(
            f"{len(found)} keys are called {id_or_name!r}; give the id", code="key_ambiguous"
        )
    return found[0]


def _values(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "digest": key.digest,
        "scopes": sorted(key.scopes),
        "created": key.created,
        "revoked": key.revoked,
    }


def _key(row: Row[Any]) -> Key:
    scopes = frozenset(Scope(scope) for scope in row.scopes)
    return Key(row.id, row.name, row.prefix, row.digest, scopes, row.created, row.revoked)
