"""How many requests there were, of what kind, how they ended and how long they took: counted once each is over.

Owns the counts by class, route and variant, from a `Passage` each; the times to a first token and between tokens are
counted where they are measured (`latency`), what recorded answers are like in `answer_tally`. Knows neither Prometheus
nor HTTP: `metrics` reads the counts. Counts on the event loop; may be read in any thread.

A request counts once, where it was answered. Where the control answered in a variant's stead, the variant has the
error and a fail-over, and the control the request.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from adapters import errors
from adapters.buckets import Buckets
from adapters.errors import BurnishError
from gateway.labels import Labels, Pair
from gateway.passage import Ending, Passage
from gateway.traffic import Traffic

_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
DURATION_BOUNDS = (0.005, 0.01, 0.025, 0.05, *_SECONDS, 1280.0)
QUEUE_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

ERRORS: dict[type[BurnishError], str] = {
    BurnishError: "server_error",
    errors.InvalidRequest: "invalid_request",
    errors.ContextTooLong: "context_too_long",
    errors.Unauthorized: "unauthorized",
    errors.Forbidden: "forbidden",
    errors.NotFound: "not_found",
    errors.Conflict: "conflict",
    errors.TooLarge: "too_large",
    errors.RateLimited: "rate_limited",
    errors.EngineFailed: "engine_failed",
    errors.Unavailable: "unavailable",
    errors.Overloaded: "overloaded",
    errors.NotRecorded: "not_recorded",
    errors.EngineTimeout: "engine_timeout",
}
"""What an error is counted as; one of a class that is not here, as the class that it is a kind of."""

Key = tuple[Traffic, Pair]


@dataclass(slots=True)
class Requests:
    """The requests of one class, to one variant of one route."""

    endings: Counter[Ending] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    seconds: Buckets = field(default_factory=lambda: Buckets(DURATION_BOUNDS))
    """From the first byte to the last, of those that were answered whole."""
    prompt_tokens: int = 0
    answer_tokens: int = 0


class Tally:
    """All requests of one gateway process that are over."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self.requests: dict[Key, Requests] = {}
        self.queued: dict[tuple[Traffic, str], Buckets] = {}
        """Seconds that requests waited for a place, by class and base model."""
        self.fail_overs: Counter[Pair] = Counter()
        """By the variant that could not answer."""
        self.retries: Counter[str] = Counter()
        """Attempts that failed and were followed by another, by engine."""

    def ended(self, passage: Passage) -> None:
        """A request is over."""
        call = passage.call
        counts = self._of(passage.traffic, passage.route, call.target.variant if call else "")
        counts.endings[passage.ending] += 1
        if passage.error is not None:
            counts.errors[error_kind(passage.error)] += 1
        if passage.ending is Ending.COMPLETE and passage.ended is not None:
            counts.seconds.add(passage.ended - passage.began)
        counts.prompt_tokens += passage.prompt_tokens or 0
        counts.answer_tokens += passage.answer_tokens or 0
        if call is not None and passage.placed is not None and passage.queued is not None:
            self._queue(passage.traffic, call.target.base).add(passage.placed - passage.queued)
        if len(passage.attempts) > 1:
            self.retries.update(attempt.engine for attempt in passage.attempts[:-1])
        if passage.failed_over_from is not None:
            self._fail_over(passage, passage.failed_over_from.variant)

    def _fail_over(self, passage: Passage, variant: str) -> None:
        self.fail_overs[self._labels.of(passage.route, variant)] += 1
        if passage.failed_over_for is not None:
            kind = error_kind(passage.failed_over_for)
            self._of(passage.traffic, passage.route, variant).errors[kind] += 1

    def _of(self, traffic: Traffic, route: str, variant: str) -> Requests:
        key = (traffic, self._labels.of(route, variant))
        return self.requests.get(key) or self._begin(key)

    def _begin(self, key: Key) -> Requests:
        """Counts a pair's requests from now on; those of pairs that have made room are forgotten."""
        for old in [old for old in self.requests if old[1] not in self._labels]:
            del self.requests[old]
        for pair in [pair for pair in self.fail_overs if pair not in self._labels]:
            del self.fail_overs[pair]
        return self.requests.setdefault(key, Requests())

    def _queue(self, traffic: Traffic, base: str) -> Buckets:
        key = (traffic, base)
        return self.queued.get(key) or self.queued.setdefault(key, Buckets(QUEUE_BOUNDS))


def error_kind(error: BurnishError) -> str:
    """What an error is counted as."""
    return next(ERRORS[kind] for kind in type(error).__mro__ if kind in ERRORS)
