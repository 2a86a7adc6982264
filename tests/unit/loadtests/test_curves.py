"""The curves: the closed loop, what its answers come to, the adapters, and the command against a fake engine."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.preflight import inspect
from loadtests.curves.__main__ import ANY_CONFIG
from loadtests.curves.adapters import module_shapes, write_adapter
from loadtests.curves.measure import Load, Target, level
from loadtests.curves.points import Point
from loadtests.curves.results import Results
from loadtests.curves.table import table
from loadtests.fake_engine.process import FakeEngine
from loadtests.stream import Answer, Loop, keep_asking
from loadtests.workload import Ask, Lengths, body, crowd

SOURCE = Path(__file__).resolve().parents[3]
MODEL = "smollm2-135m-instruct"


def body_of(ask: Ask, number: int) -> dict[str, Any]:
    return body(ask, MODEL, f"{number:03d}", streams=True)


def asked(engine: FakeEngine, streams: int, seconds: float, warm_seconds: float = 30.0) -> Loop:
    asks = crowd(1, 50, Lengths(8, 4))
    return asyncio.run(keep_asking(engine.url, asks, body_of, streams, seconds, warm_seconds))


def answer(
    at: float, ttft: float | None, gaps: tuple[float, ...], tokens: int | None, error: str | None = None
) -> Answer:
    total = (ttft or 0.0) + sum(gaps)
    return Answer(at, 0.0, ttft, total, gaps, 10, tokens, error)


# -- the closed loop -------------------------------------------------------------------------------
def test_so_many_are_under_way_and_never_more(engine: FakeEngine) -> None:
    engine.set(ttft_seconds=0.05)
    loop = asked(engine, 4, 1.0)
    assert engine.stats()["max_active"] == 4
    assert len(loop.answers) > 8
    assert all(found.error is None for found in loop.answers)


def test_the_time_begins_when_every_caller_has_been_answered_once(engine: FakeEngine) -> None:
    engine.set(ttft_seconds=0.3)
    loop = asked(engine, 3, 1.5)
    ends = sorted(found.at_seconds + found.total_seconds for found in loop.answers)
    assert loop.begin_seconds >= ends[2] - 0.05
    assert loop.end_seconds == pytest.approx(loop.begin_seconds + 1.5, abs=0.1)


def test_an_engine_that_takes_long_is_not_waited_for_before_the_time_but_after_it(engine: FakeEngine) -> None:
    engine.set(ttft_seconds=2.0)
    loop = asked(engine, 2, 0.2, warm_seconds=0.1)
    assert loop.begin_seconds < 1.5
    assert len(loop.answers) == 2
    assert all(found.ttft_seconds is not None for found in loop.answers)


def test_the_time_is_stretched_until_so_many_have_asked_as_are_under_way(engine: FakeEngine) -> None:
    engine.set(ttft_seconds=0.7)
    loop = asked(engine, 10, 0.3)
    within = [found for found in loop.answers if loop.begin_seconds <= found.at_seconds < loop.end_seconds]
    assert len(within) >= 10
    assert 0.3 < loop.end_seconds - loop.begin_seconds < 4 * 0.3 + 0.5


def test_a_server_that_refuses_is_not_asked_as_fast_as_it_can(engine: FakeEngine) -> None:
    engine.set(fault="refuse")
    loop = asked(engine, 2, 1.0)
    assert all("503" in str(found.error) for found in loop.answers)
    assert len(loop.answers) <= 20


# -- the numbers -----------------------------------------------------------------------------------
LOOP = Loop(
    (
        answer(0.0, 5.0, (), 1),  # before the time: of the warm-up
        answer(9.0, 0.5, (1.0, 1.0, 1.0), 8),  # asked before it: its tokens from 10.0 on count
        answer(10.0, 1.0, (0.5, 0.5), 6),
        answer(12.0, 2.0, (1.0,) * 9, 10),  # goes on beyond the end
        answer(13.0, None, (), None, "503: full"),
    ),
    begin_seconds=10.0,
    end_seconds=20.0,
)


def test_latencies_are_of_those_asked_within_the_time() -> None:
    point = Point.of("x", 2, 0, LOOP)
    assert (point.requests, point.errors, point.first_error) == (3, 1, "503: full")
    assert (point.ttft.p50, point.ttft.p95) == (2.0, math.inf)


def test_tokens_count_by_when_they_came() -> None:
    point = Point.of("x", 2, 0, LOOP)
    # 3 pieces of 2 tokens, 3 of 2, and 6 (from 14 to 19) of 1
    assert point.answer_tokens_per_second * 10 == pytest.approx(6 + 6 + 6)
    assert point.requests_per_second == pytest.approx(0.2)
    assert point.itl.p50 == 1.0


def test_a_streams_rate_is_without_its_first_token() -> None:
    point = Point.of("x", 2, 0, LOOP)
    assert (point.stream_rate_p5, point.stream_rate_p50) == (pytest.approx(1.0), pytest.approx(1.0))
    fast = Point.of("x", 1, 0, replace(LOOP, answers=LOOP.answers[2:3]))
    assert fast.stream_rate_p50 == pytest.approx(4.0)  # four tokens of six in one second


def test_nothing_that_came_is_no_number() -> None:
    point = Point.of("x", 1, 0, Loop((), 0.0, 1.0))
    assert math.isnan(point.ttft.p50)
    assert point.answer_tokens_per_second == 0
    assert point.costs_per_million(1.0) == (math.inf, math.inf)


def test_a_million_tokens_cost_the_engines_time_for_them() -> None:
    point = replace(Point.of("x", 1, 0, LOOP), answer_tokens_per_second=900.0, prompt_tokens_per_second=100.0)
    # a thousand a second: 3.6 million an hour, of which 3.24 million are of answers
    assert point.costs_per_million(3.6) == (pytest.approx(1.0), pytest.approx(1.0 / 0.9))


def test_a_table_names_who_was_asked_where_there_are_several() -> None:
    points = [Point.of(name, 2, 0, LOOP) for name in ("Burnish", "the engine alone")]
    one, both = table(points[:1]), table(points, 2.0)
    assert "asked" not in one.splitlines()[0]
    assert both.splitlines()[0].startswith("| asked | streams |")
    assert both.splitlines()[0].rstrip(" |").endswith("| per million of answers alone")
    assert both.splitlines()[3].startswith("| the engine alone | 2 | 0 | 3 | 1 | 2000 | ∞ |")
    assert "503: full" in both
    assert len({line.count("|") for line in both.splitlines() if line.startswith("|")}) == 1


def test_results_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    results = Results({"seconds": 9.9999999999}, {"cores": 2})
    results.add("concurrency", Point.of("x", 2, 0, LOOP))
    results.write(tmp_path / "points.json")
    assert Results.read(tmp_path / "points.json") == results


# -- the adapters ----------------------------------------------------------------------------------
def test_an_adapter_is_one_that_burnish_takes(tmp_path: Path) -> None:
    facts = inspect(write_adapter(tmp_path / "load-00", ANY_CONFIG, 16, 0), base_config=ANY_CONFIG)
    assert facts.rank == 16
    assert len(facts.target_modules) == 7
    assert facts.tensors == 2 * 7 * ANY_CONFIG["num_hidden_layers"]


def test_another_seed_is_another_adapter_and_the_same_is_the_same(tmp_path: Path) -> None:
    made = [
        write_adapter(tmp_path / name, ANY_CONFIG, 8, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    first, second, third = ((folder / "adapter_model.safetensors").read_bytes() for folder in made)
    assert first == second != third


def test_shapes_follow_the_config_with_few_key_value_heads() -> None:
    config = ANY_CONFIG | {"num_key_value_heads": 2, "head_dim": 8}
    shapes = module_shapes(config)
    assert shapes["self_attn.q_proj"] == (64, 32)
    assert shapes["self_attn.v_proj"] == (64, 16)
    assert shapes["mlp.down_proj"] == (128, 64)


def test_adapters_are_asked_in_turn(engine: FakeEngine, tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    for number, name in enumerate(names):
        engine.load(name, write_adapter(tmp_path / name, ANY_CONFIG, 8, number))
    engine.set(ttft_seconds=0.02)
    load = Load(Lengths(8, 4), 1.0, 10.0, 1)
    point = asyncio.run(level(Target("x", engine.url, MODEL), load, 3, names))
    counted = engine.stats()["models"]
    assert set(counted) == set(names)
    assert max(counted.values()) - min(counted.values()) <= 1
    assert (point.adapters, point.errors) == (3, 0)


# -- the command -----------------------------------------------------------------------------------
def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadtests.curves", *arguments],
        cwd=SOURCE, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip


def test_the_command_measures_both_curves_through_burnish_and_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "points.json"
    ended = command(
        *("--engine", "fake", "--beside", "--levels", "1,4", "--adapters", "0,2", "--at-once", "4"),
        *("--seconds", "1", "--prompt-tokens", "8", "--answer-tokens", "4", "--price-per-hour", "1"),
        *("--weights", str(tmp_path / "weights"), "--json", str(file)),
    )
    assert ended.returncode == 0, ended.stderr
    points = Results.read(file).points
    assert [(point.target, point.streams) for point in points["concurrency"]] == [
        ("Burnish", 1), ("the engine alone", 1), ("Burnish", 4), ("the engine alone", 4),
    ]  # fmt: skip
    assert [(point.adapters, point.streams) for point in points["adapters"]] == [(0, 4), (2, 4)]
    assert all(point.requests and not point.errors for several in points.values() for point in several)
    assert "nothing else" in ended.stdout
    assert command("--from", str(file)).stdout == ended.stdout


def test_a_server_that_is_there_needs_only_its_url(engine: FakeEngine) -> None:
    ended = command("--url", engine.url, "--levels", "2", "--seconds", "0.5", "--answer-tokens", "4")
    assert ended.returncode == 0, ended.stderr
    assert "### Streams at once" in ended.stdout
    assert "### Adapters" not in ended.stdout


def test_errors_are_told_and_make_the_command_fail(engine: FakeEngine) -> None:
    ended = command("--url", engine.url, "--model", "nobody", "--levels", "1", "--seconds", "0.5")
    assert ended.returncode == 1
    assert "404" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--url or --engine"),
        (("--engine", "fake", "--levels", "1,x"), "no list of numbers"),
        (("--engine", "fake", "--levels", "0"), "0 streams"),
        (("--engine", "real", "--beside"), "--beside"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_remedy(arguments: tuple[str, ...], told: str) -> None:
    ended = command(*arguments)
    assert ended.returncode == 2
    assert told in ended.stderr


def test_numbers_that_json_lacks_are_written_by_their_names(tmp_path: Path) -> None:
    results = Results({}, {})
    results.add("concurrency", Point.of("x", 1, 0, Loop((), 0.0, 1.0)))
    results.write(tmp_path / "points.json")
    json.loads((tmp_path / "points.json").read_text(), parse_constant=pytest.fail)
