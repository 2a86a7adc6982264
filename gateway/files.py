"""/v1/files and /v1/uploads: OpenAI's files, whole or in parts. A key sees its own; an admin's key sees all.

Owns the HTTP shapes. Bytes go to disk as they come; where they lie and how long is `adapters.files`' and `uploads`' affair.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse
from pydantic import Field

from adapters.errors import InvalidRequest
from adapters.files import MAX_FILE_BYTES, SENT, Files, Purpose, Staged, StoredFile
from adapters.uploads import MAX_PART_BYTES, Upload
from gateway.access import Caller
from gateway.admin import refuse_foreign_pages
from gateway.admin.bodies import Body, BoundedRoute
from gateway.deps import Anybody, TheRuntime
from gateway.multipart import Sink, receive_form
from gateway.runtime import Runtime
from gateway.shapes import page

MIN_KEPT_SECONDS, MAX_KEPT_SECONDS = 3600, 2_592_000

FRAMING_BYTES = 64 * 1024
"""What a form may have beside the file: boundaries, headers, fields."""

FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")

guarded = [Depends(refuse_foreign_pages)]
files_router = APIRouter(prefix="/v1/files", tags=["files"], dependencies=guarded)
uploads_router = APIRouter(
    prefix="/v1/uploads", tags=["uploads"], dependencies=guarded, route_class=BoundedRoute
)
parts_router = APIRouter(prefix="/v1/uploads", tags=["uploads"], dependencies=guarded)


class ExpiresAfter(Body):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=MIN_KEPT_SECONDS, le=MAX_KEPT_SECONDS)]


class NewUpload(Body):
    bytes: int
    filename: Annotated[str, Field(min_length=1)]
    mime_type: str
    purpose: str
    expires_after: ExpiresAfter | None = None


class Completion(Body):
    part_ids: list[str]
    md5: str | None = None


def _form(field: str, *others: str) -> dict[str, Any]:
    """What the OpenAPI document says of a form with one file."""
    properties: dict[str, Any] = {name: {"type": "string"} for name in others}
    properties[field] = {"type": "string", "format": "binary"}
    schema = {"type": "object", "required": [field, *others[:1]], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


# -- files -----------------------------------------------------------------------------------------
@files_router.post("", openapi_extra=_form("file", *FIELDS))
async def create_file(request: Request, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    """Stores a file: fields `purpose` and perhaps `expires_after`, and the file as `file`."""
    with _one_file(runtime.files, "file", MAX_FILE_BYTES) as (names, staged, open_file):
        fields = await receive_form(request, FIELDS, open_file, MAX_FILE_BYTES + FRAMING_BYTES)
        _need(names, "file")
        purpose, seconds = _sent_purpose(fields.get("purpose")), _kept_seconds(fields)
        file = await asyncio.to_thread(runtime.files.keep, staged, names[0], purpose, caller.key_id, seconds)
    return file_shape(file)


@files_router.get("")
async def list_files(
    runtime: TheRuntime,
    caller: Anybody,
    purpose: str | None = None,
    after: str | None = None,
    limit: int = Query(10_000, ge=1, le=10_000),
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """The caller's files, newest first unless `order` says otherwise."""
    files, has_more = await asyncio.to_thread(
        runtime.files.list,
        caller.key_id,
        all_keys=caller.is_admin,
        purpose=purpose,
        after=after,
        limit=limit,
        newest_first=order == "desc",
    )
    return page([file_shape(file) for file in files], has_more)


@files_router.get("/{file_id}")
async def retrieve_file(file_id: str, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    return file_shape(await _file(runtime, file_id, caller))


@files_router.delete("/{file_id}")
async def delete_file(file_id: str, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    """Takes a file away for ever. A job that has not read it yet will fail."""
    await asyncio.to_thread(runtime.files.delete, file_id, caller.key_id, caller.is_admin)
    return {"id": file_id, "object": "file", "deleted": True}


@files_router.get("/{file_id}/content", response_class=FileResponse)
async def file_content(file_id: str, runtime: TheRuntime, caller: Anybody) -> FileResponse:
    """The bytes as they were sent."""
    file = await _file(runtime, file_id, caller)
    path = await asyncio.to_thread(runtime.files.path, file.id)
    # Never shown by a browser as what it claims to be: anybody with a key may have sent it.
    headers = {"x-content-type-options": "nosniff"}
    return FileResponse(path, media_type="application/octet-stream", filename=file.filename, headers=headers)


# -- uploads ---------------------------------------------------------------------------------------
@uploads_router.post("")
async def create_upload(body: NewUpload, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    """Begins a file of up to 8 GB that comes in parts of up to 64 MB, within an hour."""
    purpose = _sent_purpose(body.purpose)
    seconds = None if body.expires_after is None else body.expires_after.seconds
    upload = await asyncio.to_thread(
        runtime.uploads.start, body.filename, purpose, body.bytes, caller.key_id, seconds
    )
    return upload_shape(upload, None)


@parts_router.post("/{upload_id}/parts", openapi_extra=_form("data"))
async def add_part(upload_id: str, request: Request, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    """Adds a part, as `data`. Parts may come in any order; the completion says which is the right one."""
    await asyncio.to_thread(runtime.uploads.get, upload_id, caller.key_id, caller.is_admin)
    with _one_file(runtime.files, "data", MAX_PART_BYTES) as (names, staged, open_file):
        await receive_form(request, (), open_file, MAX_PART_BYTES + FRAMING_BYTES)
        _need(names, "data")
        part = await asyncio.to_thread(
            runtime.uploads.add_part, upload_id, staged, caller.key_id, caller.is_admin
        )
    return {"id": part, "object": "upload.part", "created_at": int(time.time()), "upload_id": upload_id}


@uploads_router.post("/{upload_id}/complete")
async def complete_upload(
    upload_id: str, body: Completion, runtime: TheRuntime, caller: Anybody
) -> dict[str, Any]:
    """Joins the parts in the order given; the number of bytes and `md5` must be right."""
    upload, file = await asyncio.to_thread(
        runtime.uploads.complete, upload_id, body.part_ids, body.md5, caller.key_id, caller.is_admin
    )
    return upload_shape(upload, file)


@uploads_router.post("/{upload_id}/cancel")
async def cancel_upload(upload_id: str, runtime: TheRuntime, caller: Anybody) -> dict[str, Any]:
    upload = await asyncio.to_thread(runtime.uploads.cancel, upload_id, caller.key_id, caller.is_admin)
    return upload_shape(upload, None)


# -- shapes ----------------------------------------------------------------------------------------
def file_shape(file: StoredFile) -> dict[str, Any]:
    """OpenAI's file object."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": int(file.created),
        "expires_at": None if file.expires is None else int(file.expires),
        "filename": file.filename,
        "purpose": file.purpose.value,
        "status": "processed",
        "status_details": None,
    }


def upload_shape(upload: Upload, file: StoredFile | None) -> dict[str, Any]:
    """OpenAI's upload object."""
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.size_bytes,
        "created_at": int(upload.created),
        "expires_at": int(upload.expires),
        "filename": upload.filename,
        "purpose": upload.purpose.value,
        "status": upload.status.value,
        "file": None if file is None else file_shape(file),
    }


async def _file(runtime: Runtime, file_id: str, caller: Caller) -> StoredFile:
    return await asyncio.to_thread(runtime.files.get, file_id, caller.key_id, caller.is_admin)


@contextmanager
def _one_file(
    files: Files, field: str, limit: int
) -> Iterator[tuple[list[str], Staged, Callable[[str, str], Sink]]]:
    """Room for the one file of a form: its name once it has come, its bytes, and what opens it."""
    names: list[str] = []
    with files.stage(limit) as staged:

        def open_file(name: str, filename: str) -> Sink:
            if name != field or names:
                raise InvalidRequest(
                    f"the form holds one file, as {field!r}", param=name or None, code="unknown_field"
                )
            names.append(filename)
            return staged

        yield names, staged, open_file


def _need(names: list[str], field: str) -> None:
    if not names:
        raise InvalidRequest(f"'{field}' is a required property", param=field, code="invalid_value")


def _sent_purpose(purpose: str | None) -> Purpose:
    if purpose not in SENT:
        known = ", ".join(SENT)
        problem = f"'{purpose}' is not one of {known}" if purpose else "'purpose' is a required property"
        raise InvalidRequest(f"{problem}.", param="purpose", code="invalid_value")
    return Purpose(purpose)


def _kept_seconds(fields: dict[str, str]) -> int | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidRequest(
            "'expires_after.anchor' must be 'created_at'.", param="expires_after.anchor", code="invalid_value"
        )
    kept = int(seconds) if seconds and seconds.isascii() and seconds.isdecimal() else 0
    if not MIN_KEPT_SECONDS <= kept <= MAX_KEPT_SECONDS:
        raise InvalidRequest(
            f"'expires_after.seconds' must be between {MIN_KEPT_SECONDS} and {MAX_KEPT_SECONDS}.",
            param="expires_after.seconds",
            code="invalid_value",
        )
    return kept
