"""Recorded completions for tests: what a gateway would have written, without one."""

from __future__ import annotations

import secrets
from typing import Any

from adapters.completions import Completion, Status, insert_completions
from adapters.database import Database
from adapters.turns import conversation_unit


def completion(
    prompt: str = "What is the capital of France?",
    answer: str | None = "Lyon",
    *,
    id: str | None = None,
    route: str = "support",
    key_id: str | None = None,
    user: str | None = None,
    status: Status = Status.COMPLETE,
    **more: Any,
) -> Completion:
    """A chat completion; `answer` None: nothing was answered."""
    request = {"model": route, "messages": [{"role": "user", "content": prompt}]}
    message = {"role": "assistant", "content": answer}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    values: dict[str, Any] = {
        "id": id or f"chatcmpl-{secrets.token_hex(12)}",
        "created": 1000.0,
        "endpoint": "/v1/chat/completions",
        "route": route,
        "variant": "support@1",
        "base_model": "base-model",
        "digest": f"sha256:{'0' * 64}",
        "propensity": 1.0,
        "pinned": False,
        "key_id": key_id,
        "user": user,
        "unit": conversation_unit(request, user),
        "status": status,
        "finish_reason": "stop",
        "error_code": None,
        "prompt_tokens": 8,
        "completion_tokens": 1,
        "ttft_seconds": None,
        "total_seconds": 0.1,
        "metadata": {},
        "request": request,
        "output": None if answer is None else {"object": "chat.completion", "choices": [choice]},
    }
    return Completion(**{**values, **more})


def stored(db: Database, *args: Any, **more: Any) -> Completion:
    """One that is in the database."""
    made = completion(*args, **more)
    with db.begin() as connection:
        insert_completions(connection, [made])
    return made
