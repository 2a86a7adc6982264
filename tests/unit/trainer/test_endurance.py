"""A candidate's load test: when it begins, what counts of it, what follows. A program that writes the results of a load
test stands in for it here, as a real process; tests/acceptance/test_release_gate.py runs the real one."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import EngineFailed
from adapters.jobs import Wish
from adapters.keys import Keys
from adapters.load_tests import LoadTest
from adapters.placements import Placements
from tests.migrated import migrated
from trainer import endurance
from trainer.asking import Asker
from trainer.gate import Outcome, Verdict
from trainer.progress import Cancelled, Unwatched

FULL = 0.4
PASSED = Verdict(Outcome.PASS, ("exact match: better",), (), 0.95)


class Headrooms(Unwatched):
    """Says one after another, and then the last for ever."""

    def __init__(self, *values: float | None, wish: Wish | None = None) -> None:
        self.values = list(values)
        self.wish = wish

    def headroom(self) -> float | None:
        return self.values.pop(0) if len(self.values) > 1 else self.values[0]

    def step(self, metrics: dict[str, Any]) -> Wish | None:
        return self.wish


@pytest.fixture
def asker(tmp_path: Path) -> Iterator[Asker]:
    db = migrated(tmp_path / "burnish.db")
    Placements(db).heartbeat("gateway", "http://127.0.0.1:9")
    made = Asker(Keys(db), Placements(db), "run-1")
    yield made
    made.close()
    db.close()


def program(tmp_path: Path, verdict: str, seconds: float = 0.0) -> Callable[[str, Path], list[str]]:
    """A load test that takes so long and finds this; it counts its runs in a file."""
    script = f"""
import json, os, sys, time
from pathlib import Path
with open({str(tmp_path / "runs")!r}, "a") as file:
    print(os.environ["BURNISH_API_KEY"][:4], os.getpid(), flush=True, file=file)
time.sleep({seconds})
found = {{"verdict": {verdict!r}, "reasons": ["ttft_p95 was 900 ms"], "targets": [], "figures": {{}}}}
Path(sys.argv[2]).write_text(json.dumps(found))
"""
    return lambda url, results: [sys.executable, "-c", script, url, str(results)]


def runs(tmp_path: Path) -> list[str]:
    return (tmp_path / "runs").read_text().splitlines()


def test_what_stood_the_load_keeps_its_verdict(asker: Asker, tmp_path: Path) -> None:
    report = endurance.measure(asker, program(tmp_path, "pass"), 1, Headrooms(1.0), FULL)
    assert (report["verdict"], report["tries"]) == ("pass", 1)
    assert endurance.judged(PASSED, report, FULL) is PASSED


def test_the_program_gets_a_pass_of_its_own_that_ends_with_it(asker: Asker, tmp_path: Path) -> None:
    asked: list[str] = []

    def command(url: str, results: Path) -> list[str]:
        asked.append(url)
        return program(tmp_path, "pass")(url, results)

    endurance.measure(asker, command, 1, Unwatched(), FULL)
    assert asked == ["http://127.0.0.1:9"]
    assert runs(tmp_path)[0].split()[0]  # a secret, of whatever form keys have


def test_a_missed_target_fails_a_candidate_that_had_the_engines_to_itself(
    asker: Asker, tmp_path: Path
) -> None:
    report = endurance.measure(asker, program(tmp_path, "fail"), 1, Headrooms(1.0), FULL)
    verdict = endurance.judged(PASSED, report, FULL)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.reasons == ("load test: ttft_p95 was 900 ms",)
    assert len(runs(tmp_path)) == 1


def test_a_target_that_was_missed_beside_people_is_tried_again_and_says_nothing_then(
    asker: Asker, tmp_path: Path
) -> None:
    calm_then_people = Headrooms(*[1.0, 0.1, 0.1, 0.1] * 40)
    report = endurance.measure(asker, program(tmp_path, "fail", 2.5), 1, calm_then_people, FULL)
    assert len(runs(tmp_path)) == report["tries"] == endurance.TRIES
    verdict = endurance.judged(PASSED, report, FULL)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "people were served meanwhile" in verdict.reasons[-1]


def test_it_does_not_begin_while_people_have_no_headroom(asker: Asker, tmp_path: Path) -> None:
    began = time.monotonic()
    endurance.measure(asker, program(tmp_path, "pass"), 1, Headrooms(0.0, 0.0, 1.0), FULL)
    assert time.monotonic() - began > 2 * endurance.LOOK_SECONDS


def test_what_could_not_be_measured_is_inconclusive(asker: Asker, tmp_path: Path) -> None:
    report = endurance.measure(asker, program(tmp_path, "inconclusive"), 1, Headrooms(None), FULL)
    assert endurance.judged(PASSED, report, FULL).outcome is Outcome.INCONCLUSIVE


def test_one_that_does_not_run_ends_the_run_and_says_why(asker: Asker) -> None:
    fails = "import sys; print('no target ttft_p96; did you mean ttft_p95?', file=sys.stderr); sys.exit(2)"
    with pytest.raises(EngineFailed, match="did you mean ttft_p95") as caught:
        endurance.measure(asker, lambda url, results: [sys.executable, "-c", fails], 1, Unwatched(), FULL)
    assert caught.value.code == "load_test_failed"


def test_a_wish_to_stop_ends_it_and_its_program(asker: Asker, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        endurance.measure(asker, program(tmp_path, "pass", 600), 1, Headrooms(1.0, wish=Wish.CANCEL), FULL)
    pid = int(runs(tmp_path)[0].split()[1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_command_says_what_the_policy_asks_for() -> None:
    wanted = LoadTest((("ttft_p95", "500ms"), ("error_rate", "1%")), users=3, seconds=20)
    command = endurance.command_of("http://127.0.0.1:8", "support@2", wanted, 7, Path("/tmp/results.json"))
    told = dict(zip(command[3::2], command[4::2], strict=True))
    assert told["--model"] == "support@2"
    assert (told["--users"], told["--duration"], told["--seed"]) == ("3", "20s", "7")
    assert command[-4:] == ["--target", "ttft_p95=500ms", "--target", "error_rate=1%"]
    json.dumps(told)
