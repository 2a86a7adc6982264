"""What people write on the command line as KEY=VALUE or VARIANT=SHARE, and the JSON files beside it.

Owns the reading. Does not know which keys there are: whoever takes the object checks it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import typer

from adapters.errors import InvalidRequest


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises InvalidRequest, OSError."""
    try:
        value = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{file} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{file} must hold a JSON object")
    return value


def share(text: str) -> tuple[str, float]:
    """`support@3=0.05`. Raises typer.BadParameter."""
    variant, _, number = text.rpartition("=")
    try:
        return variant, float(number)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not VARIANT=SHARE, such as support@3=0.05.") from None


def maybe_share(text: str) -> tuple[str, float | None]:
    """`support@3=0.05`, or `support@3` alone. Raises typer.BadParameter."""
    return share(text) if "=" in text else (text, None)


def assign(parts: dict[str, Any], assignment: str) -> None:
    """`training.enabled=true` into nested objects; a value that is no JSON is a text. Raises typer.BadParameter."""
    key, equals, text = assignment.partition("=")
    if not (key and equals):
        raise typer.BadParameter(f"{assignment!r} is not KEY=VALUE.")
    *path, last = key.split(".")
    for part in path:
        inner = parts.setdefault(part, {})
        if not isinstance(inner, dict):
            raise typer.BadParameter(f"{part!r} in {key!r} has a value of its own.")
        parts = inner
    try:
        parts[last] = orjson.loads(text)
    except orjson.JSONDecodeError:
        parts[last] = text
