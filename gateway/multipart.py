"""multipart/form-data as it comes in: files go where the caller says, piece by piece, fields into a dictionary.

Owns the framing and the bounds. Neither memory nor the system's folder for temporary files has to hold a file.
Does not know what the files are for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from typing import TYPE_CHECKING, Protocol

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from adapters.errors import InvalidRequest, TooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELD_BYTES = 1024


class Sink(Protocol):
    """Where a file's bytes go."""

    def write(self, data: bytes, /) -> object: ...


Open = Callable[[str, str], Sink]
"""The field and the file's name, as the client wrote it → where its bytes go. May raise InvalidRequest."""


async def receive_form(
    request: Request, fields: Collection[str], open_file: Open, limit: int
) -> dict[str, str]:
    """Reads the whole form, in threads; its fields. Whoever opened files closes them.

    Raises InvalidRequest for what is no form, or holds a field that is not among `fields`, and TooLarge.
    """
    form = _Form(fields, open_file)
    parser = form.parser(request.headers.get("content-type", ""))
    try:
        async for piece in pieces(request, limit):
            await asyncio.to_thread(parser.write, piece)
    except MultipartParseError as error:
        raise InvalidRequest(
            f"the body is not multipart/form-data: {error}", code="invalid_multipart"
        ) from None
    if not form.has_ended:
        raise InvalidRequest("the form is cut off: its last boundary is missing", code="invalid_multipart")
    return form.fields


async def pieces(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it comes. Raises TooLarge as soon as it is known to be."""
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


class _Form:
    """The form as the parser comes upon it."""

    def __init__(self, fields: Collection[str], open_file: Open) -> None:
        self.fields: dict[str, str] = {}
        self.has_ended = False
        self._known = fields
        self._open_file = open_file
        self._header, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._field = ""
        self._text = bytearray()
        self._file: Sink | None = None

    def parser(self, content_type: str) -> MultipartParser:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or b"boundary" not in options:
            raise InvalidRequest(
                "the body must be multipart/form-data with a boundary", code="invalid_multipart"
            )
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
            self._file = self._open_file(self._field, options[b"filename"].decode(errors="replace"))
        elif self._field not in self._known or self._field in self.fields:
            raise InvalidRequest(
                f"the form has no field {self._field!r}, or has it twice; "
                f"it may hold {', '.join(self._known)} and files",
                param=self._field or None,
                code="unknown_field",
            )

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
        self._file = None

    def _on_end(self) -> None:
        self.has_ended = True
