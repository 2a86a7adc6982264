"""The input file of a batch: one JSON object a line, each of them a request with a `custom_id`. Pure.

Owns what a file must be as a whole, so that every answer can be told apart and asked of the one endpoint. What is wrong
within a body (an unknown model, a parameter out of range) is no fault of the file: such a line gets its error when it is
asked, and the others are answered. Does not know where lines come from, nor who answers them.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "support", "messages": […]}}
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from adapters.errors import InvalidRequest
from adapters.rows import BYTE_ORDER_MARK, MAX_LINE_BYTES, UTF_16_MARKS

BATCH_ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")

MAX_CUSTOM_ID_CHARS = 512
MAX_PROBLEMS = 1000
"""So many bad lines are named; the others are counted."""

DIGEST_BYTES = 16
"""Of a `custom_id`, in place of itself: 50,000 of them are then a few megabytes, however long they are."""

MAX_BRACKETS = 250
"""A line with fewer opening brackets cannot nest deeper than orjson writes, which is 254."""

MIN_WINDOW_SECONDS, MAX_WINDOW_SECONDS = 1, 30 * 86_400
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
WINDOW = re.compile(r"([0-9]{1,7})([smhd])")


@dataclass(frozen=True, slots=True)
class Problem:
    """As OpenAI's batch object lists it under `errors`."""

    code: str
    line: int | None  # 1 is the first; None where it is the file as a whole
    message: str
    param: str | None = None

    def __str__(self) -> str:
        return self.message if self.line is None else f"line {self.line}: {self.message}"


@dataclass(frozen=True, slots=True)
class Line:
    number: int  # in the file; 1 is the first
    custom_id: str
    body: dict[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Examined:
    """What a look through all lines of a file has found."""

    total: int  # requests, which blank lines are not
    model: str | None  # the one that all lines name; None where they name several
    problems: tuple[Problem, ...]  # the first MAX_PROBLEMS, and one that counts the rest
    problem_count: int


class BadLine(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


def examine(lines: Iterable[bytes], endpoint: str, max_lines: int) -> Examined:
    """Looks through all lines, one at a time, for a batch that asks `endpoint`."""
    problems: list[Problem] = []
    count = total = 0
    first_use: dict[bytes, int] = {}
    models: set[str] = set()
    for number, raw in enumerate(lines, 1):
        if _is_blank(number, raw):
            continue
        total += 1
        try:
            if total > max_lines:
                raise BadLine("too_many_requests", f"the file holds more than {max_lines} requests")
            line = _sound_line(number, raw, endpoint)
            _refuse_twice(first_use, line)
            if len(models) < 2:
                models.add(line.body["model"])
        except BadLine as bad:
            count += 1
            if count <= MAX_PROBLEMS:
                problems.append(Problem(bad.code, number, bad.message, bad.param))
        if total > max_lines:
            break
    if not total:
        count, problems = 1, [Problem("empty_file", None, "the file holds no requests")]
    if count > MAX_PROBLEMS:
        problems.append(_rest(count - MAX_PROBLEMS))
    return Examined(total, models.pop() if len(models) == 1 else None, tuple(problems), count)


def parse_line(number: int, raw: bytes) -> Line | None:
    """The request of one line of a file that was found sound; None for a blank line."""
    if _is_blank(number, raw):
        return None
    value = orjson.loads(_unmarked(number, raw))
    return Line(number, value["custom_id"], value["body"])


def window_seconds(window: str) -> int:
    """ "24h" → 86400. Raises InvalidRequest for what is no such length, or none that a batch may have."""
    found = WINDOW.fullmatch(window)
    seconds = int(found[1]) * UNIT_SECONDS[found[2]] if found else 0
    if not MIN_WINDOW_SECONDS <= seconds <= MAX_WINDOW_SECONDS:
        raise InvalidRequest(
            "'completion_window' must be a number of s, m, h or d, such as '24h', from 1s to 30d.",
            param="completion_window",
            code="invalid_value",
        )
    return seconds


def _sound_line(number: int, raw: bytes, endpoint: str) -> Line:
    value = _object(number, raw)
    custom_id = _text(value, "custom_id")
    if len(custom_id) > MAX_CUSTOM_ID_CHARS:
        raise BadLine(
            "invalid_value", f"`custom_id` has more than {MAX_CUSTOM_ID_CHARS} characters", "custom_id"
        )
    if _text(value, "method") != "POST":
        raise BadLine("invalid_value", "`method` must be 'POST'", "method")
    if _text(value, "url") != endpoint:
        raise BadLine("invalid_url", f"`url` must be '{endpoint}', the batch's endpoint", "url")
    return Line(number, custom_id, _sound_body(value, raw))


def _sound_body(value: dict[str, Any], raw: bytes) -> dict[str, Any]:
    body = value.get("body")
    if body is None:
        raise _missing("body")
    if not isinstance(body, dict):
        raise BadLine("invalid_type", "`body` must be an object", "body")
    _text(body, "model", "body.model")
    if body.get("stream") is True:
        raise BadLine("invalid_value", "`body.stream` is true: a batch has no streams", "body.stream")
    if raw.count(b"{") + raw.count(b"[") > MAX_BRACKETS:
        _refuse_too_deep(body)
    return body


def _object(number: int, raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_LINE_BYTES:
        raise BadLine("line_too_long", f"the line is longer than {MAX_LINE_BYTES} bytes")
    if number == 1 and raw.startswith(UTF_16_MARKS):
        raise BadLine("invalid_json_line", "the file is UTF-16; write it as UTF-8")
    raw = _unmarked(number, raw)
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadLine("invalid_json_line", _json_words(raw, error)) from None
    if not isinstance(value, dict):
        raise BadLine("invalid_json_line", "the line must be a JSON object")
    return value


def _is_blank(number: int, raw: bytes) -> bool:
    return not _unmarked(number, raw).strip()


def _unmarked(number: int, raw: bytes) -> bytes:
    """Without the byte order mark that some editors put at the beginning of a file."""
    return raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw


def _json_words(raw: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        raw.decode()
    except UnicodeDecodeError as problem:
        return f"the line is not UTF-8 (byte {problem.start + 1})"
    return f"the line is not JSON ({error.msg}, column {error.colno})"


def _text(value: dict[str, Any], name: str, param: str | None = None) -> str:
    """The text under `name`, which is called `param` in the line."""
    param, text = param or name, value.get(name)
    if text is None:
        raise _missing(param)
    if not isinstance(text, str):
        raise BadLine("invalid_type", f"`{param}` must be a string", param)
    if not text:
        raise BadLine("invalid_value", f"`{param}` is empty", param)
    return text


def _refuse_twice(first_use: dict[bytes, int], line: Line) -> None:
    digest = hashlib.blake2b(line.custom_id.encode(), digest_size=DIGEST_BYTES).digest()
    before = first_use.setdefault(digest, line.number)
    if before != line.number:
        raise BadLine(
            "duplicate_custom_id", f"`custom_id` is that of line {before}: each needs its own", "custom_id"
        )


def _refuse_too_deep(body: dict[str, Any]) -> None:
    try:
        orjson.dumps(body)
    except orjson.JSONEncodeError:
        raise BadLine("invalid_value", "`body` is nested too deeply", "body") from None


def _missing(param: str) -> BadLine:
    return BadLine("missing_required_parameter", f"`{param}` is missing", param)


def _rest(count: int) -> Problem:
    return Problem("more_problems", None, f"{count} more {'line is' if count == 1 else 'lines are'} wrong")
