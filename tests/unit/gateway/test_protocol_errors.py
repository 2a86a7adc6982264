"""Promise 11, errors are OpenAI errors: what engines say, in OpenAI's words, without the engine's own."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from adapters.errors import (
    BurnishError,
    ContextTooLong,
    EngineFailed,
    InvalidRequest,
    NotFound,
    RateLimited,
    Unavailable,
)
from gateway.protocol.errors import anthropic_error, error_headers, from_engine, openai_error

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def translated(status: int, body: Any, request: dict[str, Any] | None = None) -> BurnishError:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return from_engine(status, raw, {}, request or CHAT, "support@1.0123456789ab", "support")


def vllm(message: str, param: str | None = None, code: int = 400) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": param, "code": code}}


def test_promise_11_too_long_a_context_has_the_code_that_sdk_users_look_for() -> None:
    words = "This model's maximum context length is 4096 tokens. However, your prompt contains at least 4097 input tokens (parameter=input_tokens, value=4097)"
    error = translated(400, vllm(words, "input_tokens"))
    assert isinstance(error, ContextTooLong)
    assert (error.code, error.param) == ("context_length_exceeded", "messages")
    assert "parameter=" not in error.message
    assert translated(400, vllm(words), {"prompt": "x"}).param == "prompt"


@pytest.mark.parametrize(
    ("param", "request_body", "seen"),
    [
        ("body.messages", CHAT, "messages"),
        ("body.messages.0.ChatCompletionDeveloperMessageParam.role", CHAT, "messages[0].role"),
        ("body.tools.0.function", CHAT, "tools[0].function"),
        ("max_tokens", {**CHAT, "max_completion_tokens": 5}, "max_completion_tokens"),
        ("max_tokens", {**CHAT, "max_tokens": 5}, "max_tokens"),
        ("body", CHAT, None),
        (None, CHAT, None),
    ],
)
def test_promise_11_a_param_is_the_field_as_the_client_wrote_it(
    param: str | None, request_body: dict[str, Any], seen: str | None
) -> None:
    assert translated(400, vllm("wrong", param), request_body).param == seen


def test_promise_11_python_and_the_clients_own_values_stay_out_of_messages() -> None:
    words = "11 validation errors:\n  {'type': 'float_parsing', 'loc': 'body.temperature', 'msg': 'Input should be a valid number', 'input': 'my secret'}"
    error = translated(400, vllm(words, "body.temperature"))
    assert error.message == "Invalid value for 'temperature': Input should be a valid number."
    assert translated(
        400, vllm("top_p must be in (0, 1], got 2.0. (parameter=top_p, value=2.0)")
    ).message == ("top_p must be in (0, 1], got 2.0.")


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>oops</html>", b"[1]", b'"x"', {"detail": "nope"}, {"error": "Unauthorized"}, {"error": {}}],
)
def test_promise_11_every_shape_of_an_engines_error_becomes_ours(body: Any) -> None:
    error = translated(400, body)
    assert isinstance(error, InvalidRequest)
    assert set(openai_error(error)["error"]) == {"message", "type", "param", "code"}
    assert error.message


@pytest.mark.parametrize("status", [500, 501, 502, 504])
def test_promise_11_nothing_of_an_engines_5xx_reaches_a_client(status: int) -> None:
    error = translated(status, {"error": {"message": "Traceback: /opt/engine.py said prompt 'secret'"}})
    assert isinstance(error, EngineFailed)
    assert "secret" not in error.message
    assert "Traceback" not in error.message


def test_promise_11_the_engines_name_of_an_adapter_is_the_clients_again() -> None:
    error = translated(404, vllm("The model `support@1.0123456789ab` does not exist.", "model", 404))
    assert isinstance(error, NotFound)
    assert error.message == "The model `support` does not exist."


def test_promise_11_codes_are_strings_or_null_and_never_numbers() -> None:
    for status in (400, 401, 403, 404, 409, 413, 422, 429, 500, 503):
        code = openai_error(translated(status, vllm("x", code=status)))["error"]["code"]
        assert code is None or isinstance(code, str)


def test_waiting_is_asked_for_in_whole_seconds_of_at_least_one() -> None:
    assert error_headers(Unavailable("x", retry_after_seconds=0)) == [(b"retry-after", b"1")]
    asked = from_engine(429, b"", {b"retry-after": b"7"}, CHAT, "a", "b")
    assert isinstance(asked, RateLimited)
    assert error_headers(asked) == [(b"retry-after", b"7")]
    assert error_headers(from_engine(429, b"", {b"retry-after": b"Wed, 21 Oct"}, CHAT, "a", "b")) == [
        (b"retry-after", b"1")
    ]
    assert error_headers(InvalidRequest("x")) == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [(InvalidRequest("x"), "invalid_request_error"), (NotFound("x"), "not_found_error"), (Unavailable("x"), "overloaded_error"), (EngineFailed("x"), "api_error")],
)  # fmt: skip
def test_anthropics_clients_get_anthropics_types(error: BurnishError, kind: str) -> None:
    assert anthropic_error(error, "req_1") == {
        "type": "error",
        "error": {"type": kind, "message": "x"},
        "request_id": "req_1",
    }
