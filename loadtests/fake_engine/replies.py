"""What every endpoint's answer offers to playback: the whole body, or the events of a stream in order.

Knows neither time nor faults.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

DONE = b"data: [DONE]\n\n"
SYSTEM_FINGERPRINT = "vllm-0.32.0-fa4ee000"


@dataclass(frozen=True, slots=True)
class Stream:
    """The events of one stream, each a whole SSE event."""

    opening: list[bytes]
    """Before the first token exists."""
    head: list[bytes]
    """Together with the first token."""
    steps: Iterable[list[bytes]]
    """One list a token, an event for each choice."""
    tail: list[bytes]
    """After the last token: usage."""
    last: list[bytes]
    """What says that the stream is complete."""
    error: list[bytes]
    """What vLLM sends in place of the rest when generation fails."""


class Reply(Protocol):
    """An answer in one endpoint's shape."""

    def whole(self) -> bytes: ...

    def stream(self) -> Stream: ...


def data_event(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def named_event(name: str, body: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(body) + b"\n\n"


def random_id() -> str:
    """vLLM's random_uuid: 16 hex digits."""
    return f"{random.getrandbits(64):016x}"


def full_usage(usage: dict[str, int]) -> dict[str, Any]:
    return {**usage, "prompt_tokens_details": None, "completion_tokens_details": None}


def wants_usage(body: dict[str, Any]) -> tuple[bool, bool]:
    """stream_options as vLLM reads them: usage at the end, usage in every chunk."""
    options = body.get("stream_options") or {}
    include = bool(options.get("include_usage"))
    return include, include and bool(options.get("continuous_usage_stats"))
