"""What a load test asks and when: the same for one seed, of realistic lengths, at the rate it is to have."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.shapes import Shape, Stage, constant, parse_seconds, parse_shape
from loadtests.workload import Ask, Lengths, arrivals, asks, body, crowd, drawn, trace, words, zipf

MODEL = "smollm2-135m-instruct"


# -- prompts ---------------------------------------------------------------------------------------
def test_the_same_seed_is_the_same_trace_and_another_is_not() -> None:
    made = trace(1, 60, 3, Lengths())
    assert made == trace(1, 60, 3, Lengths())
    assert made != trace(2, 60, 3, Lengths())


def test_arrivals_come_at_the_rate_within_the_time_and_in_order() -> None:
    times = [ask.at_seconds for ask in trace(1, 1000, 3, Lengths())]
    assert times == sorted(times)
    assert 0 < times[0] <= times[-1] < 1000
    assert len(times) == pytest.approx(3000, abs=4 * math.sqrt(3000))


def test_another_rate_asks_the_same_at_other_times() -> None:
    slow, fast = trace(1, 60, 1, Lengths()), trace(1, 60, 4, Lengths())
    assert [ask.prompt for ask in slow] == [ask.prompt for ask in fast][: len(slow)]
    assert [ask.at_seconds for ask in slow] != [ask.at_seconds for ask in fast][: len(slow)]


def test_lengths_have_their_medians_and_their_bounds() -> None:
    made = crowd(1, 2000, Lengths(64, 32, most_prompt_tokens=200, most_answer_tokens=60))
    prompts = sorted(len(ask.prompt.split()) for ask in made)
    answers = sorted(ask.answer_tokens for ask in made)
    assert prompts[1000] == pytest.approx(64, rel=0.1)
    assert answers[1000] == pytest.approx(32, rel=0.1)
    assert (prompts[-1], answers[-1]) == (200, 60)


def test_a_few_prompts_are_many_times_as_long_as_most() -> None:
    prompts = sorted(len(ask.prompt.split()) for ask in crowd(1, 2000, Lengths(64, 32)))
    assert prompts[1980] > 4 * prompts[1000]


def test_a_crowd_is_the_beginning_of_what_is_asked_without_end() -> None:
    assert crowd(3, 5, Lengths()) == tuple(itertools.islice(asks(3, Lengths()), 5))


def test_another_mark_is_another_prompt_from_its_first_word_on() -> None:
    (ask,) = crowd(1, 1, Lengths())
    first, second = (body(ask, MODEL, mark, streams=True)["messages"][0]["content"] for mark in ("a1", "b1"))
    assert first.split()[0] != second.split()[0]
    assert first.split()[1:] == second.split()[1:]


def test_what_stands_before_a_question_is_sent_as_it_is() -> None:
    before = ({"role": "system", "content": words(1, 20)}, {"role": "user", "content": "hello"})
    made = body(Ask(0.0, "word", 2), MODEL, "m", streams=False, before=before)
    assert made["messages"] == [*before, {"role": "user", "content": "m word"}]


def test_an_answer_has_its_length_unless_the_model_may_end_it() -> None:
    ask = Ask(0.0, "word", 7)
    assert body(ask, MODEL, "m", streams=True)["ignore_eos"] is True
    free = body(ask, MODEL, "m", streams=True, stops=True)
    assert "ignore_eos" not in free
    assert free["max_tokens"] == 7


# -- models ----------------------------------------------------------------------------------------
def test_zipf_falls_with_the_rank_and_is_even_without_an_exponent() -> None:
    assert zipf(["a", "b", "c"], 1.0) == pytest.approx({"a": 1, "b": 1 / 2, "c": 1 / 3})
    assert set(zipf(["a", "b"], 0.0).values()) == {1.0}


def test_models_are_drawn_by_their_weights() -> None:
    rng = random.Random(1)
    counts = Counter(drawn(rng, {"a": 3.0, "b": 1.0}) for _ in range(4000))
    assert counts["a"] == pytest.approx(3000, abs=120)


# -- load over time --------------------------------------------------------------------------------
def test_a_constant_rate_takes_units_over_rate() -> None:
    shape = constant(4.0, 10.0)
    assert shape.when(8.0) == pytest.approx(2.0)
    assert shape.when(40.0) is None


@given(
    st.lists(
        st.tuples(st.floats(0.1, 100), st.floats(0.1, 100), st.floats(0.1, 100)), min_size=1, max_size=4
    ),
    st.floats(0, 0.999),
)
def test_when_is_where_the_load_has_come_together(
    stages: list[tuple[float, float, float]], share: float
) -> None:
    shape = Shape(tuple(Stage(*stage) for stage in stages))
    units = share * sum(stage.mean * stage.seconds for stage in shape.stages)
    at = shape.when(units)
    assert at is not None
    assert _integral(shape, at) == pytest.approx(units, rel=1e-6, abs=1e-6)


def _integral(shape: Shape, until: float) -> float:
    total, begin = 0.0, 0.0
    for stage in shape.stages:
        seconds = min(stage.seconds, max(0.0, until - begin))
        slope = (stage.last - stage.first) / stage.seconds
        total += stage.first * seconds + slope * seconds**2 / 2
        begin += stage.seconds
    return total


def test_arrivals_follow_the_steps() -> None:
    shape = parse_shape("steps=10:100s,40:100s", None)
    times = [at for at in map(shape.when, itertools.islice(arrivals(1), 6000)) if at is not None]
    first = sum(at < 100 for at in times)
    assert first == pytest.approx(1000, abs=130)
    assert len(times) - first == pytest.approx(4000, abs=260)


def test_a_ramp_rises_evenly_and_the_warm_up_has_its_first_load() -> None:
    shape = parse_shape("ramp=1,101", 100.0).after(10.0)
    assert shape.seconds == 110
    assert [shape.at(t) for t in (0, 9.9, 10, 60, 110, 200)] == pytest.approx([1, 1, 1, 51, 101, 101])


def test_equal_steps_share_the_duration() -> None:
    shape = parse_shape("steps=10,50,100", 90.0)
    assert [(stage.first, stage.last, stage.seconds) for stage in shape.stages] == [
        (10, 10, 30),
        (50, 50, 30),
        (100, 100, 30),
    ]


@pytest.mark.parametrize(
    ("text", "seconds", "told"),
    [
        ("stairs=1,2", 60.0, "no shape"),
        ("steps=", 60.0, "no shape"),
        ("steps=10:30s,50", None, "no shape"),
        ("ramp=1", 60.0, "no shape"),
        ("steps=1,x", 60.0, "'x' is no load"),
        ("steps=0,5", 60.0, "above 0"),
        ("steps=10:30s", 60.0, "leave --duration out"),
        ("steps=10,20", None, "needs --duration"),
        ("steps=10:0s", None, "takes some time"),
    ],
)
def test_a_wrong_shape_says_what_is_wrong(text: str, seconds: float | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_shape(text, seconds)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30), ("30s", 30), ("500ms", 0.5), ("5m", 300), ("8h", 28800), ("1.5s", 1.5)]
)
def test_times_have_units(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "soon", "nan", "inf"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no time"):
        parse_seconds(text)
