"""Uploaded files: their rows in the database, their bytes on disk under their ids.

Owns the `files` table and the folder of bytes. A file is staged, fsynced, renamed and only then has a row, so that a
crash leaves no half file; what it does leave, `sweep` takes away. Does not know what is in a file, nor how one comes in
parts (`uploads`).

    root/file-<24 hex>        a file's bytes; never written again
    root/.staging/<random>    bytes that are coming in
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from adapters import schema
from adapters.database import Database
from adapters.errors import InvalidRequest, NotFound, TooLarge

MAX_FILE_BYTES = 512 * 1024**2
MAX_FILENAME_CHARS = 255

BATCH_SECONDS = 30 * 86400
"""How long a file of purpose `batch` is kept where its owner did not say."""

ABANDONED_SECONDS = 3600.0
"""Bytes without a row that are older than this belong to a process that is gone."""

CHUNK_BYTES = 1024 * 1024


class Purpose(StrEnum):
    """OpenAI's words. The last two are of files that Burnish makes itself."""

    FINE_TUNE = "fine-tune"
    BATCH = "batch"
    ASSISTANTS = "assistants"
    VISION = "vision"
    USER_DATA = "user_data"
    EVALS = "evals"
    BATCH_OUTPUT = "batch_output"
    FINE_TUNE_RESULTS = "fine-tune-results"


#: What a client may say of a file that it sends.
SENT = tuple(
    purpose for purpose in Purpose if purpose not in (Purpose.BATCH_OUTPUT, Purpose.FINE_TUNE_RESULTS)
)


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str  # file-<24 hex>
    key_id: str | None  # whose; None: sent while no keys were in use, or by the command line
    purpose: Purpose
    filename: str  # a label: the bytes lie under the id
    size_bytes: int
    digest: str  # sha256:<64 hex>
    created: float  # epoch seconds
    expires: float | None  # epoch seconds; None: kept until it is deleted
    number: int | None = None


class Staged:
    """Bytes on their way in: write them, then hand this to `keep`. Raises TooLarge beyond `limit`."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.size = 0
        self._limit = limit
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._stream: BinaryIO = path.open("xb")

    @property
    def digest(self) -> str:
        return "sha256:" + self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        """As OpenAI's clients check an upload: hexadecimal."""
        return self._md5.hexdigest()

    def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._limit:
            raise TooLarge(
                f"The file is larger than {self._limit} bytes.", param="file", code="file_too_large"
            )
        self._sha256.update(data)
        self._md5.update(data)
        self._stream.write(data)

    def copy(self, stream: BinaryIO) -> None:
        while piece := stream.read(CHUNK_BYTES):
            self.write(piece)

    def rename(self, target: Path) -> None:
        """Makes the bytes durable, then gives them their name."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self.path.rename(target)
        _sync_directory(target.parent)

    def close(self) -> None:
        """Ends the writing; bytes that were not renamed are gone."""
        self._stream.close()
        self.path.unlink(missing_ok=True)


class Files:
    def __init__(self, db: Database, root: Path) -> None:
        self._db = db
        self._root = root
        self._staging = root / ".staging"
        self._staging.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def root(self) -> Path:
        return self._root

    @contextmanager
    def stage(self, limit: int = MAX_FILE_BYTES) -> Iterator[Staged]:
        """Where incoming bytes go; gone at the end of the block unless they were kept."""
        staged = Staged(self._staging / secrets.token_hex(12), limit)
        try:
            yield staged
        finally:
            staged.close()

    def put(
        self,
        source: BinaryIO | bytes,
        filename: str,
        purpose: Purpose | str,
        key_id: str | None,
        expires_seconds: int | None = None,
        now: float | None = None,
    ) -> StoredFile:
        """A new file from a stream or from bytes. Raises InvalidRequest, TooLarge."""
        with self.stage() as staged:
            if isinstance(source, bytes):
                staged.write(source)
            else:
                staged.copy(source)
            return self.keep(staged, filename, purpose, key_id, expires_seconds, now)

    def keep(
        self,
        staged: Staged,
        filename: str,
        purpose: Purpose | str,
        key_id: str | None,
        expires_seconds: int | None = None,
        now: float | None = None,
    ) -> StoredFile:
        """The staged bytes as a file: on disk, then in the database. Raises InvalidRequest."""
        file = self.place(staged, filename, purpose, key_id, expires_seconds, now)
        with self._db.begin() as connection:
            insert_file(connection, file)
        return file

    def place(
        self,
        staged: Staged,
        filename: str,
        purpose: Purpose | str,
        key_id: str | None,
        expires_seconds: int | None = None,
        now: float | None = None,
    ) -> StoredFile:
        """The staged bytes in their place, for the caller to `insert_file` in a transaction of its own; without that
        the next `sweep` takes them away. Raises InvalidRequest."""
        file = _new_file(staged, filename, purpose_of(purpose), key_id, expires_seconds, _at(now))
        staged.rename(self._root / file.id)
        return file

    def get(
        self, id: str, key_id: str | None = None, all_keys: bool = True, now: float | None = None
    ) -> StoredFile:
        """Raises NotFound(code="file_not_found") for an unknown, an expired and another key's file alike."""
        with self._db.read() as connection:
            file = _find_file(connection, id, key_id, all_keys)
        if file is None or _is_past(file.expires, now):
            raise _no_file(id)
        return file

    def path(self, id: str, now: float | None = None) -> Path:
        """Where a file's bytes are. Raises NotFound(code="file_not_found")."""
        path = self._root / self.get(id, now=now).id
        if not path.is_file():
            raise _no_file(id)
        return path

    def list(
        self,
        key_id: str | None = None,
        *,
        all_keys: bool = True,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 10_000,
        newest_first: bool = True,
        now: float | None = None,
    ) -> tuple[tuple[StoredFile, ...], bool]:
        """A page of files and whether there are more. `after` is the last id of the page before it.

        Raises InvalidRequest for an `after` that is no file of the caller's.
        """
        table = schema.files
        number = table.c.number
        query = sa.select(table).where(table.c.expires.is_(None) | (table.c.expires > _at(now)))
        query = query.order_by(number.desc() if newest_first else number)
        if not all_keys:
            query = query.where(table.c.key_id.is_not_distinct_from(key_id))
        if purpose is not None:
            query = query.where(table.c.purpose == (purpose if purpose.isprintable() else ""))
        with self._db.read() as connection:
            if after is not None:
                last = _find_file(connection, after, key_id, all_keys)
                if last is None:
                    raise InvalidRequest(f"There is no file '{after}'.", param="after", code="invalid_value")
                query = query.where(number < last.number if newest_first else number > last.number)
            rows = connection.execute(query.limit(limit + 1)).all()
        return tuple(_file(row) for row in rows[:limit]), len(rows) > limit

    def delete(self, id: str, key_id: str | None = None, all_keys: bool = True) -> StoredFile:
        """Takes the row away, then the bytes. Raises NotFound(code="file_not_found")."""
        with self._db.begin() as connection:
            file = _find_file(connection, id, key_id, all_keys)
            if file is None:
                raise _no_file(id)
            connection.execute(sa.delete(schema.files).where(schema.files.c.id == file.id))
        self.discard(file.id)
        return file

    def purge_expired(self, now: float | None = None) -> int:
        """Deletes files whose time is over; how many they were."""
        at = _at(now)
        files = schema.files
        with self._db.begin() as connection:
            old = connection.execute(sa.select(files.c.id).where(files.c.expires <= at)).scalars().all()
            connection.execute(sa.delete(files).where(files.c.id.in_(old)))
        for id in old:
            self.discard(id)
        return len(old)

    def sweep(self, older_than_seconds: float = ABANDONED_SECONDS, now: float | None = None) -> int:
        """Deletes bytes that crashed processes left without a row; how many. For the start of a process."""
        with self._db.read() as connection:
            known = set(connection.execute(sa.select(schema.files.c.id)).scalars())
        limit = _at(now) - older_than_seconds
        return sweep((*self._root.glob("file-*"), *self._staging.iterdir()), known, limit)

    def discard(self, id: str) -> None:
        """Takes the bytes of a file away that has no row, or none any more."""
        (self._root / id).unlink(missing_ok=True)


def _new_file(
    staged: Staged,
    filename: str,
    purpose: Purpose,
    key_id: str | None,
    expires_seconds: int | None,
    now: float,
) -> StoredFile:
    if staged.size == 0:
        raise InvalidRequest("The file is empty.", param="file", code="empty_file")
    if expires_seconds is None and purpose is Purpose.BATCH:
        expires_seconds = BATCH_SECONDS
    return StoredFile(
        id=f"file-{secrets.token_hex(12)}",
        key_id=key_id,
        purpose=purpose,
        filename=label(filename),
        size_bytes=staged.size,
        digest=staged.digest,
        created=now,
        expires=None if expires_seconds is None else now + expires_seconds,
    )


def purpose_of(purpose: Purpose | str) -> Purpose:
    """Raises InvalidRequest for a word that is none."""
    try:
        return Purpose(purpose)
    except ValueError:
        known = ", ".join(SENT)
        raise InvalidRequest(
            f"'{purpose}' is not one of {known}.", param="purpose", code="invalid_value"
        ) from None


def label(filename: str) -> str:
    """A name to show: no folders, nothing that a terminal or a header would take for more than a name."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    shown = "".join(letter if letter.isprintable() else "_" for letter in last)
    return shown.strip()[:MAX_FILENAME_CHARS] or "file"


def _find_file(connection: Connection, id: str, key_id: str | None, all_keys: bool) -> StoredFile | None:
    table = schema.files
    # No database compares NUL or half a surrogate pair; no id of ours has one.
    query = sa.select(table).where(table.c.id == (id if id.isprintable() else ""))
    if not all_keys:
        query = query.where(table.c.key_id.is_not_distinct_from(key_id))
    row = connection.execute(query).one_or_none()
    return None if row is None else _file(row)


def insert_file(connection: Connection, file: StoredFile) -> None:
    """The row of a file whose bytes are in their place."""
    connection.execute(
        sa.insert(schema.files).values(
            id=file.id,
            key_id=file.key_id,
            purpose=file.purpose.value,
            filename=file.filename,
            size_bytes=file.size_bytes,
            digest=file.digest,
            created=file.created,
            expires=file.expires,
        )
    )


def _no_file(id: str) -> NotFound:
    return NotFound(f"No such File object: {id!r}", param="id", code="file_not_found")


def _is_past(expires: float | None, now: float | None) -> bool:
    return expires is not None and expires <= _at(now)


def sweep(entries: Iterable[Path], known: Collection[str], limit: float) -> int:
    """Deletes what is not known by its name and is older than `limit` (epoch seconds); how many."""
    swept = 0
    for entry in entries:
        if entry.name not in known and _is_older(entry, limit):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
            swept += 1
    return swept


def _is_older(entry: Path, limit: float) -> bool:
    try:
        return entry.stat().st_mtime < limit
    except FileNotFoundError:
        return False


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _at(now: float | None) -> float:
    return time.time() if now is None else now


def _file(row: Row[Any]) -> StoredFile:
    return StoredFile(
        id=row.id,
        key_id=row.key_id,
        purpose=Purpose(row.purpose),
        filename=row.filename,
        size_bytes=row.size_bytes,
        digest=row.digest,
        created=row.created,
        expires=row.expires,
        number=row.number,
    )
