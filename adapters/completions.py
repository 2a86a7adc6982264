"""Completions: every answered request as it is kept, and OpenAI's stored-completions view of them.

Owns the `completions` table and its compression. Does not know how an answer is made, nor what is said of it later
(`feedback`) or measured of it (`observations`), but that these go when the completion goes. A key sees only its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from adapters import schema
from adapters.database import Database
from adapters.observations import Observation, delete_observations, insert_observations
from adapters.packed import pack, unpack

PURGE_ROWS = 500
"""Rows that one transaction of `purge` deletes, so that no writer waits long for it."""

#: Fewer than any database's limit on the parameters of one statement.
ID_ROWS = 500


class Status(StrEnum):
    COMPLETE = "complete"
    INCOMPLETE = "incomplete"  # cut off: the engine broke or the client left; never trained on
    ERROR = "error"  # no answer at all
    IMPORTED = "imported"  # a row from a file, not a request


@dataclass(frozen=True, slots=True)
class Completion:
    id: str  # as the client got it: chatcmpl-…, cmpl-…, resp_…, msg_…; without an answer: req_…; imported: imp_…
    created: float  # epoch seconds
    endpoint: str  # the path: /v1/chat/completions, …; "import" for an imported row
    route: str  # the public model name that was asked for
    variant: str  # what answered: NAME@N or a base model
    base_model: str
    digest: str | None  # of the adapter's files
    propensity: float  # the probability with which the variant was chosen; 1.0 where nothing was split
    pinned: bool  # the client named the version itself
    key_id: str | None
    user: str | None  # safety_identifier, else user (column end_user)
    unit: str  # whose voice: "user:…" | "conversation:…" (hash of the conversation's beginning)
    status: Status
    finish_reason: str | None  # of the first choice
    error_code: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    ttft_seconds: float | None  # to the first byte of a stream; None: not streamed, or none came
    total_seconds: float | None
    metadata: dict[str, str] = field(hash=False)
    #: The body as the client sent it; where that went on from an earlier response, `input` begins with what went before.
    request: dict[str, Any] = field(hash=False)
    #: The answer object as the client got it, streams put together.
    output: dict[str, Any] | None = field(hash=False)
    number: int | None = None  # grows with every completion; None before it is stored
    #: What an experiment measures of it, which is stored with it; None for what was read back.
    observation: Observation | None = field(default=None, compare=False)


class Completions:
    """Reading, changing and deleting. `key_id` None is the owner of what was asked while no keys were in use."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def get(self, id: str, key_id: str | None, *, all_keys: bool = False) -> Completion | None:
        """None for an unknown id and for another key's alike."""
        with self._db.read() as connection:
            found = find_completion(connection, id)
        return found if found is not None and (all_keys or found.key_id == key_id) else None

    def list(
        self,
        key_id: str | None,
        *,
        all_keys: bool = False,
        route: str | None = None,
        endpoint: str | None = None,
        metadata: Mapping[str, str] | None = None,
        statuses: Collection[Status] | None = None,
        after: str | None = None,
        limit: int = 20,
        newest_first: bool = False,
    ) -> tuple[tuple[Completion, ...], bool]:
        """One page and whether there are more. `after` is the last id of the page before; one that is unknown, or
        another key's, begins at the beginning of nothing: the page is empty."""
        table = schema.completions
        wanted = [] if all_keys else [table.c.key_id.is_not_distinct_from(key_id)]
        if route is not None:
            wanted.append(table.c.route == route)
        if endpoint is not None:
            wanted.append(table.c.endpoint == endpoint)
        if statuses is not None:
            wanted.append(table.c.status.in_([status.value for status in statuses]))
        wanted += [self._has(name, value) for name, value in (metadata or {}).items()]
        if after is not None:
            cursor = sa.select(table.c.number).where(table.c.id == _comparable(after))
            cursor = cursor if all_keys else cursor.where(table.c.key_id.is_not_distinct_from(key_id))
            last = cursor.scalar_subquery()
            wanted.append(table.c.number < last if newest_first else table.c.number > last)
        order = table.c.number.desc() if newest_first else table.c.number
        query = sa.select(table).where(*wanted).order_by(order).limit(limit + 1)
        with self._db.read() as connection:
            found = tuple(_completion(row) for row in connection.execute(query))
        return found[:limit], len(found) > limit

    def update_metadata(
        self, id: str, key_id: str | None, metadata: Mapping[str, str], *, all_keys: bool = False
    ) -> Completion | None:
        """The completion with its metadata replaced; None where there is none to change."""
        mine = _owned(id, key_id, all_keys)
        with self._db.begin() as connection:
            change = sa.update(schema.completions).where(mine).values(metadata=dict(metadata))
            return find_completion(connection, id) if connection.execute(change).rowcount else None

    def delete(self, id: str, key_id: str | None, *, all_keys: bool = False) -> bool:
        """Whether there was one. What was said of it goes too; that a dataset had it stays on record."""
        with self._db.begin() as connection:
            gone = connection.execute(
                sa.delete(schema.completions).where(_owned(id, key_id, all_keys))
            ).rowcount
            if gone:
                connection.execute(sa.delete(schema.feedback).where(schema.feedback.c.completion_id == id))
                delete_observations(connection, [id])
            return gone == 1

    def purge(self, older_than: float, judged_older_than: float) -> int:
        """Deletes what was created before these times (epoch seconds): the first holds for completions that nobody
        has judged, the second for those with feedback, which goes with them. How many completions they were."""
        table, said = schema.completions, schema.feedback
        judged = sa.exists().where(said.c.completion_id == table.c.id)
        old = sa.or_(
            sa.and_(table.c.created < older_than, ~judged),
            sa.and_(table.c.created < judged_older_than, judged),
        )
        some = sa.select(table.c.id).where(old).order_by(table.c.created).limit(PURGE_ROWS)
        deleted = 0
        while True:
            with self._db.begin() as connection:
                ids = connection.execute(some).scalars().all()
                delete_completions(connection, ids)
            deleted += len(ids)
            if len(ids) < PURGE_ROWS:
                return deleted

    def _has(self, name: str, value: str) -> sa.ColumnElement[bool]:
        """That the metadata says `value` under `name`; a path of SQLite's JSON functions cannot hold every name."""
        column = schema.completions.c.metadata
        name, value = _comparable(name), _comparable(value)
        if self._db.dialect == "postgresql":
            return sa.type_coerce(column[name].as_string(), sa.Text) == value
        each = sa.func.json_each(column).table_valued("key", "value")
        return sa.exists(sa.select(1).select_from(each).where(each.c.key == name, each.c.value == value))


def insert_completions(connection: Connection, completions: Sequence[Completion]) -> None:
    """In the caller's transaction, all at once. Raises IntegrityError for an id that is there already."""
    if completions:
        # By the driver itself: SQLAlchemy's handling of the values costs half as much again as the insert.
        connection.exec_driver_sql(_INSERT[connection.dialect.name], [_row(c) for c in completions])
        insert_observations(connection, [c.observation for c in completions if c.observation is not None])


def find_completion(connection: Connection, id: str) -> Completion | None:
    """Whoever asks: the caller sees to it that it is theirs."""
    query = sa.select(schema.completions).where(schema.completions.c.id == _comparable(id))
    row = connection.execute(query).one_or_none()
    return None if row is None else _completion(row)


def completions_by_id(connection: Connection, ids: Collection[str]) -> dict[str, Completion]:
    """Those of `ids` that there are."""
    found: dict[str, Completion] = {}
    for some in _batches([_comparable(id) for id in ids]):
        query = sa.select(schema.completions).where(schema.completions.c.id.in_(some))
        found.update((row.id, _completion(row)) for row in connection.execute(query))
    return found


def delete_completions(connection: Connection, ids: Collection[str]) -> None:
    """With what was said of them, in the caller's transaction."""
    for some in _batches(ids):
        connection.execute(sa.delete(schema.feedback).where(schema.feedback.c.completion_id.in_(some)))
        delete_observations(connection, some)
        connection.execute(sa.delete(schema.completions).where(schema.completions.c.id.in_(some)))


def try_to_write(connection: Connection) -> None:
    """Writes a completion and takes it back, so that a database that cannot write says so."""
    id = f"probe_{secrets.token_hex(8)}"
    probe = Completion(
        id, 0.0, "probe", "", "", "", None, 1.0, False, None, None, "", Status.ERROR,
        None, None, None, None, None, None, {}, {}, None,
    )  # fmt: skip
    insert_completions(connection, [probe])
    connection.execute(sa.delete(schema.completions).where(schema.completions.c.id == id))


_COLUMNS = tuple(column.name for column in schema.completions.columns if column.name != "number")


def _insert(placeholder: str) -> str:
    values = ", ".join([placeholder] * len(_COLUMNS))
    return f"INSERT INTO completions ({', '.join(_COLUMNS)}) VALUES ({values})"


_INSERT = {"sqlite": _insert("?"), "postgresql": _insert("%s")}


def _comparable(text: str) -> str:
    """No database compares NUL or half a surrogate pair; no text of ours has one, so what replaces them is not found."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def _owned(id: str, key_id: str | None, all_keys: bool) -> sa.ColumnElement[bool]:
    table = schema.completions
    is_it = table.c.id == _comparable(id)
    return is_it if all_keys else sa.and_(is_it, table.c.key_id.is_not_distinct_from(key_id))


def _batches(ids: Collection[str]) -> Iterator[list[str]]:
    every = list(ids)
    for start in range(0, len(every), ID_ROWS):
        yield every[start : start + ID_ROWS]


def _row(completion: Completion) -> tuple[Any, ...]:
    """In the order of the table's columns."""
    return (
        completion.id,
        completion.created,
        completion.endpoint,
        completion.route,
        completion.variant,
        completion.base_model,
        completion.digest,
        completion.propensity,
        completion.pinned,
        completion.key_id,
        completion.user,
        completion.unit,
        completion.status.value,
        completion.finish_reason,
        completion.error_code,
        completion.prompt_tokens,
        completion.completion_tokens,
        completion.ttft_seconds,
        completion.total_seconds,
        orjson.dumps(completion.metadata).decode(),
        pack(completion.request),
        None if completion.output is None else pack(completion.output),
    )


def _completion(row: Row[Any]) -> Completion:
    return Completion(
        id=row.id,
        created=row.created,
        endpoint=row.endpoint,
        route=row.route,
        variant=row.variant,
        base_model=row.base_model,
        digest=row.digest,
        propensity=row.propensity,
        pinned=row.pinned,
        key_id=row.key_id,
        user=row.end_user,
        unit=row.unit,
        status=Status(row.status),
        finish_reason=row.finish_reason,
        error_code=row.error_code,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        ttft_seconds=row.ttft_seconds,
        total_seconds=row.total_seconds,
        metadata=row.metadata,
        request=unpack(row.request),
        output=None if row.output is None else unpack(row.output),
        number=row.number,
    )
