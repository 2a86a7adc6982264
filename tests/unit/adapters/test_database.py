from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from adapters import schema
from adapters.database import Database, refuse_unsafe_sqlite
from adapters.errors import DatabaseError

ONE_MORE = sa.update(schema.registry).values(revision=schema.registry.c.revision + 1)
REVISION = sa.select(schema.registry.c.revision)


def run_together(threads: int, work: Callable[[int], None]) -> None:
    """Runs `work(0…)` at once in that many threads; what one raises, this raises."""
    errors: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    started = [threading.Thread(target=guarded, args=(i,)) for i in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if errors:
        raise errors[0]


def test_the_migrations_make_exactly_the_schema(db: Database) -> None:
    with db.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_upgrading_again_changes_nothing(db: Database) -> None:
    with db.begin() as connection:
        connection.execute(ONE_MORE)
    db.upgrade()
    with db.read() as connection:
        assert connection.execute(REVISION).scalar_one() == 1


def test_processes_that_start_together_upgrade_once(empty_url: str) -> None:
    code = "import sys; from adapters.database import Database; Database(sys.argv[1]).upgrade()"
    started = [subprocess.Popen([sys.executable, "-c", code, empty_url]) for _ in range(4)]
    assert [process.wait(timeout=60) for process in started] == [0, 0, 0, 0]
    database = Database(empty_url)
    with database.read() as connection:
        assert connection.execute(REVISION).scalar_one() == 0
    database.close()


def test_a_newer_schema_is_refused_and_left_alone(empty_url: str) -> None:
    db = Database(empty_url)
    db.upgrade()
    with db.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match="written by a newer one"):
        db.upgrade()
    with db.read() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"
    db.close()


def test_a_transaction_that_fails_leaves_nothing(db: Database) -> None:
    def change_and_fail() -> None:
        with db.begin() as connection:
            connection.execute(ONE_MORE)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change_and_fail()
    with db.read() as connection:
        assert connection.execute(REVISION).scalar_one() == 0


def test_a_reader_sees_one_state_from_first_query_to_last(db: Database) -> None:
    with db.read() as reader:
        before = reader.execute(REVISION).scalar_one()
        with db.begin() as writer:
            writer.execute(ONE_MORE)
        assert reader.execute(REVISION).scalar_one() == before
    with db.read() as reader:
        assert reader.execute(REVISION).scalar_one() == before + 1


def test_writers_in_many_threads_wait_for_each_other(db: Database) -> None:
    def work(_index: int) -> None:
        for _ in range(20):
            with db.begin() as connection:
                if (
                    db.dialect == "sqlite"
                ):  # read first: without BEGIN IMMEDIATE this is SQLITE_BUSY at the write
                    connection.execute(REVISION).scalar_one()
                connection.execute(ONE_MORE)

    run_together(8, work)
    with db.read() as connection:
        assert connection.execute(REVISION).scalar_one() == 160


def test_writers_in_two_processes_wait_for_each_other(db: Database, database_url: str) -> None:
    code = (
        "import sys\nfrom adapters.database import Database\nfrom adapters import schema\nimport sqlalchemy as sa\n"
        "db = Database(sys.argv[1])\n"
        "for _ in range(100):\n"
        "    with db.begin() as c:\n"
        "        c.execute(sa.update(schema.registry).values(revision=schema.registry.c.revision + 1))\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, database_url]) for _ in range(2)]
    assert [process.wait(timeout=60) for process in started] == [0, 0]
    with db.read() as connection:
        assert connection.execute(REVISION).scalar_one() == 200


def test_sqlite_is_durable_and_checks_foreign_keys(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/new/folder/burnish.db")
    with database.begin() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    database.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}
    assert (tmp_path / "new" / "folder").stat().st_mode & 0o077 == 0


def test_a_database_that_cannot_be_reached_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseError, match="cannot be made"):
        Database(f"sqlite:///{tmp_path}/file/burnish.db")
    (tmp_path / "burnish.db").write_text("not a database" * 100)
    with pytest.raises(DatabaseError, match="the database cannot be used: file is not a database"):
        Database(f"sqlite:///{tmp_path}/burnish.db").upgrade()
    with pytest.raises(DatabaseError, match="the database cannot be used: connection"):
        Database(f"postgresql+psycopg://u:secret@/d?host={tmp_path}").upgrade()


@pytest.mark.parametrize("version", [(3, 40, 1), (3, 51, 2)])
def test_an_sqlite_that_can_corrupt_the_database_is_refused(version: tuple[int, ...]) -> None:
    with pytest.raises(DatabaseError, match="can corrupt a database"):
        refuse_unsafe_sqlite(version)


def test_an_sqlite_with_the_fix_is_taken() -> None:
    refuse_unsafe_sqlite((3, 51, 3))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "must be a file"),
        ("sqlite:///:memory:", "must be a file"),
        ("mysql://u:secret@h/d", "'mysql'; Burnish knows sqlite"),
        ("not a url: secret", "is not a database URL"),
    ],
)
def test_a_database_that_cannot_serve_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        Database(url)
    assert message in caught.value.message
    assert "secret" not in caught.value.message
