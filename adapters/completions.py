"""Completions: every answered request as it is kept, and OpenAI's stored-completions view of them.

Owns the `completions` table and its compression. Does not know how an answer is made, nor what is said of it later
(`feedback`). A key sees only its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    COMPLETE = "complete"
    INCOMPLETE = "incomplete"  # cut off: the engine broke or the client left; never trained on
    ERROR = "error"  # no answer at all
    IMPORTED = "imported"  # a row from a file, not a request


@dataclass(frozen=True, slots=True)
class Completion:
    id: str  # as the client got it: chatcmpl-…, cmpl-…, resp_…, msg_…; of an imported row: imp_…
    created: float  # epoch seconds
    endpoint: str  # the path: /v1/chat/completions, …; "import" for an imported row
    route: str  # the public model name that was asked for
    variant: str  # what answered: NAME@N or a base model
    base_model: str
    digest: str | None  # of the adapter's files
    propensity: float  # the probability with which the variant was chosen; 1.0 where nothing was split
    pinned: bool  # the client named the version itself
    key_id: str | None
    user: str | None  # safety_identifier, else user (column end_user)
    unit: str  # whose voice: "user:…" | "conversation:…" (hash of the conversation's beginning)
    status: Status
    finish_reason: str | None  # of the first choice
    error_code: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    ttft_seconds: float | None
    total_seconds: float | None
    metadata: dict[str, str] = field(hash=False)
    request: dict[str, Any] = field(hash=False)  # the body as the client sent it
    output: dict[str, Any] | None = field(
        hash=False
    )  # the answer object as the client got it, streams put together
    number: int | None = None  # grows with every completion; None before it is stored
