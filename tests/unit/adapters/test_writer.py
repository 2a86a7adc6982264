"""The writer: what it has acknowledged is on disk, a bad item fails by itself, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from adapters import schema
from adapters.completions import Completion, Completions, find_completion
from adapters.database import Database
from adapters.errors import Conflict, NotRecorded
from adapters.writer import Writer
from tests.migrated import migrated
from tests.unit.adapters.test_completions import completion


@pytest.fixture
def writer(db: Database) -> Any:
    writer = Writer(db, 100)
    yield writer
    writer.close()


class Held:
    """Keeps the writer's thread busy, so that what comes meanwhile is one group."""

    def __init__(self, writer: Writer) -> None:
        self._free = threading.Event()
        began = threading.Event()

        def wait(connection: Connection) -> None:
            began.set()
            assert self._free.wait(10)

        self.done = writer.submit(wait)
        assert began.wait(10)

    def let_go(self) -> None:
        self._free.set()


def ids(db: Database) -> list[str]:
    return [c.id for c in Completions(db).list(None, all_keys=True, limit=1000)[0]]


def test_what_is_acknowledged_is_on_disk(db: Database, writer: Writer) -> None:
    writer.put(completion("a")).result(10)
    assert ids(db) == ["a"]
    assert writer.submit(lambda connection: find_completion(connection, "a")).result(10) is not None


def test_a_completion_can_be_made_in_the_writers_thread(db: Database, writer: Writer) -> None:
    threads = []

    def make() -> Completion:
        threads.append(threading.current_thread().name)
        return completion("a")

    writer.put(make).result(10)
    assert threads == ["writer"]


def test_a_group_keeps_its_order_and_feedback_finds_its_completion(db: Database, writer: Writer) -> None:
    held = Held(writer)
    work = writer.submit(lambda connection: find_completion(connection, "c7"))
    puts = [writer.put(completion(f"c{index}")) for index in range(10)]
    held.let_go()
    for put in puts:
        put.result(10)
    assert work.result(10) is not None
    assert ids(db) == [f"c{index}" for index in range(10)]


def test_a_bad_item_fails_only_itself(db: Database, writer: Writer) -> None:
    writer.put(completion("twice")).result(10)

    def broken() -> Completion:
        raise ValueError("no completion")

    def refused(connection: Connection) -> None:
        connection.execute(sa.update(schema.completions).values(route="changed"))
        raise Conflict("not now")

    held = Held(writer)
    good = [writer.put(completion("a")), writer.put(completion("b"))]
    bad: list[tuple[Future[Any], type[Exception]]] = [
        (writer.put(completion("twice")), NotRecorded),
        (writer.put(completion("unspeakable", request={"a": object()})), TypeError),
        (writer.put(broken), ValueError),
        (writer.submit(refused), Conflict),
    ]
    good.append(writer.put(completion("c")))
    fine = writer.submit(lambda connection: "fine")
    held.let_go()
    for put in good:
        put.result(10)
    for future, kind in bad:
        assert isinstance(future.exception(10), kind)
    assert fine.result(10) == "fine"
    assert ids(db) == ["twice", "a", "b", "c"]
    assert {c.route for c in Completions(db).list(None, all_keys=True)[0]} == {"support"}, "rolled back"
    assert not writer.failing, "a bad item is not a bad database"


def test_work_that_breaks_a_rule_of_the_database_is_told_so_and_leaves_the_rest(
    db: Database, writer: Writer
) -> None:
    held = Held(writer)
    route = {"name": "r", "variant": "v", "history": [], "policy": {}, "created": 1.0}

    def insert(connection: Connection) -> None:
        connection.execute(sa.insert(schema.routes).values(route))

    first, second, put = writer.submit(insert), writer.submit(insert), writer.put(completion("a"))
    held.let_go()
    first.result(10)
    put.result(10)
    assert isinstance(second.exception(10), sa.exc.IntegrityError)


def test_a_queue_that_is_full_refuses_at_once(db: Database) -> None:
    writer = Writer(db, max_queue=2)
    held = Held(writer)
    waiting = [writer.put(completion("a")), writer.put(completion("b"))]
    with pytest.raises(NotRecorded):
        writer.put(completion("c")).result(0)
    assert not writer.failing
    held.let_go()
    for put in waiting:
        put.result(10)
    writer.close()
    assert ids(db) == ["a", "b"]


def test_closing_writes_what_was_handed_over_and_takes_no_more(db: Database) -> None:
    writer = Writer(db, 100)
    held = Held(writer)
    puts = [writer.put(completion(f"c{index}")) for index in range(20)]
    threading.Timer(0.05, held.let_go).start()
    writer.close()
    writer.close()
    assert all(put.done() and put.exception() is None for put in puts)
    assert len(ids(db)) == 20
    with pytest.raises(NotRecorded):
        writer.put(completion("late")).result(0)


async def test_an_event_loop_is_told_of_each_item(db: Database, writer: Writer) -> None:
    def refused(connection: Connection) -> None:
        raise Conflict("not now")

    waits = [writer.put_soon(completion(f"c{index}")) for index in range(50)]
    bad = writer.submit_soon(refused)
    given_up = writer.put_soon(completion("given up"))
    given_up.cancel()
    await asyncio.gather(*waits)
    with pytest.raises(Conflict):
        await bad
    assert await writer.submit_soon(lambda connection: 7) == 7
    assert len(ids(db)) == 51, "what nobody waits for any more is written all the same"


def test_a_database_that_cannot_write_says_so_until_it_can_again(tmp_path: Path) -> None:
    db = migrated(tmp_path / "burnish.db")
    writer = Writer(db, 100)
    writer.put(completion("before")).result(10)
    with db.begin() as connection:
        connection.execute(sa.text("ALTER TABLE completions RENAME TO elsewhere"))
    with pytest.raises(NotRecorded) as caught:
        writer.put(completion("lost")).result(10)
    assert caught.value.code == "recording_failed"
    assert writer.failing
    with db.begin() as connection:
        connection.execute(sa.text("ALTER TABLE elsewhere RENAME TO completions"))
    writer.put(completion("after")).result(10)
    assert not writer.failing
    writer.close()
    assert ids(db) == ["before", "after"]
    db.close()


def test_a_database_that_is_away_fails_a_group_at_once(tmp_path: Path) -> None:
    db = Database("postgresql+psycopg://nobody@/nowhere?host=/nonexistent")
    writer = Writer(db, 100)
    puts = [writer.put(completion(f"c{index}")) for index in range(5)]
    for put in puts:
        assert isinstance(put.exception(10), NotRecorded)
    assert writer.failing
    writer.close()


def test_commits_are_timed_and_what_waits_is_counted(db: Database, writer: Writer) -> None:
    held = Held(writer)
    before = writer.commit_seconds.count
    waiters = [writer.put(completion(f"c{number}")) for number in range(3)]
    assert writer.waiting == 3
    held.let_go()
    for waiter in waiters:
        waiter.result(10)
    assert writer.waiting == 0
    assert writer.commit_seconds.count == before + 2, "the one that was held, and one for all that waited"
    assert writer.commit_seconds.total > 0
