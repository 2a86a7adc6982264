"""/v1/adapters: import, list, show and remove adapter versions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from adapters.errors import InvalidRequest, NotFound
from adapters.lineage import completions_behind, lineage_of
from adapters.versions import VersionRecord, is_ref
from gateway.admin.bodies import Body, read_json, receive_upload
from gateway.admin.changes import actor, change
from gateway.deps import Admin, TheRuntime
from gateway.imports import import_adapter
from gateway.runtime import Runtime
from gateway.shapes import adapter_shape, lineage_shape, listing, version_shape

router = APIRouter(prefix="/adapters", tags=["adapters"])


class NewAdapter(Body):
    """An adapter in a folder of the server's host."""

    name: str
    path: str = Field(description="an absolute path on the server's host")
    base_model: str | None = None


class Reason(Body):
    """Why a person decides otherwise than the gate."""

    reason: str


UPLOAD: dict[str, Any] = {
    "type": "object",
    "required": ["name", "files"],
    "properties": {
        "name": {"type": "string"},
        "base_model": {"type": "string"},
        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
    },
}
BODIES = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": NewAdapter.model_json_schema()},
            "multipart/form-data": {"schema": UPLOAD},
        },
    }
}


@router.get("")
async def list_versions(
    runtime: TheRuntime, caller: Admin, name: str | None = None, removed: bool = False
) -> dict[str, Any]:
    """All versions, of one adapter if named; the removed ones only if asked for."""
    versions = await asyncio.to_thread(runtime.registry.versions, name, removed=removed)
    placements = await asyncio.to_thread(runtime.placements.list)
    return listing(version_shape(version, placements) for version in versions)


@router.post("", status_code=201, openapi_extra=BODIES)
async def create_version(request: Request, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    """A new version, still to be proved, from a folder of the server's host or from uploaded files."""
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        async with receive_upload(request, runtime.settings.home) as (folder, fields):
            if not fields.get("name"):
                raise InvalidRequest("the form needs the field 'name'", param="name", code="invalid_value")
            base_model = fields.get("base_model") or None
            version = await _import(runtime, fields["name"], folder, base_model, actor(caller))
    else:
        body = await read_json(request, NewAdapter)
        path = Path(body.path)
        if not path.is_absolute():
            raise InvalidRequest(
                "path must be absolute; it is one of the server's host", param="path", code="invalid_value"
            )
        version = await _import(runtime, body.name, path, body.base_model, actor(caller))
    return await _shape(runtime, version)


@router.get("/{ref}")
async def retrieve(ref: str, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    """The version NAME@N, or the adapter NAME with all its versions."""
    if is_ref(ref):
        version = await asyncio.to_thread(runtime.registry.version, ref)
        shape = await _shape(runtime, version)
        lineage = await asyncio.to_thread(lineage_of, runtime.db, version)
        if lineage is not None:
            behind = await asyncio.to_thread(completions_behind, runtime.db, version)
            shape["lineage"] = lineage_shape(lineage, behind)
        return shape
    versions = await asyncio.to_thread(runtime.registry.versions, ref, removed=True)
    if not versions:
        raise NotFound(f"there is no adapter {ref!r}", code="adapter_not_found")
    return adapter_shape(ref, versions, await asyncio.to_thread(runtime.placements.list))


@router.post("/{ref}/approve")
async def approve(ref: str, request: Request, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    """A version that its gate has rejected is loaded and proved all the same; the reason is kept with it."""
    body = await read_json(request, Reason)
    version = await change(runtime, runtime.registry.approve, ref, actor(caller), body.reason)
    return await _shape(runtime, version)


@router.post("/{ref}/release")
async def release(ref: str, request: Request, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    """A quarantined version is loaded and proved again."""
    body = await read_json(request, Reason)
    version = await change(runtime, runtime.registry.release, ref, actor(caller), body.reason)
    return await _shape(runtime, version)


@router.delete("/{ref}", status_code=202)
async def remove_version(ref: str, runtime: TheRuntime, caller: Admin) -> dict[str, Any]:
    """Takes a version out of routing at once; it is `removed` when the last request that uses it has ended."""
    return await _shape(runtime, await change(runtime, runtime.registry.begin_remove, ref, actor(caller)))


async def _import(runtime: Runtime, name: str, path: Path, base_model: str | None, by: str) -> VersionRecord:
    return await change(
        runtime, import_adapter, runtime.registry, runtime.settings, name, path, base_model, by
    )


async def _shape(runtime: Runtime, version: VersionRecord) -> dict[str, Any]:
    return version_shape(version, await asyncio.to_thread(runtime.placements.list, ref=version.ref))
