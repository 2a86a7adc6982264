"""What a test may set on a fake engine, and what it may read back: answers, delays, faults, counts.

Knows neither HTTP nor what is said where nothing is set.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from fnmatch import fnmatchcase
from typing import Any, TypeVar

T = TypeVar("T")


class Fault(StrEnum):
    """One way to go wrong. Unless said otherwise it hits generation requests, streaming or not."""

    REFUSE = "refuse"
    """503, as vLLM says it when its queue is full."""
    CLOSE_BEFORE_HEADERS = "close_before_headers"
    """The connection is closed without a byte."""
    CLOSE_MID_STREAM = "close_mid_stream"
    """Closed after `fault_after` events; without stream, after half the body."""
    HANG = "hang"
    """Accepted, never answered."""
    HANG_MID_STREAM = "hang_mid_stream"
    """Silent after `fault_after` events; without stream, after half the body."""
    GARBAGE_SSE = "garbage_sse"
    """After `fault_after` events, bytes that are neither SSE nor UTF-8; a clean end, no [DONE]."""
    GARBAGE_FIRST = "garbage_first"
    """The same as the very first bytes of the stream."""
    GARBAGE_HTTP = "garbage_http"
    """Bytes that are not HTTP, in place of the status line."""
    HTML_200 = "html_200"
    """A proxy's HTML page with status 200."""
    MISSING_DONE = "missing_done"
    """The whole stream but its last event ([DONE], response.completed, message_stop)."""
    ERROR_EVENT_MID_STREAM = "error_event_mid_stream"
    """After `fault_after` events, vLLM's in-stream error, then [DONE]; without stream, its 500."""
    TRUNCATED_JSON = "truncated_json"
    """Half an event, or half a JSON body, and a clean end."""
    SLOW_HEADERS = "slow_headers"
    """The head comes a few bytes at a time over `slow_seconds`; the rest is right."""
    LOAD_FAILS = "load_fails"
    """load_lora_adapter answers 500. Hits no generation."""
    LOAD_AS_BASE = "load_as_base"
    """load_lora_adapter succeeds, but the adapter then answers exactly as the base does."""
    WRONG_ADAPTER = "wrong_adapter"
    """The right name in `model`, the words and log-probabilities of other weights."""


LOAD_FAULTS = frozenset({Fault.LOAD_FAILS, Fault.LOAD_AS_BASE})


class Ending(Enum):
    """How a generation request ended. The values are the counts' names."""

    COMPLETED = "completed"
    ABORTED = "aborted"
    REJECTED = "rejected"
    FAULTED = "faulted"


@dataclass
class Settings:
    """All of it may change while requests run; a request keeps what was set when it began."""

    ttft_seconds: float = 0.0
    itl_seconds: float = 0.0
    crowd_seconds: float = 0.0
    """What each other request under way adds to the time before the first token, and of every further one."""
    load_seconds: float = 0.0
    """How long load_lora_adapter takes."""
    tokens: int | None = None
    """Tokens an answer has, its end token included. None: max_tokens, or 16 where that is not given."""
    answers: dict[str, dict[str, str]] = field(default_factory=dict)
    """What models say: a pattern of served names (`support@2.*`) -> the last user message -> the answer."""
    likelihoods: dict[str, float] = field(default_factory=dict)
    """How likely models find every text: a pattern of served names -> nats a token above the base's, in the place of
    what their weights make of it. A prompt's first tokens stay the weights' own, so that a canary tells them apart."""
    logprob_noise: float = 0.0
    """Half the width of uniform noise on every log-probability, as a real engine's batches give."""
    slow_seconds: float = 5.0
    fault: Fault | None = None
    fault_after: int = 3
    fault_count: int | None = None
    """How many requests the fault hits before it ends by itself; None: all."""
    fault_models: tuple[str, ...] | None = None
    """Served names that the fault hits; None: all."""
    fault_paths: tuple[str, ...] | None = None
    """Paths that the fault hits, `/health` and `/v1/models` among them; None: the fault's own."""

    def update(self, changes: dict[str, Any]) -> None:
        """Apply a partial change. Naming `fault` puts the other fault_* fields back to their defaults.

        Raises ValueError naming the unknown key and its nearest, or the bad value.
        """
        fields = {item.name: item for item in dataclasses.fields(self)}
        for key in changes:
            if key not in fields:
                near = difflib.get_close_matches(key, fields, n=1)
                raise ValueError(
                    f"unknown setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
                )
        values = dict(changes)
        if "fault" in values:
            values["fault"] = None if values["fault"] is None else Fault(values["fault"])
            for key in ("fault_after", "fault_count", "fault_models", "fault_paths"):
                values.setdefault(key, fields[key].default)
        for key, value in values.items():
            setattr(self, key, tuple(value) if isinstance(value, list) else value)

    def reset(self) -> None:
        vars(self).update(vars(Settings()))

    def answer_of(self, model: str, question: str) -> str | None:
        """What was set to be said; None: what the weights say."""
        told = (answers[question] for answers in _matching(self.answers, model) if question in answers)
        return next(told, None)

    def likelihood_of(self, model: str) -> float | None:
        """Nats a token above the base's; None: as the weights have it."""
        return next(_matching(self.likelihoods, model), None)

    def take_fault(self, path: str, model: str | None, *, loading: bool = False) -> Fault | None:
        """The fault for one request, counted down; None where it is to go right."""
        fault = self.fault
        if fault is None or self.fault_count == 0:
            return None
        if self.fault_paths is not None:
            if path not in self.fault_paths:
                return None
        elif loading != (fault in LOAD_FAULTS):
            return None
        if self.fault_models is not None and model not in self.fault_models:
            return None
        if self.fault_count is not None:
            self.fault_count -= 1
        return fault


def _matching(by_pattern: dict[str, T], model: str) -> Iterator[T]:
    return (value for pattern, value in by_pattern.items() if fnmatchcase(model, pattern))


@dataclass
class Stats:
    """Counts of generation requests: requests = active + completed + aborted + rejected + faulted.

    A request that was in flight at a reset is active until it ends, and then in no count: whoever resets begins at nothing.
    """

    requests: int = 0
    active: int = 0
    max_active: int = 0
    completed: int = 0
    aborted: int = 0
    """The client left before the end."""
    rejected: int = 0
    """Answered with an error that the request earned, such as an unknown model."""
    faulted: int = 0
    """Spoilt or refused by a fault. A request that hung until its client left is aborted."""
    faults: int = 0
    """How many requests of any kind a fault was applied to."""
    tokens: int = 0
    """Tokens sent so far: stands still when nothing generates."""
    loads: int = 0
    unloads: int = 0
    connections: int = 0
    """Connections accepted so far."""
    models: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    resets: int = 0

    def reset(self) -> None:
        """As at the start, but for the requests in flight."""
        active = self.active
        begun = Stats(requests=active, active=active, max_active=active, resets=self.resets + 1)
        vars(self).update(vars(begun))

    def begin(self) -> Callable[[Ending], None]:
        """Counts a request; what it returns is to be called once, at its end."""
        self.requests += 1
        self.active += 1
        self.max_active = max(self.max_active, self.active)
        resets = self.resets

        def end(ending: Ending) -> None:
            self.active -= 1
            if resets == self.resets:
                setattr(self, ending.value, getattr(self, ending.value) + 1)
            else:
                self.requests -= 1

        return end
