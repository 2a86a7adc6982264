"""W3C trace context: what is taken up, what is ignored, and what goes on to an engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import trace_context
from gateway.passage import Passage

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
REQUEST = "req_" + "4b" * 16


def passage(trace_parent: str | None = None, trace_state: str | None = None) -> Passage:
    return Passage(REQUEST, "/v1/chat/completions", trace_parent, trace_state)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (SAMPLED, (TRACE, PARENT, True)),
        (f"00-{TRACE}-{PARENT}-00", (TRACE, PARENT, False)),
        (f"00-{TRACE}-{PARENT}-03", (TRACE, PARENT, True)),
        (f" {SAMPLED} ", (TRACE, PARENT, True)),
        (f"cc-{TRACE}-{PARENT}-01-what-will-be", (TRACE, PARENT, True)),
        (f"00-{TRACE}-{PARENT}-01-more", None),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{PARENT}-01", None),
        (f"00-{TRACE[:-1]}-{PARENT}-01", None),
        (f"00-{TRACE}-{PARENT}", None),
        ("", None),
        (None, None),
    ],
)
def test_a_traceparent_is_read_as_the_specification_says(
    header: str | None, found: tuple[str, str, bool] | None
) -> None:
    assert trace_context.parse(header) == found


@given(st.text(max_size=80))
def test_no_header_breaks_it(header: str) -> None:
    trace_context.parse(header)
    trace_context.begin(passage(header, header), 1.0).header_lines(PARENT).decode("ascii")


def test_a_trace_that_begins_here_has_the_requests_own_id() -> None:
    trace = trace_context.begin(passage(), 1.0)
    assert trace.trace_id == "4b" * 16
    assert trace.parent_id is None
    assert trace.is_drawn


def test_the_clients_trace_goes_on_as_its_child_whatever_the_share() -> None:
    trace = trace_context.begin(passage(SAMPLED, "vendor=1"), 0.0)
    assert (trace.trace_id, trace.parent_id, trace.is_drawn) == (TRACE, PARENT, True)
    assert trace.span_id not in (PARENT, TRACE)
    lines = trace.header_lines("00f067aa0ba902b7")
    assert lines == f"traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\ntracestate: vendor=1\r\n".encode()


def test_a_trace_that_the_client_did_not_sample_is_not_drawn_and_says_so_to_the_engine() -> None:
    trace = trace_context.begin(passage(f"00-{TRACE}-{PARENT}-00"), 1.0)
    assert not trace.is_drawn
    assert trace.header_lines(trace.span_id) == f"traceparent: 00-{TRACE}-{trace.span_id}-00\r\n".encode()


@pytest.mark.parametrize("state", ["a=1\r\nx: y", "ä=1", "", "x" * 513])
def test_a_tracestate_that_is_none_goes_nowhere(state: str) -> None:
    trace = trace_context.begin(passage(SAMPLED, state), 1.0)
    assert trace.state is None
    assert trace.header_lines(PARENT).count(b"\r\n") == 1


def test_a_share_of_the_new_traces_is_drawn() -> None:
    drawn = 0
    for number in range(2000):
        request = Passage(f"req_{number * 0x9E3779B97F4A7C15 % 2**64:032x}", "/v1/chat/completions")
        drawn += trace_context.begin(request, 0.25).is_drawn
    assert 400 < drawn < 600
    assert not trace_context.begin(passage(), 0.0).is_drawn


def test_without_tracing_the_clients_context_goes_on_as_it_came() -> None:
    trace = trace_context.pass_on(passage(SAMPLED, "vendor=1"))
    assert trace is not None
    assert not trace.is_drawn
    assert trace.header_lines(trace.span_id) == f"traceparent: {SAMPLED}\r\ntracestate: vendor=1\r\n".encode()
    assert trace_context.pass_on(passage()) is None
    assert trace_context.pass_on(passage("nonsense")) is None
