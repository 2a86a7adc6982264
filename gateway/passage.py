"""One request's way through the gateway, as it was: the times of its stages, what it took, how it ended.

Values only, filled in as the request goes and handed over once, when it is over, to whoever counts (`tally`) or draws it
(`tracing`). Times are seconds of `time.monotonic`; None: it did not come so far. Knows no metric and no span.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from adapters.errors import BurnishError
from gateway.traffic import Traffic

if TYPE_CHECKING:
    from adapters.completions import Completion
    from gateway.endpoints import Call
    from gateway.routing import Target
    from gateway.trace_context import Trace


class Ending(StrEnum):
    COMPLETE = "complete"  # the client has all of it
    ERROR = "error"  # the client was told of an error, at the beginning or in the midst
    LEFT = "left"  # the client went
    EVICTED = "evicted"  # a batch line sent back to wait; it comes again
    INTERRUPTED = "interrupted"  # the gateway stopped


@dataclass(slots=True)
class Attempt:
    """One engine's try."""

    engine: str
    began: float
    answered: float | None = None
    """Its first whole events, or all of its answer, were there."""
    ended: float | None = None
    error: BurnishError | None = None
    """Why the request went on to another engine."""
    model: str = ""
    """What it was asked for."""
    span_id: str | None = None
    """What the engine was told is the span that its own belong under; None: no spans are drawn."""


@dataclass(slots=True)
class Passage:
    """One request, from the moment it was taken up."""

    request_id: str
    path: str
    trace_parent: str | None = None
    """W3C's `traceparent`, as the client sent it."""
    trace_state: str | None = None
    trace: Trace | None = None
    """The trace that it belongs to, where there is one."""
    began: float = field(default_factory=time.monotonic)
    traffic: Traffic = Traffic.INTERACTIVE
    route: str = ""
    """The name that is asked for, once it is known that there is such a thing."""
    call: Call | None = None
    """None: it was refused before it was known what is asked of whom. Let go of when all have been told: a call has its
    passage, and the two would hold each other, with all that was asked and answered."""
    failed_over_from: Target | None = None
    """The variant that could not answer; `call.target` is the control, which was asked in its stead."""
    failed_over_for: BurnishError | None = None
    """Why it could not."""
    queued: float | None = None
    """It began to wait for a place."""
    placed: float | None = None
    attempts: list[Attempt] = field(default_factory=list)
    first_piece: float | None = None
    """Of a stream: the first events went out."""
    pieces: int = 0
    settled: float | None = None
    """Nothing more is to come from an engine: what is left is to put it on record."""
    committed: float | None = None
    ended: float | None = None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    ending: Ending = Ending.COMPLETE
    error: BurnishError | None = None
    """What the client was told."""
    completion_id: str | None = None
    """The record's, where there is one."""
    completion: Completion | None = None
    """The record itself: of the writer's thread, which may set it when the passage is over."""

    def fail(self, error: BurnishError) -> None:
        """The client is told of it."""
        self.ending, self.error = Ending.ERROR, _alone(error)

    def fail_over(self, variant: Target, error: BurnishError) -> None:
        """The control is asked in the variant's stead."""
        self.failed_over_from, self.failed_over_for = variant, _alone(error)


def _alone(error: BurnishError) -> BurnishError:
    """Without where it comes from: those frames hold the passage, which would hold them."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error
