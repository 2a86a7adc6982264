"""Completions as they are kept: whole, private to their key, found by what was said of them, and forgotten in time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from adapters import schema
from adapters.completions import (
    Completion,
    Completions,
    Status,
    completions_by_id,
    find_completion,
    insert_completions,
    try_to_write,
)
from adapters.database import Database
from adapters.packed import MIN_COMPRESSED_BYTES, pack, unpack

LONG = {"messages": [{"role": "user", "content": "word " * 5000}]}


def completion(id: str, **fields: Any) -> Completion:
    made = Completion(
        id=id,
        created=1000.0,
        endpoint="/v1/chat/completions",
        route="support",
        variant="support@1",
        base_model="base",
        digest="sha256:00",
        propensity=1.0,
        pinned=False,
        key_id="key_a",
        user="ada",
        unit="user:ada",
        status=Status.COMPLETE,
        finish_reason="stop",
        error_code=None,
        prompt_tokens=3,
        completion_tokens=5,
        ttft_seconds=None,
        total_seconds=0.5,
        metadata={},
        request={"messages": [{"role": "user", "content": "héllo \u2028"}]},
        output={"id": id, "choices": []},
    )
    return replace(made, **fields)


def insert(db: Database, *completions: Completion) -> None:
    with db.begin() as connection:
        insert_completions(connection, completions)


def judge(db: Database, completion_id: str) -> None:
    row = {
        "id": f"fb_{completion_id}",
        "created": 1.0,
        "completion_id": completion_id,
        "name": "rating",
        "value": 1.0,
        "metadata": {},
        "route": "support",
        "variant": "support@1",
        "unit": "user:ada",
        "source": "api",
    }
    with db.begin() as connection:
        connection.execute(sa.insert(schema.feedback).values(row))


def count(db: Database, table: sa.Table) -> int:
    with db.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


@pytest.fixture
def store(db: Database) -> Completions:
    return Completions(db)


@pytest.mark.parametrize("value", [{}, [], {"a": "x" * MIN_COMPRESSED_BYTES}, LONG, "x", "xxx", None])
def test_what_is_packed_comes_back(value: Any) -> None:
    assert unpack(pack(value)) == value


def test_large_bodies_are_compressed() -> None:
    assert len(pack(LONG)) < 1000


@pytest.mark.parametrize("request_body", [{"messages": []}, LONG])
@pytest.mark.parametrize("output", [None, {"id": "c", "choices": [{"text": "y" * 9000}]}])
def test_a_completion_comes_back_as_it_was(
    db: Database, store: Completions, request_body: dict[str, Any], output: dict[str, Any] | None
) -> None:
    given = completion("c", request=request_body, output=output, metadata={"a": "b"})
    insert(db, given)
    found = store.get("c", "key_a")
    assert found is not None
    assert found.number is not None
    assert replace(found, number=None) == given
    assert (found.request, found.output, found.metadata) == (given.request, given.output, given.metadata)


def test_an_id_is_given_once(db: Database) -> None:
    insert(db, completion("c"))
    with pytest.raises(sa.exc.IntegrityError):
        insert(db, completion("d"), completion("c"))
    with db.read() as connection:
        assert find_completion(connection, "d") is None


def test_a_key_sees_its_own_and_an_admin_sees_all(db: Database, store: Completions) -> None:
    insert(db, completion("mine"), completion("theirs", key_id="key_b"), completion("keyless", key_id=None))
    assert store.get("theirs", "key_a") is None
    assert store.get("unknown", "key_a") is None
    assert store.get("theirs", "key_a", all_keys=True) is not None
    assert store.get("keyless", None) is not None
    assert [c.id for c in store.list("key_a")[0]] == ["mine"]
    assert [c.id for c in store.list(None)[0]] == ["keyless"]
    assert [c.id for c in store.list("key_a", all_keys=True)[0]] == ["mine", "theirs", "keyless"]
    assert store.update_metadata("theirs", "key_a", {"a": "b"}) is None
    assert not store.delete("theirs", "key_a")
    assert store.list("key_a", after="theirs") == ((), False), "a foreign id is as unknown as any"


@pytest.mark.parametrize("newest_first", [False, True])
def test_pages_hold_everything_once_in_order(db: Database, store: Completions, newest_first: bool) -> None:
    ids = [f"c{index}" for index in range(7)]
    insert(db, *(completion(id) for id in ids))
    seen: list[str] = []
    has_more = True
    while has_more:
        after = seen[-1] if seen else None
        page, has_more = store.list("key_a", after=after, limit=3, newest_first=newest_first)
        seen += [c.id for c in page]
    assert seen == (ids[::-1] if newest_first else ids)


def test_filters_must_all_match(db: Database, store: Completions) -> None:
    odd = 'quo"te\\.[0]'
    insert(
        db,
        completion("a", metadata={"topic": "x", odd: "1"}),
        completion("b", metadata={"topic": "x"}, route="other", status=Status.ERROR),
        completion("c", metadata={"topic": "y"}, endpoint="/v1/completions"),
    )

    def ids(**filters: Any) -> list[str]:
        return [c.id for c in store.list("key_a", **filters)[0]]

    assert ids(metadata={"topic": "x"}) == ["a", "b"]
    assert ids(metadata={"topic": "x", odd: "1"}) == ["a"]
    assert ids(metadata={odd: "2"}) == []
    assert ids(metadata={"absent": "x"}) == []
    assert ids(route="other") == ["b"]
    assert ids(endpoint="/v1/completions") == ["c"]
    assert ids(statuses=[Status.COMPLETE]) == ["a", "c"]


def test_metadata_is_replaced_whole(db: Database, store: Completions) -> None:
    insert(db, completion("c", metadata={"a": "1", "b": "2"}))
    changed = store.update_metadata("c", "key_a", {"b": "3"})
    assert changed is not None
    assert changed.metadata == {"b": "3"}


@pytest.mark.parametrize("id", ["\x00", "\ud800", "a" * 5000, "'; --"])
def test_an_id_that_no_database_can_hold_is_unknown(store: Completions, id: str) -> None:
    assert store.get(id, "key_a") is None
    assert not store.delete(id, "key_a")
    assert store.list("key_a", after=id, metadata={id: id}) == ((), False)


def test_deleting_a_completion_deletes_what_was_said_of_it_and_no_lineage(
    db: Database, store: Completions
) -> None:
    insert(db, completion("c"), completion("d"))
    judge(db, "c")
    judge(db, "d")
    row = {"digest": "x", "job_id": "j", "position": 0, "row_id": "r", "completion_id": "c", "split": "train"}
    with db.begin() as connection:
        connection.execute(sa.insert(schema.dataset_rows).values(row))
    assert store.delete("c", "key_a")
    assert not store.delete("c", "key_a")
    assert (count(db, schema.completions), count(db, schema.feedback), count(db, schema.dataset_rows)) == (
        1,
        1,
        1,
    )


def test_what_was_judged_is_kept_longer(db: Database, store: Completions) -> None:
    insert(
        db,
        completion("old", created=100.0),
        completion("old-judged", created=100.0),
        completion("ancient-judged", created=10.0),
        completion("new", created=500.0),
    )
    judge(db, "old-judged")
    judge(db, "ancient-judged")
    assert store.purge(older_than=200.0, judged_older_than=50.0) == 2
    assert [c.id for c in store.list("key_a")[0]] == ["old-judged", "new"]
    assert count(db, schema.feedback) == 1


def test_a_purge_of_many_is_done_in_parts(db: Database, store: Completions) -> None:
    insert(db, *(completion(f"c{index}") for index in range(1234)))
    assert store.purge(older_than=2000.0, judged_older_than=0.0) == 1234
    assert store.purge(older_than=2000.0, judged_older_than=0.0) == 0


def test_many_are_found_by_their_ids(db: Database) -> None:
    ids = [f"c{index}" for index in range(1100)]
    insert(db, *(completion(id) for id in ids))
    with db.read() as connection:
        assert set(completions_by_id(connection, [*ids, "unknown"])) == set(ids)
        assert completions_by_id(connection, []) == {}


def test_trying_to_write_leaves_nothing(db: Database) -> None:
    with db.begin() as connection:
        try_to_write(connection)
    assert count(db, schema.completions) == 0
