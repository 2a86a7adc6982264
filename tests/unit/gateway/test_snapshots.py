"""The snapshot knows what was made a moment ago, and whoever guesses names costs the database little."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from adapters.artifacts import ArtifactStore
from adapters.database import Database
from adapters.errors import NotFound, Unauthorized
from adapters.keys import Keys, Scope
from adapters.registry import Registry
from gateway import access, routing
from gateway.routing import Snapshot
from gateway.snapshots import Snapshots
from tests.migrated import migrated

MOST_LOOKS = 3
"""Of any number who ask together: one, and one more for those who came while it read; and one to spare."""


class CountingRegistry(Registry):
    """The real one, which counts how often its revision is read, and may take its time."""

    looks = 0
    may_go_on: threading.Event | None = None

    def revision(self) -> int:
        self.looks += 1
        if self.may_go_on is not None:
            self.may_go_on.wait(30)
        return super().revision()


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    made = migrated(tmp_path / "burnish.db")
    yield made
    made.close()


@pytest.fixture
def registry(db: Database, tmp_path: Path) -> CountingRegistry:
    made = CountingRegistry(db, ArtifactStore(tmp_path / "artifacts"), ["base"])
    made.register_base("base", "sha256:" + "0" * 64)
    return made


@pytest.fixture
async def snapshots(registry: CountingRegistry) -> Snapshots:
    made = Snapshots(registry, ["base"], lambda: None)
    await made.reload()
    return made


def whose(secret: str, snapshot: Snapshot) -> str | None:
    return access.authorize(snapshot, f"Bearer {secret}".encode(), b"", Scope.INFERENCE).key_id


def made_key(db: Database) -> tuple[str, str]:
    key, secret = Keys(db).create("app", {Scope.INFERENCE}, "anna")
    return key.id, secret


async def test_a_key_is_known_from_the_moment_it_is_made(snapshots: Snapshots, db: Database) -> None:
    made_key(db)
    await snapshots.reload()
    for _ in range(5):
        id, secret = made_key(db)
        assert await snapshots.decide(lambda snapshot, secret=secret: whose(secret, snapshot)) == id


async def test_a_model_is_known_from_the_moment_it_can_answer(
    snapshots: Snapshots, registry: CountingRegistry
) -> None:
    snapshots.current = routing.EMPTY
    found = await snapshots.decide(lambda snapshot: routing.resolve(snapshot, "base"))
    assert found.name == "base"


async def test_what_is_known_is_decided_without_a_look(
    snapshots: Snapshots, registry: CountingRegistry
) -> None:
    for _ in range(100):
        await snapshots.decide(lambda snapshot: routing.resolve(snapshot, "base"))
    assert registry.looks == 0


async def test_who_guesses_is_refused_and_a_thousand_guesses_look_together(
    snapshots: Snapshots, registry: CountingRegistry, db: Database
) -> None:
    made_key(db)
    await snapshots.reload()

    async def guess(number: int) -> None:
        with pytest.raises(Unauthorized):
            await snapshots.decide(lambda snapshot: whose(f"sk-burnish-{number}", snapshot))

    await asyncio.gather(*map(guess, range(1000)))
    assert 1 <= registry.looks <= MOST_LOOKS


async def test_whoever_comes_while_one_looks_is_answered_by_a_later_look(
    snapshots: Snapshots, registry: CountingRegistry, db: Database
) -> None:
    made_key(db)
    await snapshots.reload()
    first = asyncio.create_task(snapshots.catch_up())
    while not registry.looks:  # from here on it may have read what was before
        await asyncio.sleep(0.001)
    id, secret = made_key(db)
    assert await snapshots.decide(lambda snapshot: whose(secret, snapshot)) == id
    await first


async def test_someone_who_leaves_while_they_wait_takes_nobody_with_them(
    snapshots: Snapshots, db: Database
) -> None:
    made_key(db)
    await snapshots.reload()
    id, secret = made_key(db)
    leaves = asyncio.create_task(snapshots.catch_up())
    stays = asyncio.create_task(snapshots.decide(lambda snapshot: whose(secret, snapshot)))
    await asyncio.sleep(0)
    leaves.cancel()
    assert await stays == id


async def test_a_registry_that_cannot_be_read_leaves_what_was_said(
    snapshots: Snapshots, db: Database
) -> None:
    with db.begin() as connection:
        connection.execute(sa.text("DROP TABLE registry"))
    with pytest.raises(NotFound):
        await snapshots.decide(lambda snapshot: routing.resolve(snapshot, "nothing"))
    with pytest.raises(OperationalError):
        await snapshots.catch_up()
    assert (await snapshots.decide(lambda snapshot: routing.resolve(snapshot, "base"))).name == "base"


async def test_a_registry_that_takes_its_time_is_not_waited_for(
    snapshots: Snapshots, registry: CountingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.snapshots.PATIENCE_SECONDS", 0.05)
    registry.may_go_on = threading.Event()
    try:
        with pytest.raises(NotFound):
            await snapshots.decide(lambda snapshot: routing.resolve(snapshot, "nothing"))
        assert registry.looks == 1
    finally:
        registry.may_go_on.set()
        await snapshots.catch_up()


async def test_each_swap_is_told_once(registry: CountingRegistry, db: Database) -> None:
    swaps: list[int] = []
    snapshots = Snapshots(registry, ["base"], lambda: swaps.append(snapshots.current.revision))
    await asyncio.gather(*(snapshots.reload() for _ in range(4)))
    made_key(db)
    await snapshots.catch_up()
    await snapshots.catch_up()
    assert len(swaps) == 2
    assert swaps[0] < swaps[1]
