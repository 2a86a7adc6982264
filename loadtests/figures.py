"""From what single requests met to the figures of many. Pure.

Owns what counts: a request counts by the time at which it was due; a rate, by what was done within the window. Does not
know who made the requests or what the figures are held to.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from loadtests.buckets import Buckets

MOST_PROBLEMS = 20
"""Kinds of errors that are told apart; the rest are counted together."""
PROBLEM_CHARS = 120
FAILED_LINES = "lines of batches failed"

DIGITS = 6
"""Of seconds: a microsecond."""


class Act(StrEnum):
    """What was done once: a question asked, a judgement given, a batch brought to its end."""

    CHAT = "chat"
    FEEDBACK = "feedback"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one act met. Times are seconds: `due_seconds` after the run's begin, the others after it was due."""

    act: Act
    model: str
    due_seconds: float
    late_seconds: float  # how much later than due it was sent: the client's own fault
    total_seconds: float
    error: str | None = None
    ttft_seconds: float | None = None
    gaps_seconds: tuple[float, ...] = ()
    prompt_tokens: int = 0
    answer_tokens: int = 0

    @property
    def ended_seconds(self) -> float:
        return self.due_seconds + self.total_seconds

    @property
    def is_request(self) -> bool:
        """A batch is none, but its lines are; unless it came to nothing."""
        return self.act is not Act.BATCH or self.error is not None

    @property
    def tokens_per_second(self) -> float | None:
        """Of the answer, once it has begun; None of less than two tokens."""
        if self.ttft_seconds is None or self.answer_tokens < 2 or not self.gaps_seconds:
            return None
        return (self.answer_tokens - 1) / sum(self.gaps_seconds)


@dataclass(frozen=True, slots=True)
class Window:
    """From when to when is measured, in seconds after the run's begin."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def holds(self, at: float) -> bool:
        return self.begin <= at < self.end


@dataclass(slots=True)
class Tally:
    """What came together in a window, of all samples or of some."""

    window: Window
    requests: int = 0
    errors: int = 0
    done_inside: int = 0
    tokens_inside: float = 0.0
    lines_inside: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    ttft: Buckets = field(default_factory=Buckets)
    itl: Buckets = field(default_factory=Buckets)
    total: Buckets = field(default_factory=Buckets)
    speed: Buckets = field(default_factory=Buckets)
    feedback: Buckets = field(default_factory=Buckets)
    batch: Buckets = field(default_factory=Buckets)
    late: Buckets = field(default_factory=Buckets)
    problems: Counter[str] = field(default_factory=Counter)

    def add(self, sample: Sample) -> None:
        """Any sample of the run; those that were due outside count for what they got done inside."""
        if sample.error is None:
            self.done_inside += sample.is_request and self.window.holds(sample.ended_seconds)
            self.tokens_inside += sample.answer_tokens * _overlap(sample, self.window)
        if not self.window.holds(sample.due_seconds):
            return
        self.requests += sample.is_request
        if sample.act is Act.CHAT:
            self.late.add(sample.late_seconds)
        if sample.error is not None:
            self.errors += 1
            self._add_problem(sample.error)
        elif sample.act is Act.CHAT:
            self._add_answer(sample)
        else:
            (self.feedback if sample.act is Act.FEEDBACK else self.batch).add(sample.total_seconds)

    def add_lines(self, done: int, failed: int, at: float) -> None:
        """Lines of a batch that were seen to be done at a time of the run. Each is a request."""
        if self.window.holds(at):
            self.lines_inside += done
            self.done_inside += done
            self.requests += done + failed
            self.errors += failed
            self.problems[FAILED_LINES] += failed

    def figures(self) -> dict[str, Any]:
        seconds = self.window.seconds
        made: dict[str, Any] = {
            "requests": self.requests,
            "errors": self.errors,
            "error_rate": self.errors / self.requests if self.requests else None,
            "requests_per_second": self.done_inside / seconds,
            "ttft_seconds": _percentiles(self.ttft),
            "itl_seconds": _percentiles(self.itl),
            "total_seconds": _percentiles(self.total),
            "tokens_per_second_per_stream": _percentiles(self.speed, 5, 50),
            "answer_tokens_per_second": self.tokens_inside / seconds,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.answer_tokens,
        }
        if self.feedback.count:
            made["feedback_seconds"] = _percentiles(self.feedback)
        if self.batch.count:
            made["batch_seconds"] = _percentiles(self.batch)
        if self.lines_inside:
            made |= {
                "batch_lines": self.lines_inside,
                "batch_lines_per_second": self.lines_inside / seconds,
            }
        if self.errors:
            made["problems"] = {problem: count for problem, count in self.problems.most_common() if count}
        return made

    def _add_answer(self, sample: Sample) -> None:
        self.total.add(sample.total_seconds)
        self.prompt_tokens += sample.prompt_tokens
        self.answer_tokens += sample.answer_tokens
        if sample.ttft_seconds is not None:
            self.ttft.add(sample.ttft_seconds)
        for gap in sample.gaps_seconds:
            self.itl.add(gap)
        if (speed := sample.tokens_per_second) is not None:
            self.speed.add(speed)

    def _add_problem(self, error: str) -> None:
        """Errors that differ in their numbers and ids alone are one kind."""
        status, colon, text = error[:PROBLEM_CHARS].partition(": ")
        kind = status + colon + re.sub(r"\d[\da-f]*", "#", text)
        self.problems[kind if kind in self.problems or len(self.problems) < MOST_PROBLEMS else "others"] += 1


def rounded(value: Any) -> Any:
    """Numbers as a report shows them, anywhere in a structure of JSON."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    return value


def _percentiles(buckets: Buckets, *percents: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"p{percent}": buckets.percentile(percent / 100) for percent in percents or (50, 95, 99)
    }
    return {**found, "count": buckets.count}


def _overlap(sample: Sample, window: Window) -> float:
    """The share of an answer that came within the window: its tokens come evenly, from the first to the end."""
    if sample.ttft_seconds is None:
        return 0.0
    first, end = sample.due_seconds + sample.ttft_seconds, sample.ended_seconds
    if end <= first:
        return float(window.holds(first))
    return max(0.0, min(end, window.end) - max(first, window.begin)) / (end - first)
