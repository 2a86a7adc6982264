"""Completions and feedback as Langfuse's objects: a generation, its tags and metadata, the scores on its trace.

Pure. Owns which words of people are in them, and which never are. Does not know the SDK, nor how things are sent.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from adapters.completions import Completion, Status
from adapters.feedback import Feedback
from adapters.turns import answer_of, prompt_of, words_of

TEXT_CHARS = 500
"""Of a score that is a text."""

SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "seed",
)
"""What of a request is a parameter of the model."""


def trace_id(completion_id: str) -> str:
    """As Langfuse.create_trace_id(seed=completion_id) makes it."""
    return hashlib.sha256(completion_id.encode()).digest()[:16].hex()


def generation_of(completion: Completion, *, words: bool) -> dict[str, Any]:
    """What the SDK's generation takes."""
    ttft, counts = completion.ttft_seconds, (completion.prompt_tokens, completion.completion_tokens)
    usage = {name: n for name, n in zip(("input", "output"), counts, strict=True) if n is not None}
    found: dict[str, Any] = {
        "model": completion.base_model,
        "model_parameters": {n: completion.request[n] for n in SAMPLING if n in completion.request},
        "usage_details": {**usage, "total": sum(usage.values())} if usage else None,
        "completion_start_time": None if ttft is None else _moment(completion.created + ttft),
        "version": completion.variant,
        "metadata": metadata_of(completion),
    }
    if completion.status is not Status.COMPLETE:
        found["level"] = "ERROR" if completion.status is Status.ERROR else "WARNING"
        found["status_message"] = completion.error_code
    if words:
        found["input"], found["output"] = prompt_of(completion), answer_of(completion)
        found["metadata"] |= {f"client.{name}": text for name, text in completion.metadata.items()}
    return found


def metadata_of(completion: Completion) -> dict[str, Any]:
    """Where the answer came from and how it went: nothing that a client wrote."""
    seen = completion.observation
    found = {
        "completion_id": completion.id,
        "route": completion.route,
        "variant": completion.variant,
        "base_model": completion.base_model,
        "adapter_digest": completion.digest,
        "endpoint": completion.endpoint,
        "status": completion.status.value,
        "finish_reason": completion.finish_reason,
        "ttft_seconds": completion.ttft_seconds,
        "propensity": completion.propensity,
        "experiment": None if seen is None else seen.experiment,
        "experiment_epoch": None if seen is None else seen.epoch,
        "experiment_variant": None if seen is None else seen.variant,
    }
    return {name: value for name, value in found.items() if value is not None}


def tags_of(completion: Completion) -> list[str]:
    tags = [f"route:{completion.route}", f"variant:{completion.variant}"]
    if completion.observation is not None:
        tags.append(f"experiment:{completion.observation.experiment}")
    return tags


def scores_of(feedback: Feedback, *, is_boolean: bool, words: bool) -> list[dict[str, Any]]:
    """What one piece of feedback is there: at most one score of each kind, under ids of its own, so that one that comes
    twice is one. Without `words` a comment or a demonstration is a score that says there is one."""
    scores: list[dict[str, Any]] = []
    if feedback.value is not None:
        kind = "BOOLEAN" if is_boolean else "NUMERIC"
        scores.append(_score(feedback, "value", feedback.name, float(feedback.value), kind))
        if words and feedback.comment is not None:
            scores[0]["comment"] = feedback.comment
    elif feedback.comment is not None:
        scores.append(_text(feedback, "comment", feedback.comment, words))
    if feedback.demonstration is not None:
        scores.append(_correction(feedback, words))
    if feedback.preferred_over is not None:
        better = _score(feedback, "preferred", "preferred", 1.0, "BOOLEAN")
        better["metadata"]["over"] = feedback.preferred_over
        worse = _score(feedback, "not-preferred", "preferred", 0.0, "BOOLEAN")
        worse["trace_id"] = trace_id(feedback.preferred_over)
        worse["metadata"]["to"] = feedback.completion_id
        scores += [better, worse]
    return scores


def _text(feedback: Feedback, name: str, text: str, words: bool) -> dict[str, Any]:
    if not words or not text.strip():
        return _score(feedback, name, name, 1.0, "BOOLEAN")
    score = _score(feedback, name, name, text[:TEXT_CHARS], "TEXT")
    return {**score, "comment": text} if len(text) > TEXT_CHARS else score


def _correction(feedback: Feedback, words: bool) -> dict[str, Any]:
    """Langfuse shows it beside the answer; its name there is always "output"."""
    if not words:
        return _score(feedback, "demonstration", "demonstration", 1.0, "BOOLEAN")
    return _score(feedback, "demonstration", "output", words_of(feedback.demonstration or {}), "CORRECTION")


def _score(feedback: Feedback, part: str, name: str, value: float | str, kind: str) -> dict[str, Any]:
    return {
        "id": f"{feedback.id}-{part}",
        "trace_id": trace_id(feedback.completion_id),
        "name": name,
        "value": value,
        "data_type": kind,
        "timestamp": _moment(feedback.created),
        "metadata": {
            "completion_id": feedback.completion_id,
            "route": feedback.route,
            "variant": feedback.variant,
            "source": feedback.source,
        },
    }


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def ascii_name(text: str) -> str:
    """What Langfuse takes as a name: at most 200 characters of US-ASCII."""
    return text.encode("ascii", "backslashreplace").decode()[:200]
