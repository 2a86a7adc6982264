"""What a client says of a completion, before it is stored: which completion it may judge, and what it may say.

Owns the checks of a draft against the completion and the route's declared scores. Stores nothing: `feedback` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from adapters import schema
from adapters.completions import Completion, find_completion
from adapters.errors import InvalidRequest, NotFound
from adapters.messages import Problem, sound_answer
from adapters.policy import RATING, RESERVED_NAMES, RoutePolicy, Score, ScoreKind
from adapters.routes import find_route
from adapters.turns import prompt_of


@dataclass(frozen=True, slots=True)
class Draft:
    """Feedback as a client gives it; at least one of value, comment, demonstration and preferred_over is there."""

    completion_id: str
    name: str | None = None
    value: bool | float | None = None
    comment: str | None = None
    demonstration: str | dict[str, Any] | None = field(default=None, hash=False)
    preferred_over: str | None = None
    metadata: dict[str, str] = field(default_factory=dict, hash=False)
    user: str | None = None


def judged_completion(connection: Connection, draft: Draft, key_id: str | None, all_keys: bool) -> Completion:
    """Raises NotFound(code="completion_not_found"), for an unknown completion and for another key's alike."""
    if connection.dialect.name == "postgresql":  # on SQLite a transaction that writes is alone
        _hold(connection, draft.completion_id)
    found = _visible(connection, draft.completion_id, key_id, all_keys)
    if found is None:
        raise completion_not_found(draft.completion_id)
    return found


def completion_not_found(id: str) -> NotFound:
    return NotFound(f"Completion '{id}' not found.", param="completion_id", code="completion_not_found")


def sound_draft(
    connection: Connection, draft: Draft, judged: Completion, key_id: str | None, all_keys: bool
) -> Draft:
    """The draft as it may be stored: with its score's name, its value as a number, its demonstration as a message.

    Raises InvalidRequest.
    """
    for param, text in (("comment", draft.comment), ("user", draft.user)):
        if text is not None and not is_storable(text):
            raise _wrong(param, "it holds what is no text")
    name, value = _score(connection, draft, judged.route)
    sound = replace(
        draft,
        name=name,
        value=value,
        comment=draft.comment if draft.comment and draft.comment.strip() else None,
        demonstration=_demonstration(draft),
        preferred_over=_preferred_over(connection, draft, judged, key_id, all_keys),
        user=draft.user or judged.user,
    )
    if (sound.value, sound.comment, sound.demonstration, sound.preferred_over) == (None,) * 4:
        raise InvalidRequest(
            "Give at least one of 'value', 'comment', 'demonstration' and 'preferred_over'.",
            code="missing_required_parameter",
        )
    return sound


def is_storable(text: str) -> bool:
    """No database stores NUL or half a surrogate pair."""
    return not any(char == "\x00" or "\ud800" <= char <= "\udfff" for char in text)


def _hold(connection: Connection, id: str) -> None:
    """Until this transaction ends the completion cannot be forgotten: what is said of it would be left behind."""
    table = schema.completions
    query = sa.select(table.c.number).where(table.c.id == (id if is_storable(id) else ""))
    connection.execute(query.with_for_update(read=True, key_share=True)).all()


def _visible(connection: Connection, id: str, key_id: str | None, all_keys: bool) -> Completion | None:
    found = find_completion(connection, id)
    return found if found is not None and (all_keys or found.key_id == key_id) else None


def _score(connection: Connection, draft: Draft, route: str) -> tuple[str, float | None]:
    """The name that the feedback goes by, and the value on that score's scale."""
    declared = find_route(connection, route)
    policy = RoutePolicy() if declared is None else declared.policy
    if draft.name is None:
        return _usual_name(draft), _value(draft, policy.score(RATING.name))
    score = policy.score(draft.name)
    if score is None and (draft.value is not None or draft.name not in RESERVED_NAMES):
        raise InvalidRequest(
            f"Route '{route}' has no score '{draft.name[:63]}'; it has {', '.join(policy.score_names)}.",
            param="name",
            code="unknown_score",
        )
    return draft.name, _value(draft, score)


def _usual_name(draft: Draft) -> str:
    if draft.value is not None:
        return RATING.name
    if draft.demonstration is not None:
        return "demonstration"
    return "preference" if draft.preferred_over is not None else "comment"


def _value(draft: Draft, score: Score | None) -> float | None:
    value = draft.value
    if value is None or score is None:
        return None
    if score.kind is ScoreKind.BOOLEAN:
        if value not in (0, 1):
            raise _wrong("value", f"'{score.name}' is true or false")
    elif isinstance(value, bool):
        raise _wrong("value", f"'{score.name}' is a number")
    elif not score.bounds[0] <= value <= score.bounds[1]:
        raise _wrong("value", f"'{score.name}' goes from {score.bounds[0]:g} to {score.bounds[1]:g}")
    return float(value)


def _demonstration(draft: Draft) -> dict[str, Any] | None:
    """A text, or an assistant message with content or tool_calls, as an assistant message."""
    given = draft.demonstration
    if given is None:
        return None
    try:
        return sound_answer(
            {"role": "assistant", **given} if isinstance(given, dict) else given, "demonstration"
        )
    except Problem as problem:
        raise InvalidRequest(f"{problem.message}.", param=problem.param, code="invalid_value") from None


def _preferred_over(
    connection: Connection, draft: Draft, judged: Completion, key_id: str | None, all_keys: bool
) -> str | None:
    if draft.preferred_over is None:
        return None
    other = _visible(connection, draft.preferred_over, key_id, all_keys)
    problem = None
    if other is None:
        problem = f"Completion '{draft.preferred_over}' not found"
    elif other.id == judged.id:
        problem = "A completion cannot be preferred over itself"
    elif other.route != judged.route:
        problem = f"'preferred_over' must be a completion of the same route, '{judged.route}'"
    elif prompt_of(other) != prompt_of(judged):
        problem = "'preferred_over' must be a completion of the same prompt"
    if problem is not None:
        raise InvalidRequest(f"{problem}.", param="preferred_over", code="invalid_preference")
    return draft.preferred_over


def _wrong(param: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{param}': {problem}.", param=param, code="invalid_value")
