"""What a passage looks like as spans, read off what a collector gets."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import pytest

from adapters.engine_settings import EngineSettings
from adapters.errors import EngineFailed, InvalidRequest, NotFound, Overloaded
from adapters.observations import Assignment
from adapters.settings import Settings, Tracing
from adapters.versions import VersionRecord, VersionState
from gateway.access import ANYBODY
from gateway.endpoints import ENDPOINTS, Call
from gateway.passage import Attempt, Ending, Passage
from gateway.routing import Target
from gateway.tracing import Traces
from gateway.traffic import Traffic
from tests.conftest import MODEL
from tests.judged import completion
from tests.otlp import Collector, Seen, collecting

CHAT = "/v1/chat/completions"
REQUEST = "req_" + "4b" * 16
VERSION = VersionRecord(
    "support", 3, "sha256:" + "ab" * 32, MODEL, None, 8, ("q_proj",), 1, VersionState.PROVED, None, "import", {}, None, 1.0
)  # fmt: skip
TARGET = Target("support", MODEL, VERSION, ())


def traces(collector: Collector, **more: Any) -> Traces:
    engine = EngineSettings(name="e0", kind="vllm", model=MODEL, url="http://10.0.0.1:8001")
    settings = Settings(tracing=Tracing(endpoint=collector.url, **more), engines=(engine,))
    return Traces(settings, instance="gateway-1", environ={})


def passage(made: Traces, *, call: bool = True, path: str = CHAT, **asked: Any) -> Passage:
    """A request that has just been let in; its clock began two seconds ago."""
    request = Passage(REQUEST, path, began=time.monotonic() - 2.0)
    request.trace = made.begin(request)
    if call:
        body = {"model": "support", "messages": [{"role": "user", "content": "the secret words"}], **asked}
        request.call = Call(ENDPOINTS[path], REQUEST, ANYBODY, TARGET, dict(body), body, passage=request)
    return request


def answered(made: Traces, **asked: Any) -> Passage:
    """A stream that went well, with a stage every tenth of a second."""
    request = passage(made, stream=True, **asked)
    assert request.call is not None
    began = request.began
    request.queued, request.placed = began + 0.1, began + 0.2
    attempt = request.call.begin_attempt("e0")
    attempt.began, attempt.answered, attempt.ended = began + 0.3, began + 0.4, began + 1.0
    request.first_piece, request.pieces = began + 0.5, 7
    request.settled, request.committed, request.ended = began + 0.8, began + 0.9, began + 1.0
    request.prompt_tokens, request.answer_tokens = 11, 5
    request.completion_id = "chatcmpl-1"
    request.completion = replace(completion("the secret words", "the secret answer"), id="chatcmpl-1")
    return request


def told(made: Traces, collector: Collector, request: Passage, spans: int) -> dict[str, Seen]:
    request.ended = request.ended or time.monotonic()
    made.ended(request)
    made.close()
    found = collector.wait(spans)
    assert len(found) == spans, [span.name for span in found]
    return {span.name: span for span in found}


ENGINE = f"chat {VERSION.served_name}"
ROOT = f"POST {CHAT}"


def test_a_request_is_a_span_and_each_of_its_stages_one_below_it() -> None:
    with collecting() as collector:
        made = traces(collector)
        request = answered(made)
        found = told(made, collector, request, 6)
    root = found[ROOT]
    assert set(found) == {ROOT, "routing", "queue", ENGINE, "relay", "commit"}
    assert {span.trace_id for span in found.values()} == {"4b" * 16}
    assert root.parent_id == ""
    assert {span.parent_id for name, span in found.items() if name != ROOT} == {root.span_id}
    assert len({span.span_id for span in found.values()}) == 6
    assert root.kind == "SERVER"
    assert found[ENGINE].kind == "CLIENT"
    assert {found[name].kind for name in ("routing", "queue", "relay", "commit")} == {"INTERNAL"}


def test_the_times_are_those_of_the_stages_on_the_clock_of_the_world() -> None:
    with collecting() as collector:
        made = traces(collector)
        request = answered(made)
        began = time.time_ns() - 2_000_000_000  # give or take what this test has taken
        found = told(made, collector, request, 6)
    root = found[ROOT]
    assert abs(root.began - began) < 5_000_000_000
    tenths = {
        name: (round((span.began - root.began) / 1e8), round((span.ended - root.began) / 1e8))
        for name, span in found.items()
    }
    assert tenths == {
        ROOT: (0, 10),
        "routing": (0, 1),
        "queue": (1, 2),
        ENGINE: (3, 8),
        "relay": (5, 8),
        "commit": (8, 9),
    }


def test_the_attributes_are_those_of_the_genai_convention_and_our_own() -> None:
    with collecting() as collector:
        made = traces(collector)
        request = answered(made, max_tokens=64, temperature=0.5, top_p=0.9, seed=7)
        assert request.call is not None
        request.call.assignment = Assignment("exp_1", 2, "support@3", "user:anna")
        request.traffic = Traffic.BATCH
        found = told(made, collector, request, 6)
    assert found[ROOT].attributes == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "url.path": CHAT,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "burnish",
        "gen_ai.request.model": "support",
        "gen_ai.response.model": "support@3",
        "gen_ai.request.max_tokens": 64,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stream": True,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": pytest.approx(0.5),
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 5,
        "burnish.request.id": REQUEST,
        "burnish.completion.id": "chatcmpl-1",
        "burnish.class": "batch",
        "burnish.ending": "complete",
        "burnish.route": "support",
        "burnish.variant": "support@3",
        "burnish.adapter.digest": VERSION.digest,
        "burnish.experiment": "exp_1",
        "burnish.experiment.epoch": 2,
        "burnish.ttft_seconds": pytest.approx(0.5),
    }
    assert found[ENGINE].attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": VERSION.served_name,
        "server.address": "10.0.0.1",
        "server.port": 8001,
        "burnish.engine": "e0",
        "burnish.attempt": 1,
        "burnish.answered_seconds": pytest.approx(0.1),
    }


def test_nothing_of_what_was_asked_or_answered_is_in_a_span() -> None:
    with collecting() as collector:
        made = traces(collector)
        told(made, collector, answered(made), 6)
        assert b"secret" not in collector.everything


def test_with_the_setting_the_messages_are_in_the_requests_span_alone() -> None:
    with collecting() as collector:
        made = traces(collector, prompts=True)
        found = told(made, collector, answered(made), 6)
    told_of = {name: re.findall("secret [a-z]+", str(span.attributes)) for name, span in found.items()}
    assert told_of.pop(ROOT) == ["secret words", "secret answer"]
    assert not any(told_of.values())


def test_each_engine_that_was_tried_has_a_span_and_the_one_that_failed_an_error() -> None:
    with collecting() as collector:
        made = traces(collector)
        request = passage(made)
        assert request.call is not None
        began = request.began
        request.queued = request.placed = began
        first = request.call.begin_attempt("e0")
        first.began, first.ended, first.error = began + 0.1, began + 0.2, EngineFailed("the secret words")
        sent = request.call.trace_headers
        second = request.call.begin_attempt("e1")
        second.began, second.answered, second.ended = began + 0.3, began + 0.4, began + 0.6
        request.settled = request.committed = request.ended = began + 0.5
        made.ended(request)
        made.close()
        collector.wait(6)
        failed, good = collector.named(ENGINE)
        assert b"secret" not in collector.everything
    assert (failed.error, good.error) == ("engine_failed", None)
    assert failed.attributes["error.type"] == "engine_failed"
    assert [each.attributes["burnish.attempt"] for each in (failed, good)] == [1, 2]
    # Each engine was told of its own span.
    assert sent == f"traceparent: 00-{failed.trace_id}-{failed.span_id}-01\r\n".encode()
    assert request.call.trace_headers == f"traceparent: 00-{good.trace_id}-{good.span_id}-01\r\n".encode()


def test_a_stream_that_broke_is_an_error_of_its_engine_and_of_the_request() -> None:
    with collecting() as collector:
        made = traces(collector)
        request = passage(made, stream=True)
        assert request.call is not None
        request.queued = request.placed = request.began
        attempt = request.call.begin_attempt("e0")
        request.call.piece()
        request.fail(EngineFailed("broken", code="stream_broken"))
        attempt.ended = request.ended = time.monotonic()
        found = told(made, collector, request, 5)
    assert found[ROOT].error == found[ENGINE].error == "engine_failed"
    assert found[ROOT].attributes["http.response.status_code"] == 200  # its head was sent
    assert found["relay"].ended == found[ROOT].ended


@pytest.mark.parametrize(
    ("error", "kind", "is_ours"),
    [
        (NotFound("no such model"), "not_found", False),
        (InvalidRequest("no"), "invalid_request", False),
        (Overloaded("too many"), "overloaded", True),
    ],
)
def test_a_request_that_was_refused_is_a_span_too(error: Any, kind: str, is_ours: bool) -> None:
    with collecting() as collector:
        made = traces(collector)
        request = passage(made, call=False)
        request.fail(error)
        found = told(made, collector, request, 2)
    assert set(found) == {ROOT, "routing"}
    assert found[ROOT].attributes["error.type"] == kind
    assert found[ROOT].attributes["http.response.status_code"] == error.status
    assert found[ROOT].error == (kind if is_ours else None)  # a client's error is none of the server's


def test_a_client_that_left_is_in_the_span_and_no_error() -> None:
    with collecting() as collector:
        made = traces(collector)
        request = passage(made)
        request.queued, request.ending = request.began + 0.1, Ending.LEFT
        found = told(made, collector, request, 3)
    assert found[ROOT].attributes["burnish.ending"] == "left"
    assert "http.response.status_code" not in found[ROOT].attributes
    assert found[ROOT].error is None
    assert found["queue"].ended == found[ROOT].ended  # it never had a place


def test_what_was_not_sampled_is_not_drawn() -> None:
    with collecting() as collector:
        made = traces(collector, sample_share=0.0)
        request = answered(made)
        made.ended(request)
        made.close()
        assert not collector.posts
    assert isinstance(request.attempts[0], Attempt)
    assert request.attempts[0].span_id is None
