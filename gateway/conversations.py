"""What `previous_response_id` goes on from: responses kept, and put before a request that continues one.

vLLM keeps responses in the memory of one process; here they are in the database, so that a conversation goes on
at any engine and after any restart. The engine gets the whole conversation as `input` and keeps nothing.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from adapters.errors import InvalidRequest
from adapters.responses import ResponseStore, StoredResponse
from gateway.endpoints import Call
from gateway.ids import hex_id

MAX_TURNS = 1000
"""Turns of one conversation that are put before a request."""


class Conversations:
    """The kept responses, for the caller's own key only."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    async def recall(self, call: Call) -> None:
        """Puts the conversation that `previous_response_id` names before the call's own input.

        Raises InvalidRequest for an unknown id and for another key's alike.
        """
        if not call.endpoint.stores:
            return
        call.body["store"] = False
        previous = call.body.pop("previous_response_id", None)
        if previous is not None:
            items = await asyncio.to_thread(self._history, previous, call.caller.key_id)
            call.body["input"] = items + as_items(call.body["input"])

    def to_keep(self, call: Call, answer: dict[str, Any] | None) -> StoredResponse | None:
        """A finished response as it is to be stored, unless the client said `store: false`."""
        if answer is None or not call.endpoint.stores or call.asked.get("store") is False:
            return None
        items = [_with_id(item) for item in as_items(call.asked["input"])]
        return StoredResponse(str(answer["id"]), time.time(), call.caller.key_id, items, answer)

    def _history(self, last: str, key_id: str | None) -> list[Any]:
        turns: list[StoredResponse] = []
        wanted: str | None = last
        while wanted is not None and len(turns) < MAX_TURNS:
            turn = self._store.get(wanted, key_id)
            if turn is None:
                raise InvalidRequest(
                    f"Previous response with id '{wanted}' not found.",
                    param="previous_response_id",
                    code="previous_response_not_found",
                )
            turns.append(turn)
            wanted = turn.previous_id
        return [
            item for turn in reversed(turns) for item in (*turn.request_input, *turn.body.get("output", ()))
        ]


def as_items(value: str | list[Any]) -> list[Any]:
    """The `input` of a request as a list of items."""
    return [{"type": "message", "role": "user", "content": value}] if isinstance(value, str) else list(value)


def _with_id(item: dict[str, Any]) -> dict[str, Any]:
    """An input item as GET /v1/responses/{id}/input_items shows it: with an id, a type and parts."""
    shown = {"id": f"msg_{hex_id()}", "type": "message", **item}
    if shown["type"] == "message" and isinstance(shown.get("content"), str):
        kind = "output_text" if shown.get("role") == "assistant" else "input_text"
        part: dict[str, Any] = {"type": kind, "text": shown["content"]}
        if kind == "output_text":
            part["annotations"] = []
        shown["content"] = [part]
    return shown
