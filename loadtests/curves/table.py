"""The curves as Markdown. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from loadtests.curves.points import Point

HEAD = (
    "streams",
    "adapters",
    "requests",
    "errors",
    "TTFT p50, ms",
    "p95",
    "ITL p50, ms",
    "p95",
    "tokens/s a stream, p5",
    "p50",
    "answer tokens/s",
    "requests/s",
)

COSTS = ("cost per million tokens", "per million of answers alone")
"""The first counts the tokens of prompts too."""

LATE_SECONDS = 0.01
"""A client that sends later than this (p99) is told of: it shares the machine with what it measures."""


def table(points: Sequence[Point], price_per_hour: float | None = None) -> str:
    """A row a level, in the order in which they were measured. With a price, what a million tokens cost."""
    several = len({point.target for point in points}) > 1
    head = [*(["asked"] if several else []), *HEAD, *(COSTS if price_per_hour else [])]
    lines = [f"| {' | '.join(head)} |", f"|{'---:|' * len(head)}"]
    for point in points:
        cells = [*([point.target] if several else []), *_cells(point)]
        if price_per_hour:
            cells += [_number(cost, 2) for cost in point.costs_per_million(price_per_hour)]
        lines.append(f"| {' | '.join(cells)} |")
    warnings = [line for point in points for line in _warnings(point)]
    return "\n".join([*lines, *(["", *warnings] if warnings else [])])


def _cells(point: Point) -> Iterator[str]:
    yield from (str(value) for value in (point.streams, point.adapters, point.requests, point.errors))
    yield from (_number(1e3 * value, 0) for value in (point.ttft.p50, point.ttft.p95))
    yield from (_number(1e3 * value, 1) for value in (point.itl.p50, point.itl.p95))
    yield from (_number(value, 1) for value in (point.stream_rate_p5, point.stream_rate_p50))
    yield _number(point.answer_tokens_per_second, 0)
    yield _number(point.requests_per_second, 2)


def _number(value: float, digits: int) -> str:
    return "∞" if math.isinf(value) else "" if math.isnan(value) else f"{value:.{digits}f}"


def _warnings(point: Point) -> Iterator[str]:
    where = f"{point.target}, {point.streams} streams, {point.adapters} adapters"
    if point.late_p99_seconds > LATE_SECONDS:
        yield f"{where}: the client itself was late by {1e3 * point.late_p99_seconds:.0f} ms (p99); that is in the TTFT."
    if point.first_error is not None:
        yield f"{where}: the first error: {point.first_error}"
