"""The database: one synchronous API over SQLite and PostgreSQL.

Owns connections, transactions, durability and the schema's version. Knows no table but Alembic's own.
The async gateway calls it from threads; several threads and several processes may use one database at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from adapters.errors import DatabaseError

MIGRATIONS = Path(__file__).parent / "migrations"

#: Older ones can corrupt a WAL database that two connections write at once (fixed in 3.51.3).
SAFE_SQLITE = (3, 51, 3)

#: How long a writer waits for another; longer than any transaction of ours by far.
BUSY_SECONDS = 30.0

#: One number for all Burnish processes on a PostgreSQL server, so that two do not migrate at once.
MIGRATION_LOCK = 0x6275726E697368  # "burnish"


class Database:
    """An open database. Raises DatabaseError when it cannot be used safely."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(_parsed(url))

    @property
    def dialect(self) -> str:
        """ "sqlite" or "postgresql"."""
        return self._engine.dialect.name

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction that may write: on SQLite it takes the write lock at once (BEGIN IMMEDIATE), since a
        reader that becomes a writer half-way fails with SQLITE_BUSY without waiting."""
        with self._engine.connect().execution_options(burnish_write=True) as connection, connection.begin():
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database from its first query to its last."""
        with self._engine.connect() as connection:
            if self.dialect == "postgresql":
                connection = connection.execution_options(
                    isolation_level="REPEATABLE READ", postgresql_readonly=True
                )
            with connection.begin():
                yield connection

    def upgrade(self) -> None:
        """Brings the schema to this program's version, in one transaction, one process at a time."""
        if self._is_newest():
            return
        import alembic.command  # takes longer than most verbs of the CLI, so: only where there is work for it
        import alembic.util
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        try:
            with self.begin() as connection:
                if self.dialect == "postgresql":
                    connection.execute(
                        sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK}
                    )
                config.attributes["connection"] = connection
                alembic.command.upgrade(config, "head")
        except alembic.util.CommandError as error:
            raise DatabaseError(
                f"the database's schema is not one that this version of Burnish knows ({error}); "
                "it was probably written by a newer one: upgrade Burnish, or use another database"
            ) from error
        except DBAPIError as error:
            raise DatabaseError(f"the database cannot be used: {str(error.orig).splitlines()[0]}") from error

    def _is_newest(self) -> bool:
        """Whether the schema is at the last revision; False too where only Alembic can say what is wrong."""
        newest = max(file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))
        try:
            with self.read() as connection:
                found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalars().all()
        except DBAPIError:
            return False
        return list(found) == [newest]

    def close(self) -> None:
        self._engine.dispose()


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except ArgumentError:
        raise DatabaseError(
            "database_url is not a database URL, such as sqlite:////path/burnish.db"
        ) from None


def _engine(url: URL) -> Engine:
    match url.get_backend_name():
        case "sqlite":
            return _sqlite_engine(url)
        case "postgresql":
            return _postgresql_engine(url)
        case other:
            raise DatabaseError(f"database_url names {other!r}; Burnish knows sqlite and postgresql+psycopg")


def _postgresql_engine(url: URL) -> Engine:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    try:
        return sa.create_engine(url, pool_pre_ping=True, hide_parameters=True)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise DatabaseError(f"PostgreSQL needs psycopg: install burnish[postgresql] ({error})") from None


def _sqlite_engine(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise DatabaseError("an SQLite database must be a file: processes share it, and it must outlive them")
    folder = Path(url.database).parent
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DatabaseError(f"the database's folder {folder} cannot be made: {error.strerror}") from None
    # An error's text holds no parameters: prompts are among them, and errors are logged (promise 12).
    engine = sa.create_engine(
        url, module=_sqlite_module(), connect_args={"timeout": BUSY_SECONDS}, hide_parameters=True
    )
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _sqlite_module() -> Any:
    """The newest SQLite at hand: the bundled one, else Python's own."""
    try:
        import pysqlite3 as module
    except ModuleNotFoundError:
        import sqlite3 as module
    refuse_unsafe_sqlite(module.sqlite_version_info)
    return module


def refuse_unsafe_sqlite(version: tuple[int, ...]) -> None:
    """Raises DatabaseError for an SQLite that can corrupt the database."""
    if version < SAFE_SQLITE:
        raise DatabaseError(
            f"SQLite {'.'.join(map(str, version))} can corrupt a database that two connections write; "
            f"{'.'.join(map(str, SAFE_SQLITE))} or newer is needed: pip install pysqlite3"
        )


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = (
        None  # the driver must not begin transactions of its own: `_begin_sqlite` does
    )
    _use_wal(connection)
    connection.execute(
        "PRAGMA synchronous = FULL"
    )  # a commit is on disk before it returns (promises 1, 2, 8)
    connection.execute("PRAGMA foreign_keys = ON")


def _use_wal(connection: Any) -> None:
    """The change to WAL needs the file for itself and does not heed the busy timeout, so: try again."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except Exception as error:  # the driver's own OperationalError, of whichever module it is
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
            continue
        if mode != "wal":
            raise DatabaseError(f"the database's file system does not allow SQLite's WAL (it stays {mode!r})")
        return


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("burnish_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
