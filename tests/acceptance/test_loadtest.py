"""`burnish loadtest` as a person runs it, against a real gateway over a fake engine whose times are known."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, Server, engines_config, free_port, running, wait_for

pytestmark = pytest.mark.alone

TTFT_SECONDS, ITL_SECONDS = 0.15, 0.02
TRIES = 3
QUICK = ("--duration", "4s", "--warm-up", "0.5s", "--prompt-tokens", "20", "--answer-tokens", "12")
TIMES = {"ttft_seconds": TTFT_SECONDS, "itl_seconds": ITL_SECONDS}


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    with FakeEngine(MODEL) as fake:
        yield fake


@pytest.fixture(scope="module")
def server(engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("loadtest") / "home", engines_config(engine)) as server:
        for name in ("support", "sales"):
            server.add_adapter(name)
        yield server


@pytest.fixture(autouse=True)
def as_new(engine: FakeEngine) -> None:
    engine.reset()
    engine.set(**TIMES)


def loadtest(server: Server, *arguments: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    return server.burnish("loadtest", "--host", server.url, *arguments, check=False, timeout=seconds)


def reported(
    server: Server, tmp_path: Path, *arguments: str, status: int = 0
) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    """The JSON of a load test that must end with this status; tried again where the machine was too busy for it."""
    file = tmp_path / "report.json"
    for _ in range(TRIES):
        done = loadtest(server, "--model", MODEL, *QUICK, "--json", str(file), *arguments)
        report: dict[str, Any] = json.loads(file.read_text())
        if not any("the client was the bottleneck" in reason for reason in report["reasons"]):
            break
    assert done.returncode == status, done.stdout + done.stderr
    return report, done


# -- what it finds ---------------------------------------------------------------------------------
def test_targets_that_are_met_pass_and_the_figures_are_the_engines(
    server: Server, engine: FakeEngine, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    targets = ("--target", "ttft_p50=2s", "--target", "itl_p50=1s", "--target", "tokens_per_second_p50=1")
    report, done = reported(server, tmp_path, "--users", "8", *targets, "--html", str(page))
    assert (report["schema"], report["verdict"], report["reasons"]) == (1, "pass", [])
    figures = report["figures"]
    assert figures["requests"] >= 20
    assert figures["errors"] == 0
    assert TTFT_SECONDS <= figures["ttft_seconds"]["p50"] < 3 * TTFT_SECONDS
    assert 0.5 * ITL_SECONDS < figures["itl_seconds"]["p50"] < 3 * ITL_SECONDS
    assert figures["total_seconds"]["p50"] > figures["ttft_seconds"]["p50"]
    assert 1 / (3 * ITL_SECONDS) < figures["tokens_per_second_per_stream"]["p50"] < 1.2 / ITL_SECONDS
    assert figures["answer_tokens"] > 5 * figures["requests"]
    assert set(report["by_model"]) == {MODEL}
    assert report["machine"]["cores"] >= 1
    assert max(row["users"] for row in report["series"]) == 8
    assert "ttft_p50" in done.stdout
    assert "verdict: pass" in done.stdout
    assert "<svg" in page.read_text()
    assert engine.stats()["active"] == 0


def test_a_missed_target_ends_with_1_and_says_which(server: Server, tmp_path: Path) -> None:
    report, done = reported(server, tmp_path, "--users", "8", "--target", "ttft_p95=100ms", status=1)
    assert report["verdict"] == "fail"
    assert report["reasons"][0].startswith("ttft_p95 was ")
    assert "missed" in done.stdout


def test_errors_are_told_apart_and_are_no_pass(server: Server, engine: FakeEngine, tmp_path: Path) -> None:
    report = _faulty(server, engine, tmp_path)
    assert report["verdict"] == "fail"
    assert report["figures"]["error_rate"] > 0.01
    assert any("in the stream" in problem for problem in report["figures"]["problems"])


def test_nobody_there_is_inconclusive(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    host = f"http://127.0.0.1:{free_port()}"
    done = server.burnish(
        "loadtest",
        "--host",
        host,
        "--model",
        MODEL,
        "--json",
        str(file),
        "--target",
        "ttft_p95=1s",
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert host in done.stderr
    assert json.loads(file.read_text())["verdict"] == "inconclusive"


def test_a_model_that_is_not_there_is_inconclusive_and_named(server: Server) -> None:
    done = loadtest(server, "--model", "no-such-model", *QUICK)
    assert done.returncode == 3
    assert "no-such-model" in done.stderr
    assert "404" in done.stderr


def test_a_wrong_target_is_wrong_usage_with_the_nearest_name(server: Server) -> None:
    done = loadtest(server, "--target", "tttft_p95=500ms")
    assert done.returncode == 2
    assert "is 'ttft_p95' meant?" in done.stderr
    assert done.stderr.count("\n") == 1


def test_too_short_a_test_is_inconclusive(server: Server, tmp_path: Path) -> None:
    report, _ = reported(server, tmp_path, "--users", "1", "--target", "ttft_p99=5s", status=3)
    assert report["verdict"] == "inconclusive"
    assert "it takes 100" in report["reasons"][0]


def test_ctrl_c_ends_it_with_the_report_so_far(server: Server, engine: FakeEngine, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    command = [sys.executable, "-m", "gateway.cli", "loadtest", "--host", server.url, "--model", MODEL]
    options = ["--duration", "10m", "--warm-up", "0s", "--answer-tokens", "12", "--json", str(file)]
    with subprocess.Popen(
        [*command, *options], env=server.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_for(lambda: engine.stats()["completed"] > 20, 60)
            process.send_signal(signal.SIGINT)
            told, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "verdict: inconclusive" in told
    report = json.loads(file.read_text())
    assert "it was interrupted" in report["reasons"]
    assert report["figures"]["requests"] >= 10
    engine.wait_for(10, active=0)


# -- kinds of load ---------------------------------------------------------------------------------
def test_a_mixed_user_asks_every_model_by_its_weight(server: Server, tmp_path: Path) -> None:
    report, _ = reported(
        server, tmp_path, "--kind", "mixed", "--model", "support", "--model", "sales=0.2", "--users", "8"
    )
    counts = {name: figures["requests"] for name, figures in report["by_model"].items()}
    assert set(counts) == {MODEL, "support", "sales"}
    assert counts["sales"] < counts["support"]


def test_a_feedback_user_judges_what_it_was_answered(server: Server, tmp_path: Path) -> None:
    report, _ = reported(
        server, tmp_path, "--kind", "feedback", "--users", "8", "--target", "feedback_p50=5s"
    )
    judged = report["by_act"]["feedback"]
    assert judged["requests"] >= 10
    assert judged["errors"] == 0
    with server.http() as http:
        given = http.get("/v1/feedback", params={"limit": 100}).json()["data"]
    assert {one["name"] for one in given} == {"rating", "demonstration"}


def test_a_batch_user_brings_batches_to_their_end_and_counts_their_lines(
    server: Server, tmp_path: Path
) -> None:
    report, _ = reported(server, tmp_path, "--kind", "batch", "--users", "2", "--batch-lines", "10", "--target",
                         "batch_lines_per_second=0.1")  # fmt: skip
    figures = report["figures"]
    assert figures["batch_lines"] >= 10
    assert figures["errors"] == 0
    with server.http() as http:
        batches = http.get("/v1/batches", params={"limit": 100}).json()["data"]
        wait_for(lambda: all(_ended(http, batch["id"]) for batch in batches), 30)


def test_a_conversation_carries_what_was_said(server: Server, engine: FakeEngine, tmp_path: Path) -> None:
    reported(server, tmp_path, "--users", "4", "--turns", "3", "--shared-prefix", "10")
    asked = [request["body"]["messages"] for request in engine.requests() if "messages" in request["body"]]
    assert {len(messages) for messages in asked if messages[0]["role"] == "system"} >= {2, 4, 6}
    longest = max(asked, key=len)
    assert [message["role"] for message in longest] == ["system", *["user", "assistant"] * 2, "user"]


def test_an_open_loop_keeps_its_rate_when_the_engine_is_slow(
    server: Server, engine: FakeEngine, tmp_path: Path
) -> None:
    """Each answer takes two seconds, and ten requests come in one: nobody waits for the others."""
    engine.set(ttft_seconds=2.0, itl_seconds=0.001)
    report, _ = reported(server, tmp_path, "--rate", "10")
    assert report["options"]["loop"] == "open"
    assert 10 <= report["figures"]["requests"] <= 72  # a Poisson count of mean 40, five standard deviations
    assert report["figures"]["ttft_seconds"]["p50"] >= 2.0
    assert max(row["in_flight"] for row in report["series"]) >= 12


def test_a_closed_loop_asks_no_more_than_it_has_users(
    server: Server, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.set(ttft_seconds=0.5)
    reported(server, tmp_path, "--users", "5", "--think-time", "0s")
    assert engine.stats()["max_active"] <= 5


def test_steps_have_figures_of_their_own(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    done = loadtest(server, "--model", MODEL, "--shape", "steps=2:4s,10:4s", "--warm-up", "1s",
                    "--answer-tokens", "12", "--json", str(file))  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = json.loads(file.read_text())["stages"]
    assert second["figures"]["requests"] > first["figures"]["requests"]


# -- what else ---------------------------------------------------------------------------------------
def test_the_key_is_read_from_the_environment_and_shown_nowhere(engine: FakeEngine, tmp_path: Path) -> None:
    with running(tmp_path / "home", engines_config(engine)) as server:
        key = server.burnish("keys", "create", "--name", "load", "--scope", "inference").stdout.strip()
        server.environ["BURNISH_API_KEY"] = "wrong"
        refused = loadtest(server, "--model", MODEL, *QUICK)
        assert refused.returncode == 3
        assert "401" in refused.stderr
        server.environ["MY_KEY"] = key
        report, done = reported(server, tmp_path, "--users", "8", "--api-key-env", "MY_KEY")
        assert key not in json.dumps(report) + done.stdout + done.stderr


def test_locusts_own_statistics_have_lines_for_ttft_itl_and_tokens(server: Server, tmp_path: Path) -> None:
    """The locustfile, as somebody with Locust's own command and pages uses it."""
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        "loadtests/locustfile.py",
        "--headless",
        "--only-summary",
    ]
    options = [
        "ChatUser",
        "--host",
        server.url,
        "--model",
        MODEL,
        "-u",
        "4",
        "-r",
        "4",
        "-t",
        "4s",
        "--stop-timeout",  # who is being answered then is answered to the end
        "60s",
        "--json-file",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=120, env=server.environ
    )
    assert done.returncode == 0, done.stderr
    kinds = {line["method"] for line in json.loads((tmp_path / "out.json").read_text())}
    assert {"POST", "TTFT", "ITL", "TOKENS/S"} <= kinds


def _ended(http: httpx.Client, id: str) -> bool:
    return http.get(f"/v1/batches/{id}").json()["status"] in ("completed", "cancelled")


def _faulty(server: Server, engine: FakeEngine, tmp_path: Path) -> dict[str, Any]:
    """A run whose engine goes wrong once it is under way."""
    file = tmp_path / "report.json"
    command = [
        sys.executable,
        "-m",
        "gateway.cli",
        "loadtest",
        "--host",
        server.url,
        "--model",
        MODEL,
        *QUICK,
    ]
    with subprocess.Popen(
        [*command, "--users", "8", "--json", str(file)], env=server.environ, stdout=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: engine.stats()["completed"] > 5, 60)
        engine.set(fault="error_event_mid_stream")
        told, _ = process.communicate(timeout=120)
    assert process.returncode == 1, told
    report: dict[str, Any] = json.loads(file.read_text())
    return report
