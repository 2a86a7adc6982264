"""Feedback: what people say of completions. Acknowledged, it is never lost; repeated, it changes nothing (promise 2).

Owns the `feedback` and `idempotency` tables. Route, variant and unit come from the stored completion, never from
the client. Does not know what a trainer makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Feedback:
    id: str  # fb_<24 hex>
    created: float
    completion_id: str
    name: str  # the score's name; "comment", "demonstration" or "preference" where it is no score
    value: float | None  # booleans are 0 and 1
    comment: str | None
    demonstration: dict[str, Any] | None = field(hash=False)  # the corrected answer as an assistant message
    preferred_over: str | None  # the other completion's id, which was worse
    metadata: dict[str, str] = field(hash=False)
    key_id: str | None
    user: str | None
    route: str
    variant: str
    digest: str | None
    unit: str
    source: str  # "api" or "import"
    number: int | None = None
