"""Uploaded files and files that come in parts: their rows in the database, their bytes on disk under their ids.

Owns the `files` and `uploads` tables and the folder of bytes. A file is staged, fsynced, renamed and only then has
a row, so that a crash leaves no half file; what it does leave, `sweep` takes away. Does not know what is in a file.

    root/file-<24 hex>                  a file's bytes; never written again
    root/.parts/upload_<24 hex>/part_…  parts of an upload that is not complete yet
    root/.staging/<random>              bytes that are coming in
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from adapters import schema
from adapters.database import Database
from adapters.errors import Conflict, InvalidRequest, NotFound, TooLarge

MAX_FILE_BYTES = 512 * 1024**2
MAX_PART_BYTES = 64 * 1024**2
MAX_UPLOAD_BYTES = 8 * 1024**3
MAX_PARTS = 1024
MAX_FILENAME_CHARS = 255

UPLOAD_SECONDS = 3600.0
"""How long an upload may take from its creation to its completion."""

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


class UploadStatus(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


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


@dataclass(frozen=True, slots=True)
class Upload:
    id: str  # upload_<24 hex>
    key_id: str | None
    purpose: Purpose
    filename: str
    size_bytes: int  # that all parts together must have
    status: UploadStatus
    parts: tuple[str, ...]  # part_<24 hex>, as they came
    file_id: str | None
    file_seconds: int | None  # how long the file will be kept; None: until it is deleted
    created: float
    expires: float


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
        self._staging, self._parts = root / ".staging", root / ".parts"
        for folder in (self._staging, self._parts):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    # -- whole files -------------------------------------------------------------------------------
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
        file = _new_file(staged, filename, _purpose(purpose), key_id, expires_seconds, _at(now))
        staged.rename(self._root / file.id)
        with self._db.begin() as connection:
            _insert_file(connection, file)
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
        (self._root / file.id).unlink(missing_ok=True)
        return file

    def purge_expired(self, now: float | None = None) -> int:
        """Deletes files and uploads whose time is over; how many they were."""
        at = _at(now)
        files, uploads = schema.files, schema.uploads
        late = sa.and_(uploads.c.status == UploadStatus.PENDING.value, uploads.c.expires <= at)
        with self._db.begin() as connection:
            old = connection.execute(sa.select(files.c.id).where(files.c.expires <= at)).scalars().all()
            connection.execute(sa.delete(files).where(files.c.id.in_(old)))
            over = connection.execute(sa.select(uploads.c.id).where(late)).scalars().all()
            expired = sa.update(uploads).where(uploads.c.id.in_(over))
            connection.execute(expired.values(status=UploadStatus.EXPIRED.value))
        for id in old:
            (self._root / id).unlink(missing_ok=True)
        for id in over:
            self._drop_parts(id)
        return len(old) + len(over)

    def sweep(self, older_than_seconds: float = ABANDONED_SECONDS, now: float | None = None) -> int:
        """Deletes bytes that crashed processes left without a row; how many. For the start of a process."""
        limit = _at(now) - older_than_seconds
        with self._db.read() as connection:
            known = set(connection.execute(sa.select(schema.files.c.id)).scalars())
            pending = schema.uploads.c.status == UploadStatus.PENDING.value
            known |= set(connection.execute(sa.select(schema.uploads.c.id).where(pending)).scalars())
        swept = 0
        for entry in (*self._root.glob("file-*"), *self._staging.iterdir(), *self._parts.iterdir()):
            if entry.name not in known and _is_older(entry, limit):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
                swept += 1
        return swept

    # -- files that come in parts ------------------------------------------------------------------
    def start(
        self,
        filename: str,
        purpose: Purpose | str,
        size_bytes: int,
        key_id: str | None,
        expires_seconds: int | None = None,
        now: float | None = None,
    ) -> Upload:
        """A new upload of `size_bytes` in all. Raises InvalidRequest."""
        if not 0 < size_bytes <= MAX_UPLOAD_BYTES:
            raise InvalidRequest(
                f"'bytes' must be between 1 and {MAX_UPLOAD_BYTES}.", param="bytes", code="invalid_value"
            )
        at = _at(now)
        upload = Upload(
            id=f"upload_{secrets.token_hex(12)}",
            key_id=key_id,
            purpose=_purpose(purpose),
            filename=_label(filename),
            size_bytes=size_bytes,
            status=UploadStatus.PENDING,
            parts=(),
            file_id=None,
            file_seconds=expires_seconds,
            created=at,
            expires=at + UPLOAD_SECONDS,
        )
        with self._db.begin() as connection:
            connection.execute(sa.insert(schema.uploads).values(_upload_values(upload)))
        return upload

    def upload(self, id: str, key_id: str | None, all_keys: bool = False, now: float | None = None) -> Upload:
        """Raises NotFound(code="upload_not_found") for an unknown one and for another key's."""
        with self._db.read() as connection:
            return _existing_upload(connection, id, key_id, all_keys, _at(now))

    def add_part(
        self, id: str, staged: Staged, key_id: str | None, all_keys: bool = False, now: float | None = None
    ) -> str:
        """The staged bytes as a part of the upload; the part's id. Parts may come in any order and side by side.

        Raises NotFound, Conflict(code="upload_state_conflict"), InvalidRequest.
        """
        at = _at(now)
        part = f"part_{secrets.token_hex(12)}"
        pending = self.upload(id, key_id, all_keys, at)
        _refuse_closed(pending)
        folder = self._parts / pending.id
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            staged.rename(folder / part)
        except FileNotFoundError:  # cancelled meanwhile, and the folder with it
            raise _not_pending(id) from None
        with self._db.begin() as connection:
            upload = _existing_upload(connection, id, key_id, all_keys, at, lock=True)
            try:
                _refuse_closed(upload)
                self._refuse_too_much(upload, staged.size)
            except (Conflict, InvalidRequest):
                (folder / part).unlink(missing_ok=True)
                raise
            _update_upload(connection, id, parts=[*upload.parts, part])
        return part

    def complete(
        self,
        id: str,
        part_ids: Sequence[str],
        md5: str | None,
        key_id: str | None,
        all_keys: bool = False,
        now: float | None = None,
    ) -> tuple[Upload, StoredFile]:
        """Joins the parts, in the order given, into a file. Raises NotFound, Conflict, InvalidRequest.

        A wrong order, number of bytes or checksum leaves the upload as it was, to be completed rightly.
        """
        at = _at(now)
        upload = self.upload(id, key_id, all_keys, at)
        _refuse_closed(upload)
        _refuse_unknown_parts(upload, part_ids)
        with self.stage(MAX_UPLOAD_BYTES) as staged:
            self._join(upload, part_ids, staged)
            _refuse_difference(upload, staged, md5)
            file = _new_file(staged, upload.filename, upload.purpose, upload.key_id, upload.file_seconds, at)
            staged.rename(self._root / file.id)
        with self._db.begin() as connection:
            try:
                _refuse_closed(_existing_upload(connection, id, key_id, all_keys, at, lock=True))
            except Conflict:  # completed or cancelled by another request meanwhile
                (self._root / file.id).unlink(missing_ok=True)
                raise
            _insert_file(connection, file)
            _update_upload(connection, id, status=UploadStatus.COMPLETED.value, file_id=file.id)
        self._drop_parts(upload.id)
        return replace(upload, status=UploadStatus.COMPLETED, file_id=file.id), file

    def cancel(self, id: str, key_id: str | None, all_keys: bool = False, now: float | None = None) -> Upload:
        """Ends an upload; no part may be added any more. Raises NotFound, Conflict."""
        with self._db.begin() as connection:
            upload = _existing_upload(connection, id, key_id, all_keys, _at(now), lock=True)
            _refuse_closed(upload)
            _update_upload(connection, id, status=UploadStatus.CANCELLED.value)
        self._drop_parts(upload.id)
        return replace(upload, status=UploadStatus.CANCELLED)

    def _refuse_too_much(self, upload: Upload, size: int) -> None:
        there = sum((self._parts / upload.id / part).stat().st_size for part in upload.parts)
        if there + size > MAX_UPLOAD_BYTES or len(upload.parts) >= MAX_PARTS:
            raise InvalidRequest(
                f"An upload has at most {MAX_UPLOAD_BYTES} bytes in {MAX_PARTS} parts.",
                param="data",
                code="upload_too_large",
            )

    def _join(self, upload: Upload, part_ids: Sequence[str], staged: Staged) -> None:
        try:
            for part in part_ids:
                with (self._parts / upload.id / part).open("rb") as stream:
                    staged.copy(stream)
        except FileNotFoundError:  # cancelled, or completed, while we read
            raise _not_pending(upload.id) from None

    def _drop_parts(self, id: str) -> None:
        shutil.rmtree(self._parts / id, ignore_errors=True)


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
        filename=_label(filename),
        size_bytes=staged.size,
        digest=staged.digest,
        created=now,
        expires=None if expires_seconds is None else now + expires_seconds,
    )


def _purpose(purpose: Purpose | str) -> Purpose:
    try:
        return Purpose(purpose)
    except ValueError:
        known = ", ".join(SENT)
        raise InvalidRequest(
            f"'{purpose}' is not one of {known}.", param="purpose", code="invalid_value"
        ) from None


def _label(filename: str) -> str:
    """A name to show: no folders, nothing that a terminal or a header would take for more than a name."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    shown = "".join(letter if letter.isprintable() else "_" for letter in last)
    return shown.strip()[:MAX_FILENAME_CHARS] or "file"


def _refuse_closed(upload: Upload) -> None:
    if upload.status is not UploadStatus.PENDING:
        raise Conflict(
            f"Upload {upload.id} is {upload.status.value}, not pending.", code="upload_state_conflict"
        )


def _not_pending(id: str) -> Conflict:
    return Conflict(f"Upload {id} is no longer pending.", code="upload_state_conflict")


def _refuse_unknown_parts(upload: Upload, part_ids: Sequence[str]) -> None:
    unknown = [part for part in part_ids if part not in upload.parts]
    if unknown or not part_ids or len(set(part_ids)) < len(part_ids):
        problem = f"there is no part '{unknown[0]}'" if unknown else "each part once, and at least one"
        raise InvalidRequest(f"Invalid 'part_ids': {problem}.", param="part_ids", code="invalid_value")


def _refuse_difference(upload: Upload, staged: Staged, md5: str | None) -> None:
    if staged.size != upload.size_bytes:
        raise InvalidRequest(
            f"The parts have {staged.size} bytes together, not the {upload.size_bytes} that were announced.",
            param="part_ids",
            code="upload_size_mismatch",
        )
    if md5 is not None and md5.lower() != staged.md5:
        raise InvalidRequest(
            "The md5 of the parts is not the one given.", param="md5", code="upload_checksum_mismatch"
        )


def _existing_upload(
    connection: Connection, id: str, key_id: str | None, all_keys: bool, now: float, *, lock: bool = False
) -> Upload:
    table = schema.uploads
    query = sa.select(table).where(table.c.id == (id if id.isprintable() else ""))
    if not all_keys:
        query = query.where(table.c.key_id.is_not_distinct_from(key_id))
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound(f"No such upload: {id!r}", param="upload_id", code="upload_not_found")
    upload = _upload(row)
    if upload.status is UploadStatus.PENDING and upload.expires <= now:
        return replace(upload, status=UploadStatus.EXPIRED)
    return upload


def _update_upload(connection: Connection, id: str, **values: Any) -> None:
    connection.execute(sa.update(schema.uploads).where(schema.uploads.c.id == id).values(**values))


def _find_file(connection: Connection, id: str, key_id: str | None, all_keys: bool) -> StoredFile | None:
    table = schema.files
    # No database compares NUL or half a surrogate pair; no id of ours has one.
    query = sa.select(table).where(table.c.id == (id if id.isprintable() else ""))
    if not all_keys:
        query = query.where(table.c.key_id.is_not_distinct_from(key_id))
    row = connection.execute(query).one_or_none()
    return None if row is None else _file(row)


def _insert_file(connection: Connection, file: StoredFile) -> None:
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


def _upload_values(upload: Upload) -> dict[str, Any]:
    return {
        "id": upload.id,
        "key_id": upload.key_id,
        "purpose": upload.purpose.value,
        "filename": upload.filename,
        "size_bytes": upload.size_bytes,
        "status": upload.status.value,
        "parts": list(upload.parts),
        "file_id": upload.file_id,
        "file_seconds": upload.file_seconds,
        "created": upload.created,
        "expires": upload.expires,
    }


def _upload(row: Row[Any]) -> Upload:
    return Upload(
        id=row.id,
        key_id=row.key_id,
        purpose=Purpose(row.purpose),
        filename=row.filename,
        size_bytes=row.size_bytes,
        status=UploadStatus(row.status),
        parts=tuple(row.parts),
        file_id=row.file_id,
        file_seconds=row.file_seconds,
        created=row.created,
        expires=row.expires,
    )


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
