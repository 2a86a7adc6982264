"""Spans over OTLP, against a real receiver that decodes what came."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from adapters.errors import SettingsError
from adapters.spans import Sketch, SpanKind, Spans, headers_of, traces_url, version
from adapters.telemetry_settings import Tracing
from tests.conftest import free_port, wait_for
from tests.otlp import Collector, collecting

TRACE, ONE, TWO = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"


def sketch(name: str = "request", span_id: str = ONE, parent_id: str | None = None, **more: object) -> Sketch:
    return Sketch(
        name, TRACE, span_id, parent_id, 1_700_000_000_000_000_000, 1_700_000_001_500_000_000, **more
    )  # type: ignore[arg-type]


def spans_to(collector: Collector, **more: object) -> Spans:
    return Spans(Tracing(endpoint=collector.url, **more), instance="gateway-1", environ={})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
        ("https://host/otlp", "https://host/otlp/v1/traces"),
        ("https://host/otlp/v1/traces", "https://host/otlp/v1/traces"),
        ("https://host/v1/traces/", "https://host/v1/traces"),
        ("https://host/api/v1/traces?key=1", "https://host/api/v1/traces?key=1"),
    ],
)
def test_a_base_url_gets_the_path_of_traces_and_a_whole_one_stays(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url


def test_headers_come_from_the_variable_that_is_named() -> None:
    named = Tracing(headers_env="OTLP_HEADERS")
    assert headers_of(named, {"OTLP_HEADERS": "authorization=Bearer abc,x-team=one"}) == {
        "authorization": "Bearer abc",
        "x-team": "one",
    }
    assert headers_of(Tracing(), {"OTLP_HEADERS": "a=b"}) == {}


@pytest.mark.parametrize("environ", [{}, {"OTLP_HEADERS": ""}, {"OTLP_HEADERS": "no headers at all"}])
def test_a_variable_without_headers_is_refused_by_name(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="OTLP_HEADERS"):
        headers_of(Tracing(headers_env="OTLP_HEADERS"), environ)


def test_a_span_arrives_with_its_ids_times_attributes_and_resource() -> None:
    with collecting() as collector:
        spans = spans_to(collector, service_name="shop-gateway")
        told = {"text": "a", "count": 3, "share": 0.5, "is": True, "reasons": ["stop"]}
        spans.put(
            lambda: [
                sketch(kind=SpanKind.SERVER, attributes=told, trace_state="vendor=1"),
                sketch("engine", TWO, ONE, error="engine_failed"),
            ]
        )
        spans.close()
        request, engine = collector.wait(2)
    assert (request.trace_id, request.span_id, request.parent_id) == (TRACE, ONE, "")
    assert (engine.trace_id, engine.span_id, engine.parent_id) == (TRACE, TWO, ONE)
    assert (request.began, request.ended) == (1_700_000_000_000_000_000, 1_700_000_001_500_000_000)
    assert (request.kind, engine.kind) == ("SERVER", "INTERNAL")
    assert request.attributes == told
    assert (request.error, engine.error) == (None, "engine_failed")
    assert request.state == "vendor=1"
    assert request.scope == "burnish"
    assert request.resource["service.name"] == "shop-gateway"
    assert request.resource["service.version"] == version()
    assert request.resource["service.instance.id"] == "gateway-1"
    assert request.resource["telemetry.sdk.name"] == "opentelemetry"
    assert spans.dropped == 0


def test_the_headers_of_the_settings_go_with_every_export() -> None:
    with collecting() as collector:
        settings = Tracing(endpoint=collector.url, headers_env="OTLP")
        spans = Spans(settings, instance="g", environ={"OTLP": "x-team=one"})
        spans.put(lambda: [sketch()])
        spans.close()
        collector.wait(1)
        assert [post.headers["x-team"] for post in collector.posts] == ["one"]
        assert [post.path for post in collector.posts] == ["/v1/traces"]


def test_a_drawing_that_fails_costs_its_group_and_nothing_else() -> None:
    def broken() -> list[Sketch]:
        raise KeyError("no such thing")

    with collecting() as collector:
        spans = spans_to(collector)
        spans.put(broken)
        wait_for(lambda: spans.dropped == 1)
        spans.put(lambda: [sketch()])
        spans.close()
        collector.wait(1)
        assert spans.dropped == 1


@pytest.mark.parametrize("status", [400, 500])
def test_an_answer_that_is_an_error_is_counted_and_said_once(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with collecting() as collector, caplog.at_level(logging.WARNING):
        collector.status = status
        spans = spans_to(collector)
        for _ in range(2):
            before = spans.dropped
            spans.put(lambda: [sketch(attributes={"secret": "words"})])
            wait_for(lambda before=before: spans.dropped == before + 1)
        spans.close()
    assert [record.name for record in caplog.records if record.name.startswith("burnish")] == [
        "burnish.outbox"
    ]
    assert not logging.getLogger(OTLPSpanExporter.__module__).propagate  # what it says goes to nobody else
    assert f"to=traces dropped=1: Failed to export spans batch code: {status}" in caplog.text
    assert "words" not in caplog.text


def test_a_collector_that_says_not_now_is_asked_again() -> None:
    with collecting() as collector:
        collector.status = 429
        spans = spans_to(collector)
        spans.put(lambda: [sketch()])
        time.sleep(1.5)  # it has been refused by now
        collector.status = 200
        collector.wait(1)
        spans.close()
        assert spans.dropped == 0


@pytest.mark.parametrize("how", ["unreachable", "hangs", "not now"])
def test_a_collector_that_is_away_holds_nobody_up(how: str) -> None:
    with collecting() as collector:
        endpoint = f"http://127.0.0.1:{free_port()}" if how == "unreachable" else collector.url
        collector.hangs = 60.0 if how == "hangs" else 0.0
        collector.status = 429
        spans = Spans(Tracing(endpoint=endpoint, max_queue=4), instance="g", environ={})
        began = time.monotonic()
        for _ in range(200):
            spans.put(lambda: [sketch()])
        assert time.monotonic() - began < 1.0
        assert spans.dropped >= 100
        began = time.monotonic()
        spans.close()
        assert time.monotonic() - began < 6.0
        wait_for(lambda: spans.dropped >= 196)


def test_no_global_provider_is_set_and_no_module_of_ours_asks_for_one() -> None:
    root = Path(__file__).resolve().parents[3]
    sources = [
        file for package in ("adapters", "gateway", "trainer") for file in (root / package).rglob("*.py")
    ]
    assert not [file.name for file in sources if "set_tracer_provider" in file.read_text()]
