"""Traces: what a request's passage looks like as OpenTelemetry spans, once it is over.

Owns the shape of a trace: the request, and in it routing, queue, each engine's attempt, relay and commit, with the times
that the passage has. The event loop gives each request its ids and hands its passage over; the spans are drawn in the
thread of `adapters.spans`. Nothing of what was asked or answered is in them unless the settings want it, and then of
recorded requests alone.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from adapters.engine_settings import EngineSettings
from adapters.errors import BurnishError
from adapters.settings import Settings
from adapters.spans import Sketch, SpanKind, Spans
from gateway import gen_ai, trace_context
from gateway.endpoints import Call
from gateway.passage import Attempt, Ending, Passage
from gateway.tally import error_kind
from gateway.trace_context import Trace, new_span_id

Attributes = dict[str, Any]


class Traces:
    """The traces of one gateway process. `begin` and `ended` are the event loop's."""

    def __init__(self, settings: Settings, *, instance: str, environ: Mapping[str, str]) -> None:
        """`settings.tracing.endpoint` is there. Raises SettingsError where a variable that it names is not."""
        self._share = settings.tracing.sample_share
        self._prompts = settings.tracing.prompts
        self._engines = {engine.name: _peer(engine) for engine in settings.engines}
        self._spans = Spans(settings.tracing, instance=instance, environ=environ)

    @property
    def dropped(self) -> int:
        """How many requests' spans did not arrive."""
        return self._spans.dropped

    def begin(self, passage: Passage) -> Trace:
        """The ids of a request that has just come."""
        return trace_context.begin(passage, self._share)

    def ended(self, passage: Passage) -> None:
        """An observer of `Inference`."""
        if passage.trace is not None and passage.trace.is_drawn:
            self._spans.put(functools.partial(self._draw, passage, passage.call))

    def close(self) -> None:
        """Sends what waits, for two seconds at most."""
        self._spans.close()

    # -- in the spans' thread --------------------------------------------------------------------------
    def _draw(self, passage: Passage, call: Call | None) -> list[Sketch]:
        """The request's span and those of its stages, in the order in which they began."""
        trace, ended = passage.trace, passage.ended
        assert trace is not None
        assert ended is not None
        clock = time.time_ns() - time.monotonic_ns()
        request = Sketch(
            f"POST {passage.path}",
            trace.trace_id,
            trace.span_id,
            trace.parent_id,
            _at(passage.began, clock),
            _at(ended, clock),
            SpanKind.SERVER,
            self._request(passage, call),
            _server_error(passage.error),
            is_parent_remote=True,
            trace_state=trace.state,
        )
        stages = [self._stage(trace, clock, *stage) for stage in _stages(passage, ended)]
        attempts = [
            self._attempt(trace, clock, passage, number, attempt)
            for number, attempt in enumerate(passage.attempts, 1)
        ]
        return [request, *sorted(stages + attempts, key=lambda sketch: sketch.began)]

    def _stage(self, trace: Trace, clock: int, name: str, began: float, ended: float) -> Sketch:
        return Sketch(
            name,
            trace.trace_id,
            new_span_id(),
            trace.span_id,
            _at(began, clock),
            _at(ended, clock),
            trace_state=trace.state,
        )

    def _attempt(self, trace: Trace, clock: int, passage: Passage, number: int, attempt: Attempt) -> Sketch:
        """One engine's try, as the GenAI convention's client span. It ends when nothing more is to come from there."""
        is_last = number == len(passage.attempts)
        ended = attempt.ended if attempt.ended is not None else passage.ended
        if is_last and passage.settled is not None:
            ended = passage.settled
        assert ended is not None
        error = attempt.error
        if error is None and is_last and passage.settled is None:
            error = passage.error  # it broke in the midst, or refused
        operation = gen_ai.OPERATIONS.get(passage.path)
        attributes: Attributes = {
            **self._engines.get(attempt.engine, {}),
            "burnish.engine": attempt.engine,
            "burnish.attempt": number,
            "gen_ai.request.model": attempt.model,
        }
        if operation is not None:
            attributes["gen_ai.operation.name"] = operation
        if attempt.answered is not None:
            attributes["burnish.answered_seconds"] = attempt.answered - attempt.began
        if error is not None:
            attributes["error.type"] = error_kind(error)
        return Sketch(
            f"{operation or 'count_tokens'} {attempt.model}",
            trace.trace_id,
            attempt.span_id or new_span_id(),
            trace.span_id,
            _at(attempt.began, clock),
            _at(ended, clock),
            SpanKind.CLIENT,
            attributes,
            None if error is None else error_kind(error),
            trace_state=trace.state,
        )

    def _request(self, passage: Passage, call: Call | None) -> Attributes:
        attributes: Attributes = {
            "http.request.method": "POST",
            "http.route": passage.path,
            "url.path": passage.path,
            "burnish.request.id": passage.request_id,
            "burnish.class": passage.traffic.value,
            "burnish.ending": passage.ending.value,
        }
        status = _status(passage)
        if status is not None:
            attributes["http.response.status_code"] = status
        if passage.error is not None:
            attributes["error.type"] = error_kind(passage.error)
        if call is not None:
            attributes |= _call(passage, call)
        if passage.completion is not None:
            attributes |= gen_ai.answer_attributes(passage.completion)
            attributes["burnish.completion.id"] = passage.completion.id
            if self._prompts:
                attributes |= gen_ai.message_attributes(passage.completion)
        return attributes


# -- pure ------------------------------------------------------------------------------------------
def _stages(passage: Passage, ended: float) -> Iterator[tuple[str, float, float]]:
    """What the request went through: name, beginning and end. A stage that it did not leave ends with it."""
    yield "routing", passage.began, passage.queued if passage.queued is not None else ended
    if passage.queued is not None:
        yield "queue", passage.queued, passage.placed if passage.placed is not None else ended
    if passage.first_piece is not None:
        yield "relay", passage.first_piece, passage.settled if passage.settled is not None else ended
    if passage.settled is not None:
        yield "commit", passage.settled, passage.committed if passage.committed is not None else ended


def _call(passage: Passage, call: Call) -> Attributes:
    """What was asked of whom, and what it took."""
    target, given = call.target, call.assignment
    found: Attributes = {
        "gen_ai.provider.name": "burnish",
        "gen_ai.request.model": target.name,
        "burnish.route": target.name,
        "burnish.variant": target.variant,
        **gen_ai.request_attributes(call.asked),
    }
    if passage.path in gen_ai.OPERATIONS:
        found["gen_ai.operation.name"] = gen_ai.OPERATIONS[passage.path]
    if passage.ending is Ending.COMPLETE or passage.pieces:
        found["gen_ai.response.model"] = target.variant
    if target.version is not None:
        found["burnish.adapter.digest"] = target.version.digest
    if given is not None:
        found["burnish.experiment"], found["burnish.experiment.epoch"] = given.experiment, given.epoch
    if passage.failed_over_from is not None:
        found["burnish.failed_over_from"] = passage.failed_over_from.variant
    if passage.first_piece is not None:
        found["burnish.ttft_seconds"] = passage.first_piece - passage.began
        found["gen_ai.response.time_to_first_chunk"] = passage.first_piece - passage.began
    if passage.prompt_tokens is not None:
        found["gen_ai.usage.input_tokens"] = passage.prompt_tokens
    if passage.answer_tokens is not None:
        found["gen_ai.usage.output_tokens"] = passage.answer_tokens
    return found


def _status(passage: Passage) -> int | None:
    """Of the HTTP answer; None where nobody got one."""
    if passage.ending is Ending.ERROR and passage.error is not None and not passage.pieces:
        return passage.error.status
    is_answered = passage.ending in (Ending.COMPLETE, Ending.ERROR) or passage.pieces > 0
    return 200 if is_answered else None


def _server_error(error: BurnishError | None) -> str | None:
    """A client's error is no error of the server's span."""
    return error_kind(error) if error is not None and error.status >= 500 else None


def _peer(engine: EngineSettings) -> Attributes:
    """Where an engine is, and what it is."""
    found: Attributes = {"gen_ai.provider.name": gen_ai.PROVIDERS[engine.kind]}
    parts = urlsplit(engine.url or "")
    if parts.hostname:
        found["server.address"] = parts.hostname
        found["server.port"] = parts.port or (443 if parts.scheme == "https" else 80)
    elif parts.path:
        found["server.address"] = parts.path
    return found


def _at(seconds: float, clock: int) -> int:
    """Nanoseconds since 1970 of a time of the monotonic clock."""
    return round(seconds * 1e9) + clock
