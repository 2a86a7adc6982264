"""Adapter versions as values: their names, their states and the moves between states.

Owns the grammar of `NAME@N`, of the name that an engine knows a version by, and `VersionRecord`.
Knows no database: `registry` keeps the records, `routes` asks them whether they may take traffic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from adapters.errors import InvalidRequest

ADAPTER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
VERSION_REF = re.compile(r"([a-z0-9][a-z0-9._-]{0,62})@([1-9][0-9]{0,8})")


class VersionState(StrEnum):
    CANDIDATE = (
        "candidate"  # made by a run and under test: engines hold it, only its run's evaluation may ask it
    )
    REJECTED = "rejected"  # its gate did not pass; a person may approve it all the same
    STAGED = "staged"  # stored, not yet shown to work
    PROVED = "proved"  # loaded by every engine, canary passed: the only state that takes traffic
    FAILED = "failed"  # an engine or the canary refused it; `reason` says why
    QUARANTINED = "quarantined"  # taken out of traffic by a person
    REMOVING = "removing"  # takes no new request, waits for those in flight
    REMOVED = "removed"  # files gone; the row stays, so that its number is never given again


#: What may follow what. A proved version that one engine cannot load is that placement's failure, not the version's.
MOVES: dict[VersionState, frozenset[VersionState]] = {
    VersionState.CANDIDATE: frozenset(
        {
            VersionState.PROVED,
            VersionState.REJECTED,
            VersionState.FAILED,
            VersionState.QUARANTINED,
            VersionState.REMOVING,
        }
    ),
    VersionState.REJECTED: frozenset({VersionState.STAGED, VersionState.QUARANTINED, VersionState.REMOVING}),
    VersionState.STAGED: frozenset(
        {VersionState.PROVED, VersionState.FAILED, VersionState.QUARANTINED, VersionState.REMOVING}
    ),
    VersionState.PROVED: frozenset({VersionState.QUARANTINED, VersionState.REMOVING}),
    VersionState.FAILED: frozenset({VersionState.STAGED, VersionState.QUARANTINED, VersionState.REMOVING}),
    VersionState.QUARANTINED: frozenset({VersionState.STAGED, VersionState.REMOVING}),
    VersionState.REMOVING: frozenset({VersionState.REMOVED}),
    VersionState.REMOVED: frozenset(),
}

#: What a person does about a version that may not take traffic.
REMEDIES: dict[VersionState, str] = {
    VersionState.CANDIDATE: "wait until its run's evaluation is done",
    VersionState.REJECTED: "see its gate's report; `burnish adapters approve` overrides it, on record",
    VersionState.STAGED: "wait until every engine has loaded it and its canary has passed",
    VersionState.PROVED: "nothing is needed",
    VersionState.FAILED: "see its reason, then import a corrected adapter as a new version",
    VersionState.QUARANTINED: "release it from quarantine first",
    VersionState.REMOVING: "it is being removed; import it again as a new version",
    VersionState.REMOVED: "it was removed; import it again as a new version",
}


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One immutable adapter version. Only `state`, `reason`, `approval` and `fingerprint` ever change."""

    name: str
    number: int
    digest: str  # sha256:<64 hex> of its files
    base_model: str
    base_digest: str | None  # of the base model when this version was imported; None: unknown
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int
    state: VersionState
    reason: str | None
    origin: str  # what made it: "import", or a training run's id
    approval: dict[str, Any] = field(
        hash=False
    )  # {"kind": "gate" | "override" | "pending", "by", "reason", "at", …}
    fingerprint: dict[str, Any] | None = field(hash=False)  # what the canary saw
    created: float  # epoch seconds

    @property
    def ref(self) -> str:
        return version_ref(self.name, self.number)

    @property
    def served_name(self) -> str:
        """The name engines know it by: bound to its bytes, so that no engine can serve others under it."""
        return served_name(self.name, self.number, self.digest)

    @property
    def routable(self) -> bool:
        return self.state is VersionState.PROVED

    @property
    def may_serve(self) -> bool:
        """Whether its gate passed, or a person's override is on record (promise 4)."""
        return self.approval.get("kind") == "override" or self.approval.get("outcome") == "pass"


def version_ref(name: str, number: int) -> str:
    return f"{name}@{number}"


def served_name(name: str, number: int, digest: str) -> str:
    return f"{name}@{number}.{digest.removeprefix('sha256:')[:12]}"


def parse_ref(ref: str) -> tuple[str, int]:
    """`"support@3"` -> `("support", 3)`. Raises InvalidRequest(code="invalid_version_ref")."""
    match = VERSION_REF.fullmatch(ref)
    if match is None:
        raise InvalidRequest(f"{ref!r} is not an adapter version; write NAME@N", code="invalid_version_ref")
    return match[1], int(match[2])


def is_ref(variant: str) -> bool:
    """Whether a variant names an adapter version (else a base or another engine's model)."""
    return VERSION_REF.fullmatch(variant) is not None


def is_name(name: str) -> bool:
    """Whether adapters and routes may be called so."""
    return ADAPTER_NAME.fullmatch(name) is not None


def check_name(name: str, param: str = "name") -> str:
    """The name itself if adapters and routes may have it, else InvalidRequest."""
    if not is_name(name):
        raise InvalidRequest(
            f"{name!r} is not a valid name: 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit",
            param=param,
            code="invalid_name",
        )
    return name
