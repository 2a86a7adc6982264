"""The command line: the calibration, every scenario in turn, round by round, and the table."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import uvloop

from loadtests.coserving.results import Results
from loadtests.coserving.scenarios import SCENARIOS, Plan, Scenario, Stage, alone, capacity, targets_of
from loadtests.coserving.table import table
from loadtests.machine import machine
from loadtests.servers import System, Targets, serving
from loadtests.workload import Lengths, crowd, trace

LINES_OVER = 2
"""Lines of a batch, as a multiple of what the engine would answer at its saturation in the time."""
BACKGROUND_SECONDS = 90.0
"""Of a batch's life beside the trace itself: until it works, and until the last answer."""
LEAST_LINES = 200
MOST_LINES_OF_ALL = 400_000
"""Eight batches, as many as a gateway works on at once."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.from_file is not None:
        print(table(Results.read(options.from_file)))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers are ended then too
    signal.signal(signal.SIGINT, signal.default_int_handler)
    system = System(options.engine, options.weights, _tables(options.set))
    try:
        run(options, system)
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    except (RuntimeError, httpx.HTTPError) as problem:
        _say(f"{type(problem).__name__}: {problem}")
        return 1
    return 0


def run(options: argparse.Namespace, system: System) -> None:
    """Everything, and the table of what there is at the end, whatever ended it. Raises RuntimeError."""
    results = _calibrated(options, system)
    plan = _plan(options, system.model, results)
    try:
        _all_rounds(options, system, results, plan)
    finally:
        if results.measured:
            if options.json is not None:
                results.write(options.json)
            print(table(results), flush=True)


def _all_rounds(options: argparse.Namespace, system: System, results: Results, plan: Plan) -> None:
    with _Shelf(system, results.targets, plan) as shelf:
        for number in range(options.rounds):
            for scenario in _in_turn(options.scenarios, number):
                _say(f"round {number + 1} of {options.rounds}: {scenario.name}")
                stage = shelf.stage(priority=scenario.priority)
                results.measured.append(uvloop.run(stage.measure(scenario, number + 1)))


class _Shelf(contextlib.AbstractContextManager["_Shelf"]):
    """One server at a time: the same as long as the same is asked for."""

    def __init__(self, system: System, targets: Targets, plan: Plan) -> None:
        self._system, self._targets, self._plan = system, targets, plan
        self._servers = contextlib.ExitStack()
        self._held: tuple[bool, Stage] | None = None

    def stage(self, *, priority: bool) -> Stage:
        if self._held is None or self._held[0] != priority:
            self._held = None
            self._servers.close()
            url = self._servers.enter_context(serving(self._system, self._targets, priority=priority))
            self._held = (priority, Stage(url, self._plan))
        return self._held[1]

    def __exit__(self, *problem: object) -> None:
        self._servers.close()


def _in_turn(scenarios: Sequence[Scenario], number: int) -> list[Scenario]:
    """With the priorities first in even rounds, without them first in odd ones: what drifts with time hits both, and
    half the rounds begin on the server that is up."""
    return sorted(scenarios, key=lambda scenario: scenario.priority == bool(number % 2))


def _calibrated(options: argparse.Namespace, system: System) -> Results:
    """The rate and the targets: given, or measured on a server of Burnish's own targets."""
    rate, found = options.rate, None
    targets = Targets(options.ttft_target or math.nan, options.itl_target or math.nan)
    if rate is None or None in (options.ttft_target, options.itl_target):
        with serving(system, None, priority=True) as url:
            if rate is None:
                _say("calibration: the rate at which the engine is saturated")
                found = uvloop.run(capacity(url, system.model, options.seed, _lengths(options)))
                rate = found * options.load
                _say(f"calibration: it is {found:.2f} a second")
            if None in (options.ttft_target, options.itl_target):
                _say(f"calibration: the trace alone, {rate:.2f} requests a second")
                asks = trace(options.seed, options.seconds, rate, _lengths(options))
                measured = targets_of(uvloop.run(alone(url, system.model, asks)))
                targets = Targets(
                    options.ttft_target or measured.ttft_seconds, options.itl_target or measured.itl_seconds
                )
    kept = {
        name: value for name, value in vars(options).items() if name not in ("json", "from_file", "weights")
    }
    kept["scenarios"] = [scenario.name for scenario in options.scenarios]
    return Results(kept, machine(), rate, found, targets)


def _plan(options: argparse.Namespace, model: str, results: Results) -> Plan:
    asks = trace(options.seed, options.seconds, results.rate, _lengths(options))
    if not asks:
        raise RuntimeError(f"no request comes within {options.seconds:g} s at {results.rate:.2f} a second")
    seconds = options.seconds + options.warm_seconds + BACKGROUND_SECONDS
    most = LINES_OVER * seconds * (results.capacity or results.rate / options.load)
    lines = options.batch_lines or max(LEAST_LINES, min(MOST_LINES_OF_ALL, math.ceil(most)))
    needs_batch = any(scenario.batch for scenario in options.scenarios)
    return Plan(
        model=model,
        asks=asks,
        warm_asks=trace(options.seed + 2, options.warm_seconds, results.rate, _lengths(options)),
        seconds=options.seconds,
        warm_seconds=options.warm_seconds,
        batch_asks=crowd(options.seed + 1, lines, _lengths(options)) if needs_batch else (),
        training_rows=options.training_rows,
        training_batch_size=options.training_batch_size,
    )


def _lengths(options: argparse.Namespace) -> Lengths:
    return Lengths(options.prompt_tokens, options.answer_tokens)


def _tables(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """TABLE.KEY=VALUE, again and again."""
    tables: dict[str, dict[str, Any]] = {}
    for text in given:
        name, _, value = text.partition("=")
        section, _, key = name.rpartition(".")
        try:
            tables.setdefault(section, {})[key] = json.loads(value)
        except ValueError:
            tables.setdefault(section, {})[key] = value
    return tables


def _scenarios(text: str) -> list[Scenario]:
    known = {scenario.name: scenario for scenario in SCENARIOS}
    asked = text.split(",")
    if unknown := set(asked) - {*known}:
        raise argparse.ArgumentTypeError(
            f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    return [scenario for scenario in SCENARIOS if scenario.name in asked]


def _setting(text: str) -> str:
    if "." not in text.partition("=")[0] or "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not TABLE.KEY=VALUE")
    return text


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return value


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.coserving",
        description="What batch lines and training do to interactive requests on the same machine.",
    )
    add = parser.add_argument
    add("--seconds", type=_positive, default=60.0, help="length of the trace (%(default)s)")
    add("--rounds", type=int, default=1, help="all scenarios so often, in turn (%(default)s)")
    add("--rate", type=_positive, help="requests a second; else a share of what saturates the engine")
    add("--load", type=_positive, default=0.5, help="that share (%(default)s)")
    add("--ttft-target", type=_positive, metavar="SECONDS", help="else 1.5 times the p99 alone")
    add("--itl-target", type=_positive, metavar="SECONDS", help="else so, of a request's own p95")
    add("--engine", default="real", metavar="real|fake|URL", help="one that Burnish starts, or a vLLM's URL")
    add("--scenarios", type=_scenarios, default=list(SCENARIOS), help=",".join(one.name for one in SCENARIOS))
    add("--seed", type=int, default=1)
    add("--prompt-tokens", type=int, default=64, help="median (%(default)s)")
    add("--answer-tokens", type=int, default=32, help="median (%(default)s)")
    add(
        "--warm-seconds",
        type=float,
        default=10.0,
        help="of batch and training before the trace, and of people before a server's first (%(default)s)",
    )
    add("--batch-lines", type=int, help="else twice what the engine could answer in the time")
    add("--training-rows", type=int, default=1000, help="gone through 50 times at most (%(default)s)")
    add(
        "--training-batch-size",
        type=int,
        default=4,
        help="rows a step: few, so that speed is seen (%(default)s)",
    )
    add("--set", type=_setting, action="append", default=[], metavar="TABLE.KEY=VALUE",
        help="in the servers' burnish.toml; the table `engine` is the engine's")  # fmt: skip
    add("--weights", type=Path, default=_cache() / "burnish-tests" / "weights",
        help="folder of base models, fetched into once (%(default)s)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write every request's numbers there")
    add("--from", type=Path, metavar="FILE", dest="from_file", help="print the table of such a file, and end")
    return parser.parse_args(arguments)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
