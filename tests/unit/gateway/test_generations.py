"""Langfuse: what its own SDK sends of a completion and of feedback, against a real receiver."""

from __future__ import annotations

import importlib.util
import itertools
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest
from opentelemetry import trace

from adapters.completions import Completion, Status
from adapters.errors import SettingsError
from adapters.feedback import Feedback
from adapters.observations import Observation
from adapters.telemetry_settings import Langfuse
from gateway.generation_shapes import generation_of, scores_of, trace_id
from gateway.generations import Generations, check
from tests.conftest import free_port, wait_for
from tests.judged import completion
from tests.otlp import Collector, Seen, basic, collecting

_projects = itertools.count(1)
SEEN = Observation("c", "exp_1", 2, "support@3", "user:anna", 1.0, False, 0.0)


@contextmanager
def project(collector: Collector | None = None, **more: Any) -> Iterator[tuple[Generations, str]]:
    """A client for a project of its own: the SDK knows one client a public key."""
    public = f"pk-lf-{next(_projects)}"
    host = f"http://127.0.0.1:{free_port()}" if collector is None else collector.url
    settings = Langfuse(enabled=True, host=host, **more)
    made = Generations(settings, {"LANGFUSE_PUBLIC_KEY": public, "LANGFUSE_SECRET_KEY": "sk-lf-1"})
    try:
        yield made, public
    finally:
        made.close()


def answer(**more: Any) -> Completion:
    values: dict[str, Any] = {
        "id": "chatcmpl-1",
        "variant": "support@3",
        "user": "anna",
        "created": 1_700_000_000.0,
        "ttft_seconds": 0.5,
        "total_seconds": 2.0,
        "metadata": {"ticket": "the secret ticket"},
        "observation": SEEN,
    }
    return completion("the secret words", "the secret answer", **{**values, **more})


def feedback(**more: Any) -> Feedback:
    values: dict[str, Any] = {
        "id": "fb_1",
        "created": 1_700_000_010.0,
        "completion_id": "chatcmpl-1",
        "name": "thumb",
        "value": None,
        "comment": None,
        "demonstration": None,
        "preferred_over": None,
        "metadata": {},
        "key_id": None,
        "user": "anna",
        "route": "support",
        "variant": "support@3",
        "digest": None,
        "unit": "user:anna",
        "source": "api",
    }
    return Feedback(**{**values, **more})


def generated(collector: Collector, made: Completion, **settings: Any) -> Seen:
    with project(collector, **settings) as (generations, _):
        generations.recorded(made)
        return collector.wait(1)[0]


def metadata(span: Seen, of: str = "observation") -> dict[str, Any]:
    prefix = f"langfuse.{of}.metadata."
    return {
        name.removeprefix(prefix): json.loads(value)
        for name, value in span.attributes.items()
        if name.startswith(prefix)
    }


def test_the_traces_id_is_that_which_the_sdk_makes_of_the_completions() -> None:
    from langfuse import Langfuse as Client

    assert trace_id("chatcmpl-1") == Client.create_trace_id(seed="chatcmpl-1")


def test_a_completion_is_one_generation_in_a_trace_of_its_own() -> None:
    with collecting() as collector:
        span = generated(collector, answer())
        assert [post.path for post in collector.posts] == ["/api/public/otel/v1/traces"]
        sent = collector.posts[0].headers
    assert sent["x-langfuse-ingestion-version"] == "4"
    assert sent["authorization"] == basic(sent["x-langfuse-public-key"], "sk-lf-1")
    assert (span.trace_id, span.parent_id) == (trace_id("chatcmpl-1"), "")
    assert (span.began, span.ended) == (1_700_000_000_000_000_000, 1_700_000_002_000_000_000)
    told = span.attributes
    assert told["langfuse.observation.type"] == "generation"
    assert told["langfuse.observation.model.name"] == "base-model"
    assert json.loads(told["langfuse.observation.usage_details"]) == {"input": 8, "output": 1, "total": 9}
    first = json.loads(told["langfuse.observation.completion_start_time"])
    assert datetime.fromisoformat(first.replace("Z", "+00:00")).timestamp() == 1_700_000_000.5
    assert told["langfuse.trace.name"] == "support"
    assert told["langfuse.version"] == "support@3"
    assert set(told["langfuse.trace.tags"]) == {"route:support", "variant:support@3", "experiment:exp_1"}
    about = {
        "completion_id": "chatcmpl-1",
        "route": "support",
        "variant": "support@3",
        "base_model": "base-model",
        "adapter_digest": f"sha256:{'0' * 64}",
        "endpoint": "/v1/chat/completions",
        "status": "complete",
        "finish_reason": "stop",
        "ttft_seconds": 0.5,
        "propensity": 1.0,
        "experiment": "exp_1",
        "experiment_epoch": 2,
        "experiment_variant": "support@3",
    }
    assert metadata(span) == about
    assert metadata(span, "trace") == about


def test_no_word_of_anybody_goes_there_unless_the_setting_says_so() -> None:
    said = feedback(value=1.0, comment="the secret comment")
    with collecting() as collector, project(collector) as (generations, _):
        generations.recorded(answer())
        generations.judged(said, is_boolean=True)
        collector.wait(1)
        collector.wait_for_scores(1)
        assert b"secret" not in collector.everything
        assert b"anna" not in collector.everything


def test_with_the_setting_prompts_answers_and_users_go_there() -> None:
    with collecting() as collector:
        span = generated(collector, answer(), prompts=True)
    told = span.attributes
    assert json.loads(told["langfuse.observation.input"]) == [{"role": "user", "content": "the secret words"}]
    assert json.loads(told["langfuse.observation.output"])["content"] == "the secret answer"
    assert told["user.id"] == "anna"
    assert metadata(span)["client.ticket"] == "the secret ticket"


def test_a_failed_completion_is_an_error_and_one_cut_off_a_warning() -> None:
    failed = generation_of(answer(status=Status.ERROR, error_code="engine_failed", output=None), words=False)
    assert (failed["level"], failed["status_message"]) == ("ERROR", "engine_failed")
    cut = generation_of(answer(status=Status.INCOMPLETE, error_code="client_left"), words=False)
    assert cut["level"] == "WARNING"
    assert "level" not in generation_of(answer(), words=False)


def test_embeddings_are_an_embedding() -> None:
    with collecting() as collector:
        span = generated(collector, answer(endpoint="/v1/embeddings", output={"data": []}))
    assert span.attributes["langfuse.observation.type"] == "embedding"


def test_feedback_is_a_score_on_the_completions_trace() -> None:
    with collecting() as collector, project(collector, prompts=True) as (generations, public):
        generations.judged(feedback(value=1.0, comment="good"), is_boolean=True)
        generations.judged(feedback(id="fb_2", name="stars", value=3.5), is_boolean=False)
        thumb, stars = collector.wait_for_scores(2)
        assert collector.posts[0].headers["authorization"] == basic(public, "sk-lf-1")
    assert thumb["traceId"] == trace_id("chatcmpl-1")
    assert (thumb["id"], thumb["name"], thumb["value"], thumb["dataType"], thumb["comment"]) == (
        "fb_1-value",
        "thumb",
        1.0,
        "BOOLEAN",
        "good",
    )
    assert thumb["timestamp"].startswith("2023-11-14T22:13:30")
    assert thumb["metadata"] == {
        "completion_id": "chatcmpl-1",
        "route": "support",
        "variant": "support@3",
        "source": "api",
    }
    assert (stars["name"], stars["value"], stars["dataType"]) == ("stars", 3.5, "NUMERIC")


def kinds(said: Feedback, *, words: bool) -> list[tuple[str, Any, str, str | None]]:
    scores = scores_of(said, is_boolean=False, words=words)
    return [(each["name"], each["value"], each["data_type"], each.get("comment")) for each in scores]


def test_a_comment_alone_is_a_text() -> None:
    long = "word " * 200
    assert kinds(feedback(name="comment", comment="good"), words=True) == [("comment", "good", "TEXT", None)]
    assert kinds(feedback(comment=long), words=True) == [("comment", long[:500], "TEXT", long)]
    assert kinds(feedback(comment="good"), words=False) == [("comment", 1.0, "BOOLEAN", None)]


def test_a_demonstration_is_langfuses_correction() -> None:
    corrected = feedback(demonstration={"role": "assistant", "content": "Paris"})
    assert kinds(corrected, words=True) == [("output", "Paris", "CORRECTION", None)]
    assert kinds(corrected, words=False) == [("demonstration", 1.0, "BOOLEAN", None)]


def test_a_preference_is_a_score_on_both_traces() -> None:
    better, worse = scores_of(feedback(preferred_over="chatcmpl-2"), is_boolean=False, words=False)
    assert (better["trace_id"], better["value"]) == (trace_id("chatcmpl-1"), 1.0)
    assert (worse["trace_id"], worse["value"]) == (trace_id("chatcmpl-2"), 0.0)
    assert better["metadata"]["over"] == "chatcmpl-2"
    assert worse["metadata"]["to"] == "chatcmpl-1"


def test_what_is_sampled_out_is_sampled_out_with_its_feedback() -> None:
    with collecting() as collector, project(collector, sample_share=0.5) as (generations, _):
        for number in range(100):
            generations.recorded(answer(id=f"c-{number}"))
            generations.judged(
                feedback(id=f"fb_{number}", completion_id=f"c-{number}", value=1.0), is_boolean=True
            )
        generations.close()
        traces = {span.trace_id for span in collector.spans}
        judged = {score["traceId"] for score in collector.scores}
    assert 20 < len(traces) < 80
    assert traces == judged


def test_the_sdk_leaves_the_process_as_it_was() -> None:
    with collecting() as collector:
        before = trace.get_tracer_provider()
        generated(collector, answer())
        assert trace.get_tracer_provider() is before


@pytest.mark.parametrize("how", ["unreachable", "refuses", "hangs"])
def test_a_langfuse_that_is_away_holds_nobody_up_and_is_counted(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "burnish"), collecting() as collector:
        collector.status, collector.hangs = 500, 60.0 if how == "hangs" else 0.0
        with project(None if how == "unreachable" else collector, max_queue=8) as (generations, _):
            began = time.monotonic()
            for number in range(100):
                generations.recorded(answer(id=f"c-{number}"))
            generations.judged(feedback(value=1.0, comment="the secret comment"), is_boolean=True)
            assert time.monotonic() - began < 2.0
            if how == "refuses":
                wait_for(lambda: generations.dropped == 101, 30)
            began = time.monotonic()
            generations.close()
            assert time.monotonic() - began < 8.0
            assert generations.dropped >= 90
    ours = [record for record in caplog.records if record.name.startswith("burnish")]
    assert len(ours) <= 1
    assert "secret" not in caplog.text
    assert "sk-lf-1" not in caplog.text


def test_a_process_ends_at_once_whatever_langfuse_does() -> None:
    """The SDK waits at the interpreter's exit for what was not sent; ours must not."""
    script = (
        "import sys, time\n"
        "from adapters.telemetry_settings import Langfuse\n"
        "from gateway.generations import Generations\n"
        "from tests.judged import completion\n"
        "made = Generations(Langfuse(enabled=True, host=sys.argv[1]), "
        "{'LANGFUSE_PUBLIC_KEY': 'pk', 'LANGFUSE_SECRET_KEY': 'sk'})\n"
        "made.recorded(completion(id='c'))\n"
        "time.sleep(2)\n"  # it hangs by now
        "began = time.monotonic()\n"
        "made.close()\n"
        "print(time.monotonic() - began)\n"
    )
    with collecting() as collector:
        collector.hangs = 60.0
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", script, collector.url], capture_output=True, text=True, timeout=60
        )
        took = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 5.0
    assert took < 30.0


def test_a_key_that_is_missing_is_named() -> None:
    settings = Langfuse(enabled=True, secret_key_env="MY_SECRET")
    with pytest.raises(SettingsError, match="MY_SECRET"):
        check(settings, {"LANGFUSE_PUBLIC_KEY": "pk"})
    with pytest.raises(SettingsError, match="LANGFUSE_PUBLIC_KEY"):
        check(settings, {"MY_SECRET": "sk"})


def test_a_missing_sdk_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "langfuse" else find(name, *more)
    )
    with pytest.raises(SettingsError, match=r"pip install 'burnish\[langfuse\]'"):
        check(Langfuse(enabled=True), {"LANGFUSE_PUBLIC_KEY": "pk", "LANGFUSE_SECRET_KEY": "sk"})
