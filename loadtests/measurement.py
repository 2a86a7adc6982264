"""One run as it is measured: tallies over all of it, by model, by act, by stage; what happened from second to second; and
what the client itself cost.

Pure: it is told what happened and when. Knows neither Locust nor HTTP.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from loadtests.buckets import Buckets
from loadtests.figures import Act, Sample, Tally, Window
from loadtests.options import Options
from loadtests.shapes import Shape

MOST_ROWS = 1800
"""Of the series: a row is a second long, and longer in a run of more than half an hour."""

BUSY_SHARE = 0.9
"""Of a core, which is all that one Locust process can use: above it the client is what limits."""
LAG_SECONDS = 0.1
"""A client whose loop comes so late (95th percentile), or that sends so late, measures itself."""


@dataclass(slots=True)
class Row:
    """Some seconds of the run; what has just happened counts, whenever it began."""

    users: int = 0
    in_flight: int = 0
    answers: int = 0
    errors: int = 0
    tokens: float = 0.0
    lines: int = 0
    cpu_share: float | None = None
    ttft: Buckets = field(default_factory=Buckets)
    itl: Buckets = field(default_factory=Buckets)


@dataclass(frozen=True, slots=True)
class Client:
    """What the load generator did to what it measured."""

    cpu_share: float | None  # of a core
    lag_p95_seconds: float | None  # how late its loop came to a thing that was due
    late_p95_seconds: float | None  # how late it sent requests

    def problems(self) -> tuple[str, ...]:
        """Why figures are the client's own rather than the server's."""
        found = []
        if self.cpu_share is not None and self.cpu_share > BUSY_SHARE:
            found.append(f"the client was the bottleneck: it used {100 * self.cpu_share:.0f}% of its core")
        if self.lag_p95_seconds is not None and self.lag_p95_seconds > LAG_SECONDS:
            found.append(
                f"the client was the bottleneck: it read {1000 * self.lag_p95_seconds:.0f} ms late (p95)"
            )
        if self.late_p95_seconds is not None and self.late_p95_seconds > LAG_SECONDS:
            found.append(
                f"the client was the bottleneck: it sent {1000 * self.late_p95_seconds:.0f} ms late (p95)"
            )
        return tuple(found)


class Measurement:
    def __init__(self, options: Options) -> None:
        begin, seconds = options.warm_up_seconds, options.shape.seconds
        self.options = options
        self.window = Window(begin, begin + seconds)
        self.row_seconds = max(1, math.ceil((begin + seconds) / MOST_ROWS))
        self.rows: defaultdict[int, Row] = defaultdict(Row)
        self.all = Tally(self.window)
        self.by_model: dict[str, Tally] = {}
        self.by_act: dict[Act, Tally] = {}
        self.stages = [Tally(window) for window in _windows(options.shape, begin)]
        self.in_flight = 0
        self.ended_early: str | None = None  # why
        self._lag = Buckets()
        self._cpu: list[tuple[float, float]] = []

    def add(self, sample: Sample) -> None:
        self.all.add(sample)
        self.by_model.setdefault(sample.model, Tally(self.window)).add(sample)
        self.by_act.setdefault(sample.act, Tally(self.window)).add(sample)
        for stage in self.stages:
            stage.add(sample)
        self._add_to_rows(sample)

    def add_lines(self, model: str, done: int, failed: int, at: float) -> None:
        """Lines of a batch were seen to be answered, or to have failed."""
        self.all.add_lines(done, failed, at)
        self.by_model.setdefault(model, Tally(self.window)).add_lines(done, failed, at)
        self.by_act.setdefault(Act.BATCH, Tally(self.window)).add_lines(done, failed, at)
        for stage in self.stages:
            stage.add_lines(done, failed, at)
        row = self._row(at)
        row.lines += done
        row.errors += failed

    def add_lag(self, lag_seconds: float, at: float) -> None:
        """How late the client's loop came to what was due at that time."""
        if self.window.holds(at):
            self._lag.add(lag_seconds)

    def look(self, at: float, cpu_seconds: float, users: int) -> None:
        """How things stand at a time: the client's CPU time so far, the users that there are."""
        row = self._row(at)
        row.users, row.in_flight = users, self.in_flight
        if self._cpu and at > self._cpu[-1][0]:
            row.cpu_share = (cpu_seconds - self._cpu[-1][1]) / (at - self._cpu[-1][0])
        self._cpu.append((at, cpu_seconds))

    def end_early(self, why: str, at: float) -> None:
        """Nothing more is measured: every window ends here."""
        self.ended_early = why
        self.window = _until(self.window, at)
        for tally in (self.all, *self.by_model.values(), *self.by_act.values(), *self.stages):
            tally.window = _until(tally.window, at)

    def client(self) -> Client:
        seen = [look for look in self._cpu if self.window.holds(look[0])]
        share = None
        if len(seen) > 1:
            share = (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])
        return Client(share, self._lag.percentile(0.95), self.all.late.percentile(0.95))

    def series(self) -> list[dict[str, Any]]:
        """The rows in order, without a gap. `at`: seconds after the run's begin, the warm-up included."""
        last = max(self.rows, default=-1)
        return [self._told(number) for number in range(last + 1)]

    def _told(self, number: int) -> dict[str, Any]:
        row, seconds = self.rows[number], self.row_seconds
        return {
            "at": number * seconds,
            "seconds": seconds,
            "is_measured": self.window.holds(number * seconds),
            "users": row.users,
            "in_flight": row.in_flight,
            "requests_per_second": row.answers / seconds,
            "errors": row.errors,
            "answer_tokens_per_second": row.tokens / seconds,
            "batch_lines_per_second": row.lines / seconds,
            "ttft_p50_seconds": row.ttft.percentile(0.5),
            "ttft_p95_seconds": row.ttft.percentile(0.95),
            "itl_p50_seconds": row.itl.percentile(0.5),
            "itl_p95_seconds": row.itl.percentile(0.95),
            "client_cpu_share": row.cpu_share,
        }

    def _row(self, at: float) -> Row:
        return self.rows[max(0, int(at // self.row_seconds))]

    def _add_to_rows(self, sample: Sample) -> None:
        last = self._row(sample.ended_seconds)
        last.answers += sample.error is None
        last.errors += sample.error is not None
        if sample.ttft_seconds is None:
            return
        at = sample.due_seconds + sample.ttft_seconds
        self._row(at).ttft.add(sample.ttft_seconds)
        each = sample.answer_tokens / (1 + len(sample.gaps_seconds))
        self._row(at).tokens += each
        for gap in sample.gaps_seconds:
            at += gap
            row = self._row(at)
            row.itl.add(gap)
            row.tokens += each


def _windows(shape: Shape, begin: float) -> list[Window]:
    """Of the stages, where there is more than one."""
    made = []
    for stage in shape.stages if len(shape.stages) > 1 else ():
        made.append(Window(begin, begin + stage.seconds))
        begin += stage.seconds
    return made


def _until(window: Window, at: float) -> Window:
    end = min(window.end, max(window.begin, at))
    return Window(window.begin, max(end, window.begin + 1e-9))
