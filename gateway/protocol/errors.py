"""Errors on the wire: `BurnishError` → OpenAI's or Anthropic's JSON, and an engine's error → `BurnishError`.

The shapes follow OpenAI's published error object (`message`, `type`, `param`, `code`; `code` is a string or
null) and Anthropic's (`{"type": "error", "error": {"type", "message"}}`). No engine's own words reach a client
where they could carry a path, a stack trace or another client's prompt: 5xx bodies are replaced whole.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from adapters.errors import (
    BurnishError,
    ContextTooLong,
    EngineFailed,
    InvalidRequest,
    NotFound,
    RateLimited,
    TooLarge,
    Unavailable,
)

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}

_CONTEXT = re.compile(
    r"maximum context length|longer than the maximum model length|context window", re.IGNORECASE
)

# vLLM 0.32 ends its own messages in "(parameter=top_p, value=2.0)" and repeats what FastAPI found as the
# Python repr of a list of dicts, the client's values included.
_TAIL = re.compile(r"\s*\(parameter=([\w.\[\]]+)(?:, value=.*)?\)\s*$", re.DOTALL)
_FINDING = re.compile(r"'msg': (['\"])(.*?)\1, '(?:input|ctx|url)'")
_CLASS_NAME = re.compile(r"[A-Z]\w*|function-\w+|(?:list|dict|union|constrained|nullable|tagged)\b.*")


def openai_error(error: BurnishError) -> dict[str, Any]:
    """The body of an OpenAI error answer."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def anthropic_error(error: BurnishError, request_id: str) -> dict[str, Any]:
    """The body of an Anthropic error answer."""
    kind = ANTHROPIC_TYPES.get(error.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}


def error_headers(error: BurnishError) -> list[tuple[bytes, bytes]]:
    """Retry-After where waiting helps: a whole number of seconds, at least one (RFC 9110 §10.2.3).

    Where it does not, OpenAI's SDKs are told so: they would ask again after any 429.
    """
    if error.retry_after_seconds is None:
        return [(b"x-should-retry", b"false")] if error.status == 429 else []
    return [(b"retry-after", str(max(1, error.retry_after_seconds)).encode())]


def from_engine(
    status: int, body: bytes, headers: dict[bytes, bytes], request: dict[str, Any], served: str, name: str
) -> BurnishError:
    """What an engine's answer of `status` >= 400 means for the client who sent `request`.

    `served` is the engine's own name of the model and `name` the client's: the first never reaches the client.
    """
    if status == 429:
        return RateLimited("The engine asks to wait.", retry_after_seconds=retry_after(headers))
    if status >= 500:
        if status == 503:
            return Unavailable("The engine cannot take this request now.", retry_after_seconds=1)
        return EngineFailed("The engine failed while it answered this request.")
    if status in (401, 403):
        return EngineFailed("The engine refused the gateway's own key.", code="engine_unauthorized")
    message, param = _engine_words(body)
    return from_engine_words(status, message.replace(served, name), param, request)


def from_engine_words(status: int, message: str, param: str | None, request: dict[str, Any]) -> BurnishError:
    """The 4xx of an engine, by its message and `param`."""
    if status == 404:
        return NotFound(message or "Not found.", param=param)
    if status == 413:
        return TooLarge(message or "The request is too large.")
    if _CONTEXT.search(message):
        return ContextTooLong(_TAIL.sub("", message), param=_input_field(request))
    param = _client_param(param, message, request)
    return InvalidRequest(
        _client_message(message, param), param=param, code="invalid_value" if param else None
    )


def retry_after(headers: dict[bytes, bytes]) -> int:
    """Seconds that an engine's Retry-After names, within 1 and 60; 1 where it names none."""
    try:
        return min(60, max(1, int(headers.get(b"retry-after", b"1"))))
    except ValueError:
        return 1


def _engine_words(body: bytes) -> tuple[str, str | None]:
    """Message and `param` out of the shapes engines use; generic words where there are none."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "The engine refused the request.", None
    if not isinstance(parsed, dict):
        return "The engine refused the request.", None
    error = parsed.get("error", parsed)
    if isinstance(error, str):
        return error, None
    if not isinstance(error, dict):
        return "The engine refused the request.", None
    message = error.get("message") or error.get("detail") or "The engine refused the request."
    param = error.get("param")
    return (message if isinstance(message, str) else orjson.dumps(message).decode()), (
        param if isinstance(param, str) else None
    )


def _input_field(request: dict[str, Any]) -> str:
    for field in ("messages", "prompt", "input"):
        if field in request:
            return field
    return "messages"


def _client_param(param: str | None, message: str, request: dict[str, Any]) -> str | None:
    """The field as the client wrote it: `body.messages.0.SomeClass.role` is `messages[0].role`."""
    if param is None and (found := _TAIL.search(message)):
        param = found.group(1)
    if param is None or param == "body":
        return None
    parts = [part for part in param.removeprefix("body.").split(".") if not _CLASS_NAME.fullmatch(part)]
    param = "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in parts).removeprefix(".")
    if param == "max_tokens" and "max_tokens" not in request:
        for field in ("max_completion_tokens", "max_output_tokens"):
            if field in request:
                return field
    return param or None


def _client_message(message: str, param: str | None) -> str:
    """The engine's message without its Python: the first finding of a validation, or the words without their tail."""
    if found := _FINDING.search(message):
        return (
            f"Invalid value for '{param}': {found.group(2)}." if param else f"Invalid body: {found.group(2)}."
        )
    if "validation error" in message:
        return f"Invalid value for '{param}'." if param else "The engine refused a value in the body."
    return _TAIL.sub("", message) or "The engine refused the request."
