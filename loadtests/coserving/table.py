"""What is made of the numbers: percentiles, the share in target, medians of rounds, and one Markdown table. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtests.coserving.results import Measured, Results
from loadtests.percentiles import Percentiles, percentile
from loadtests.servers import Targets
from loadtests.stream import Answer

LATE_SECONDS = 0.01
"""A client that sends later than this (p99) is told of: it shares the machine with what it measures."""

HEAD = (
    "scenario",
    "requests",
    "errors",
    "TTFT p50, ms",
    "p95",
    "p99",
    "ITL p50, ms",
    "p95",
    "p99",
    "in target, %",
    "batch lines/s",
    "of alone, %",
    "trainer tokens/s",
    "of alone, %",
)


@dataclass(frozen=True, slots=True)
class Summary:
    """The interactive requests of one scenario in one round."""

    requests: int
    errors: int
    ttft: Percentiles
    itl: Percentiles
    in_target: float  # share

    @classmethod
    def of(cls, answers: Sequence[Answer], targets: Targets) -> Summary:
        """Of one answer or more."""
        errors = sum(answer.error is not None for answer in answers)
        in_target = sum(is_in_target(answer, targets) for answer in answers)
        return cls(len(answers), errors, *latencies(answers), in_target / len(answers))


def latencies(answers: Sequence[Answer]) -> tuple[Percentiles, Percentiles]:
    """Seconds to the first token over the requests, and between chunks over all gaps of all of them."""
    firsts = [math.inf if answer.ttft_seconds is None else answer.ttft_seconds for answer in answers]
    return Percentiles.of(firsts), Percentiles.of([gap for answer in answers for gap in answer.gaps_seconds])


def is_in_target(answer: Answer, targets: Targets) -> bool:
    """Whether it was answered whole, its first token in time, and 95 of 100 of its own gaps."""
    if answer.error is not None or answer.ttft_seconds is None:
        return False
    # An answer of one token has no gaps, and NaN is not more than anything.
    return answer.ttft_seconds <= targets.ttft_seconds and not own_gap(answer) > targets.itl_seconds


def own_gap(answer: Answer) -> float:
    """The seconds that 95 of 100 of its own gaps stay within; NaN where it has none."""
    return percentile(answer.gaps_seconds, 0.95)


def table(results: Results) -> str:
    """Markdown: a row a scenario, in the order in which they were measured first, and what is to be known of them."""
    names = dict.fromkeys(measured.scenario for measured in results.measured)
    lines = [f"| {' | '.join(HEAD)} |", "|---|" + "---:|" * (len(HEAD) - 1)]
    for name in names:
        rounds = [measured for measured in results.measured if measured.scenario == name]
        lines.append(f"| {name} | {' | '.join(_cells(rounds, results))} |")
    return "\n".join([*lines, "", *_notes(results)])


def _cells(rounds: Sequence[Measured], results: Results) -> Iterator[str]:
    """Of the rounds of one scenario."""
    found = [Summary.of(measured.answers, results.targets) for measured in rounds if measured.answers]
    if found:
        yield _cell([one.requests for one in found], 0)
        yield _cell([one.errors for one in found], 0)
        for times in ([one.ttft for one in found], [one.itl for one in found]):
            yield _cell([1e3 * one.p50 for one in times], 0)
            yield _cell([1e3 * one.p95 for one in times], 0)
            yield _cell([1e3 * one.p99 for one in times], 0)
        yield _cell([100 * one.in_target for one in found], 1)
    else:
        yield from [""] * 9
    yield from _work_cells(rounds, results, "batch", 2)
    yield from _work_cells(rounds, results, "training", 0)


def _work_cells(rounds: Sequence[Measured], results: Results, kind: str, digits: int) -> Iterator[str]:
    """What a batch or a run got done a second, and its share of what it did alone in the same round."""
    if getattr(rounds[0], kind) is None:
        yield from ("", "")
        return
    yield _cell([getattr(one, kind).per_second for one in rounds], digits)
    alone = {
        measured.round: getattr(measured, kind).per_second
        for measured in results.measured
        if measured.scenario == f"{kind}-only"
    }
    shares = [getattr(one, kind).per_second / alone[one.round] for one in rounds if alone.get(one.round)]
    yield _cell([100 * share for share in shares], 0) if shares else ""


def _cell(values: Sequence[float], digits: int) -> str:
    """The median of the rounds and, where they differ, the least and the most."""
    told = [_number(value, digits) for value in (statistics.median(values), min(values), max(values))]
    return told[0] if told[1] == told[2] else f"{told[0]} ({told[1]}–{told[2]})"


def _number(value: float, digits: int) -> str:
    return "∞" if math.isinf(value) else "" if math.isnan(value) else f"{value:.{digits}f}"


def _notes(results: Results) -> Iterator[str]:
    targets, machine, options = results.targets, results.machine, results.options
    share = "" if results.capacity is None else f" of {results.capacity:.2f} at saturation"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    yield (
        f"{results.rate:.2f} requests/s{share}, for {options['seconds']:g} s, {options['rounds']} round(s); "
        f"targets: TTFT {1e3 * targets.ttft_seconds:g} ms, ITL {1e3 * targets.itl_seconds:g} ms."
    )
    gpus = "; ".join(machine["gpus"]) or "no GPU"
    yield f"{machine['cores']} cores of {machine['cpu']}, {gpus}; Python {machine['python']}, {versions}."
    if options["engine"] == "fake":
        yield "The fake engine's delays do not grow with load: this shows that the harness works, and nothing else."
    for measured in results.measured:
        yield from _warnings(measured)


def _warnings(measured: Measured) -> Iterator[str]:
    """What makes a row less than it seems."""
    where = f"{measured.scenario}, round {measured.round}"
    late = percentile([answer.late_seconds for answer in measured.answers], 0.99)
    if late > LATE_SECONDS:
        yield f"{where}: the client itself was late by {1e3 * late:.0f} ms (p99); that is in the TTFT."
    for kind in ("batch", "training"):
        work = getattr(measured, kind)
        if work is not None and work.ended_early:
            yield f"{where}: the {kind} ended before the trace did; make it longer."
        if work is not None and work.failed:
            yield f"{where}: {work.failed} lines of the batch failed."
    if problem := next((answer.error for answer in measured.answers if answer.error is not None), None):
        yield f"{where}: the first error: {problem}"
