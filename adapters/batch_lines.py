"""The answered lines of batches: one row a line, from its answer until it is in the batch's files.

Owns the `batch_lines` table, and how the usage of many lines adds up. The first result of a line stays, whoever answers
the line again. Does not know the life of a batch (`batches`), but that only who holds one writes its lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Row

from adapters import schema
from adapters.database import Database
from adapters.job_records import BATCH, ENDED, check
from adapters.packed import pack, unpack

#: Rows that one transaction reads: about 4 ms of parsing, and requests in flight need the interpreter more.
PAGE_ROWS = 500

#: Rows that one transaction deletes, so that no writer waits long for it: 50,000 rows of 1 kB at once are 0.17 s and
#: 41 MB of SQLite's log on a fast disk, 500 of them 3 ms.
DELETED_ROWS = 500


@dataclass(frozen=True, slots=True)
class LineResult:
    line: int  # its number in the input file
    is_error: bool  # which of the two files it goes to
    body: dict[str, Any] = field(hash=False)  # the whole line of that file


@dataclass(frozen=True, slots=True)
class Done:
    """What of a batch is answered already."""

    lines: frozenset[int]
    completed: int
    failed: int
    usage: dict[str, Any] = field(hash=False)  # as OpenAI's batch object has it


def put_results(connection: Connection, id: str, token: int, results: Sequence[LineResult]) -> None:
    """Stores results in the caller's transaction; a line that has one keeps it. Raises StaleWorker, before it writes."""
    check(connection, id, token)
    table = schema.batch_lines
    rows = [
        {"batch": id, "line": result.line, "is_error": result.is_error, "body": pack(result.body)}
        for result in results
    ]
    if rows:
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        connection.execute(insert(table).on_conflict_do_nothing(), rows)


def find_results(
    db: Database, id: str, *, is_error: bool | None = None, after: int = -1, limit: int = PAGE_ROWS
) -> tuple[LineResult, ...]:
    """The first results after that line, by line; both good ones and errors where `is_error` is None."""
    table = schema.batch_lines
    query = sa.select(table).where(table.c.batch == id, table.c.line > after).order_by(table.c.line)
    if is_error is not None:
        query = query.where(table.c.is_error == is_error)
    with db.read() as connection:
        return tuple(_result(row) for row in connection.execute(query.limit(limit)))


def find_done(db: Database, id: str) -> Done:
    """Read page by page: who resumes a batch holds it, so that nothing changes in between."""
    lines, failed, usage = set[int](), 0, no_usage()
    for result in _every(db, id):
        lines.add(result.line)
        failed += result.is_error
        usage = add_usage(usage, result.body)
    return Done(frozenset(lines), len(lines) - failed, failed, usage)


def delete_lines(db: Database, id: str) -> int:
    """Piece by piece, each a transaction; how many there were."""
    table = schema.batch_lines
    mine = table.c.batch == id
    last = sa.select(table.c.line).where(mine).order_by(table.c.line).offset(DELETED_ROWS - 1).limit(1)
    deleted = 0
    while True:
        with db.begin() as connection:
            upto = connection.execute(last).scalar_one_or_none()
            piece = sa.delete(table).where(mine if upto is None else sa.and_(mine, table.c.line <= upto))
            deleted += connection.execute(piece).rowcount
        if upto is None:
            return deleted


def ended_with_lines(connection: Connection) -> tuple[str, ...]:
    """The batches that have ended, but not for whoever was to delete their lines."""
    jobs, lines = schema.jobs, schema.batch_lines
    has_lines = sa.exists().where(lines.c.batch == jobs.c.id)
    ended = jobs.c.state.in_([state.value for state in ENDED])
    query = sa.select(jobs.c.id).where(jobs.c.kind == BATCH, ended, has_lines)
    return tuple(connection.execute(query).scalars())


# -- usage -----------------------------------------------------------------------------------------
def no_usage() -> dict[str, Any]:
    """OpenAI's `BatchUsage` before the first line."""
    return _usage(0, 0, 0, 0, 0)


def add_usage(usage: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """`usage` and that of one more line, whose `body` is as in `LineResult`: an answer of chat/completions (prompt and
    completion tokens), of responses (input and output tokens), or one that tells none."""
    told = _told(body)
    cached = _details(told, "prompt_tokens_details", "input_tokens_details")
    reasoned = _details(told, "completion_tokens_details", "output_tokens_details")
    read = _count(told, "prompt_tokens", "input_tokens")
    written = _count(told, "completion_tokens", "output_tokens")
    return _usage(
        usage["input_tokens"] + read,
        usage["input_tokens_details"]["cached_tokens"] + _count(cached, "cached_tokens"),
        usage["output_tokens"] + written,
        usage["output_tokens_details"]["reasoning_tokens"] + _count(reasoned, "reasoning_tokens"),
        usage["total_tokens"] + (_count(told, "total_tokens") or read + written),
    )


def _usage(read: int, cached: int, written: int, reasoned: int, total: int) -> dict[str, Any]:
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": reasoned},
        "total_tokens": total,
    }


def _told(body: Mapping[str, Any]) -> Mapping[str, Any]:
    response = body.get("response")
    answer = response.get("body") if isinstance(response, dict) else None
    usage = answer.get("usage") if isinstance(answer, dict) else None
    return usage if isinstance(usage, dict) else {}


def _details(told: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    return next((told[name] for name in names if isinstance(told.get(name), dict)), {})


def _count(told: Mapping[str, Any], *names: str) -> int:
    """Engines leave counts out, or say null."""
    return next((told[name] for name in names if isinstance(told.get(name), int)), 0)


def _every(db: Database, id: str) -> Iterator[LineResult]:
    after = -1
    while page := find_results(db, id, after=after):
        yield from page
        after = page[-1].line


def _result(row: Row[Any]) -> LineResult:
    return LineResult(row.line, row.is_error, unpack(row.body))
