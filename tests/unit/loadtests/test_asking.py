"""Locust's quick client against the fake engine's faults: each is one error in words, in the time it may take.

It runs in a process of its own, which Locust patches.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from loadtests.fake_engine.process import FakeEngine

MODEL = "smollm2-135m-instruct"

ASK = """
import json, sys, time
from locust.contrib.fasthttp import FastHttpSession
from locust.event import Events
from loadtests.asking import ask
from loadtests.workload import Ask, body
events = Events()
fired = []
events.request.add_listener(lambda **told: fired.append(str(told["exception"])))
session = FastHttpSession(sys.argv[1], request_event=events.request, user=None)
begun = time.monotonic()
asked = body(Ask(0.0, "word", 8), sys.argv[2], "m", streams=True)
answer = ask(session, asked, {}, seconds=float(sys.argv[3]), name="a", keeps_text=True)
chat = answer.chat
print(json.dumps({"error": answer.error, "seconds": time.monotonic() - begun, "fired": fired, "text": chat.text,
                  "times": [at - begun for at in chat.token_times], "usage": chat.usage}))
"""


def asked(url: str, model: str = MODEL, seconds: float = 30.0) -> dict[str, Any]:
    command = [sys.executable, "-c", ASK, url, model, str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_tokens_are_read_as_they_come(engine: FakeEngine) -> None:
    engine.set(ttft_seconds=0.3, itl_seconds=0.1)
    told = asked(engine.url)
    assert (told["error"], told["fired"]) == (None, ["None"])
    assert len(told["times"]) == told["usage"]["completion_tokens"] == 8
    assert told["times"][0] >= 0.3
    assert told["times"][-1] - told["times"][0] >= 0.5
    assert len(told["text"].split()) == 8


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("refuse", "503"),
        ("close_before_headers", "no answer"),
        ("close_mid_stream", "closed"),
        ("missing_done", "[DONE]"),
        ("error_event_mid_stream", "in the stream"),
        ("garbage_http", "no answer"),
        ("garbage_sse", "event"),
        ("truncated_json", "[DONE]"),
        ("html_200", "[DONE]"),
        ("hang", "no whole answer in time"),
        ("hang_mid_stream", "no whole answer in time"),
    ],
)
def test_every_way_to_fail_is_an_error_in_words(engine: FakeEngine, fault: str, error: str) -> None:
    engine.set(fault=fault)
    told = asked(engine.url, seconds=3.0)
    assert error in told["error"]
    assert len(told["fired"]) == 1
    assert told["fired"][0] != "None"
    assert told["seconds"] < 30


def test_nobody_there_and_an_unknown_model_are_errors(engine: FakeEngine) -> None:
    assert "refused" in asked("http://127.0.0.1:9")["error"]
    assert asked(engine.url, "no-such-model")["error"].startswith("404: ")
