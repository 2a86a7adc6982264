"""Who may do what: the key of a request, the scope it needs, and how much it may ask for.

Pure, on the snapshot. While no key was ever made, requests need none (and the server listens on loopback only:
`serve` sees to that) and may do everything but what a pass is for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from adapters.errors import Forbidden, Unauthorized
from adapters.keys import BY_SETTINGS, PASS_PREFIX, UNLIMITED, Key, Quota, Scope, digest_of
from gateway.routing import Snapshot


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the key's id, or None while no keys are in use."""

    key_id: str | None
    scopes: frozenset[Scope]
    may_evaluate: bool = False
    """Whether it may ask candidates, which nobody else sees; its requests are no traffic."""
    records: bool = True
    """Whether its requests may be recorded."""
    quota: Quota = BY_SETTINGS
    """What its key may ask for. All who ask without a key share one."""

    @property
    def is_admin(self) -> bool:
        return Scope.ADMIN in self.scopes


ANYBODY = Caller(None, frozenset(Scope) - {Scope.EVALUATE})

PASS = PASS_PREFIX.encode()


def authorize(snapshot: Snapshot, authorization: bytes, api_key: bytes, scope: Scope) -> Caller:
    """The caller by `Authorization: Bearer …` or Anthropic's `x-api-key` (either may be empty).

    Raises Unauthorized without a key in use, Forbidden for one without the scope.
    """
    kind, _, secret = authorization.partition(b" ")
    if kind.lower() != b"bearer" or not secret:
        secret = api_key
    # A pass that is over must not become anybody: what an evaluation asks would be recorded as traffic.
    if not snapshot.keyed and not secret.strip().startswith(PASS):
        return ANYBODY
    if not secret:
        raise Unauthorized(
            "You didn't provide an API key. Send it in an Authorization header: 'Authorization: Bearer YOUR_KEY'.",
            code="missing_api_key",
        )
    key = snapshot.keys.get(digest_of(secret.strip().decode("latin-1")))
    if key is None or _is_over(key):
        raise Unauthorized("Incorrect API key provided. `burnish keys list` shows the keys in use.")
    if scope not in key.scopes and Scope.ADMIN not in key.scopes:
        raise Forbidden(f"This key lacks the scope '{scope.value}'.")
    return _caller(key)


def caller_of(snapshot: Snapshot, key_id: str | None) -> Caller:
    """The caller of work that goes on without them, by the id of the key that ordered it; None: no key was needed then.

    Raises Unauthorized where the key is no longer in use. Looks at every key: to be asked once for much work.
    """
    if key_id is None:
        return ANYBODY
    key = next((key for key in snapshot.keys.values() if key.id == key_id), None)
    if key is None or _is_over(key):
        raise Unauthorized("The API key that ordered this is no longer in use.")
    return _caller(key)


def _is_over(key: Key) -> bool:
    return key.expires is not None and key.expires <= time.time()


def _caller(key: Key) -> Caller:
    # Passes end by themselves, and how much they ask is ours to say.
    quota = key.limits if key.expires is None else UNLIMITED
    return Caller(key.id, key.scopes, Scope.EVALUATE in key.scopes, key.records, quota)
