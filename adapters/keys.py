"""API keys: made once, shown once, stored as digests (promise 12).

Owns the `keys` table, and the passes in it: keys of our own processes, which end by themselves and do not count as
keys in use. Does not know what a scope opens, `gateway.access` does, nor what a key has used: `gateway.quotas` does.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from adapters import schema
from adapters.changes import changing, record
from adapters.database import Database
from adapters.errors import Conflict, InvalidRequest, NotFound

SECRET_PREFIX = "sk-burnish-"

PASS_PREFIX = SECRET_PREFIX + "pass-"
"""Passes are told from keys by their first characters, so that one that is over is never taken for no key at all."""

MAX_NAME_CHARS = 100

MAX_LIMIT = 1_000_000_000
"""The largest limit of a key: a larger one is none."""

#: Characters of a secret kept in clear, so that a person can tell their keys apart.
SHOWN_CHARS = len(SECRET_PREFIX) + 4


class Scope(StrEnum):
    INFERENCE = "inference"
    ADMIN = "admin"
    EVALUATE = "evaluate"  # may ask candidates, unrecorded: for passes only


@dataclass(frozen=True, slots=True)
class Quota:
    """What a key may ask for. None: what the settings say, `[key_limits]`; 0: as much as there is."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None

    def over(self, defaults: Quota) -> Quota:
        """With the defaults where it says nothing."""
        return replace(defaults, **self.said())

    def said(self) -> dict[str, int]:
        """The fields that it sets, as they are stored."""
        return {name: limit for name, limit in asdict(self).items() if limit is not None}


BY_SETTINGS = Quota()
"""Of a key that has no limits of its own."""

UNLIMITED = Quota(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Key:
    id: str  # key_<24 hex>
    name: str
    prefix: str  # the secret's first characters
    digest: str = field(repr=False)  # sha256:<64 hex> of the secret
    scopes: frozenset[Scope]
    created: float  # epoch seconds
    revoked: float | None  # epoch seconds; None: in use
    records: bool = True  # whether requests made with it are recorded
    expires: float | None = None  # epoch seconds; a pass has it, a person's key has not
    limits: Quota = BY_SETTINGS


class Keys:
    def __init__(self, db: Database) -> None:
        self._db = db

    def create(
        self,
        name: str,
        scopes: Collection[Scope | str],
        actor: str,
        now: float | None = None,
        *,
        records: bool = True,
        limits: Mapping[str, int | None] | None = None,
    ) -> tuple[Key, str]:
        """A new key and its secret, which is nowhere stored. `records=False`: nothing asked with it is recorded.

        `limits` are fields of `Quota`. Raises InvalidRequest.
        """
        secret = SECRET_PREFIX + secrets.token_urlsafe(32)
        key = Key(
            id=f"key_{secrets.token_hex(12)}",
            name=_checked_name(name),
            prefix=secret[:SHOWN_CHARS],
            digest=digest_of(secret),
            scopes=_scopes(scopes),
            created=time.time() if now is None else now,
            revoked=None,
            records=records,
            limits=_limited(BY_SETTINGS, limits or {}),
        )
        with changing(self._db) as connection:
            connection.execute(sa.insert(schema.keys).values(_values(key)))
            detail = {
                "name": name,
                "scopes": sorted(key.scopes),
                "records": records,
                "limits": key.limits.said(),
            }
            record(
                connection, actor=actor, action="key.created", subject=key.id, detail=detail, now=key.created
            )
        return key, secret

    def create_pass(self, name: str, seconds: float, now: float | None = None) -> tuple[Key, str]:
        """A key for an evaluation, good for `seconds`, and its secret. Passes that are over go."""
        at = time.time() if now is None else now
        secret = PASS_PREFIX + secrets.token_urlsafe(32)
        key = Key(
            id=f"pass_{secrets.token_hex(12)}",
            name=_checked_name(name),
            prefix=PASS_PREFIX,
            digest=digest_of(secret),
            scopes=frozenset({Scope.INFERENCE, Scope.EVALUATE}),
            created=at,
            revoked=None,
            records=False,
            expires=at + seconds,
        )
        with changing(self._db) as connection:
            _drop_passes(connection, at)
            connection.execute(sa.insert(schema.keys).values(_values(key)))
            detail = {"name": name, "seconds": seconds}
            record(connection, actor="burnish", action="pass.created", subject=key.id, detail=detail, now=at)
        return key, secret

    def end_pass(self, id: str, now: float | None = None) -> None:
        """Ends a pass before its time; one that is gone already is fine."""
        at = time.time() if now is None else now
        table = schema.keys
        with changing(self._db) as connection:
            this = sa.and_(table.c.id == id, table.c.expires.is_not(None))
            if connection.execute(sa.delete(table).where(this)).rowcount:
                record(connection, actor="burnish", action="pass.ended", subject=id, now=at)

    def purge_passes(self, now: float | None = None) -> None:
        """Deletes the passes that are over."""
        with changing(self._db) as connection:
            _drop_passes(connection, time.time() if now is None else now)

    def list(self, *, passes: bool = False) -> tuple[Key, ...]:
        """All keys, revoked ones too, in the order they were made; passes only if asked for."""
        with self._db.read() as connection:
            return tuple(key for key in all_keys(connection) if passes or key.expires is None)

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

    def change_limits(
        self, id_or_name: str, limits: Mapping[str, int | None], actor: str, now: float | None = None
    ) -> Key:
        """Gives a key in use other limits: those fields of `Quota` that are named; None: as the settings have it.

        What a key has used of them stays used. Raises InvalidRequest, NotFound(code="key_not_found"), Conflict for a
        key that is revoked.
        """
        at = time.time() if now is None else now
        with changing(self._db) as connection:
            key = _one(all_keys(connection), id_or_name)
            if key.revoked is not None:
                raise Conflict(f"the key {key.id} is revoked")
            changed = replace(key, limits=_limited(key.limits, limits))
            if changed != key:
                told = changed.limits.said()
                table = schema.keys
                connection.execute(sa.update(table).where(table.c.id == key.id).values(limits=told))
                detail = {"from": key.limits.said(), "to": told}
                record(connection, actor=actor, action="key.limited", subject=key.id, detail=detail, now=at)
            return changed


def digest_of(secret: str) -> str:
    """What is stored of a secret. Plain SHA-256 will do: 256 random bits leave nothing to guess."""
    return "sha256:" + hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def all_keys(connection: Connection) -> tuple[Key, ...]:
    query = sa.select(schema.keys).order_by(schema.keys.c.created, schema.keys.c.id)
    return tuple(_key(row) for row in connection.execute(query))


def _drop_passes(connection: Connection, now: float) -> None:
    # No event and no new revision: a gateway refuses them by their time already.
    connection.execute(sa.delete(schema.keys).where(schema.keys.c.expires <= now))


def _checked_name(name: str) -> str:
    if not (name.isprintable() and name.strip() and len(name) <= MAX_NAME_CHARS):
        raise InvalidRequest(
            f"a key's name is 1 to {MAX_NAME_CHARS} printable characters", param="name", code="invalid_name"
        )
    return name


def _limited(quota: Quota, limits: Mapping[str, int | None]) -> Quota:
    """A quota with the named fields replaced. Raises InvalidRequest."""
    known = [each.name for each in fields(Quota)]
    for name, limit in limits.items():
        param = f"limits.{name}"
        if name not in known:
            message = f"a key has no limit {name!r}; there are {', '.join(known)}"
            raise InvalidRequest(message, param=param, code="unknown_field")
        if limit is not None and (type(limit) is not int or not 0 <= limit <= MAX_LIMIT):
            message = (
                f"'{param}' is a whole number from 0 (no limit) to {MAX_LIMIT}, or null (as the settings say)"
            )
            raise InvalidRequest(message, param=param, code="invalid_value")
    return replace(quota, **limits)


def _scopes(scopes: Collection[Scope | str]) -> frozenset[Scope]:
    try:
        chosen = frozenset(Scope(scope) for scope in scopes)
        if Scope.EVALUATE in chosen:
            raise ValueError(f"{Scope.EVALUATE.value!r} is for the passes of evaluations")
    except ValueError as error:
        known = ", ".join(scope for scope in Scope if scope is not Scope.EVALUATE)
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
        "records": key.records,
        "limits": key.limits.said(),
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
    }


def _key(row: Row[Any]) -> Key:
    scopes = frozenset(Scope(scope) for scope in row.scopes)
    return Key(
        id=row.id,
        name=row.name,
        prefix=row.prefix,
        digest=row.digest,
        scopes=scopes,
        created=row.created,
        revoked=row.revoked,
        records=row.records,
        expires=row.expires,
        limits=Quota(**row.limits) if row.limits else BY_SETTINGS,
    )
