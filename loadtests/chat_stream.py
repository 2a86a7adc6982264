"""One streamed chat answer as its events come: the times of its tokens, its usage, its text, what went wrong. Pure.

Does not know who reads it off the wire.
"""

from __future__ import annotations

import math
from typing import Any

import orjson


class ChatStream:
    """Takes event after event, each with the time of the read that brought it, in seconds of one clock."""

    def __init__(self, *, keeps_text: bool = False) -> None:
        self.token_times: list[float] = []
        self.usage: dict[str, Any] = {}
        self.id: str | None = None
        self.error: str | None = None
        self.is_whole = False
        self._keeps_text = keeps_text
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def gaps_seconds(self) -> tuple[float, ...]:
        """Between tokens, or between reads that brought some."""
        times = self.token_times
        return tuple(later - earlier for earlier, later in zip(times, times[1:], strict=False))

    def take(self, event: bytes, at: float) -> None:
        """An event without the blank line that ends it. Those that come in one read are one step for who reads along."""
        data = event.removeprefix(b"data: ")
        if data == b"[DONE]":
            self.is_whole = True
        elif data and not data.startswith(b":") and self._brings_token(data) and self._last < at:
            self.token_times.append(at)

    def problem(self) -> str | None:
        """What is wrong with it, once there is no more; None: nothing."""
        return self.error or (None if self.is_whole else "the stream ended without [DONE]")

    @property
    def _last(self) -> float:
        return self.token_times[-1] if self.token_times else -math.inf

    def _brings_token(self, data: bytes) -> bool:
        """Whether it is a token's: neither the role that opens the stream nor the usage that ends it."""
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            self.error = "in the stream: an event that is no JSON"
            return False
        if "error" in event:
            self.error = f"in the stream: {event['error']}"
        self.id = self.id or event.get("id")
        self.usage = event.get("usage") or self.usage
        choices = event.get("choices") or ()
        if self._keeps_text:
            self._pieces += [choice["delta"].get("content") or "" for choice in choices]
        return any(choice["delta"].get("content") or "role" not in choice["delta"] for choice in choices)
