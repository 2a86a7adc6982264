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
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, ValidationError
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from adapters.artifacts import OPTIONAL_FILES, REQUIRED_FILES
from adapters.errors import InvalidRequest, TooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_JSON_BYTES = 1024 * 1024
MAX_UPLOAD_BYTES = 2 * 1024**3
MAX_FIELD_BYTES = 1024
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
    pieces, size = [], 0
    async for piece in _pieces(request, MAX_JSON_BYTES):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


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
    folder = await asyncio.to_thread(_fresh_folder, home / "uploads")
    try:
        form = _Form(folder)
        try:
            parser = form.parser(request.headers.get("content-type", ""))
            async for piece in _pieces(request, MAX_UPLOAD_BYTES):
                await asyncio.to_thread(parser.write, piece)
            if not form.has_ended:
                raise InvalidRequest(
                    "the form is cut off: its last boundary is missing", code="invalid_multipart"
                )
        except MultipartParseError as error:
            raise InvalidRequest(
                f"the body is not multipart/form-data: {error}", code="invalid_multipart"
            ) from None
        finally:
            form.close()
        yield folder, form.fields
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _pieces(request: Request, limit: int) -> AsyncIterator[bytes]:
    size = int(request.headers.get("content-length") or 0)
    if size <= limit:
        size = 0
        try:
            async for piece in request.stream():
                size += len(piece)
                if size > limit:
                    break
                yield piece
        except ClientDisconnect:
            raise InvalidRequest("the body was cut off") from None
    if size > limit:
        raise TooLarge(f"The body is larger than {limit} bytes.")


def _fresh_folder(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in root.iterdir():
        if left.stat().st_mtime < time.time() - ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=root))


class _Form:
    """The form as the parser comes upon it: files go to `folder`, fields to `fields`."""

    def __init__(self, folder: Path) -> None:
        self.fields: dict[str, str] = {}
        self.has_ended = False
        self._folder = folder
        self._header, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._field = ""
        self._text = bytearray()
        self._file: BinaryIO | None = None

    def parser(self, content_type: str) -> MultipartParser:
        _, options = parse_options_header(content_type)
        if b"boundary" not in options:
            raise InvalidRequest("multipart/form-data needs a boundary", code="invalid_multipart")
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._headers.clear,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }
        return MultipartParser(options[b"boundary"], callbacks)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._field = options.get(b"name", b"").decode(errors="replace")
        if b"filename" in options:
            self._open(options[b"filename"].decode(errors="replace"))
        elif self._field not in FIELDS or self._field in self.fields:
            raise InvalidRequest(
                f"the form has no field {self._field!r}, or has it twice; it may hold {', '.join(FIELDS)} and files",
                param=self._field or None,
                code="unknown_field",
            )

    def _open(self, name: str) -> None:
        """A name is one of three, so that no path can come in with it."""
        if name not in FILES:
            allowed = ", ".join(FILES)
            raise InvalidRequest(
                f"{name!r} is no file of an adapter; send {allowed}", param="files", code="file_not_allowed"
            )
        try:
            self._file = (self._folder / name).open("xb")
        except FileExistsError:
            raise InvalidRequest(f"{name!r} is there twice", param="files", code="file_not_allowed") from None

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > MAX_FIELD_BYTES:
            raise InvalidRequest(f"{self._field!r} is too long", param=self._field, code="invalid_value")

    def _on_part_end(self) -> None:
        if self._file is None:
            self.fields[self._field] = self._text.decode(errors="replace")
        self._text.clear()
        self.close()

    def _on_end(self) -> None:
        self.has_ended = True
