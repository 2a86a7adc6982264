"""One training row, whatever it was drawn from, and the file formats that rows come in.

Pure: text in, rows or errors with line numbers out. Knows no database and no tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Message = dict[str, Any]  # an OpenAI chat message: role, content, perhaps tool_calls, name, tool_call_id

Prompt = list[Message] | str
"""What was asked: the messages before the answer, or the raw text of /v1/completions (no chat template)."""


class RowKind(StrEnum):
    DEMONSTRATION = "demonstration"  # `answer` is what should be said
    PREFERENCE = "preference"  # `answer` is better than `rejected`
    LABEL = "label"  # `answer` was given, and liked or not


class Split(StrEnum):
    TRAIN = "train"
    HELD_OUT = "held_out"


@dataclass(frozen=True, slots=True)
class Row:
    """`answer` and `rejected` are assistant messages ({"role": "assistant", "content": …}), also where the prompt is text."""

    id: str  # row_<sha256 of the canonical content, 24 hex>
    kind: RowKind
    prompt: Prompt = field(hash=False)
    answer: Message = field(hash=False)
    rejected: Message | None = field(default=None, hash=False)
    liked: bool | None = None
    tools: list[Any] | None = field(default=None, hash=False)
    unit: str = ""  # whose voice; rows of one unit are never on both sides of the split
    key_id: str | None = None
    user: str | None = None
    completion_id: str | None = None
    feedback_id: str | None = None
    created: float = 0.0
