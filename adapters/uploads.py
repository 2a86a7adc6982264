"""Files that come in parts: OpenAI's uploads, their rows in the database, their parts on disk until they are joined.

Owns the `uploads` table and the folder of parts. A completed upload is a file like any other (`files`).

    root/.parts/upload_<24 hex>/part_…    parts of an upload that is not complete yet
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from adapters import schema
from adapters.database import Database
from adapters.errors import Conflict, InvalidRequest, NotFound
from adapters.files import (
    ABANDONED_SECONDS,
    Files,
    Purpose,
    Staged,
    StoredFile,
    insert_file,
    label,
    purpose_of,
    sweep,
)

MAX_PART_BYTES = 64 * 1024**2
MAX_UPLOAD_BYTES = 8 * 1024**3
MAX_PARTS = 1024

UPLOAD_SECONDS = 3600.0
"""How long an upload may take from its creation to its completion."""


class UploadStatus(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


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


class Uploads:
    def __init__(self, db: Database, files: Files) -> None:
        self._db = db
        self._files = files
        self._root = files.root / ".parts"
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)

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
            purpose=purpose_of(purpose),
            filename=label(filename),
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

    def get(self, id: str, key_id: str | None, all_keys: bool = False, now: float | None = None) -> Upload:
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
        pending = self.get(id, key_id, all_keys, at)
        _refuse_closed(pending)
        folder = self._root / pending.id
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
        upload = self.get(id, key_id, all_keys, at)
        _refuse_closed(upload)
        _refuse_unknown_parts(upload, part_ids)
        with self._files.stage(MAX_UPLOAD_BYTES) as staged:
            self._join(upload, part_ids, staged)
            _refuse_difference(upload, staged, md5)
            file = self._files.place(
                staged, upload.filename, upload.purpose, upload.key_id, upload.file_seconds, at
            )
        with self._db.begin() as connection:
            try:
                _refuse_closed(_existing_upload(connection, id, key_id, all_keys, at, lock=True))
            except Conflict:  # completed or cancelled by another request meanwhile
                self._files.discard(file.id)
                raise
            insert_file(connection, file)
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
        there = sum((self._root / upload.id / part).stat().st_size for part in upload.parts)
        if there + size > MAX_UPLOAD_BYTES or len(upload.parts) >= MAX_PARTS:
            raise InvalidRequest(
                f"An upload has at most {MAX_UPLOAD_BYTES} bytes in {MAX_PARTS} parts.",
                param="data",
                code="upload_too_large",
            )

    def _join(self, upload: Upload, part_ids: Sequence[str], staged: Staged) -> None:
        try:
            for part in part_ids:
                with (self._root / upload.id / part).open("rb") as stream:
                    staged.copy(stream)
        except FileNotFoundError:  # cancelled, or completed, while we read
            raise _not_pending(upload.id) from None

    def _drop_parts(self, id: str) -> None:
        shutil.rmtree(self._root / id, ignore_errors=True)

    def purge_expired(self, now: float | None = None) -> int:
        """Ends uploads whose time is over; how many they were."""
        uploads = schema.uploads
        late = sa.and_(uploads.c.status == UploadStatus.PENDING.value, uploads.c.expires <= _at(now))
        with self._db.begin() as connection:
            over = connection.execute(sa.select(uploads.c.id).where(late)).scalars().all()
            expired = sa.update(uploads).where(uploads.c.id.in_(over))
            connection.execute(expired.values(status=UploadStatus.EXPIRED.value))
        for id in over:
            self._drop_parts(id)
        return len(over)

    def sweep(self, older_than_seconds: float = ABANDONED_SECONDS, now: float | None = None) -> int:
        """Deletes parts that crashed processes left of uploads that are over; how many uploads they were of."""
        pending = schema.uploads.c.status == UploadStatus.PENDING.value
        with self._db.read() as connection:
            known = set(connection.execute(sa.select(schema.uploads.c.id).where(pending)).scalars())
        return sweep(self._root.iterdir(), known, _at(now) - older_than_seconds)


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


def _at(now: float | None) -> float:
    return time.time() if now is None else now
