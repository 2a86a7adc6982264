"""Feedback from files and to files: what a team has before there is traffic, and what it takes elsewhere.

Owns how a training row becomes an imported completion with what is said of it, and the way back. What is exported can
be imported again and is the same rows. Does not parse: `rows` does.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from typing import Any, TypeVar

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from adapters import schema
from adapters.completions import Completion, Status, completions_by_id, insert_completions
from adapters.database import Database
from adapters.draw import rows_of
from adapters.errors import RowError
from adapters.feedback import Feedback, feedback_of, insert_feedback, last_words
from adapters.policy import RATING, RoutePolicy
from adapters.records import existing_version
from adapters.routes import Route, existing_route, find_route
from adapters.rows import Row, RowKind, parse_training
from adapters.triggers import maybe_enqueue
from adapters.turns import answer_of, words_of
from adapters.versions import is_ref

SOURCE = "import"

#: What an imported completion was answered by: nothing here.
VARIANT = "import"

ROWS_AT_ONCE = 500


T = TypeVar("T")


class ExportFormat(StrEnum):
    BURNISH = "burnish"  # every row in the format that fits it, with where it came from
    CHAT = "chat"  # OpenAI's fine-tuning chat format: corrections, demonstrations and liked answers
    PREFERENCE = "preference"  # OpenAI's preference format: corrections and preferences
    KTO = "kto"  # answers with a label: liked or not


@dataclass(frozen=True, slots=True)
class Imported:
    new: int  # rows that were not there yet
    known: int
    job: str | None  # that the route's policy made of it


# -- in --------------------------------------------------------------------------------------------
def import_rows(
    db: Database, route_name: str, rows: Iterable[Row], now: float, *, user: str | None = None
) -> Imported:
    """Rows as judged completions of a route; those that are there already change nothing. `user`: of rows without one.

    A few hundred are one transaction, and the last one is the trigger's. Raises NotFound(code="route_not_found").
    """
    new = count = 0
    for some in _batches(rows, ROWS_AT_ONCE):
        with db.begin() as connection:
            route = existing_route(connection, route_name)
            new += _import(connection, route, some, user, now)
        count += len(some)
    with db.begin() as connection:
        existing_route(connection, route_name)
        job = maybe_enqueue(connection, route_name, now) if new else None
    return Imported(new, count - new, None if job is None else job.id)


def good_rows(lines: Iterable[bytes]) -> Iterator[Row]:
    """The rows of the lines that are sound; the others are left out."""
    for line in lines:
        try:
            yield from list(parse_training([line]))
        except RowError:
            continue


def _import(connection: Connection, route: Route, rows: Sequence[Row], user: str | None, now: float) -> int:
    base = existing_version(connection, route.variant).base_model if is_ref(route.variant) else route.variant
    judged = {}
    for row in rows:
        completion = _completion(_of_user(row, user), route.name, base, now)
        judged[completion.id] = completion, _said(row, completion, route.policy)
    known = completions_by_id(connection, judged)
    fresh = [pair for id, pair in judged.items() if id not in known]
    insert_completions(connection, [completion for completion, _ in fresh])
    insert_feedback(connection, [said for _, said in fresh])
    return len(fresh)


def _of_user(row: Row, user: str | None) -> Row:
    return row if row.user or not user else replace(row, user=user, unit=f"user:{user}")


def _completion(row: Row, route: str, base_model: str, now: float) -> Completion:
    request: dict[str, Any] = {"prompt" if isinstance(row.prompt, str) else "messages": row.prompt}
    if row.tools:
        request["tools"] = row.tools
    # What was answered and judged: of a preference the worse answer, which the better one then corrects.
    given = {RowKind.LABEL: row.answer, RowKind.PREFERENCE: row.rejected}.get(row.kind)
    choice = {"index": 0, "message": given, "finish_reason": "stop"}
    identity = f"{route}\n{row.id}\n{row.user or ''}"
    return Completion(
        id=f"imp_{hashlib.sha256(identity.encode()).hexdigest()[:24]}",
        created=now,
        endpoint="import",
        route=route,
        variant=VARIANT,
        base_model=base_model,
        digest=None,
        propensity=1.0,
        pinned=False,
        key_id=None,
        user=row.user,
        unit=row.unit,
        status=Status.IMPORTED,
        finish_reason=None,
        error_code=None,
        prompt_tokens=None,
        completion_tokens=None,
        ttft_seconds=None,
        total_seconds=None,
        metadata={},
        request=request,
        output=None if given is None else {"object": "chat.completion", "choices": [choice]},
    )


def _said(row: Row, completion: Completion, policy: RoutePolicy) -> Feedback:
    rating = policy.score(RATING.name)
    assert rating is not None
    is_label = row.kind is RowKind.LABEL
    return Feedback(
        id=f"fb_{completion.id.removeprefix('imp_')}",
        created=completion.created,
        completion_id=completion.id,
        name=rating.name if is_label else "demonstration",
        value=rating.value_of(bool(row.liked)) if is_label else None,
        comment=None,
        demonstration=None if is_label else row.answer,
        preferred_over=None,
        metadata={},
        key_id=None,
        user=completion.user,
        route=completion.route,
        variant=completion.variant,
        digest=None,
        unit=completion.unit,
        source=SOURCE,
    )


# -- out -------------------------------------------------------------------------------------------
def export_lines(connection: Connection, route: str | None, format: ExportFormat) -> Iterator[bytes]:
    """JSONL, a line a row, in the order in which the completions were first judged; of one route or of all."""
    policies: dict[str, RoutePolicy] = {}
    for ids in _batches(_judged_ids(connection, route), ROWS_AT_ONCE):
        said = feedback_of(connection, ids)
        others = {f.preferred_over for feedbacks in said.values() for f in feedbacks if f.preferred_over}
        completions = completions_by_id(connection, {*ids, *others})
        for id in ids:
            judged = completions.get(id)
            if judged is None:
                continue
            if judged.route not in policies:
                found = find_route(connection, judged.route)
                policies[judged.route] = found.policy if found else RoutePolicy()
            rows = rows_of(last_words(said[id]), completions, policies[judged.route], Counter())
            for row in _in_format(rows, judged, format):
                yield orjson.dumps(_line(row, judged.route, format)) + b"\n"


def _judged_ids(connection: Connection, route: str | None) -> list[str]:
    table = schema.feedback
    query = sa.select(table.c.completion_id).group_by(table.c.completion_id)
    if route is not None:
        query = query.where(table.c.route == route)
    return list(connection.execute(query.order_by(sa.func.min(table.c.number))).scalars())


def _in_format(rows: list[Row], judged: Completion, format: ExportFormat) -> list[Row]:
    match format:
        case ExportFormat.BURNISH:
            return rows
        case ExportFormat.PREFERENCE:
            return [row for row in rows if row.kind is RowKind.PREFERENCE]
        case ExportFormat.KTO:
            return [row for row in rows if row.kind is RowKind.LABEL]
        case ExportFormat.CHAT:
            given = words_of(answer_of(judged) or {})
            better = [row for row in rows if row.kind is not RowKind.LABEL and words_of(row.answer) != given]
            liked = [row for row in rows if row.liked]
            return [replace(row, kind=RowKind.DEMONSTRATION) for row in better or liked[:1]]


def _line(row: Row, route: str, format: ExportFormat) -> dict[str, Any]:
    line = _in_openai_format(row) if isinstance(row.prompt, list) else None
    if line is None:
        line = {"prompt": row.prompt, **_answers(row)}
        if isinstance(row.prompt, str):
            line["raw"] = True
        if row.tools:
            line["tools"] = row.tools
    if row.user:
        line["user"] = row.user
    if format is ExportFormat.BURNISH:
        line.update(
            route=route, completion_id=row.completion_id, feedback_id=row.feedback_id, created=row.created
        )
    return line


def _in_openai_format(row: Row) -> dict[str, Any] | None:
    """OpenAI has one for conversations; earlier answers in them are not to be learned."""
    assert isinstance(row.prompt, list)
    tools = {"tools": row.tools} if row.tools else {}
    if row.kind is RowKind.PREFERENCE:
        asked = {"messages": row.prompt, **tools}
        return {"input": asked, "preferred_output": [row.answer], "non_preferred_output": [row.rejected]}
    if row.kind is RowKind.DEMONSTRATION:
        before = [{**m, "weight": 0} if m["role"] == "assistant" else m for m in row.prompt]
        return {"messages": [*before, row.answer], **tools}
    return None


def _answers(row: Row) -> dict[str, Any]:
    if row.kind is RowKind.PREFERENCE:
        return {"chosen": [row.answer], "rejected": [row.rejected]}
    labelled = {"label": row.liked} if row.kind is RowKind.LABEL else {}
    return {"completion": [row.answer], **labelled}


def _batches(values: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch
