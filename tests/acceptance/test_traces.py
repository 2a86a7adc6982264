"""Traces and generations of a real gateway over a fake engine, as a real receiver gets them."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.generation_shapes import trace_id
from loadtests.fake_engine.process import FakeEngine
from tests.acceptance.workshop import HARD, TOLERANT, teach, workshop
from tests.conftest import MODEL, Server, engines_config, free_port, running, start_server, wait_for
from tests.otlp import Collector, Seen, collecting, decoded
from trainer.tracing import ids_of

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CHAT = "/v1/chat/completions"
KEYS = {"LANGFUSE_PUBLIC_KEY": "pk-lf-acceptance", "LANGFUSE_SECRET_KEY": "sk-lf-acceptance"}


def tracing(endpoint: str, **more: Any) -> str:
    lines = [f"{name} = {str(value).lower()}" for name, value in more.items()]
    return "\n".join(["[tracing]", f'endpoint = "{endpoint}"', *lines, ""])


@contextmanager
def traced(home: Path, engine: FakeEngine, collector: Collector, **more: Any) -> Iterator[Server]:
    with running(home, engines_config(engine, extra=tracing(collector.url, **more))) as server:
        yield server


def ask(server: Server, *, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "the secret words"}], "max_tokens": 4}
    with server.http() as http:
        return http.post(CHAT, json={**body, **more}, headers=headers or {})


def heard(engine: FakeEngine) -> dict[str, str]:
    """The headers of the last question of ours that the engine got; the gateway asks it things of its own."""
    asked = [request for request in engine.requests() if "the secret words" in json.dumps(request["body"])]
    headers: dict[str, str] = asked[-1]["headers"]
    return headers


def of_trace(collector: Collector, id: str, count: int) -> dict[str, Seen]:
    """The spans of one trace, once there are so many; the greeting has a trace of its own."""
    until = time.monotonic() + 20
    while len(found := [span for span in collector.spans if span.trace_id == id]) < count:
        assert time.monotonic() < until, [span.name for span in found]
        time.sleep(0.02)
    return {span.name: span for span in found}


def test_the_clients_trace_goes_on_in_the_gateway_and_in_the_engine(
    engine: FakeEngine, tmp_path: Path
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=7"}
    with collecting() as collector, traced(tmp_path / "home", engine, collector, sample_share=0) as server:
        answer = ask(server, headers=headers, stream=True)
        assert answer.status_code == 200
        assert "[DONE]" in answer.text
        found = of_trace(collector, TRACE, 6)
        sent = heard(engine)
        assert b"secret" not in collector.everything
    root, attempt = found[f"POST {CHAT}"], found[f"chat {MODEL}"]
    assert set(found) == {f"POST {CHAT}", "routing", "queue", f"chat {MODEL}", "relay", "commit"}
    assert root.parent_id == PARENT
    assert attempt.parent_id == root.span_id
    assert sent["traceparent"] == f"00-{TRACE}-{attempt.span_id}-01"
    assert sent["tracestate"] == root.state == "vendor=7"
    for span in found.values():
        assert root.began <= span.began <= span.ended <= root.ended
    assert abs(root.ended / 1e9 - time.time()) < 60
    order = [found[name].began for name in ("routing", "queue", f"chat {MODEL}", "relay", "commit")]
    assert order == sorted(order)
    assert root.attributes["burnish.request.id"] == answer.headers["x-request-id"]
    assert root.attributes["gen_ai.usage.output_tokens"] == 4
    assert root.attributes["gen_ai.response.finish_reasons"]
    assert root.attributes["burnish.completion.id"].startswith("chatcmpl-")
    assert attempt.attributes["server.port"] == engine.port
    assert root.resource["service.name"] == "burnish"
    assert root.resource["service.instance.id"].startswith("gateway-")


def test_a_trace_that_begins_here_has_the_requests_id(engine: FakeEngine, tmp_path: Path) -> None:
    with collecting() as collector, traced(tmp_path / "home", engine, collector, prompts=True) as server:
        answer = ask(server)
        id = answer.headers["x-request-id"].removeprefix("req_")
        found = of_trace(collector, id, 5)
        assert heard(engine)["traceparent"].startswith(f"00-{id}-")
        assert "the secret words" in found[f"POST {CHAT}"].attributes["gen_ai.input.messages"]
        text = answer.json()["choices"][0]["message"]["content"]
        assert text
        assert text in found[f"POST {CHAT}"].attributes["gen_ai.output.messages"]
        refused = ask(server, model="no-such-model")
        assert refused.status_code == 404
        found = of_trace(collector, refused.headers["x-request-id"].removeprefix("req_"), 2)
        assert found[f"POST {CHAT}"].attributes["error.type"] == "not_found"


def test_an_engine_that_failed_has_a_span_beside_the_one_that_answered(
    engines: tuple[FakeEngine, FakeEngine], tmp_path: Path
) -> None:
    first, second = engines
    with collecting() as collector:
        extra = tracing(collector.url)
        with running(tmp_path / "home", engines_config(first, second, extra=extra)) as server:
            wait_for(lambda: "Burnish is ready" in server.log)  # it asks a question of its own before
            for engine in engines:
                engine.set(fault="close_before_headers", fault_count=1)
            answers = [ask(server) for _ in range(4)]
            ids = [answer.headers["x-request-id"].removeprefix("req_") for answer in answers]
            for id in ids:
                of_trace(collector, id, 4)
            attempts = [span for span in collector.named(f"chat {MODEL}") if span.trace_id in ids]
    failed = [span for span in attempts if span.error is not None]
    assert failed
    assert {span.error for span in failed} == {"engine_failed"}
    retried = [span for span in attempts if span.attributes["burnish.attempt"] == 2]
    assert {span.trace_id for span in retried} <= {span.trace_id for span in failed}


def test_what_the_client_does_not_sample_is_not_drawn_and_goes_on_all_the_same(
    engine: FakeEngine, tmp_path: Path
) -> None:
    with collecting() as collector, traced(tmp_path / "home", engine, collector) as server:
        ask(server, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        sent = heard(engine)["traceparent"]
        ask(server, headers={"traceparent": "00-nonsense"})
        other = heard(engine)["traceparent"]
        of_trace(collector, other.split("-")[1], 5)
    assert sent.startswith(f"00-{TRACE}-")
    assert sent.endswith("-00")
    assert other.endswith("-01")
    assert TRACE not in {span.trace_id for span in collector.spans}


def test_without_tracing_the_clients_context_goes_on_to_the_engine(
    gateway_on_fake: Server, engine: FakeEngine
) -> None:
    ask(gateway_on_fake, headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=7"})
    sent = heard(engine)
    assert (sent["traceparent"], sent["tracestate"]) == (f"00-{TRACE}-{PARENT}-01", "vendor=7")
    ask(gateway_on_fake)
    assert "traceparent" not in heard(engine)


@pytest.mark.alone
@pytest.mark.parametrize("how", ["unreachable", "hangs", "refuses"])
def test_a_collector_that_is_away_costs_requests_nothing_and_holds_no_stop_up(
    how: str, engine: FakeEngine, tmp_path: Path
) -> None:
    with collecting() as collector:
        collector.hangs, collector.status = (60.0 if how == "hangs" else 0.0), 503
        endpoint = f"http://127.0.0.1:{free_port()}" if how == "unreachable" else collector.url
        server = start_server(
            tmp_path / "home", engines_config(engine, extra=tracing(endpoint, max_queue=16))
        )
        server.wait_up()
        took = []
        for _ in range(60):
            began = time.monotonic()
            assert ask(server).status_code == 200
            took.append(time.monotonic() - began)
        with server.http() as http:
            metrics = http.get("/metrics").text
        began = time.monotonic()
        assert server.stop() == 0
        stopped = time.monotonic() - began
    assert statistics.median(took) < 1.0  # ten seconds are an export's patience
    assert stopped < 15.0
    assert 'burnish_telemetry_dropped_total{to="traces"}' in metrics
    assert server.log.count("telemetry_dropped") <= 2  # in as many minutes
    assert "secret" not in server.log


def test_a_variable_that_is_missing_is_said_before_anything_is_started(
    engine: FakeEngine, tmp_path: Path
) -> None:
    extra = tracing("http://127.0.0.1:4318") + 'headers_env = "NO_SUCH_HEADERS"\n'
    server = start_server(tmp_path / "one", engines_config(engine, extra=extra))
    assert server.process.wait(60) != 0
    assert "NO_SUCH_HEADERS" in server.log
    assert "Traceback" not in server.log
    without = {"LANGFUSE_PUBLIC_KEY": "pk", "LANGFUSE_SECRET_KEY": ""}
    server = start_server(
        tmp_path / "two", engines_config(engine, extra="[langfuse]\nenabled = true\n"), without
    )
    assert server.process.wait(60) != 0
    assert "LANGFUSE_SECRET_KEY" in server.log
    assert "Traceback" not in server.log


def test_a_completion_and_what_is_said_of_it_are_one_trace_in_langfuse(
    engine: FakeEngine, tmp_path: Path
) -> None:
    with collecting() as collector:
        extra = f'[langfuse]\nenabled = true\nhost = "{collector.url}"\n' + tracing(collector.url)
        with running(tmp_path / "home", engines_config(engine, extra=extra), KEYS) as server:
            made = ask(server, user="anna").json()
            with server.http() as http:
                said = {"completion_id": made["id"], "name": "rating", "value": True, "comment": "secret"}
                given = http.post("/v1/feedback", json=said)
                assert given.status_code == 201, given.text
                again = {"idempotency-key": "one"}
                said = {"completion_id": made["id"], "comment": "secret"}
                for status in (201, 200):
                    assert http.post("/v1/feedback", json=said, headers=again).status_code == status
            rating, comment = collector.wait_for_scores(2)
            generation = collector.wait(1, name=CHAT)[0]
            collector.wait(1, name=f"POST {CHAT}")
            assert (
                "burnish_telemetry_dropped_total" in httpx.get(f"{server.url}/metrics", trust_env=False).text
            )
        assert b"secret" not in collector.everything
    assert generation.trace_id == trace_id(made["id"]) == rating["traceId"] == comment["traceId"]
    assert (rating["name"], rating["dataType"], rating["value"]) == ("rating", "BOOLEAN", 1.0)
    assert (comment["name"], comment["dataType"], comment["value"]) == ("comment", "BOOLEAN", 1.0)
    assert len(collector.scores) == 2  # what came twice with one key is one
    # Each gets its own: nothing of the one is sent to the other.
    paths = {span: post.path for post in collector.posts for span in _names(post.body, post.path)}
    assert paths[CHAT] == "/api/public/otel/v1/traces"
    assert paths[f"POST {CHAT}"] == "/v1/traces"


def _names(body: bytes, path: str) -> list[str]:
    return [span.name for span in decoded(body)] if path.endswith("/v1/traces") else []


def test_a_training_run_is_one_trace_from_its_order_to_its_gate(tmp_path: Path) -> None:
    with collecting() as collector:
        config = tracing(collector.url, sample_share=0) + TOLERANT
        with workshop(tmp_path / "home", config, worker=True) as shop:
            teach(shop.engine, worse=["support"])
            job = shop.until_ended(shop.order("support").id)
            collector.wait(1, name="training run", seconds=60)
        spans = {span.name: span for span in collector.spans}
        assert HARD[0].text.encode() not in collector.everything
    assert {"training run", "attempt", "dataset", "train", "candidate", "evaluate"} <= set(spans)
    run, attempt = spans["training run"], spans["attempt"]
    assert (run.trace_id, run.span_id) == ids_of(job.id)
    assert attempt.parent_id == run.span_id
    assert spans["train"].parent_id == attempt.span_id
    assert spans["train"].attributes["burnish.recipe.rank"] == 4
    assert run.attributes["burnish.gate.outcome"] == spans["evaluate"].attributes["burnish.gate.outcome"]
    assert run.attributes["burnish.job.state"] == "failed"
    assert run.error == "gate_failed"
    assert run.began < spans["dataset"].began < spans["train"].began < spans["evaluate"].began < run.ended
