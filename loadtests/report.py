"""What a load test has come to: the verdict, the table for a person, the JSON for a release gate.

Pure. Owns the rule: a target that could not be told, or a client that was the bottleneck, is inconclusive, and inconclusive
is no pass. The page with the plots is `loadtests.page`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from loadtests.figures import rounded
from loadtests.measurement import Measurement
from loadtests.targets import Checked, Unit, check, told

SCHEMA = 1
SHOWN_PROBLEMS = 5

Figures = Mapping[str, Any]


class Outcome(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


STATUS = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.INCONCLUSIVE: 3}
"""The command's exit status; 2 is wrong usage."""


@dataclass(frozen=True, slots=True)
class Verdict:
    outcome: Outcome
    reasons: tuple[str, ...]
    checked: tuple[Checked, ...]


def verdict_of(measurement: Measurement, figures: Figures) -> Verdict:
    """Fail where a target is missed and the figures are the server's; pass where all are met."""
    checked = tuple(check(target, figures) for target in measurement.options.targets)
    untold = tuple(each.problem for each in checked if each.problem is not None)
    doubts = measurement.client().problems()
    if measurement.ended_early is not None:
        return Verdict(Outcome.INCONCLUSIVE, (measurement.ended_early, *doubts, *untold), checked)
    if doubts:
        return Verdict(Outcome.INCONCLUSIVE, (*doubts, *untold), checked)
    missed = tuple(_missed(each) for each in checked if each.met is False)
    if missed:
        return Verdict(Outcome.FAIL, (*missed, *untold), checked)
    return Verdict(Outcome.INCONCLUSIVE if untold else Outcome.PASS, untold, checked)


def unmeasured(reason: str, measurement: Measurement) -> dict[str, Any]:
    """The report of a test that could not begin."""
    measurement.end_early(reason, 0.0)
    return report_of(measurement, {})


def report_of(measurement: Measurement, machine: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a load test. Its form is schema 1, in docs/loadtests.md."""
    figures = measurement.all.figures()
    verdict, client = verdict_of(measurement, figures), measurement.client()
    stages = zip(measurement.options.shape.stages, measurement.stages, strict=False)
    made = {
        "schema": SCHEMA,
        "verdict": verdict.outcome.value,
        "reasons": list(verdict.reasons),
        "targets": [each.json() for each in verdict.checked],
        "figures": figures,
        "by_model": {name: tally.figures() for name, tally in sorted(measurement.by_model.items())},
        "by_act": {act.value: tally.figures() for act, tally in sorted(measurement.by_act.items())},
        "stages": [
            {"from": stage.first, "to": stage.last, "seconds": stage.seconds, "figures": tally.figures()}
            for stage, tally in stages
        ],
        "series": measurement.series(),
        "client": {
            "cpu_share": client.cpu_share,
            "lag_p95_seconds": client.lag_p95_seconds,
            "late_p95_seconds": client.late_p95_seconds,
        },
        "options": measurement.options.told(),
        "machine": dict(machine),
    }
    return {key: rounded(value) for key, value in made.items()}


# -- for a person ----------------------------------------------------------------------------------
def table(report: Mapping[str, Any]) -> str:
    """The figures, the targets beside them, and the verdict: what the command prints."""
    parts = [_latencies(report), _summary(report["figures"]), *_stages(report), *_models(report)]
    parts += [_targets(report), *_problems(report["figures"]), _verdict(report)]
    return "\n\n".join(part for part in parts if part)


LATENCIES = (
    ("to the first token", "ttft_seconds"),
    ("between tokens", "itl_seconds"),
    ("whole answer", "total_seconds"),
    ("feedback", "feedback_seconds"),
    ("whole batch", "batch_seconds"),
)


def _latencies(report: Mapping[str, Any]) -> str:
    figures = report["figures"]
    rows = [
        (
            name,
            *(told(figures[key][p], Unit.SECONDS) for p in ("p50", "p95", "p99")),
            str(figures[key]["count"]),
        )
        for name, key in LATENCIES
        if figures.get(key, {}).get("count")
    ]
    return aligned(("", "p50", "p95", "p99", "count"), rows) if rows else "no answer was measured"


def _summary(figures: Figures) -> str:
    speed = figures["tokens_per_second_per_stream"]
    rows = [
        ("requests", f"{figures['requests']}, {figures['errors']} failed ({_share(figures['error_rate'])})"),
        ("requests/s", f"{figures['requests_per_second']:.2f}"),
        ("tokens/s", f"{figures['answer_tokens_per_second']:.1f}"),
    ]
    if speed["count"]:
        rows.append(("tokens/s of a stream", f"{speed['p50']:.1f} (p50), {speed['p5']:.1f} (p5)"))
    if "batch_lines" in figures:
        rows.append(("batch lines/s", f"{figures['batch_lines_per_second']:.2f}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


BRIEF_HEAD = (
    "requests",
    "failed",
    "requests/s",
    "tokens/s",
    "ttft p50",
    "ttft p95",
    "itl p95",
    "a stream p5",
)


def brief(figures: Figures) -> tuple[str, ...]:
    """Figures in one row, under BRIEF_HEAD."""
    return (
        str(figures["requests"]),
        str(figures["errors"]),
        f"{figures['requests_per_second']:.2f}",
        f"{figures['answer_tokens_per_second']:.1f}",
        told(figures["ttft_seconds"]["p50"], Unit.SECONDS),
        told(figures["ttft_seconds"]["p95"], Unit.SECONDS),
        told(figures["itl_seconds"]["p95"], Unit.SECONDS),
        told(figures["tokens_per_second_per_stream"]["p5"], Unit.PER_SECOND),
    )


def stage_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            f"{one['from']:g}" if one["from"] == one["to"] else f"{one['from']:g}-{one['to']:g}",
            *brief(one["figures"]),
        )
        for one in report["stages"]
    ]


def model_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [(name, *brief(figures)) for name, figures in report["by_model"].items()]


def target_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Name, limit, what was measured, whether it is met."""
    rows: list[tuple[str, ...]] = []
    for one in report["targets"]:
        unit = Unit(one["unit"])
        sign = "at least" if unit is Unit.PER_SECOND else "at most"
        met = {True: "met", False: "missed", None: "not known"}[one["met"]]
        rows.append((one["name"], f"{sign} {told(one['limit'], unit)}", told(one["measured"], unit), met))
    return rows


def _stages(report: Mapping[str, Any]) -> Iterator[str]:
    noun = "requests/s" if report["options"]["loop"] == "open" else "users"
    if report["stages"]:
        yield aligned((noun, *BRIEF_HEAD), stage_rows(report))


def _models(report: Mapping[str, Any]) -> Iterator[str]:
    if len(report["by_model"]) > 1:
        yield aligned(("model", *BRIEF_HEAD), model_rows(report))


def _targets(report: Mapping[str, Any]) -> str:
    return aligned(("target", "limit", "measured", ""), target_rows(report))


def _problems(figures: Figures) -> Iterator[str]:
    found = list(figures.get("problems", {}).items())
    if found:
        lines = [f"{count} x {problem}" for problem, count in found[:SHOWN_PROBLEMS]]
        left = len(found) - SHOWN_PROBLEMS
        yield "\n".join([*lines, *([f"and {left} other kinds of errors"] if left > 0 else [])])


def _verdict(report: Mapping[str, Any]) -> str:
    return "\n".join([f"verdict: {report['verdict']}", *(f"  {reason}" for reason in report["reasons"])])


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in columns, the first to the left and the others to the right."""
    whole = [head, *rows]
    widths = [max(len(row[column]) for row in whole) for column in range(len(head))]
    lines = []
    for row in whole:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _missed(checked: Checked) -> str:
    target = checked.target
    unit, is_least = target.kind.unit, target.kind.is_at_least
    limit = f"{'at least' if is_least else 'at most'} {told(target.limit, unit)}"
    return f"{target.name} was {told(checked.measured, unit)}, and is to be {limit}"


def _share(share: float | None) -> str:
    return "none made" if share is None else told(share, Unit.SHARE)
