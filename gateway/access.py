"""Who may do what: the key of a request, and the scope it needs.

Pure, on the snapshot. While no key was ever made, requests need none (and the server listens on loopback only:
`serve` sees to that) and may do everything.
"""

from __future__ import annotations

from dataclasses import dataclass

from adapters.errors import Forbidden, Unauthorized
from adapters.keys import Scope, digest_of
from gateway.routing import Snapshot


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the key's id, or None while no keys are in use."""

    key_id: str | None
    scopes: frozenset[Scope]

    @property
    def is_admin(self) -> bool:
        return Scope.ADMIN in self.scopes


ANYBODY = Caller(None, frozenset(Scope))


def authorize(snapshot: Snapshot, authorization: bytes, api_key: bytes, scope: Scope) -> Caller:
    """The caller by `Authorization: Bearer …` or Anthropic's `x-api-key` (either may be empty).

    Raises Unauthorized without a key in use, Forbidden for one without the scope.
    """
    if not snapshot.keyed:
        return ANYBODY
    kind, _, secret = authorization.partition(b" ")
    if kind.lower() != b"bearer" or not secret:
        secret = api_key
    if not secret:
        raise Unauthorized(
            "You didn't provide an API key. Send it in an Authorization header: 'Authorization: Bearer YOUR_KEY'.",
            code="missing_api_key",
        )
    key = snapshot.keys.get(digest_of(secret.strip().decode("latin-1")))
    if key is None:
        raise Unauthorized("Incorrect API key provided. `burnish keys list` shows the keys in use.")
    if scope not in key.scopes and Scope.ADMIN not in key.scopes:
        raise Forbidden(f"This key lacks the scope '{scope.value}'.")
    return Caller(key.id, key.scopes)
