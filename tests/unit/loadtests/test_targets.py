"""Targets of a load test: their names and units, and what they say of figures."""

from __future__ import annotations

from typing import Any

import pytest

from loadtests.targets import KINDS, Unit, check, parse_target, told, with_error_rate


def figures(**changes: Any) -> dict[str, Any]:
    latency = {"p50": 0.1, "p95": 0.4, "p99": 0.6, "count": 500}
    return {
        "requests": 500,
        "error_rate": 0.004,
        "requests_per_second": 12.0,
        "answer_tokens_per_second": 300.0,
        "ttft_seconds": latency,
        "itl_seconds": latency,
        "total_seconds": latency,
        "tokens_per_second_per_stream": {"p5": 18.0, "p50": 30.0, "count": 500},
        **changes,
    }


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("ttft_p95=500ms", 0.5),
        ("ttft_p50=1.5s", 1.5),
        ("itl_p99=50ms", 0.05),
        ("total_p95=30s", 30.0),
        ("error_rate=1%", 0.01),
        ("error_rate=0.02", 0.02),
        ("tokens_per_second_p5=20", 20.0),
        ("requests_per_second=50/s", 50.0),
        (" ttft_p95 = 500ms ", 0.5),
    ],
)
def test_limits_have_units(text: str, limit: float) -> None:
    assert parse_target(text).limit == pytest.approx(limit)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ttft_p59=500ms", "is 'ttft_p.*' meant"),
        ("ttfs_p95=500ms", "is 'ttft_p95' meant"),
        ("errors_rate=1%", "is 'error_rate' meant"),
        ("zzz=1", "there are ttft_p50, ttft_p95"),
        ("ttft_p95", "has no limit; such is ttft_p95=500ms"),
        ("ttft_p95=500", "'500' is no limit for ttft_p95; such is ttft_p95=500ms"),
        ("ttft_p95=5%", "no limit"),
        ("ttft_p95=ms", "no limit"),
        ("error_rate=1s", "no limit"),
        ("tokens_per_second_p5=-1", "no limit"),
        ("ttft_p95=infs", "no limit"),
    ],
)
def test_a_wrong_target_says_what_would_be_right(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_target(text)


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("ttft_p95=400ms", True),
        ("ttft_p95=399ms", False),
        ("tokens_per_second_p5=18", True),
        ("tokens_per_second_p5=18.1", False),
        ("requests_per_second=12", True),
        ("error_rate=1%", True),
        ("error_rate=0.3%", False),
    ],
)
def test_a_latency_is_at_most_and_a_rate_at_least_its_limit(text: str, met: bool) -> None:
    assert check(parse_target(text), figures()).met is met


@pytest.mark.parametrize(("name", "least"), [("ttft_p50", 10), ("ttft_p95", 20), ("ttft_p99", 100)])
def test_a_percentile_without_a_sample_beyond_it_is_not_known(name: str, least: int) -> None:
    target = parse_target(f"{name}=1s")
    enough, few = (
        {"ttft_seconds": {"p50": 0.1, "p95": 0.1, "p99": 0.1, "count": n}} for n in (least, least - 1)
    )
    assert check(target, figures(**enough)).met is True
    found = check(target, figures(**few))
    assert found.met is None
    assert f"{least - 1} samples, and it takes {least}" in str(found.problem)


def test_what_was_not_measured_at_all_is_not_known() -> None:
    for name, kind in KINDS.items():
        limit = {Unit.SECONDS: "1s", Unit.PER_SECOND: "1", Unit.SHARE: "1%"}[kind.unit]
        assert check(parse_target(f"{name}={limit}"), {}).met is None


def test_errors_have_a_limit_even_where_nobody_gave_one() -> None:
    (latency, errors) = with_error_rate([parse_target("ttft_p95=1s")])
    assert (latency.name, errors.name, errors.limit) == ("ttft_p95", "error_rate", 0.01)
    given = (parse_target("error_rate=5%"),)
    assert with_error_rate(given) == given


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.1404, Unit.SECONDS, "140 ms"),
        (0.0095, Unit.SECONDS, "9.5 ms"),
        (1.524, Unit.SECONDS, "1.52 s"),
        (123.4, Unit.SECONDS, "123 s"),
        (0.005, Unit.SHARE, "0.5%"),
        (20.333, Unit.PER_SECOND, "20.33 /s"),
        (None, Unit.SECONDS, "-"),
    ],
)
def test_figures_are_told_in_units_that_people_read(value: float | None, unit: Unit, text: str) -> None:
    assert told(value, unit) == text
