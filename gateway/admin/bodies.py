"""Bodies of admin requests: JSON of bounded size, and adapters uploaded as multipart/form-data.

Owns the bounds. An upload goes to disk as it comes: neither memory nor the system's folder for temporary files
has to hold it. Does not know what is in the files.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, ValidationError

from adapters.artifacts import OPTIONAL_FILES, REQUIRED_FILES
from adapters.errors import InvalidRequest
from gateway.multipart import pieces, receive_form

MAX_JSON_BYTES = 1024 * 1024
MAX_UPLOAD_BYTES = 2 * 1024**3
FILES = (*REQUIRED_FILES, *OPTIONAL_FILES)
FIELDS = ("name", "base_model")

ABANDONED_SECONDS = 3600.0
"""An upload's folder older than this belongs to a process that was killed."""


class Body(BaseModel):
    """A JSON body that refuses what it does not know."""

    model_config = ConfigDict(extra="forbid")


B = TypeVar("B", bound=Body)


class BoundedRoute(APIRoute):
    """A route whose body is bounded before anything looks at it; FastAPI reads it before it asks for the key."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            body = await read_bounded(request)

            async def replay() -> dict[str, Any]:
                return {"type": "http.request", "body": body, "more_body": False}

            return await handle(Request(request.scope, replay))

        return bounded


async def read_bounded(request: Request) -> bytes:
    """The whole body. Raises TooLarge as soon as it is known to be."""
    body, size = [], 0
    async for piece in pieces(request, MAX_JSON_BYTES):
        body.append(piece)
        size += len(piece)
    return b"".join(body)


async def read_json(request: Request, kind: type[B]) -> B:
    """The body as a `kind`. Raises what FastAPI raises for a body that is none."""
    try:
        return kind.model_validate_json(await read_bounded(request))
    except ValidationError as error:
        raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in error.errors()]) from None


@asynccontextmanager
async def receive_upload(request: Request, home: Path) -> AsyncIterator[tuple[Path, dict[str, str]]]:
    """The uploaded files in a folder that lives as long as the block, and the form's other fields.

    Raises InvalidRequest for a form that is none of ours, TooLarge.
    """
    path = await asyncio.to_thread(_fresh_folder, home / "uploads")
    folder = _Folder(path)
    try:
        try:
            fields = await receive_form(request, FIELDS, folder.open, MAX_UPLOAD_BYTES)
        finally:
            folder.close()
        yield path, fields
    finally:
        await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)


def _fresh_folder(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in root.iterdir():
        if left.stat().st_mtime < time.time() - ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=root))


class _Folder:
    """The files of a form, each under its own name in `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: list[BinaryIO] = []

    def open(self, field: str, name: str) -> BinaryIO:
        """A name is one of three, so that no path can come in with it."""
        if name not in FILES:
            allowed = ", ".join(FILES)
            raise InvalidRequest(
                f"{name!r} is no file of an adapter; send {allowed}", param="files", code="file_not_allowed"
            )
        try:
            file = (self._path / name).open("xb")
        except FileExistsError:
            raise InvalidRequest(f"{name!r} is there twice", param="files", code="file_not_allowed") from None
        self._files.append(file)
        return file

    def close(self) -> None:
        for file in self._files:
            file.close()
