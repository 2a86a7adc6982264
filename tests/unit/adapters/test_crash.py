"""Promise 8 on the registry: a process that imports and removes is killed at random moments, again and again."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import sqlalchemy as sa

from adapters import schema
from adapters.artifacts import ArtifactStore
from adapters.database import Database
from adapters.records import find_versions
from adapters.registry import Registry
from adapters.routes import Routes
from adapters.versions import VersionRecord, VersionState
from tests.lora import TINY_CONFIG, write_lora

BASE = "base-model"
ROUNDS = 20

#: Large enough (2 MB of weights) that a good part of the time goes to its files.
CONFIG = TINY_CONFIG | {"hidden_size": 512, "head_dim": 128}

#: The longest that a process lives after its first import: some ten imports and removals.
LIFE_SECONDS = 0.3


def import_and_remove_for_ever(url: str, root: Path, round: int, acknowledged: Connection) -> None:
    """Runs in a process of its own. Says what is done only when it is done."""
    db = Database(url)
    registry, routes = Registry(db, ArtifactStore(root / "artifacts")), Routes(db)
    for turn in itertools.count():
        name = f"round{round}.{turn // 2}"  # two versions each: a first and a later one
        provenance = json.dumps({"run": f"{round}.{turn}"})  # other bytes, so another digest, each time
        (root / "source" / "burnish.json").write_text(provenance)
        version = registry.import_adapter(name, root / "source", BASE, CONFIG, "loop")
        acknowledged.send(("imported", version.ref, version.digest))
        if turn % 4 == 1:
            routes.delete(name, "loop")
            registry.begin_remove(version.ref, "loop")
            registry.finish_remove(version.ref)
            acknowledged.send(("removed", version.ref, version.digest))


@dataclass
class Acknowledged:
    imported: dict[str, str] = field(default_factory=dict)  # ref -> digest
    removed: set[str] = field(default_factory=set)

    def take(self, pipe: Connection) -> None:
        """All that a dead process has said."""
        try:
            while pipe.poll():
                action, ref, digest = pipe.recv()
                self.imported[ref] = digest
                if action == "removed":
                    self.removed.add(ref)
        except EOFError:  # the pipe is read to its end
            return


def kill_at_a_random_moment(url: str, root: Path, round: int, said: Acknowledged) -> None:
    processes = multiprocessing.get_context("forkserver")  # imports once: each process starts in milliseconds
    processes.set_forkserver_preload(["adapters.registry", "adapters.preflight", "tests.lora"])
    ours, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=import_and_remove_for_ever, args=(url, root, round, theirs))
    process.start()
    theirs.close()
    assert ours.poll(60), "the process has not imported anything"
    time.sleep(random.Random(round).uniform(0, LIFE_SECONDS))
    process.kill()
    process.join()
    said.take(ours)
    ours.close()


@pytest.fixture
def reopened(db: Database, database_url: str, tmp_path: Path) -> Iterator[Database]:
    """A database that one process after another was killed on, opened anew."""
    Registry(db, ArtifactStore(tmp_path / "artifacts")).register_base(BASE, None)
    write_lora(tmp_path / "source", CONFIG, rank=64, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
    db.close()
    database = Database(database_url)
    yield database
    database.close()


def test_promise_08_kill_9_during_imports_and_removals_leaves_no_half_state(
    reopened: Database, database_url: str, tmp_path: Path
) -> None:
    said, whole = Acknowledged(), set[str]()
    artifacts = ArtifactStore(tmp_path / "artifacts")
    registry = Registry(reopened, artifacts)
    for round in range(ROUNDS):
        kill_at_a_random_moment(database_url, tmp_path, round, said)
        reopened.upgrade()
        with reopened.read() as connection:  # one state: a server may still be at a dead client's COMMIT
            versions = find_versions(connection, removed=True)
            check_rows_belong_together(connection, versions)
        check_versions(versions, artifacts, said)
        # Half an artifact is worse than one that no version uses. Each is read once: it is never written again.
        assert all(artifacts.verify(digest) for digest in artifacts.digests() - whole)
        whole |= artifacts.digests()
    assert len(said.imported) >= ROUNDS
    finish(registry, artifacts)


def check_versions(versions: tuple[VersionRecord, ...], artifacts: ArtifactStore, said: Acknowledged) -> None:
    """What was said to be done is done, and what can be asked for is whole."""
    by_ref = {version.ref: version for version in versions}
    for ref, digest in said.imported.items():
        assert by_ref[ref].digest == digest
    for ref in said.removed:
        assert by_ref[ref].state is VersionState.REMOVED
    for version in versions:
        if version.state not in (VersionState.REMOVING, VersionState.REMOVED):
            assert artifacts.exists(version.digest), version


def check_rows_belong_together(connection: sa.Connection, versions: tuple[VersionRecord, ...]) -> None:
    """A version, its adapter, its route and their events came in one transaction."""
    adapters = set(connection.execute(sa.select(schema.adapters.c.name)).scalars())
    events = connection.execute(sa.select(schema.events.c.action, schema.events.c.subject)).all()
    revision = connection.execute(sa.select(schema.registry.c.revision)).scalar_one()
    routes = set(connection.execute(sa.select(schema.routes.c.name)).scalars())
    assert adapters == {version.name for version in versions}
    assert {s for a, s in events if a == "adapter.imported"} == {version.ref for version in versions}
    created, deleted = (
        {s for a, s in events if a == action} for action in ("route.created", "route.deleted")
    )
    assert created == adapters
    assert routes == created - deleted
    assert revision == len(events)
    for name in adapters:
        numbers = [version.number for version in versions if version.name == name]
        assert numbers == list(range(1, len(numbers) + 1))


def finish(registry: Registry, artifacts: ArtifactStore) -> None:
    """The next process ends what the dead ones began, and nothing of theirs is left."""
    for version in registry.versions():
        if version.state is VersionState.REMOVING:
            registry.finish_remove(version.ref)
    registry.sweep(older_than_seconds=0)
    assert artifacts.digests() == {version.digest for version in registry.versions()}
    assert not any((artifacts.root / ".staging").iterdir())
