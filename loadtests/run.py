"""`python -m loadtests.run`, which `burnish loadtest` starts: loads a server, prints what it found against the targets,
writes the report.

    0 all targets met   1 one is missed   2 wrong usage   3 it could not be measured   130 Ctrl-C

Ctrl-C ends it with the report so far. Speaks HTTP only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loadtests.machine import machine
from loadtests.measurement import Measurement
from loadtests.options import BAD_USAGE, PROGRAM, Options, parse
from loadtests.report import STATUS, Outcome, report_of, table, unmeasured
from loadtests.targets import Unit, told

PROGRESS_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        from loadtests import swarm  # patches this process for gevent
    except ModuleNotFoundError as error:
        if error.name not in ("locust", "gevent", "geventhttpclient"):
            raise
        print(f"{PROGRAM}: {error.name} is not installed; install burnish[loadtest]", file=sys.stderr)
        return BAD_USAGE
    measurement = Measurement(options)
    caught = None
    try:
        caught = swarm.run(options, measurement, _progress(options))
        report = report_of(measurement, machine())
        print(table(report))
    except swarm.Unmeasurable as error:
        report = unmeasured(str(error), measurement)
        print(f"{PROGRAM}: {error}", file=sys.stderr)
    _write(options, report, measurement)
    return STATUS[Outcome(report["verdict"])] if caught is None else 128 + caught


def _write(options: Options, report: Mapping[str, Any], measurement: Measurement) -> None:
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.html is not None:
        from loadtests.page import page  # matplotlib takes a while

        options.html.write_text(page(report, measurement))
    for file in (options.json, options.html):
        if file is not None:
            print(f"written: {file}", file=sys.stderr)


def _progress(options: Options) -> Callable[[Measurement, float], None]:
    """A line now and then on how it goes."""
    next_at = [PROGRESS_SECONDS]

    def tell(measurement: Measurement, at: float) -> None:
        if at < next_at[0]:
            return
        next_at[0] = at + PROGRESS_SECONDS - 0.5
        found, end = measurement.all, measurement.window.end
        where = "warming up" if at < measurement.window.begin else "measuring" if at < end else "last answers"
        ttft = told(found.ttft.percentile(0.95), Unit.SECONDS)
        print(
            f"{at:4.0f} of {end:.0f} s, {where}: {measurement.in_flight} in flight, {found.requests} done, "
            f"{found.errors} failed, ttft p95 {ttft}",
            file=sys.stderr,
            flush=True,
        )

    return tell


if __name__ == "__main__":
    raise SystemExit(main())
