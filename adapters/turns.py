"""What was asked and what was answered, of a recorded completion of any endpoint, in one shape: chat messages.

Pure. Owns the reading of each API's bodies (OpenAI's chat, text completions and responses, Anthropic's messages), as
vLLM reads them, so that a trainer sees the conversation that the model saw. Bodies are whatever clients sent: nothing
here takes their shape for granted, and nothing raises. Knows no database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from adapters.completions import Completion
from adapters.messages import KEPT, Message
from adapters.rows import Prompt

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"

Body = dict[str, Any]


def prompt_of(c: Completion) -> Prompt:
    """The messages before the answer, or the text of /v1/completions; "" where it was not asked in words (token ids)."""
    if c.endpoint == RESPONSES:
        return _response_messages(c.request)
    if c.endpoint == MESSAGES:
        return _anthropic_messages(c.request)
    if "messages" in c.request:
        return [_chat_message(message) for message in _objects(c.request["messages"])]
    return _text_prompt(c.request.get("prompt"))


def answer_of(c: Completion) -> Message | None:
    """The first choice as an assistant message, with `tool_calls` if it has any; None where there is no such thing."""
    if c.output is None or prompt_of(c) == "":
        return None
    if c.endpoint == RESPONSES:
        return _last_assistant(_item_messages(_objects(c.output.get("output"))))
    if c.endpoint == MESSAGES:
        return _last_assistant(_block_messages({"role": "assistant", "content": c.output.get("content")}))
    first = next((choice for choice in _objects(c.output.get("choices")) if not choice.get("index")), None)
    if first is None:
        return None
    if c.endpoint == TEXT:
        return _text_answer(c.request, first)
    message = _object(first.get("message"))
    return _last_assistant([_chat_message({**message, "role": "assistant"})])


def tools_of(c: Completion) -> list[Any] | None:
    """The functions that could be called, in the chat API's shape; None where there were none."""
    tools = _objects(c.request.get("tools"))
    if c.endpoint == RESPONSES:
        tools = [_nested(tool) for tool in tools if tool.get("type") == "function"]
    elif c.endpoint == MESSAGES:
        tools = [_from_anthropic(tool) for tool in tools if "input_schema" in tool]
    return tools or None


def words_of(message: Message) -> str:
    """What a message says and calls, as one text."""
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in _objects(content))
    functions = _objects([call.get("function") for call in _objects(message.get("tool_calls"))])
    said = [f"{function.get('name')} {function.get('arguments')}" for function in functions]
    return "\n".join([str(content), *said]).strip()


def conversation_unit(request_body: Body, user: str | None, conversation: str | None = None) -> str:
    """Whose voice it is: the user's where one is named, else the conversation's: of that name, or of that beginning,
    which stays the same in all its turns."""
    if user:
        return f"user:{user}"
    told = conversation or _beginning(request_body)
    beginning = orjson.dumps(told, option=orjson.OPT_SORT_KEYS)
    return f"conversation:{hashlib.sha256(beginning).hexdigest()[:24]}"


# -- chat ------------------------------------------------------------------------------------------
def _chat_message(message: Body) -> Message:
    """What a chat template looks at; `developer` is the newer name of `system`, which templates know."""
    kept = {name: message[name] for name in KEPT if message.get(name) is not None}
    if kept.get("role") == "developer":
        kept["role"] = "system"
    if "content" in kept:
        kept["content"] = _plain(kept["content"])
    return kept


def _plain(content: Any) -> Any:
    """Parts that are all text as one text, as vLLM joins them; anything else as it is."""
    if not isinstance(content, list):
        return content
    texts = [part if isinstance(part, str) else _text_of_part(part) for part in content]
    words = [text for text in texts if text is not None]
    return "\n".join(words) if len(words) == len(texts) else content


def _text_of_part(part: Any) -> str | None:
    """The text of a text part of any API."""
    if not isinstance(part, dict) or part.get("type") not in ("text", "input_text", "output_text"):
        return None
    text = part.get("text")
    return text if isinstance(text, str) else None


def _last_assistant(messages: Iterable[Message]) -> Message | None:
    """The last message that says or calls something; `content` is always there."""
    said = [m for m in messages if m.get("role") == "assistant" and (m.get("content") or m.get("tool_calls"))]
    return {"role": "assistant", "content": None, **said[-1]} if said else None


# -- text completions ------------------------------------------------------------------------------
def _text_prompt(prompt: Any) -> str:
    """Of several prompts the first, which the first choice answers."""
    if isinstance(prompt, list) and prompt:
        prompt = prompt[0]
    return prompt if isinstance(prompt, str) else ""


def _text_answer(request: Body, choice: Body) -> Message | None:
    text, prompt = choice.get("text"), _text_prompt(request.get("prompt"))
    if not isinstance(text, str) or not text:
        return None
    return {"role": "assistant", "content": text.removeprefix(prompt) if request.get("echo") else text}


# -- responses -------------------------------------------------------------------------------------
def _response_messages(request: Body) -> list[Message]:
    instructions, given = request.get("instructions"), request.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else _objects(given)
    first = (
        [{"role": "system", "content": instructions}]
        if isinstance(instructions, str) and instructions
        else []
    )
    return [*first, *_item_messages(items)]


def _item_messages(items: Iterable[Body]) -> list[Message]:
    """Items as messages; calls join the assistant's message before them, as vLLM joins them."""
    messages: list[Message] = []
    for item in items:
        kind = item.get("type", "message")
        last = messages[-1] if messages and messages[-1].get("role") == "assistant" else None
        if kind == "function_call":
            if last is None:
                last = {"role": "assistant"}
                messages.append(last)
            last["tool_calls"] = [*last.get("tool_calls", ()), _item_call(item)]
        elif kind == "function_call_output":
            output = _plain(item.get("output"))
            messages.append({"role": "tool", "content": output, "tool_call_id": item.get("call_id")})
        elif kind == "message":
            messages.append(_chat_message(item))
    return messages


def _item_call(item: Body) -> Body:
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    return {"id": item.get("call_id"), "type": "function", "function": function}


def _nested(tool: Body) -> Body:
    """A function of the responses API, which is flat, as the chat API nests it."""
    if isinstance(tool.get("function"), dict):
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


# -- Anthropic's messages --------------------------------------------------------------------------
def _anthropic_messages(request: Body) -> list[Message]:
    system = request.get("system")
    if isinstance(system, list):
        system = "".join(_text_of_part(block) or "" for block in system)
    first = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    return [*first, *(m for message in _objects(request.get("messages")) for m in _block_messages(message))]


def _block_messages(message: Body) -> Iterator[Message]:
    """One message of blocks as chat messages: the results of tools first, each a message of its own."""
    content = message.get("content")
    if not isinstance(content, list):
        yield _chat_message(message)
        return
    blocks = _objects(content)
    for block in blocks:
        if block.get("type") == "tool_result":
            said = _plain(block.get("content") or "")
            yield {"role": "tool", "content": said, "tool_call_id": block.get("tool_use_id")}
    rest = [
        b for b in blocks if b.get("type") not in ("tool_result", "tool_use", "thinking", "redacted_thinking")
    ]
    calls = [_block_call(block) for block in blocks if block.get("type") == "tool_use"]
    shown: Message = {"role": message.get("role")}
    if rest:
        shown["content"] = _plain(rest)
    if calls:
        shown["tool_calls"] = calls
    if rest or calls:
        yield shown


def _block_call(block: Body) -> Body:
    arguments = orjson.dumps(block.get("input") or {}).decode()
    function = {"name": block.get("name"), "arguments": arguments}
    return {"id": block.get("id"), "type": "function", "function": function}


def _from_anthropic(tool: Body) -> Body:
    function = {"name": tool.get("name"), "parameters": tool["input_schema"]}
    if tool.get("description"):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


# -- shapes ----------------------------------------------------------------------------------------
def _beginning(body: Body) -> list[Any]:
    """What all turns of a conversation begin with: the instructions, and everything up to the user's first words."""
    told = [body.get("system"), body.get("instructions")]
    items = body.get("messages", body.get("input"))
    if not isinstance(items, list):
        return [*told, items, body.get("prompt")]
    for item in items:
        role = item.get("role") if isinstance(item, dict) else None
        told.append([role, _plain(item.get("content"))] if isinstance(item, dict) else item)
        if role == "user":
            break
    return told


def _object(value: Any) -> Body:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[Body]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
