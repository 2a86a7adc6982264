"""From an answer to what is measured of it: errors, times, length, refusals, repetition, form.

Pure. Bodies are whatever engines and clients sent: nothing here takes their shape for granted. Text is measured where
there is text: a call of a tool has no manners. Does not know what is compared with what (`verdicts`).
"""

from __future__ import annotations

import math
from typing import Any

from adapters.completions import Completion, Status
from adapters.manners import INVALID, fits_form, is_refusal, json_value, repeated_share
from adapters.observations import Assignment, Observation
from adapters.policy import FormatCheck
from adapters.turns import answer_of

#: What ends a request that is nobody's fault: neither the variant's nor ours.
BY_THE_CLIENT = frozenset({"client_left", "interrupted"})


def observe(completion: Completion, assignment: Assignment, *, at_fault: bool) -> Observation:
    """What counts of a completion. `at_fault`: its error is the engine's, not the client's.

    Where the control answered in the variant's stead, that the variant could not is all that counts.
    """
    failed = assignment.failed_over or is_error(completion, at_fault=at_fault)
    measured: dict[str, Any] = (
        {} if failed or completion.status is not Status.COMPLETE else measures(completion, assignment.form)
    )
    return Observation(
        id=completion.id,
        experiment=assignment.experiment,
        epoch=assignment.epoch,
        variant=assignment.variant,
        unit=f"user:{completion.user}" if completion.user else assignment.unit,
        created=completion.created,
        failed_over=assignment.failed_over,
        error=float(failed),
        **measured,
    )


def is_error(completion: Completion, *, at_fault: bool) -> bool:
    if completion.status is Status.INCOMPLETE:
        return completion.error_code not in BY_THE_CLIENT
    return completion.status is Status.ERROR and at_fault


def measures(completion: Completion, form: FormatCheck) -> dict[str, Any]:
    """By the columns of observations; None: there is no such thing on this answer."""
    tokens, ttft, total = completion.completion_tokens, completion.ttft_seconds, completion.total_seconds
    between = None
    if ttft is not None and total is not None and tokens is not None and tokens > 1:
        between = (total - ttft) / (tokens - 1)
    found = {
        "log_ttft": _log(ttft),
        "log_inter_token": _log(between),
        "log_total": _log(total),
        "log_length": _log(tokens),
    }
    text = text_of(completion)
    return found if text is None else {**found, **_manners(text, completion, form)}


def _manners(text: str, completion: Completion, form: FormatCheck) -> dict[str, Any]:
    return {
        "refused": float(is_refusal(text)),
        "repetition": repeated_share(text),
        "malformed": _malformed(text, completion, form),
    }


def _malformed(text: str, completion: Completion, form: FormatCheck) -> float | None:
    """Against the route's form, else whether it is JSON where the request wants JSON. The request's own schema is not
    looked at: a pattern that a client chose must not be matched in our thread, and the engine has kept to it."""
    whole = completion.finish_reason != "length"
    if form != FormatCheck():
        fits = fits_form(text, form) if whole else False
        return None if fits is None else float(not fits)
    if _wants_json(completion.request):
        return float(not whole or json_value(text) is INVALID)
    return None


def _wants_json(request: dict[str, Any]) -> bool:
    text = request.get("text")
    wanted = request.get("response_format", text.get("format") if isinstance(text, dict) else None)
    return isinstance(wanted, dict) and wanted.get("type") in ("json_schema", "json_object")


def text_of(completion: Completion) -> str | None:
    """What an answer says in words; None where it says nothing, or calls a tool."""
    message = answer_of(completion)
    if message is None or message.get("tool_calls"):
        return None
    content = message.get("content")
    return content if isinstance(content, str) and content else None


def _log(value: float | None) -> float | None:
    return math.log(value) if value is not None and value > 0 else None
