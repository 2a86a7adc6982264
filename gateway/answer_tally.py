"""What recorded answers are like, whatever is asked: how long, how often they decline, how much they repeat themselves.

Owns the counts by route and variant, from a `Completion` each; the measures are those that experiments and gates judge
by (`adapters.manners`). Counts in the writer's thread, where a completion is made, and may be read in any other. Knows
neither Prometheus nor the request.

To look at a text costs about as much as all else that the gateway does with its request. So it may take a twentieth of
one processor and no more: within that every text is looked at, beyond it as many as there is time for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from adapters.buckets import Buckets
from adapters.completions import Completion, Status
from adapters.manners import is_refusal, repeated_share
from adapters.measuring import text_of
from gateway.labels import Labels, Pair

TOKEN_BOUNDS = tuple(float(2**power) for power in range(16))
SHARE_BOUNDS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

MOST_CHARS = 8192
"""What is looked at of a longer text is its end, where one that repeats itself does so: over a thousand words, and less
than a millisecond in which nothing else can run."""

WORK_SHARE = 0.05
"""Of one processor, for looking at texts."""

MOST_CREDIT_SECONDS = 0.05
"""Work that may be done at once, after a while with little: some hundreds of answers."""


@dataclass(slots=True)
class Answers:
    """The answers of one variant of one route."""

    tokens: Buckets = field(default_factory=lambda: Buckets(TOKEN_BOUNDS))
    texts: int = 0
    """Those that say something in words (a call of a tool has no manners) and were looked at."""
    refusals: int = 0
    repetition: Buckets = field(default_factory=lambda: Buckets(SHARE_BOUNDS))
    """The share of each text that was there before, 0 to 1."""


class AnswerTally:
    """All answers that one gateway process has put on record."""

    def __init__(
        self,
        labels: Labels,
        clock: Callable[[], float] = time.monotonic,
        worked: Callable[[], float] = time.thread_time,
    ) -> None:
        """`worked` counts the seconds that the processor has worked for this thread."""
        self._labels = labels
        self._clock = clock
        self._worked = worked
        self._credit = MOST_CREDIT_SECONDS
        self._credited_at = clock()
        self.answers: dict[Pair, Answers] = {}

    def made(self, completion: Completion) -> None:
        """A completion was made; counts if it is whole."""
        if completion.status is not Status.COMPLETE:
            return
        answers = self._of(completion.route, completion.variant)
        if completion.completion_tokens:  # embeddings have none
            answers.tokens.add(completion.completion_tokens)
        if self._has_credit():
            began = self._worked()
            _look_at(completion, answers)
            self._credit -= self._worked() - began

    def _has_credit(self) -> bool:
        now = self._clock()
        earned = WORK_SHARE * (now - self._credited_at)
        self._credit, self._credited_at = min(self._credit + earned, MOST_CREDIT_SECONDS), now
        return self._credit > 0

    def _of(self, route: str, variant: str) -> Answers:
        pair = self._labels.of(route, variant)
        return self.answers.get(pair) or self._begin(pair)

    def _begin(self, pair: Pair) -> Answers:
        """Counts a pair's answers from now on; those of pairs that have made room are forgotten."""
        for old in [old for old in self.answers if old not in self._labels]:
            del self.answers[old]
        return self.answers.setdefault(pair, Answers())


def _look_at(completion: Completion, answers: Answers) -> None:
    text = text_of(completion)
    if text is not None:
        answers.texts += 1
        answers.refusals += is_refusal(text[:MOST_CHARS])
        answers.repetition.add(repeated_share(text[-MOST_CHARS:]))
