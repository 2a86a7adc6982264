"""The co-serving benchmark: its client against a fake engine, its numbers, and the command, very short."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from adapters.settings import load_settings
from loadtests.coserving.background import tokens_a_step
from loadtests.coserving.results import Measured, Results, Work
from loadtests.coserving.scenarios import SCENARIOS, Plan, Stage, targets_of
from loadtests.coserving.table import is_in_target, latencies, table
from loadtests.fake_engine.process import FakeEngine
from loadtests.percentiles import percentile
from loadtests.servers import System, Targets, settings_text
from loadtests.stream import Answer, play, saturate
from loadtests.workload import Ask, Lengths, body, crowd, trace
from tests.unit.trainer.tiny import write_weights

SOURCE = Path(__file__).resolve().parents[3]
MODEL = "smollm2-135m-instruct"
TARGETS = Targets(ttft_seconds=1.0, itl_seconds=0.1)
MACHINE = {"cores": 2, "cpu": "a processor", "gpus": [], "python": "3.11", "versions": {"burnish": "1"}}


def answer(ttft: float | None = 0.5, gaps: tuple[float, ...] = (), error: str | None = None) -> Answer:
    return Answer(0.0, 0.0, ttft, 1.0, gaps, 10, 5, error)


def body_of(ask: Ask, number: int) -> dict[str, object]:
    return body(ask, MODEL, f"{number:03d}", streams=True)


# -- the client ------------------------------------------------------------------------------------
def played(engine: FakeEngine, asks: list[Ask]) -> list[Answer]:
    return asyncio.run(play(engine.url, asks, body_of, time.monotonic() + 0.1))


def test_an_engine_that_stalls_delays_no_later_arrival(engine: FakeEngine) -> None:
    engine.set(ttft_seconds=2.0)
    answers = played(engine, [Ask(0.1 * number, "word", 2) for number in range(10)])
    assert engine.stats()["max_active"] == 10  # the last was sent before the first was answered
    assert all(found.late_seconds < 1.0 for found in answers)
    assert [found.at_seconds for found in answers] == [0.1 * number for number in range(10)]


def test_the_first_token_counts_from_when_the_request_was_due(engine: FakeEngine) -> None:
    due = time.monotonic() - 3.0  # as if the client had been held up for so long
    (found,) = asyncio.run(play(engine.url, [Ask(0.0, "word", 2)], body_of, due))
    assert found.late_seconds >= 3.0
    assert found.ttft_seconds is not None
    assert found.ttft_seconds >= found.late_seconds


def test_times_are_those_of_the_tokens(engine: FakeEngine) -> None:
    engine.set(ttft_seconds=0.3, itl_seconds=0.1)
    (found,) = played(engine, [Ask(0.0, "word", 5)])
    assert found.error is None
    assert found.answer_tokens == 5
    assert found.ttft_seconds is not None
    assert found.ttft_seconds >= 0.3
    assert len(found.gaps_seconds) == 4
    assert sum(found.gaps_seconds) >= 0.3
    assert found.total_seconds >= found.ttft_seconds + sum(found.gaps_seconds)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("refuse", "503"),
        ("close_before_headers", "closed"),
        ("close_mid_stream", "closed"),
        ("missing_done", "[DONE]"),
        ("error_event_mid_stream", "in the stream"),
        ("garbage_http", "HTTP"),
        ("garbage_sse", "event"),
    ],
)
def test_every_way_to_fail_is_an_error_of_its_request_alone(
    engine: FakeEngine, fault: str, told: str
) -> None:
    engine.set(fault=fault, fault_count=1)
    answers = played(engine, [Ask(0.0, "word", 8), Ask(0.5, "word", 8)])
    assert told in str(answers[0].error)
    assert answers[1].error is None


def test_nobody_there_is_an_error(engine: FakeEngine) -> None:
    (found,) = asyncio.run(play("http://127.0.0.1:9", [Ask(0.0, "word", 2)], body_of, time.monotonic()))
    assert "no connection" in str(found.error)
    assert found.ttft_seconds is None


def test_a_closed_loop_asks_everything_and_never_more_at_once(engine: FakeEngine) -> None:
    engine.set(ttft_seconds=0.02)
    times = asyncio.run(saturate(engine.url, crowd(1, 20, Lengths()), body_of, 4))
    assert len(times) == 20
    assert times == sorted(times)
    assert engine.stats()["max_active"] == 4


def test_a_closed_loop_that_fails_says_why(engine: FakeEngine) -> None:
    engine.set(fault="refuse")
    with pytest.raises(RuntimeError, match="503"):
        asyncio.run(saturate(engine.url, crowd(1, 8, Lengths()), body_of, 4))


# -- the numbers -----------------------------------------------------------------------------------
def test_a_percentile_is_the_nearest_rank() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert percentile([7.0], 0.95) == 7
    assert percentile([1.0, 2.0, math.inf], 0.5) == 2
    assert math.isnan(percentile([], 0.5))


def test_a_request_without_a_first_token_took_for_ever() -> None:
    ttft, itl = latencies([answer(0.1, (0.01, 0.03)), answer(0.2, (0.02,)), answer(None, error="503")])
    assert (ttft.p50, ttft.p95) == (0.2, math.inf)
    assert (itl.p50, itl.p99) == (0.02, 0.03)


@pytest.mark.parametrize(
    ("found", "is_in"),
    [
        (answer(1.0, (0.1,) * 19 + (9.0,)), True),  # one gap in twenty may be long
        (answer(1.0, (0.1,) * 18 + (9.0,) * 2), False),
        (answer(1.1, (0.1,)), False),
        (answer(1.0, ()), True),
        (answer(0.1, (0.01,), error="the stream ended without [DONE]"), False),
        (answer(None, error="503"), False),
    ],
)
def test_in_target_is_whole_and_in_time_by_its_own_gaps(found: Answer, is_in: bool) -> None:
    assert is_in_target(found, TARGETS) is is_in


def test_targets_are_half_as_much_again_as_alone_rounded_up() -> None:
    assert targets_of([answer(0.1234, (0.02, 0.02)), answer(0.1, ())]) == Targets(0.19, 0.03)
    with pytest.raises(RuntimeError, match="503"):
        targets_of([answer(None, error="503")])
    with pytest.raises(RuntimeError, match="longer answers"):
        targets_of([answer(0.1, ())])


def test_who_was_slowest_alone_is_in_target() -> None:
    slow = answer(0.9, (0.3,) * 10)  # two of a hundred of all gaps
    alone = [*(answer(0.1, (0.02,) * 10) for _ in range(49)), slow]
    assert all(is_in_target(one, targets_of(alone)) for one in alone)


def test_the_tokens_of_a_step_are_told_by_pace_and_time_left() -> None:
    # 40 steps in 20 s of 100 tokens each; 60 are left
    progress = {"step": 40, "total_steps": 100, "tokens_per_second": 200.0, "eta_seconds": 30.0}
    assert tokens_a_step(progress) == pytest.approx(100)
    assert tokens_a_step({"stage": "train", "total_steps": 100}) == 0


def results(*measured: Measured, engine: str = "real") -> Results:
    options = {"seconds": 10.0, "rounds": 2, "engine": engine}
    return Results(options, MACHINE, 2.0, 4.0, TARGETS, list(measured))


def rows_of(text: str) -> dict[str, list[str]]:
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines[2:]}


def test_a_row_is_the_median_of_its_rounds_with_the_least_and_the_most() -> None:
    found = results(
        *(Measured("alone", n + 1, 10.0, (answer(0.1 * (n + 1), (0.02,)),), None, None) for n in range(3))
    )
    assert rows_of(table(found)) == {
        "alone": ["1", "0", *["200 (100–300)"] * 3, *["20"] * 3, "100.0", "", "", "", ""]
    }


def test_work_is_shown_beside_what_it_does_alone_in_the_same_round() -> None:
    def work(per_second: float) -> Work:
        return Work(10, 0, 10.0, per_second, False)

    found = results(
        Measured("batch-only", 1, 10.0, (), work(4.0), None),
        Measured("batch-only", 2, 10.0, (), work(8.0), None),
        Measured("training-only", 1, 10.0, (), None, work(200.0)),
        Measured("both", 1, 10.0, (answer(),), work(1.0), work(50.0)),
        Measured("both", 2, 10.0, (answer(),), work(2.0), work(80.0)),
    )
    rows = rows_of(table(found))
    assert rows["batch-only"][-4:-2] == ["6.00 (4.00–8.00)", "100"]
    assert rows["training-only"][:9] == [""] * 9
    assert rows["both"][-4:] == ["1.50 (1.00–2.00)", "25", "65 (50–80)", "25"]


def test_what_makes_a_row_less_than_it_seems_is_told() -> None:
    late = Answer(0.0, 0.5, 0.6, 1.0, (), 1, 1, None)
    text = table(
        results(
            Measured(
                "batch", 1, 10.0, (late, answer(None, error="503: full")), Work(9, 3, 10, 0.9, True), None
            ),
            engine="fake",
        )
    )
    for part in ("late by 500 ms", "ended before the trace", "3 lines", "503: full", "nothing else"):
        assert part in text


def test_results_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    found = results(
        Measured(
            "both",
            1,
            10.0,
            (answer(0.1, (0.02, 0.0344999999)), answer(None, error="503")),
            None,
            Work(1, 0, 2.0, 3.0, False),
        )
    )
    found.write(tmp_path / "numbers.json")
    assert Results.read(tmp_path / "numbers.json") == found
    assert table(Results.read(tmp_path / "numbers.json")) == table(found)


# -- the servers and the command -------------------------------------------------------------------
@pytest.mark.parametrize("priority", [True, False])
@pytest.mark.parametrize("engine_name", ["real", "fake"])
def test_the_servers_settings_are_ones_that_burnish_takes(
    tmp_path: Path, engine_name: str, priority: bool
) -> None:
    given = {"engine": {"max_concurrent": 16}, "training": {"gpu_memory_share": 0.2}}
    system = System(engine_name, tmp_path, given)
    file = tmp_path / "burnish.toml"
    file.write_text(settings_text(system, "http://127.0.0.1:1", TARGETS, priority=priority))
    settings = load_settings(file, {})
    assert (settings.priority.enabled, settings.training.nice) == (priority, priority)
    assert settings.training.gpu_memory_share == 0.2
    assert (settings.targets.ttft_p95_seconds, settings.targets.itl_p95_seconds) == (1.0, 0.1)
    assert settings.engines[0].max_concurrent == 16
    assert "targets" not in tomllib.loads(settings_text(system, "http://127.0.0.1:1", None, priority=True))


def test_an_engines_environment_may_be_set(tmp_path: Path) -> None:
    given = {"engine": {"env": {"BURNISH_BUSY_WAIT_SECONDS": "1", "OMP_NUM_THREADS": "2"}}}
    file = tmp_path / "burnish.toml"
    file.write_text(settings_text(System("real", tmp_path, given), "", None, priority=True))
    assert load_settings(file, {}).engines[0].env == given["engine"]["env"]


def test_a_servers_first_people_are_not_counted(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtests.coserving.scenarios.REST_SECONDS", 0.0)
    counted, others = (Ask(0.0, "word", 2),) * 3, (Ask(0.0, "word", 2),) * 2
    plan = Plan(MODEL, counted, others, 0.5, 0.0, (), training_rows=0, training_batch_size=0)
    stage, scenario = Stage(engine.url, plan), next(one for one in SCENARIOS if one.name == "alone")
    found = [asyncio.run(stage.measure(scenario, number)) for number in (1, 2)]
    assert [len(each.answers) for each in found] == [3, 3]
    assert len(engine.requests("/v1/chat/completions")) == 2 + 3 + 3


def test_every_scenario_has_its_counterpart_without_priorities() -> None:
    by_name = {scenario.name: scenario for scenario in SCENARIOS}
    for name in ("batch", "training", "both"):
        on, off = by_name[name], by_name[f"{name}-off"]
        assert (on.interactive, on.batch, on.training) == (off.interactive, off.batch, off.training)
        assert (on.priority, off.priority) == (True, False)


def command(*arguments: str, home: Path) -> subprocess.Popen[str]:
    environ = {**os.environ, "TMPDIR": str(home)}
    return subprocess.Popen(
        [sys.executable, "-m", "loadtests.coserving", "--engine", "fake", *arguments],
        cwd=SOURCE,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def short_tmp(tmp_path: Path) -> Path:
    folder = tmp_path / "t"
    folder.mkdir()
    return folder


def processes_of(folder: Path) -> list[str]:
    """Those whose environment names a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_the_command_measures_a_trace_alone_and_beside_batch_and_training(short_tmp: Path) -> None:
    write_weights(short_tmp / "weights" / MODEL)
    numbers = short_tmp / "numbers.json"
    process = command(
        *("--seconds", "3", "--rate", "5", "--warm-seconds", "1", "--training-rows", "64"),
        *("--scenarios", "alone,both,batch-off", "--batch-lines", "6000"),
        *("--weights", str(short_tmp / "weights"), "--json", str(numbers)),
        home=short_tmp,
    )
    out, told = process.communicate(timeout=280)
    assert process.returncode == 0, told
    rows = rows_of(out)
    assert [*rows] == ["alone", "both", "batch-off"]
    count = len(trace(1, 3, 5, Lengths()))
    assert all(row[:2] == [str(count), "0"] for row in rows.values())
    assert rows["alone"][-4:] == [""] * 4
    assert [float(rows[name][-4]) > 0 for name in ("both", "batch-off")] == [True, True]
    assert float(rows["both"][-2]) >= 0  # 0 where it gave way for so short a time
    assert len(json.loads(numbers.read_text())["measured"][1]["answers"]) == count
    again = subprocess.run(
        [sys.executable, "-m", "loadtests.coserving", "--from", str(numbers)],
        cwd=SOURCE, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert again.stdout == out
    assert not processes_of(short_tmp)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_measurement_that_is_stopped_ends_what_it_started(short_tmp: Path, number: signal.Signals) -> None:
    process = command(
        *("--seconds", "100", "--rate", "5", "--ttft-target", "1", "--itl-target", "0.1"),
        *("--scenarios", "alone", "--weights", str(short_tmp / "weights")),
        home=short_tmp,
    )
    assert process.stderr is not None
    assert "alone" in process.stderr.readline()
    until = time.monotonic() + 60
    while len(processes_of(short_tmp)) < 3 and time.monotonic() < until:
        time.sleep(0.1)
    assert len(processes_of(short_tmp)) >= 3  # itself, the engine, the gateway
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert not processes_of(short_tmp)
