"""Feedback: what people say of completions. Acknowledged, it is never lost; repeated, it changes nothing (promise 2).

Owns the `feedback` table. Route, variant and unit come from the stored completion, never from the client (`drafts`
has the checks). Does not know what a trainer makes of it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from adapters import schema
from adapters.completions import Completion
from adapters.database import Database
from adapters.drafts import Draft, completion_not_found, is_storable, judged_completion, sound_draft
from adapters.errors import InvalidRequest
from adapters.idempotency import made_before, purge, take

__all__ = [
    "Draft",
    "Feedback",
    "FeedbackStore",
    "feedback_of",
    "feedback_of_route",
    "give",
    "insert_feedback",
    "last_words",
]

#: How many ids one query may name, on any database.
IDS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Feedback:
    id: str  # fb_<24 hex>
    created: float
    completion_id: str
    name: str  # the score's name; "comment", "demonstration" or "preference" where it is no score
    value: float | None  # booleans are 0 and 1
    comment: str | None
    demonstration: dict[str, Any] | None = field(hash=False)  # the corrected answer as an assistant message
    preferred_over: str | None  # the other completion's id, which was worse
    metadata: dict[str, str] = field(hash=False)
    key_id: str | None
    user: str | None  # who judges: as the client says, else the completion's user
    route: str
    variant: str
    digest: str | None
    unit: str
    source: str  # "api" or "import"
    number: int | None = None

    @property
    def voice(self) -> str:
        """Whose word it is: of one voice's several words on one matter the last one counts."""
        return f"user:{self.user}" if self.user else self.unit


class FeedbackStore:
    """The feedback of a database, as its callers see it: a key sees what it gave itself."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def get(self, id: str, key_id: str | None, *, all_keys: bool = False) -> Feedback | None:
        """None for an unknown id and for another key's alike."""
        with self._db.read() as connection:
            return _find(connection, id, key_id, all_keys)

    def list(
        self,
        key_id: str | None,
        *,
        all_keys: bool = False,
        completion_id: str | None = None,
        route: str | None = None,
        name: str | None = None,
        user: str | None = None,
        after: str | None = None,
        limit: int = 20,
        newest_first: bool = True,
    ) -> tuple[tuple[Feedback, ...], bool]:
        """A page, and whether there is more. `after` is the last id of the page before.

        Raises InvalidRequest for an `after` that is none of the caller's.
        """
        table = schema.feedback
        filters = {
            table.c.completion_id: completion_id,
            table.c.route: route,
            table.c.name: name,
            table.c.end_user: user,
        }
        if not all(is_storable(value) for value in filters.values() if value is not None):
            return (), False
        query = sa.select(table).where(*[c == value for c, value in filters.items() if value is not None])
        if not all_keys:
            query = query.where(table.c.key_id.is_not_distinct_from(key_id))
        query = query.order_by(table.c.number.desc() if newest_first else table.c.number)
        with self._db.read() as connection:
            if after is not None:
                place = _find(connection, after, key_id, all_keys)
                if place is None:
                    raise InvalidRequest(
                        f"There is no feedback '{after}'.", param="after", code="invalid_value"
                    )
                beyond = table.c.number < place.number if newest_first else table.c.number > place.number
                query = query.where(beyond)
            rows = connection.execute(query.limit(limit + 1)).all()
        return tuple(_feedback(row) for row in rows[:limit]), len(rows) > limit

    def purge_keys(self, now: float | None = None) -> int:
        """Forgets idempotency keys that were remembered long enough; how many they were."""
        with self._db.begin() as connection:
            return purge(connection, time.time() if now is None else now)


# -- in the caller's transaction -------------------------------------------------------------------
def give(
    connection: Connection,
    draft: Draft,
    key_id: str | None,
    *,
    all_keys: bool = False,
    idempotency_key: str | None = None,
    source: str = "api",
    now: float | None = None,
) -> tuple[Feedback, bool]:
    """The stored feedback, and whether it was made now: the same draft under the same key is what it made before.

    Raises NotFound(code="completion_not_found") for an unknown completion and for another key's alike,
    InvalidRequest, Conflict(code="idempotency_conflict").
    """
    at = time.time() if now is None else now
    digest = _digest(draft)
    if idempotency_key is not None:
        made = made_before(connection, key_id, idempotency_key, digest)
        if made is not None:
            return _repeated(connection, made, draft), False
    judged = judged_completion(connection, draft, key_id, all_keys)
    sound = sound_draft(connection, draft, judged, key_id, all_keys)
    feedback = _of(sound, judged, key_id, source, at)
    if idempotency_key is not None and not take(connection, key_id, idempotency_key, digest, feedback.id, at):
        made = made_before(connection, key_id, idempotency_key, digest)  # by a transaction beside this one
        assert made is not None
        return _repeated(connection, made, draft), False
    insert_feedback(connection, [feedback])
    return _repeated(connection, feedback.id, draft), True


def insert_feedback(connection: Connection, feedbacks: Sequence[Feedback]) -> None:
    if feedbacks:
        connection.execute(sa.insert(schema.feedback), [_values(feedback) for feedback in feedbacks])


def feedback_of_route(
    connection: Connection, route: str, *, after_number: int = 0, limit: int | None = None
) -> tuple[Feedback, ...]:
    """What was said of a route's completions, oldest first. See `last_words`."""
    table = schema.feedback
    query = sa.select(table).where(table.c.route == route, table.c.number > after_number)
    rows = connection.execute(query.order_by(table.c.number).limit(limit))
    return tuple(_feedback(row) for row in rows)


def feedback_of(connection: Connection, completion_ids: Collection[str]) -> dict[str, tuple[Feedback, ...]]:
    """What was said of each completion, oldest first; those of which nothing was said are left out."""
    table = schema.feedback
    ids = list(completion_ids)
    found: dict[str, list[Feedback]] = {}
    for start in range(0, len(ids), IDS_AT_ONCE):
        some = table.c.completion_id.in_(ids[start : start + IDS_AT_ONCE])
        for row in connection.execute(sa.select(table).where(some).order_by(table.c.number)):
            found.setdefault(row.completion_id, []).append(_feedback(row))
    return {id: tuple(feedbacks) for id, feedbacks in found.items()}


# -- pure ------------------------------------------------------------------------------------------
def last_words(feedbacks: Iterable[Feedback]) -> tuple[Feedback, ...]:
    """What still counts, oldest first. A part that the same voice said again later is taken off: the value of a
    score, the demonstration, the preference between two completions. What has no part left is left out."""
    said: set[tuple[Any, ...]] = set()
    kept = []
    for feedback in sorted(feedbacks, key=lambda feedback: feedback.number or 0, reverse=True):
        for part, matter in _matters(feedback):
            if matter in said:
                off: dict[str, Any] = {part: None}
                feedback = replace(feedback, **off)
            said.add(matter)
        if _says_something(feedback):
            kept.append(feedback)
    return tuple(reversed(kept))


def _matters(feedback: Feedback) -> list[tuple[str, tuple[Any, ...]]]:
    """The parts that a later word of the same voice stands in place of, each with what it is about."""
    about = (feedback.completion_id, feedback.voice)
    matters: list[tuple[str, tuple[Any, ...]]] = []
    if feedback.value is not None:
        matters.append(("value", (*about, feedback.name)))
    if feedback.demonstration is not None:
        matters.append(("demonstration", about))
    if feedback.preferred_over is not None:
        pair = frozenset({feedback.completion_id, feedback.preferred_over})
        matters.append(("preferred_over", (pair, feedback.voice)))
    return matters


def _says_something(feedback: Feedback) -> bool:
    parts = (feedback.value, feedback.comment, feedback.demonstration, feedback.preferred_over)
    return any(part is not None for part in parts)


# -- from a draft to a row -------------------------------------------------------------------------
def _of(sound: Draft, judged: Completion, key_id: str | None, source: str, now: float) -> Feedback:
    assert sound.name is not None
    assert not isinstance(sound.demonstration, str)
    return Feedback(
        id=f"fb_{secrets.token_hex(12)}",
        created=now,
        completion_id=judged.id,
        name=sound.name,
        value=sound.value,
        comment=sound.comment,
        demonstration=sound.demonstration,
        preferred_over=sound.preferred_over,
        metadata=dict(sound.metadata),
        key_id=key_id,
        user=sound.user,
        route=judged.route,
        variant=judged.variant,
        digest=judged.digest,
        unit=judged.unit,
        source=source,
    )


def _repeated(connection: Connection, id: str, draft: Draft) -> Feedback:
    """The stored row. It may be gone again, with its completion: forgotten, or too old."""
    found = _find(connection, id, None, True)
    if found is None:
        raise completion_not_found(draft.completion_id)
    return found


def _digest(draft: Draft) -> str:
    """Of what the client said, however its JSON was written."""
    canonical = json.dumps(asdict(draft), sort_keys=True)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


# -- rows ------------------------------------------------------------------------------------------
def _find(connection: Connection, id: str, key_id: str | None, all_keys: bool) -> Feedback | None:
    table = schema.feedback
    query = sa.select(table).where(table.c.id == (id if id.isprintable() else ""))
    if not all_keys:
        query = query.where(table.c.key_id.is_not_distinct_from(key_id))
    row = connection.execute(query).one_or_none()
    return None if row is None else _feedback(row)


def _values(feedback: Feedback) -> dict[str, Any]:
    values = {name: getattr(feedback, name) for name in Feedback.__slots__ if name not in ("user", "number")}
    return {**values, "end_user": feedback.user}


def _feedback(row: Row[Any]) -> Feedback:
    return Feedback(
        id=row.id,
        created=row.created,
        completion_id=row.completion_id,
        name=row.name,
        value=row.value,
        comment=row.comment,
        demonstration=row.demonstration,
        preferred_over=row.preferred_over,
        metadata=row.metadata,
        key_id=row.key_id,
        user=row.end_user,
        route=row.route,
        variant=row.variant,
        digest=row.digest,
        unit=row.unit,
        source=row.source,
        number=row.number,
    )
