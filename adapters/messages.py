"""Chat messages as training files hold them: which are sound, and what of them is kept.

Pure. Knows nothing of files and lines: a problem names the field within one row (`messages[2].content`).
"""

from __future__ import annotations

from typing import Any

Message = dict[str, Any]  # an OpenAI chat message: role, content, perhaps tool_calls, name, tool_call_id

ROLES = ("system", "developer", "user", "assistant", "tool")
KEPT = ("role", "content", "name", "tool_calls", "tool_call_id")
"""What a model's chat template may look at; everything else in a message is left out."""


class Problem(Exception):
    """What is wrong with a row: the field, and the words for a person."""

    def __init__(self, param: str | None, message: str) -> None:
        super().__init__(message)
        self.param = param
        self.message = message


def user_message(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant_message(text: str) -> Message:
    return {"role": "assistant", "content": text}


def text_of(value: Any, where: str) -> str:
    """A string with something in it. Raises Problem."""
    if not isinstance(value, str):
        raise Problem(where, f"`{where}` must be a string")
    if not value.strip():
        raise Problem(where, f"`{where}` is empty")
    return value


def sound_messages(value: Any, where: str) -> list[Message]:
    """The messages of a conversation, each with what is kept of it (and its `weight`). Raises Problem."""
    if not isinstance(value, list):
        raise Problem(where, f"`{where}` must be a list of messages")
    if not value:
        raise Problem(where, f"`{where}` is empty")
    messages = [_sound(message, f"{where}[{index}]") for index, message in enumerate(value)]
    _refuse_orphaned_tools(messages, where)
    return messages


def sound_answer(value: Any, where: str) -> Message:
    """An answer as a text, as an assistant message, or as a list of one. Raises Problem."""
    if isinstance(value, list) and len(value) == 1:
        return sound_answer(value[0], f"{where}[0]")
    if isinstance(value, list):
        raise Problem(where, f"`{where}` must hold one assistant message, not {len(value)} messages")
    if not isinstance(value, dict):
        return assistant_message(text_of(value, where))
    message = _sound(value, where)
    if message["role"] != "assistant":
        raise Problem(f"{where}.role", f"`{where}.role` must be 'assistant', not '{message['role']}'")
    return without_weight(message)


def sound_tools(value: Any) -> list[Any] | None:
    """The functions that a conversation could call. Raises Problem."""
    if value is None:
        return None
    if not isinstance(value, list):
        raise Problem("tools", "`tools` must be a list")
    for index, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not (isinstance(function, dict) and isinstance(function.get("name"), str) and function["name"]):
            raise Problem(f"tools[{index}]", f"`tools[{index}]` must be a function with a name")
    return value or None


def without_weight(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != "weight"}


def _sound(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise Problem(where, f"`{where}` must be an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        shown = "is missing" if role is None else f"is {str(role)[:40]!r}"
        raise Problem(f"{where}.role", f"`{where}.role` {shown}; it may be {', '.join(ROLES)}")
    if message.get("function_call") is not None:
        raise Problem(f"{where}.function_call", f"`{where}.function_call` is out of use: write tool_calls")
    kept = {name: message[name] for name in KEPT if message.get(name) is not None}
    if role == "assistant":
        _check_assistant(kept, where)
        kept.update(_weight(message, where))
        return kept
    if "weight" in message:
        raise Problem(f"{where}.weight", f"`{where}.weight` may stand on assistant messages only")
    _check_content(kept.get("content"), f"{where}.content")
    if role == "tool" and not isinstance(kept.get("tool_call_id"), str):
        raise Problem(f"{where}.tool_call_id", f"`{where}.tool_call_id` must name the call that it answers")
    return kept


def _check_assistant(message: Message, where: str) -> None:
    """An assistant message says something or calls something."""
    calls = message.get("tool_calls")
    if calls is None:
        _check_content(message.get("content"), f"{where}.content")
        return
    if not (isinstance(calls, list) and calls):
        raise Problem(f"{where}.tool_calls", f"`{where}.tool_calls` must be a list of calls")
    for index, call in enumerate(calls):
        _check_call(call, f"{where}.tool_calls[{index}]")
    if message.get("content"):
        _check_content(message["content"], f"{where}.content")


def _check_call(call: Any, where: str) -> None:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(call.get("id"), str):
        raise Problem(where, f"`{where}` must have an id and a function")
    for name in ("name", "arguments"):
        if not isinstance(function.get(name), str):
            raise Problem(f"{where}.function.{name}", f"`{where}.function.{name}` must be a string")


def _check_content(content: Any, where: str) -> None:
    if not isinstance(content, list):
        text_of(content, where)
        return
    if not content:
        raise Problem(where, f"`{where}` is empty")
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise Problem(f"{where}[{index}]", f"`{where}[{index}]` must be a part of type 'text'")
        text_of(part.get("text"), f"{where}[{index}].text")


def _weight(message: Message, where: str) -> Message:
    weight = message.get("weight")
    if weight is None:
        return {}
    if isinstance(weight, bool) or weight not in (0, 1):
        raise Problem(f"{where}.weight", f"`{where}.weight` must be 0 or 1")
    return {"weight": int(weight)}


def _refuse_orphaned_tools(messages: list[Message], where: str) -> None:
    called: set[str] = set()
    for index, message in enumerate(messages):
        called |= {call["id"] for call in message.get("tool_calls", ())}
        if message["role"] == "tool" and message["tool_call_id"] not in called:
            at = f"{where}[{index}].tool_call_id"
            raise Problem(at, f"`{at}` names no call of a message before it")
