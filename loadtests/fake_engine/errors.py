"""vLLM 0.32's error bodies: numeric `code`, its own type names. Each is (status, body).

Follows vllm/entrypoints/serve/exception_handling and the strings in each handler.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

Failure = tuple[int, bytes]
_PATH = re.compile(r"/(?:home|usr|opt|var|tmp|root|lib|mnt|srv)(?:/[\w.\-]+)+")


class Rejected(Exception):
    """The request earned an error: its status and body."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure[1].decode())
        self.status, self.body = failure


def failure(status: int, kind: str, message: str, param: str | None = None) -> Failure:
    """vLLM's ErrorResponse; it takes paths out of messages, so this does."""
    return status, orjson.dumps(error_object(status, kind, message, param))


def error_object(status: int, kind: str, message: str, param: str | None = None) -> dict[str, Any]:
    text = _PATH.sub("<path>", message)
    return {"error": {"message": text, "type": kind, "param": param, "code": status}}


def invalid(detail: str, param: str | None) -> Failure:
    """A FastAPI validation error as vLLM's handler puts it."""
    return failure(400, "Bad Request", f"1 validation error:\n  {detail}", param)


NOT_FOUND: Failure = (404, b'{"detail":"Not Found"}')
METHOD_NOT_ALLOWED: Failure = (405, b'{"detail":"Method Not Allowed"}')
UNAUTHORIZED: Failure = (401, b'{"error":"Unauthorized"}')
BUSY = failure(
    503,
    "Service Unavailable",
    "The engine is currently busy and cannot accept new requests. "
    "Please try again later or on a different instance.",
)
GENERATION_FAILED = failure(500, "InternalServerError", "Internal server error")
LOAD_FAILED = failure(500, "InternalServerError", "Call to add_lora method failed: out of memory")
NOT_JSON = invalid("Unsupported Media Type: Only 'application/json' is allowed", None)


def bad_json(position: int, reason: str) -> Failure:
    detail = {
        "type": "json_invalid",
        "loc": f"body.{position}",
        "msg": "JSON decode error",
        "input": "<dict of 0 items>",
        "ctx": {"error": reason},
    }
    return invalid(str(detail), f"body.{position}")


def field_missing(field: str, body: dict[str, Any]) -> Failure:
    detail = {
        "type": "missing",
        "loc": f"body.{field}",
        "msg": "Field required",
        "input": f"<dict of {len(body)} items>",
    }
    return invalid(str(detail), f"body.{field}")


def model_unknown(model: str, base: str) -> Failure:
    message = f"The model `{model}` does not exist. Valid aliases: {base}."
    return failure(404, "NotFoundError", message, "model")


def prompt_too_long(tokens: int, max_model_len: int) -> Failure:
    message = (
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains "
        f"{tokens} input tokens, which exceeds this limit even without any output tokens. "
        f"Please reduce the length of the input prompt. (parameter=input_tokens, value={tokens})"
    )
    return failure(400, "BadRequestError", message, "input_tokens")


def output_too_long(tokens: int, max_model_len: int, param: str) -> Failure:
    message = (
        f"{param}={tokens} cannot be greater than max_model_len={max_model_len}. "
        f"Please request fewer output tokens. (parameter={param}, value={tokens})"
    )
    return failure(400, "BadRequestError", message, param)


def response_unknown(response_id: str) -> Failure:
    message = f"Response with id '{response_id}' not found."
    return failure(404, "invalid_request_error", message, "response_id")


def for_anthropic(status: int, body: bytes) -> Failure:
    """The same failure as /v1/messages words it; what never reached a handler keeps its own shape."""
    error = orjson.loads(body).get("error")
    if not isinstance(error, dict) or error["type"] == "Bad Request":
        return status, body
    return status, orjson.dumps(
        {"type": "error", "error": {"type": error["type"], "message": error["message"]}}
    )
