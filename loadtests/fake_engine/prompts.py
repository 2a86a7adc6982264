"""What each endpoint's body asks for: the prompts as text or token ids, and the tokens it allows.

Knows nothing of weights or answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

REQUIRED = {
    "/v1/chat/completions": ("messages",),
    "/v1/completions": ("prompt",),
    "/v1/responses": ("input",),
    "/v1/messages": ("model", "messages", "max_tokens"),
    "/v1/embeddings": ("input",),
}


@dataclass(frozen=True, slots=True)
class Asked:
    prompts: list[str | list[int]]
    last_user_message: str
    max_tokens: int | None
    max_tokens_param: str


def read(path: str, body: dict[str, Any]) -> Asked:
    """Raises TypeError, ValueError, KeyError or AttributeError where the body is malformed."""
    if path == "/v1/completions":
        return _completion(body)
    if path == "/v1/embeddings":
        return Asked(_several(body["input"], "input"), "", None, "")
    if path == "/v1/responses":
        given = body["input"]
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        return _conversation(
            items, body.get("instructions"), body.get("max_output_tokens"), "max_output_tokens"
        )
    param = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    return _conversation(body["messages"], body.get("system"), body.get(param), param)


def _completion(body: dict[str, Any]) -> Asked:
    prompts = _several(body["prompt"], "prompt")
    last = prompts[-1] if isinstance(prompts[-1], str) else ""
    allowed = body.get("max_tokens")
    return Asked(prompts, last, 16 if allowed is None else max(1, int(allowed)), "max_tokens")


def _several(given: Any, param: str) -> list[str | list[int]]:
    """A text, a list of token ids, or a list of either."""
    many = isinstance(given, list) and (not given or not isinstance(given[0], int))
    prompts = given if many else [given]
    if not prompts or not all(isinstance(prompt, str | list) for prompt in prompts):
        raise ValueError(param)
    return list(prompts)


def _conversation(messages: list[dict[str, Any]], system: Any, max_tokens: int | None, param: str) -> Asked:
    lines = [f"system: {_text(system)}"] if system else []
    last = ""
    for message in messages:
        text = _text(message.get("content"))
        lines.append(f"{message.get('role', message.get('type'))}: {text}")
        if message.get("role") == "user":
            last = text
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(param)
    return Asked(["\n".join(lines)], last, max_tokens, param)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or ())
