"""What is measured of an answer that counts in an experiment, and whose error it is."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.completions import Completion, Status
from adapters.measuring import measures, observe
from adapters.observations import COLUMNS, Assignment, Observation
from adapters.policy import FormatCheck
from tests.judged import completion

NO_FORM = FormatCheck()
GIVEN = Assignment("exp_1", 2, "support@2", "req_1")
JSON = {"type": "json_object"}
MEASURED = set(COLUMNS.values()) - {"error"}


def seen(made: Completion, given: Assignment = GIVEN, *, at_fault: bool = True) -> Observation:
    return observe(made, given, at_fault=at_fault)


def unmeasured(observation: Observation) -> bool:
    return all(getattr(observation, column) is None for column in MEASURED)


# -- whose error it is -----------------------------------------------------------------------------
def test_a_whole_answer_is_measured_and_no_error() -> None:
    made = completion(id="chatcmpl-1", total_seconds=0.5, completion_tokens=10)
    found = seen(made)
    assert (found.id, found.created, found.error, found.failed_over) == ("chatcmpl-1", 1000.0, 0.0, False)
    assert (found.experiment, found.epoch, found.variant) == ("exp_1", 2, "support@2")
    assert (found.refused, found.repetition) == (0.0, 0.0)
    assert found.log_length == pytest.approx(math.log(10))
    assert (found.shadow_of, found.output) == (None, None)


@pytest.mark.parametrize(
    ("status", "code", "at_fault", "error"),
    [
        (Status.ERROR, "engine_failed", True, 1.0),
        (Status.ERROR, "invalid_value", False, 0.0),
        (Status.INCOMPLETE, "stream_broken", True, 1.0),
        (Status.INCOMPLETE, "client_left", True, 0.0),
        (Status.INCOMPLETE, "interrupted", True, 0.0),
    ],
)
def test_what_broke_off_is_an_error_unless_the_client_or_our_own_end_did_it(
    status: Status, code: str, at_fault: bool, error: float
) -> None:
    found = seen(completion(status=status, error_code=code, completion_tokens=9), at_fault=at_fault)
    assert found.error == error
    assert unmeasured(found)


def test_where_the_control_stood_in_all_that_counts_is_that_the_variant_could_not() -> None:
    stood_in = Assignment("exp_1", 2, "support@2", "req_1", failed_over=True)
    found = seen(completion(variant="support@1"), stood_in)
    assert (found.variant, found.failed_over, found.error) == ("support@2", True, 1.0)
    assert unmeasured(found)


def test_a_user_is_one_unit_under_the_name_that_is_on_record() -> None:
    assert seen(completion(user="ada")).unit == "user:ada"
    assert seen(completion()).unit == "req_1"


# -- times and lengths -----------------------------------------------------------------------------
def test_times_and_lengths_are_logarithms() -> None:
    found = measures(completion(ttft_seconds=0.2, total_seconds=1.1, completion_tokens=10), NO_FORM)
    assert math.exp(found["log_ttft"]) == pytest.approx(0.2)
    assert math.exp(found["log_inter_token"]) == pytest.approx(0.1)
    assert math.exp(found["log_total"]) == pytest.approx(1.1)
    assert math.exp(found["log_length"]) == pytest.approx(10)


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        ({}, {"log_ttft", "log_inter_token"}),
        ({"ttft_seconds": 0.1, "completion_tokens": 1}, {"log_inter_token"}),
        ({"ttft_seconds": 0.1, "completion_tokens": 0}, {"log_inter_token", "log_length"}),
        ({"ttft_seconds": 0.1, "completion_tokens": None}, {"log_inter_token", "log_length"}),
        ({"ttft_seconds": 0.1, "total_seconds": 0.1, "completion_tokens": 5}, {"log_inter_token"}),
    ],
    ids=["not streamed", "one token", "no token", "not counted", "all at once"],
)
def test_what_there_is_no_measure_of_is_left_out(values: dict[str, Any], missing: set[str]) -> None:
    found = measures(completion(**values), NO_FORM)
    assert {name for name, value in found.items() if name.startswith("log") and value is None} == missing


# -- manners ---------------------------------------------------------------------------------------
def test_refusals_and_repetition_are_read_off_the_text() -> None:
    refused = measures(completion(answer="I'm sorry, but I can't help with that."), NO_FORM)
    assert refused["refused"] == 1.0
    assert measures(completion(answer="one two three four " * 8), NO_FORM)["repetition"] > 0.8


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "order", "arguments": "{}"}}]},
        {"content": ""},
        {"content": None},
        {"content": 7},
        "no object",
    ],
)
def test_what_has_no_text_has_no_manners(message: Any) -> None:
    output = {"choices": [{"index": 0, "message": message}]}
    found = measures(completion(output=output, request=asked(response_format=JSON)), NO_FORM)
    assert not {"refused", "repetition", "malformed"} & found.keys()


@pytest.mark.parametrize(
    ("endpoint", "sent", "output"),
    [
        ("/v1/completions", {"prompt": "hi"}, {"choices": [{"index": 0, "text": "I can't help with that."}]}),
        (
            "/v1/responses",
            {"input": "hi"},
            {
                "output": [
                    {
                        "type": "message",
                        "role": "assistant",
                        "content": [{"type": "output_text", "text": "I can't help with that."}],
                    }
                ]
            },
        ),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": "hi"}]},
            {"content": [{"type": "text", "text": "I can't help with that."}]},
        ),
    ],
)
def test_every_endpoints_answers_are_read(
    endpoint: str, sent: dict[str, Any], output: dict[str, Any]
) -> None:
    assert measures(completion(endpoint=endpoint, request=sent, output=output), NO_FORM)["refused"] == 1.0


# -- form ------------------------------------------------------------------------------------------
def asked(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"}], **more}


def malformed(answer: str, form: FormatCheck = NO_FORM, **more: Any) -> float | None:
    value: float | None = measures(completion(answer=answer, **more), form)["malformed"]
    return value


def test_the_routes_form_is_held_to_whatever_the_request_wants() -> None:
    form = FormatCheck(regex=r"[A-Z]+-\d+")
    assert malformed("AB-12", form) == 0.0
    assert malformed("AB-12 or so", form) == 1.0
    assert malformed("AB-12", form, request=asked(response_format=JSON)) == 0.0
    assert malformed("AB-12", form, finish_reason="length") == 1.0, "a cut answer has not shown its form"
    assert malformed("{}", FormatCheck(json_schema={"type": "thing"})) is None


@pytest.mark.parametrize(
    "wish",
    [
        {"response_format": JSON},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}},
    ],
)
def test_where_the_request_wants_json_it_is_malformed_without(wish: dict[str, Any]) -> None:
    assert malformed('{"a": 1}', request=asked(**wish)) == 0.0
    assert malformed("Sure!", request=asked(**wish)) == 1.0
    assert malformed("{}", request=asked(**wish), finish_reason="length") == 1.0


@pytest.mark.parametrize(
    "wish", [{}, {"response_format": {"type": "text"}}, {"response_format": 3}, {"text": 3}]
)
def test_where_nothing_is_wanted_nothing_is_malformed(wish: dict[str, Any]) -> None:
    assert malformed("Sure!", request=asked(**wish)) is None


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "output", "type", "text", "format", "tool_calls"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
OBJECT = st.dictionaries(
    st.sampled_from(["choices", "output", "content", "messages", "text", "response_format"]), JUNK, max_size=4
)


@given(
    OBJECT,
    OBJECT,
    st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]),
)
def test_no_body_whatever_its_shape_breaks_the_measuring(
    request: dict[str, Any], output: dict[str, Any], endpoint: str
) -> None:
    found = measures(completion(endpoint=endpoint, request=request, output=output), NO_FORM)
    assert found.keys() <= MEASURED
