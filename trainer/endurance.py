"""The load test that a candidate has to stand where its route's policy asks for one: `burnish loadtest` against it alone.

Owns when it may begin, what counts of it, and what follows for the verdict. A candidate is asked as an evaluation asks,
after everybody else (promise 7): where people were served meanwhile, a target that was missed says nothing of the candidate,
and the test is tried again. Does not know how the load is made: the load test is a program of its own.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.errors import EngineFailed
from adapters.load_tests import LoadTest
from trainer.asking import Asker
from trainer.gate import Outcome, Verdict
from trainer.progress import Watch, obey

TRIES = 3
CALM_SECONDS = 600.0
"""How long people's requests are waited for before each try; then it begins beside them."""

WARM_UP_SECONDS = 5.0
SLACK_SECONDS = 120.0
"""Of the pass, beyond the test's own time."""

LOOK_SECONDS = 1.0
KEY_VARIABLE = "BURNISH_API_KEY"

Report = dict[str, Any]
Command = Callable[[str, Path], list[str]]
"""From the gateway's URL and the file of results."""


def measure(asker: Asker, command: Command, seconds: float, watch: Watch, full_above: float) -> Report:
    """The load test's own report, with `tries` and the least `headroom` that people had during the last of them.

    `full_above`: with less headroom than that, people were served meanwhile. Raises EngineFailed, Unavailable, Paused,
    Cancelled.
    """
    for tries in range(1, TRIES + 1):
        _wait_for_calm(watch, full_above)
        report, headroom = _once(asker, command, seconds, watch)
        report |= {"tries": tries, "headroom": headroom}
        if report["verdict"] == "pass" or not is_disturbed(report, full_above):
            break
    return report


def is_disturbed(report: Report, full_above: float) -> bool:
    """Whether people were served while it ran, so that what it missed is not the candidate's."""
    headroom = report["headroom"]
    return headroom is not None and headroom < full_above


def judged(verdict: Verdict, report: Report, full_above: float) -> Verdict:
    """The gate's verdict, with what the load test has shown: only what stood it passes."""
    if report["verdict"] == "pass":
        return verdict
    told = tuple(f"load test: {reason}" for reason in report["reasons"] or ["it told nothing"])
    if report["verdict"] == "fail" and not is_disturbed(report, full_above):
        return replace(verdict, outcome=Outcome.FAIL, reasons=told)
    if report["verdict"] == "fail":
        told = (*told, f"but people were served meanwhile, in each of {report['tries']} tries")
    return replace(verdict, outcome=Outcome.INCONCLUSIVE, reasons=told)


def command_of(url: str, model: str, load_test: LoadTest, seed: int, results: Path) -> list[str]:
    options: dict[str, Any] = {
        "host": url,
        "model": model,
        "users": load_test.users,
        "duration": f"{load_test.seconds:g}s",
        "warm-up": f"{WARM_UP_SECONDS:g}s",
        "prompt-tokens": load_test.prompt_tokens,
        "answer-tokens": load_test.answer_tokens,
        "seed": seed,
        "api-key-env": KEY_VARIABLE,
        "json": results,
    }
    command = [sys.executable, "-m", "loadtests.run"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return command + [part for name, limit in load_test.targets for part in ("--target", f"{name}={limit}")]


def _once(asker: Asker, command: Command, seconds: float, watch: Watch) -> tuple[Report, float | None]:
    with (
        tempfile.TemporaryDirectory(prefix="burnish-loadtest-") as folder,
        asker.lend(seconds + WARM_UP_SECONDS + SLACK_SECONDS) as secret,
    ):
        results = Path(folder, "results.json")
        process = subprocess.Popen(
            command(asker.url, results),
            env={**os.environ, KEY_VARIABLE: secret},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A run's session is nice: the client would be late, and its lateness count as the candidate's. The keeper
            # finds it all the same where the run is killed.
            start_new_session=True,
        )
        said, headroom = _followed(process, watch)
        if not results.is_file():
            last = next((line for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
            raise EngineFailed(f"The load test did not run: {last.strip()[:300]}", code="load_test_failed")
        return json.loads(results.read_text()), headroom


def _followed(process: subprocess.Popen[str], watch: Watch) -> tuple[str, float | None]:
    """What it said, once it has ended, and the least headroom meanwhile; it is ended where the watch wishes so."""
    least = math.inf
    try:
        while True:
            try:
                said = process.communicate(timeout=LOOK_SECONDS)[0]
                return said, None if math.isinf(least) else round(least, 3)
            except subprocess.TimeoutExpired:
                headroom = watch.headroom()
                least = min(least, math.inf if headroom is None else headroom)
                obey(watch.step({}))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait_for_calm(watch: Watch, full_above: float) -> None:
    until = time.monotonic() + CALM_SECONDS
    while time.monotonic() < until:
        headroom = watch.headroom()
        if headroom is None or headroom >= full_above:
            return
        obey(watch.step({}))
        time.sleep(LOOK_SECONDS)
