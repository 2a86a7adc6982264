"""A request in the words of OpenTelemetry's semantic conventions for generative AI.

Pure: reads a call and its completion, and names what it finds (https://opentelemetry.io/docs/specs/semconv/gen-ai/).
Owns which field of a request is which attribute, and the shape of messages. What was asked and answered is in the
messages alone; whether anybody gets them, the caller decides. Knows neither spans nor times.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from adapters.completions import Completion
from adapters.turns import answer_of, prompt_of

Attributes = dict[str, Any]

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""What an endpoint does; one that is not here makes nothing."""

PROVIDERS = {"supervised": "vllm", "vllm": "vllm", "openai": "openai"}
"""By an engine's kind. The convention names no provider for what people run themselves; its own name is what it asks for."""

_NUMBERS = {
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_output_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
}


def request_attributes(asked: Mapping[str, Any]) -> Attributes:
    """How an answer was asked for: numbers and switches, no words of the client's."""
    found: Attributes = {}
    for field, attribute in _NUMBERS.items():
        value = asked.get(field)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[attribute] = value
    if asked.get("stream") is True:
        found["gen_ai.request.stream"] = True
    choices = asked.get("n")
    if isinstance(choices, int) and choices > 1:
        found["gen_ai.request.choice.count"] = choices
    return found


def answer_attributes(completion: Completion) -> Attributes:
    """What came of it, without a word of it."""
    found: Attributes = {"gen_ai.response.id": completion.id}
    if completion.finish_reason is not None:
        found["gen_ai.response.finish_reasons"] = [completion.finish_reason]
    return found


def message_attributes(completion: Completion) -> Attributes:
    """What was asked and answered. The instructions are those messages that are the system's."""
    prompt = prompt_of(completion)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    instructions = [part for m in messages if m.get("role") == "system" for part in _parts(m)]
    asked = [_message(m) for m in messages if m.get("role") != "system" and m.get("content") != ""]
    found: Attributes = {}
    if instructions:
        found["gen_ai.system_instructions"] = _json(instructions)
    if asked:
        found["gen_ai.input.messages"] = _json(asked)
    answer = answer_of(completion)
    if answer is not None:
        reason = completion.finish_reason or "error"
        found["gen_ai.output.messages"] = _json([{**_message(answer), "finish_reason": reason}])
    return found


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": message.get("role", "user"), "parts": _parts(message)}


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A message's content and calls as the convention's parts."""
    content = message.get("content")
    if message.get("role") == "tool":
        return [{"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}]
    parts: list[dict[str, Any]] = []
    if isinstance(content, str):
        parts += [{"type": "text", "content": content}] if content else []
    elif isinstance(content, list):
        parts += [_part(part) for part in content if isinstance(part, dict)]
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        called = {"id": call.get("id"), "name": function.get("name")}
        parts.append({"type": "tool_call", **called, "arguments": function.get("arguments")})
    return parts


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    """Text as it is; of pictures and sounds, which are large, what they are."""
    if isinstance(part.get("text"), str):
        return {"type": "text", "content": part["text"]}
    return {"type": str(part.get("type", "unknown"))}


def _json(value: Any) -> str:
    """Half a character, which JSON can hold and UTF-8 cannot, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
