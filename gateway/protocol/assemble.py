"""A stream's events put together again: what a client has got piece by piece, as the answer it would have got whole.

Pure; one assembly for each API. It takes whole events as they went to the client, and what they hold for granted
nowhere: an event that it cannot read adds nothing. Runs beside the hot path, on what `relay` has let through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import orjson

Body = dict[str, Any]


class Assembly(Protocol):
    """One stream on its way to being one answer."""

    def feed(self, events: bytes) -> None:
        """Adds whole events, in their order."""

    def answer(self) -> Body | None:
        """What has come so far; None where nothing has."""


class ChatAssembly:
    """Chunks of a chat completion."""

    def __init__(self) -> None:
        self._head: Body = {}
        self._choices: dict[int, Body] = {}

    def feed(self, events: bytes) -> None:
        for chunk in _objects_in(events):
            if "choices" in chunk:
                _merge_head(self._head, chunk)
                for choice in _objects(chunk["choices"]):
                    self._add(choice)

    def answer(self) -> Body | None:
        if not self._head:
            return None
        choices = [_whole_choice(self._choices[index]) for index in sorted(self._choices)]
        return {**self._head, "object": "chat.completion", "choices": choices}

    def _add(self, piece: Body) -> None:
        index = _index(piece)
        choice = self._choices.setdefault(index, _empty_choice(index, {"role": "assistant", "content": []}))
        message, delta = choice["message"], piece.get("delta")
        for name, value in delta.items() if isinstance(delta, dict) else ():
            if name == "tool_calls":
                _add_calls(message.setdefault("tool_calls", {}), value)
            elif name == "role":
                message["role"] = value if isinstance(value, str) else message["role"]
            elif isinstance(value, str):
                message.setdefault(name, []).append(value)
            elif isinstance(value, dict) and name == "function_call":
                _add_texts(message.setdefault(name, {}), value)
        _add_rest(choice, piece)


class TextAssembly:
    """Chunks of a text completion."""

    def __init__(self) -> None:
        self._head: Body = {}
        self._choices: dict[int, Body] = {}

    def feed(self, events: bytes) -> None:
        for chunk in _objects_in(events):
            if "choices" in chunk:
                _merge_head(self._head, chunk)
                for choice in _objects(chunk["choices"]):
                    self._add(choice)

    def answer(self) -> Body | None:
        if not self._head:
            return None
        choices = [{**choice, "text": "".join(choice["text"])} for _, choice in sorted(self._choices.items())]
        return {**self._head, "object": "text_completion", "choices": choices}

    def _add(self, piece: Body) -> None:
        index = _index(piece)
        choice = self._choices.setdefault(
            index, {"index": index, "text": [], "logprobs": None, "finish_reason": None}
        )
        if isinstance(text := piece.get("text"), str):
            choice["text"].append(text)
        _add_rest(choice, piece)


class ResponseAssembly:
    """Events of a response. The last one holds the whole; until then it is put together item by item."""

    def __init__(self) -> None:
        self._response: Body | None = None
        self._items: dict[int, Body] = {}
        self._is_final = False

    def feed(self, events: bytes) -> None:
        for event in _objects_in(events):
            self._add(event)

    def answer(self) -> Body | None:
        if self._response is None or self._is_final:
            return self._response
        output = [_joined_item(self._items[index]) for index in sorted(self._items)]
        return {**self._response, "output": output}

    def _add(self, event: Body) -> None:
        response, item = event.get("response"), event.get("item")
        index = _index(event, "output_index")
        if isinstance(response, dict):
            self._response = response
            self._is_final = event.get("type") in (
                "response.completed",
                "response.incomplete",
                "response.failed",
            )
        elif isinstance(item, dict):
            self._items[index] = dict(item)
        elif isinstance(text := event.get("delta"), str) and index in self._items:
            self._items[index].setdefault("_pieces", {}).setdefault(_place(event), []).append(text)


class MessageAssembly:
    """Events of an Anthropic message."""

    def __init__(self) -> None:
        self._message: Body | None = None
        self._blocks: dict[int, Body] = {}

    def feed(self, events: bytes) -> None:
        for event in _objects_in(events):
            self._add(event)

    def answer(self) -> Body | None:
        if self._message is None:
            return None
        content = [_whole_block(self._blocks[index]) for index in sorted(self._blocks)]
        return {**self._message, "content": content}

    def _add(self, event: Body) -> None:
        kind, delta = event.get("type"), event.get("delta")
        if kind == "message_start" and isinstance(event.get("message"), dict):
            self._message = dict(event["message"])
        elif kind == "content_block_start" and isinstance(event.get("content_block"), dict):
            self._blocks[_index(event)] = dict(event["content_block"])
        elif kind == "content_block_delta" and isinstance(delta, dict):
            _add_block_delta(self._blocks.setdefault(_index(event), {"type": "text", "text": ""}), delta)
        elif kind == "message_delta" and self._message is not None:
            self._message.update(delta if isinstance(delta, dict) else {})
            if isinstance(usage := event.get("usage"), dict):
                self._message["usage"] = {**(_object(self._message.get("usage"))), **usage}


ASSEMBLIES: dict[str, Callable[[], Assembly]] = {
    "/v1/chat/completions": ChatAssembly,
    "/v1/completions": TextAssembly,
    "/v1/responses": ResponseAssembly,
    "/v1/messages": MessageAssembly,
}
"""By the endpoint's path; the others do not stream."""


# -- chat ------------------------------------------------------------------------------------------
def _empty_choice(index: int, message: Body) -> Body:
    return {"index": index, "message": message, "logprobs": None, "finish_reason": None}


def _add_rest(choice: Body, piece: Body) -> None:
    """What both kinds of choices have beside their words."""
    if piece.get("finish_reason") is not None:
        choice["finish_reason"] = piece["finish_reason"]
    if piece.get("stop_reason") is not None:
        choice["stop_reason"] = piece["stop_reason"]
    if not isinstance(logprobs := piece.get("logprobs"), dict):
        return
    if choice["logprobs"] is None:
        choice["logprobs"] = {}
    for name, values in logprobs.items():
        so_far = choice["logprobs"].setdefault(name, None)
        if isinstance(values, list) and so_far is None:
            choice["logprobs"][name] = list(values)
        elif isinstance(values, list):
            so_far.extend(values)


def _add_calls(calls: dict[int, Body], pieces: Any) -> None:
    for piece in _objects(pieces):
        call = calls.setdefault(_index(piece), {"id": None, "type": "function", "function": {}})
        for name in ("id", "type"):
            call[name] = piece.get(name) or call[name]
        _add_texts(call["function"], _object(piece.get("function")))


def _add_texts(so_far: Body, piece: Body) -> None:
    for name, value in piece.items():
        if isinstance(value, str):
            so_far[name] = so_far.get(name, "") + value


def _whole_choice(choice: Body) -> Body:
    message = choice["message"]
    whole: Body = {n: "".join(v) if isinstance(v, list) else v for n, v in message.items()}
    if "tool_calls" in whole:
        whole["tool_calls"] = [call for _, call in sorted(whole["tool_calls"].items())]
    if whole.get("tool_calls") or "function_call" in whole or "refusal" in whole:
        whole["content"] = whole["content"] or None
    whole.setdefault("refusal", None)
    return {**choice, "message": whole}


# -- responses -------------------------------------------------------------------------------------
def _place(event: Body) -> tuple[str, int]:
    """Which text a delta goes on: the arguments, a part of the content or of the summary."""
    kind = str(event.get("type"))
    field = "arguments" if "arguments" in kind else "summary" if "summary" in kind else "content"
    return field, _index(event, "summary_index" if field == "summary" else "content_index")


def _joined_item(item: Body) -> Body:
    """An item of which not all has come: its text so far, in parts of the kind that it has."""
    pieces: dict[tuple[str, int], list[str]] = item.get("_pieces", {})
    whole = {name: value for name, value in item.items() if name != "_pieces"}
    for (field, _), texts in sorted(pieces.items()):
        text = "".join(texts)
        if field == "arguments":
            whole["arguments"] = text
        else:
            is_message = whole.get("type") == "message"
            part: Body = (
                {"type": "output_text", "text": text, "annotations": []} if is_message else {"text": text}
            )
            whole[field] = [*_objects(whole.get(field)), part]
    return whole


# -- messages --------------------------------------------------------------------------------------
def _add_block_delta(block: Body, delta: Body) -> None:
    """Texts grow; a tool's input comes as pieces of JSON."""
    for name in ("text", "thinking", "signature", "partial_json"):
        if isinstance(piece := delta.get(name), str):
            block[name] = (block[name] if isinstance(block.get(name), str) else "") + piece


def _whole_block(block: Body) -> Body:
    if "partial_json" not in block:
        return block
    whole = {name: value for name, value in block.items() if name != "partial_json"}
    try:
        whole["input"] = orjson.loads(block["partial_json"] or "{}")
    except orjson.JSONDecodeError:  # cut off within it
        whole["input"] = {}
    return whole


# -- shapes ----------------------------------------------------------------------------------------
def _merge_head(head: Body, chunk: Body) -> None:
    """What every chunk says of the answer as a whole; `usage` is null in all but the last."""
    for name, value in chunk.items():
        if name not in ("choices", "object") and value is not None:
            head[name] = value


def _objects_in(events: bytes) -> Iterator[Body]:
    """The JSON objects of the events; comments, `[DONE]` and what cannot be read are left out."""
    for line in events.split(b"\n"):
        if not line.startswith(b"data:"):
            continue
        try:
            body = orjson.loads(line[5:])
        except orjson.JSONDecodeError:
            continue
        if isinstance(body, dict):
            yield body


def _index(body: Body, name: str = "index") -> int:
    value = body.get(name)
    return value if isinstance(value, int) else 0


def _object(value: Any) -> Body:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[Body]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
