"""Real databases for the ground's tests: SQLite always, PostgreSQL where one can be had.

A PostgreSQL comes from $BURNISH_TEST_POSTGRES (a URL whose user may create schemas), else from a throwaway
cluster on a Unix socket when the server's programs are installed; else those tests are skipped.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adapters import schema
from adapters.artifacts import ArtifactStore
from adapters.database import Database
from adapters.registry import Registry
from tests.lora import TINY_CONFIG, write_lora
from tests.migrated import migrated

BASE = "base-model"


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL database to make schemas in."""
    given = os.environ.get("BURNISH_TEST_POSTGRES")
    if given:
        yield given
        return
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL: set BURNISH_TEST_POSTGRES or install its server")
    with tempfile.TemporaryDirectory(prefix="burnish-pg-") as folder:
        yield from _cluster(programs, Path(folder))


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of the test's own, without a schema, on each of the two."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'burnish.db'}"
        return
    with _namespace(request.getfixturevalue("postgres_url")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of the test's own, with the newest schema and no rows but its first, on each of the two."""
    if request.param == "sqlite":
        migrated(tmp_path / "burnish.db").close()
        yield f"sqlite:///{tmp_path / 'burnish.db'}"
        return
    url, database, first = request.getfixturevalue("postgres_database")
    yield url
    with database.begin() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(table.delete())
        for table, rows in first.items():
            connection.execute(table.insert(), rows)


@pytest.fixture(scope="session")
def postgres_database(
    postgres_url: str,
) -> Iterator[tuple[str, Database, dict[sa.Table, list[dict[str, Any]]]]]:
    """One for all tests, since PostgreSQL takes half a second to make a schema; and the rows that it has from the start."""
    with _namespace(postgres_url) as url:
        database = Database(url)
        database.upgrade()
        with database.read() as connection:
            read = {
                table: connection.execute(table.select()).mappings()
                for table in schema.metadata.tables.values()
            }
            first = {table: [dict(row) for row in rows] for table, rows in read.items()}
        yield url, database, {table: rows for table, rows in first.items() if rows}
        database.close()


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def registry(db: Database, artifacts: ArtifactStore) -> Registry:
    """With one base model, BASE."""
    registry = Registry(db, artifacts, models=("cloud/model",))
    registry.register_base(BASE, None)
    return registry


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A sound adapter for TINY_CONFIG."""
    return write_lora(tmp_path / "lora", TINY_CONFIG)


@contextlib.contextmanager
def _namespace(postgres_url: str) -> Iterator[str]:
    """The URL of a new PostgreSQL schema, gone afterwards."""
    url = sa.make_url(postgres_url).set(drivername="postgresql+psycopg")
    name = f"test_{secrets.token_hex(6)}"
    server = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with server.connect() as connection:
        connection.execute(sa.text(f"CREATE SCHEMA {name}"))
    yield url.update_query_dict({"options": f"-csearch_path={name}"}).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(sa.text(f"DROP SCHEMA {name} CASCADE"))


def _postgres_programs() -> Path | None:
    found = shutil.which("initdb")
    candidates = (
        [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    )
    return next(
        (path for path in candidates if (path / "initdb").exists() and (path / "postgres").exists()), None
    )


def _cluster(programs: Path, folder: Path) -> Iterator[str]:
    """PostgreSQL refuses to run as root, so root becomes nobody."""
    become: list[str] = []
    if os.geteuid() == 0:
        become = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        shutil.chown(folder, "nobody", "nogroup")
    data = folder / "data"
    initdb = [
        *become,
        programs / "initdb",
        "-D",
        data,
        "-U",
        "burnish",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--no-sync",
    ]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder)
    server = subprocess.Popen(
        [
            *become,
            programs / "postgres",
            "-D",
            data,
            "-k",
            folder,
            "-c",
            "listen_addresses=",
            "-c",
            "fsync=off",
        ],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"postgresql+psycopg://burnish@/postgres?host={folder}"
        _wait_until_it_answers(url)
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # fast shutdown
        server.wait(timeout=30)


def _wait_until_it_answers(url: str) -> None:
    engine = sa.create_engine(url)
    deadline = time.monotonic() + 30
    while True:
        try:
            engine.connect().close()
            break
        except sa.exc.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    engine.dispose()
