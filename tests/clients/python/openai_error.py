"""What a refusal in OpenAI's shape is: the body, and the exception that OpenAI's client makes of it."""

from typing import Any

import openai


def assert_openai_body(body: Any) -> None:
    assert set(body) == {"error"}, body
    shown = body["error"]
    assert {"message", "type", "param", "code"} <= set(shown), shown
    assert isinstance(shown["message"], str), shown
    assert shown["message"], shown
    assert isinstance(shown["type"], str), shown
    assert shown["type"] == shown["type"].lower(), f"snake_case, not a class name: {shown}"
    assert shown["code"] is None or isinstance(shown["code"], str), f"never a number: {shown}"
    assert shown["param"] is None or isinstance(shown["param"], str), shown
    assert "Traceback" not in shown["message"]


def assert_openai_error(
    error: openai.APIStatusError, status: int, code: str | None = None, param: str | None = None
) -> None:
    """`error` came with OpenAI's body. `code` and `param` are compared only where given.

    A `param` that ends in `*` stands for that field or anything inside it.
    """
    assert error.status_code == status
    assert_openai_body(error.response.json())
    assert error.request_id
    if code is not None:
        assert error.code == code, error.body
    if param is not None and param.endswith("*"):
        assert (error.param or "").startswith(param[:-1]), error.body
    elif param is not None:
        assert error.param == param, error.body
