"""From samples to figures, verdict, table, JSON and page."""

from __future__ import annotations

import json
import math
import random
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.buckets import Buckets
from loadtests.chat_stream import ChatStream
from loadtests.figures import Act, Sample, Tally, Window
from loadtests.measurement import Measurement
from loadtests.options import Options, parse
from loadtests.page import page
from loadtests.report import STATUS, Outcome, report_of, table, unmeasured


def options(*arguments: str) -> Options:
    return parse(["--duration", "60", "--warm-up", "10", *arguments])


def answer(due: float = 20.0, **met: Any) -> Sample:
    """An answer of 11 tokens: the first after 0.2 s, then one every 0.05 s."""
    told: dict[str, Any] = {
        "ttft_seconds": 0.2,
        "gaps_seconds": (0.05,) * 10,
        "prompt_tokens": 30,
        "answer_tokens": 11,
        "total_seconds": 0.7,
        "late_seconds": 0.0,
        **met,
    }
    return Sample(Act.CHAT, told.pop("model", "a"), due, **told)


def failed(due: float = 20.0, error: str = "503: full") -> Sample:
    return Sample(Act.CHAT, "a", due, 0.0, 0.1, error)


def measured(*samples: Sample, given: Options | None = None) -> Measurement:
    made = Measurement(given or options())
    for sample in samples:
        made.add(sample)
    return made


def busy_client(measurement: Measurement, share: float) -> None:
    for second in range(10, 70):
        measurement.look(second, share * second, 10)


# -- distributions ---------------------------------------------------------------------------------
@given(st.lists(st.floats(1e-5, 1e3), min_size=1, max_size=200), st.sampled_from([0.05, 0.5, 0.95, 0.99]))
def test_a_percentile_is_within_one_per_cent_of_the_exact_one(values: list[float], share: float) -> None:
    buckets = Buckets()
    for value in values:
        buckets.add(value)
    exact = sorted(values)[max(1, math.ceil(share * len(values) - 1e-9)) - 1]
    assert buckets.percentile(share) == pytest.approx(exact, rel=0.01)


def test_nothing_counted_has_no_percentile() -> None:
    assert Buckets().percentile(0.5) is None


def test_a_million_values_take_few_buckets() -> None:
    rng, buckets = random.Random(1), Buckets()
    for _ in range(100_000):
        buckets.add(rng.lognormvariate(-3, 1))
    assert len(buckets.counts) < 1200
    *_, (_, last) = buckets.shares()
    assert last == 1.0


# -- figures ---------------------------------------------------------------------------------------
def test_figures_are_those_of_the_answers() -> None:
    figures = measured(*(answer(20 + n) for n in range(30)), failed()).all.figures()
    assert (figures["requests"], figures["errors"]) == (31, 1)
    assert figures["error_rate"] == pytest.approx(1 / 31)
    assert figures["ttft_seconds"]["p95"] == pytest.approx(0.2)
    assert figures["ttft_seconds"]["count"] == 30
    assert figures["itl_seconds"]["count"] == 300
    assert figures["total_seconds"]["p50"] == pytest.approx(0.7)
    assert figures["tokens_per_second_per_stream"]["p5"] == pytest.approx(20, rel=0.01)
    assert figures["requests_per_second"] == pytest.approx(30 / 60)
    assert figures["answer_tokens_per_second"] == pytest.approx(330 / 60)


def test_what_was_asked_in_the_warm_up_has_no_latency_but_its_answers_count_as_work() -> None:
    figures = measured(answer(9.8)).all.figures()
    assert figures["requests"] == 0
    assert figures["ttft_seconds"]["count"] == 0
    assert figures["requests_per_second"] == pytest.approx(1 / 60)
    assert figures["answer_tokens_per_second"] == pytest.approx(11 / 60)


def test_what_was_asked_in_time_counts_however_late_its_answer_comes() -> None:
    figures = measured(answer(69.0, ttft_seconds=30.0, total_seconds=31.0)).all.figures()
    assert figures["ttft_seconds"]["p95"] == pytest.approx(30.0)
    assert figures["requests_per_second"] == 0
    assert figures["answer_tokens_per_second"] == 0


def test_an_answer_across_the_end_counts_for_the_part_before_it() -> None:
    figures = measured(answer(69.0, ttft_seconds=0.5, total_seconds=2.5)).all.figures()
    assert figures["answer_tokens_per_second"] == pytest.approx(11 * 0.25 / 60)


def test_models_and_acts_have_figures_of_their_own() -> None:
    judged = Sample(Act.FEEDBACK, "a", 30.0, 0.0, 0.02)
    report = report_of(measured(answer(), answer(model="b"), answer(model="b"), judged), {})
    assert {name: one["requests"] for name, one in report["by_model"].items()} == {"a": 2, "b": 2}
    assert report["by_act"]["feedback"]["feedback_seconds"]["p50"] == pytest.approx(0.02)
    assert report["by_act"]["feedback"]["ttft_seconds"]["count"] == 0
    assert report["figures"]["requests"] == 4


def test_each_step_has_figures_of_its_own() -> None:
    given = parse(["--shape", "steps=10,50", "--duration", "60", "--warm-up", "10"])
    report = report_of(measured(answer(11), answer(41), answer(42), answer(9), given=given), {})
    assert [(one["from"], one["seconds"], one["figures"]["requests"]) for one in report["stages"]] == [
        (10, 30, 1),
        (50, 30, 2),
    ]


def test_lines_of_batches_are_work_a_second() -> None:
    made = Measurement(options())
    made.add_lines("a", 5, 0, 5.0)
    made.add_lines("a", 120, 3, 30.0)
    made.add(Sample(Act.BATCH, "a", 20.0, 0.0, 15.0))
    figures = made.all.figures()
    assert figures["batch_lines_per_second"] == figures["requests_per_second"] == pytest.approx(2.0)
    assert (figures["requests"], figures["errors"]) == (123, 3)
    assert figures["batch_seconds"]["p50"] == pytest.approx(15.0)


def test_a_batch_that_comes_to_nothing_is_a_failed_request() -> None:
    figures = measured(Sample(Act.BATCH, "a", 20.0, 0.0, 1.0, "a batch is failed")).all.figures()
    assert (figures["requests"], figures["errors"]) == (1, 1)


def test_errors_that_differ_in_numbers_are_one_kind_and_kinds_are_bounded() -> None:
    tally = Tally(Window(0, 100))
    for number in range(200):
        tally.add(failed(1.0, f"429: Used {number} of 60"))
        tally.add(failed(1.0, "error: " + "abcdefghijklmnopqrstuvwxyz"[number % 26] * (1 + number // 26)))
    problems = tally.figures()["problems"]
    assert problems["429: Used # of #"] == 200
    assert len(problems) <= 21
    assert sum(problems.values()) == 400


def test_the_series_tells_each_second_what_happened_in_it() -> None:
    made = measured(answer(20.0), failed(21.0))
    made.look(20.4, 1.0, 7)
    series = made.series()
    assert [row["at"] for row in series] == list(range(22))
    assert series[20]["requests_per_second"] == 1
    assert series[20]["answer_tokens_per_second"] == pytest.approx(11)
    assert series[20]["ttft_p95_seconds"] == pytest.approx(0.2)
    assert series[20]["users"] == 7
    assert series[21]["errors"] == 1
    assert (series[9]["is_measured"], series[10]["is_measured"]) == (False, True)


def test_a_long_run_has_no_more_rows_than_a_short_one() -> None:
    made = measured(answer(86399.0), given=parse(["--duration", "24h"]))
    assert len(made.series()) <= 1800


# -- verdicts --------------------------------------------------------------------------------------
def test_all_targets_met_is_a_pass() -> None:
    report = report_of(
        measured(*(answer(20 + n) for n in range(30)), given=options("--target", "ttft_p95=500ms")), {}
    )
    assert (report["verdict"], report["reasons"]) == ("pass", [])
    assert [(one["name"], one["met"]) for one in report["targets"]] == [
        ("ttft_p95", True),
        ("error_rate", True),
    ]
    assert report["targets"][0]["measured"] == pytest.approx(0.2)


def test_a_missed_target_is_a_fail_that_says_by_how_much() -> None:
    report = report_of(
        measured(*(answer(20 + n) for n in range(30)), given=options("--target", "itl_p95=40ms")), {}
    )
    assert report["verdict"] == "fail"
    assert report["reasons"] == ["itl_p95 was 50 ms, and is to be at most 40 ms"]


def test_few_quick_answers_among_many_errors_are_no_pass() -> None:
    samples = [*(answer(20 + n) for n in range(25)), *(failed() for _ in range(5))]
    report = report_of(measured(*samples, given=options("--target", "ttft_p95=500ms")), {})
    assert report["verdict"] == "fail"
    assert "error_rate was 16.7%" in report["reasons"][0]


def test_too_few_samples_are_inconclusive_and_no_pass() -> None:
    report = report_of(
        measured(*(answer() for _ in range(19)), given=options("--target", "ttft_p95=500ms")), {}
    )
    assert report["verdict"] == "inconclusive"
    assert "19 samples, and it takes 20" in report["reasons"][0]
    assert report["targets"][0]["met"] is None


def test_a_missed_target_is_a_fail_though_another_is_not_known() -> None:
    given = options("--target", "ttft_p99=500ms", "--target", "itl_p95=1ms")
    assert report_of(measured(*(answer() for _ in range(30)), given=given), {})["verdict"] == "fail"


@pytest.mark.parametrize("limit", ["1s", "1ms"])
def test_a_client_that_was_the_bottleneck_says_neither_pass_nor_fail(limit: str) -> None:
    made = measured(*(answer() for _ in range(30)), given=options("--target", f"ttft_p95={limit}"))
    busy_client(made, 0.97)
    report = report_of(made, {})
    assert report["verdict"] == "inconclusive"
    assert "97% of its core" in report["reasons"][0]


def test_a_client_that_has_time_left_is_no_reason() -> None:
    made = measured(*(answer() for _ in range(30)), given=options("--target", "ttft_p95=1s"))
    busy_client(made, 0.6)
    assert report_of(made, {})["verdict"] == "pass"
    assert report_of(made, {})["client"]["cpu_share"] == pytest.approx(0.6)


def test_a_client_that_sends_late_says_neither_pass_nor_fail() -> None:
    report = report_of(measured(*(answer(late_seconds=0.3) for _ in range(30))), {})
    assert report["verdict"] == "inconclusive"
    assert "it sent 300 ms late" in report["reasons"][0]


def test_a_client_that_reads_late_says_neither_pass_nor_fail() -> None:
    made = measured(*(answer() for _ in range(30)))
    for _ in range(10):
        made.add_lag(0.2, 30.0)
    assert "it read 200 ms late" in report_of(made, {})["reasons"][0]


def test_an_interrupted_run_reports_so_far_and_is_inconclusive() -> None:
    made = measured(*(answer(11 + 0.1 * n) for n in range(30)))
    made.end_early("it was interrupted", 16.0)
    report = report_of(made, {})
    assert (report["verdict"], report["reasons"]) == ("inconclusive", ["it was interrupted"])
    assert report["figures"]["requests_per_second"] == pytest.approx(30 / 6)


def test_a_test_that_could_not_begin_is_a_report_too() -> None:
    report = unmeasured("nobody is there", Measurement(options("--target", "ttft_p95=1s")))
    assert (report["verdict"], report["reasons"][0]) == ("inconclusive", "nobody is there")
    assert report["figures"]["requests"] == 0
    assert "verdict: inconclusive" in table(report)


def test_every_verdict_has_its_status() -> None:
    assert {outcome.value: STATUS[outcome] for outcome in Outcome} == {
        "pass": 0,
        "fail": 1,
        "inconclusive": 3,
    }


# -- what is shown ---------------------------------------------------------------------------------
def test_the_report_is_plain_json_of_its_schema() -> None:
    report = report_of(
        measured(answer(), failed(), given=options("--model", "a", "--users", "3")), {"cores": 2}
    )
    assert json.loads(json.dumps(report)) == report
    assert report["schema"] == 1
    assert set(report) >= {
        "verdict",
        "reasons",
        "targets",
        "figures",
        "by_model",
        "series",
        "options",
        "machine",
    }
    assert set(report["targets"][0]) == {"name", "limit", "unit", "measured", "met"}
    assert report["options"]["shape"] == [{"from": 3, "to": 3, "seconds": 60}]


def test_no_report_holds_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BURNISH_API_KEY", "sk-secret-of-mine")
    made = measured(answer(), given=options())
    report = report_of(made, {})
    assert "sk-secret" not in json.dumps(report) + table(report) + page(report, made)


def test_the_table_has_figures_targets_and_the_verdict() -> None:
    given = options("--target", "ttft_p95=500ms", "--target", "tokens_per_second_p5=25")
    text = table(report_of(measured(*(answer(20 + n) for n in range(30)), given=given), {}))
    lines = [line.split() for line in text.splitlines()]
    assert ["to", "the", "first", "token", "200", "ms", "200", "ms", "200", "ms", "30"] in lines
    assert ["ttft_p95", "at", "most", "500", "ms", "200", "ms", "met"] in lines
    assert ["tokens_per_second_p5", "at", "least", "25", "/s", "20", "/s", "missed"] in lines
    assert ["verdict:", "fail"] in lines


class Elements(HTMLParser):
    """What a page is made of, and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.ids: set[str] = set()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            if name in ("src", "href", "xlink:href") and value and not value.startswith("#"):
                self.fetched.append(value)


def test_the_page_has_plots_and_fetches_nothing() -> None:
    given = options("--target", "ttft_p95=500ms")
    made = measured(*(answer(20 + n, model="a<b>$x$") for n in range(30)), failed(), given=given)
    found = Elements()
    text = page(report_of(made, {}), made)
    found.feed(text)
    assert {"h1", "table", "svg", "path"} <= found.tags
    assert {"ttft:p95", "itl:p95", "limit:ttft_p95", "tokens"} <= found.ids
    assert not found.fetched
    assert "b" not in found.tags  # a model's name is text
    assert "a&lt;b&gt;$x$" in text


def test_a_page_without_a_single_answer_can_be_made() -> None:
    made = Measurement(options())
    assert "nobody is there" in page(unmeasured("nobody is there", made), made)


# -- one stream ------------------------------------------------------------------------------------
def chunk(**delta: Any) -> bytes:
    return b"data: " + json.dumps({"id": "c1", "choices": [{"delta": delta}]}).encode()


def test_tokens_are_timed_and_neither_role_nor_usage_is_one() -> None:
    stream = ChatStream(keeps_text=True)
    stream.take(chunk(role="assistant", content=""), 1.0)
    stream.take(chunk(content="Hello"), 1.5)
    stream.take(b": keep-alive", 1.6)
    stream.take(chunk(content=" you"), 1.75)
    stream.take(b'data: {"choices": [], "usage": {"completion_tokens": 2}}', 1.8)
    assert stream.problem() == "the stream ended without [DONE]"
    stream.take(b"data: [DONE]", 1.8)
    assert stream.problem() is None
    assert (stream.token_times, stream.gaps_seconds) == ([1.5, 1.75], (0.25,))
    assert (stream.id, stream.text, stream.usage) == ("c1", "Hello you", {"completion_tokens": 2})


def test_tokens_that_one_read_brought_are_one_step() -> None:
    stream = ChatStream()
    for at in (1.0, 1.0, 1.0, 2.0):
        stream.take(chunk(content="x"), at)
    assert stream.gaps_seconds == (1.0,)


@pytest.mark.parametrize(
    ("event", "told"), [(b'data: {"error": {"message": "no"}}', "no"), (b"data: {", "no JSON")]
)
def test_an_error_in_a_stream_is_its_problem_though_it_ends(event: bytes, told: str) -> None:
    stream = ChatStream()
    stream.take(event, 1.0)
    stream.take(b"data: [DONE]", 1.1)
    assert told in str(stream.problem())
