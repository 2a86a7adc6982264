"""/metrics of a real gateway says what its clients did, and no word of what they wrote."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadtests.fake_engine.process import FakeEngine
from tests.acceptance.experimenting import CHALLENGER, CONTROL, ROUTE, begin, served_name, user_of
from tests.conftest import MODEL, Server, engines_config, running, wait_for

WORDS = "the-words-of-a-prompt"
USER = "ada@example.org"
ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": WORDS}], "max_tokens": 6}
STRANGERS = 10_000
"""Distinct names of models, and as many distinct keys."""

CONFIG = """
[costs]
engine_hour = 3600.0
"""

Key = tuple[str, frozenset[tuple[str, str]]]


class Page:
    """One reading of /metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.values: dict[Key, float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def sum(self, name: str, **labels: str) -> float:
        """Of all series of the name that have these labels; `traffic` is the label `class`."""
        wanted = {("class" if key == "traffic" else key, value) for key, value in labels.items()}
        return sum(value for (found, has), value in self.values.items() if found == name and wanted <= has)


@dataclass
class Watched:
    """A gateway with keys over two engines."""

    server: Server
    key: str
    admin: str

    def client(self) -> openai.OpenAI:
        return self.server.client(api_key=self.key)

    def page(self) -> Page:
        answer = httpx.get(
            f"{self.server.url}/metrics",
            headers={"authorization": f"Bearer {self.admin}"},
            trust_env=False,
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        return Page(answer.text)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[FakeEngine, FakeEngine]]:
    with FakeEngine(MODEL) as first, FakeEngine(MODEL) as second:
        yield first, second


@pytest.fixture(scope="module")
def watched(
    pair: tuple[FakeEngine, FakeEngine], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    config = engines_config(*pair, extra=CONFIG)
    with running(tmp_path_factory.mktemp("watched") / "home", config) as server:
        key = server.burnish("keys", "create", "--name", "user").stdout.strip()
        admin = server.burnish("keys", "create", "--name", "ops", "--scope", "admin").stdout.strip()
        gateway = Watched(server, key, admin)
        wait_for(lambda: _is_known(gateway), 10)
        yield gateway


@pytest.fixture(autouse=True)
def well(pair: tuple[FakeEngine, FakeEngine]) -> None:
    for engine in pair:
        engine.reset()
        engine.wait_for(active=0)


def test_requests_of_every_kind_are_counted_by_how_they_ended(
    watched: Watched, pair: tuple[FakeEngine, FakeEngine]
) -> None:
    client, before = watched.client(), watched.page()
    for _ in range(3):
        client.chat.completions.create(**ASK, user=USER)
    streamed = sum(len(list(client.chat.completions.create(**ASK, stream=True))) > 0 for _ in range(2))
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**{**ASK, "n": 1000})
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**ASK, "model": "no-such-model"})
    with pytest.raises(openai.AuthenticationError):
        watched.server.client(api_key="sk-wrong").chat.completions.create(**ASK)
    for engine in pair:
        engine.set(itl_seconds=0.05)
    with client.chat.completions.create(**{**ASK, "max_tokens": 1000}, stream=True) as stream:
        next(iter(stream))
    after = wait_for(lambda: _when(watched, before, "burnish_requests_total", 1, ending="left"), 10)

    def grew(name: str, **labels: str) -> float:
        return float(after.sum(name, **labels) - before.sum(name, **labels))

    mine = {"traffic": "interactive", "route": MODEL, "variant": MODEL}
    assert (streamed, grew("burnish_requests_total", **mine, ending="complete")) == (2, 5)
    assert grew("burnish_requests_total", **mine, ending="left") == 1
    assert grew("burnish_requests_total", ending="error") == 3
    errors = {
        e: grew("burnish_errors_total", error=e) for e in ("invalid_request", "not_found", "unauthorized")
    }
    assert errors == {"invalid_request": 1, "not_found": 1, "unauthorized": 1}
    assert grew("burnish_errors_total", route="", variant="") == 2, (
        "of these it is not known what they ask for"
    )
    assert grew("burnish_request_seconds_count", **mine) == 5
    assert grew("burnish_time_to_first_token_seconds_count", **mine) == 3
    assert grew("burnish_inter_token_latency_seconds_count", **mine) > 0
    assert grew("burnish_queue_seconds_count", traffic="interactive", base_model=MODEL) == 6
    assert grew("burnish_tokens_total", **mine, direction="completion") == 5 * 6
    assert grew("burnish_tokens_total", **mine, direction="prompt") > 0
    assert grew("burnish_answer_tokens_count", route=MODEL, variant=MODEL) == 5
    assert grew("burnish_answer_texts_total", route=MODEL, variant=MODEL) == 5
    assert grew("burnish_recording_commit_seconds_count") > 0
    assert after.sum("burnish_in_flight") == 0
    assert after.sum("burnish_engine_up") == 2


def test_what_an_engine_failed_and_another_answered_is_a_retry(
    watched: Watched, pair: tuple[FakeEngine, FakeEngine]
) -> None:
    before = watched.page()
    for engine in pair:
        engine.set(fault="refuse", fault_count=1)
    for number in range(20):
        watched.client().chat.completions.create(
            **{**ASK, "messages": [{"role": "user", "content": str(number)}]}
        )
    after = watched.page()
    retried = {
        e: after.sum("burnish_engine_retries_total", engine=e)
        - before.sum("burnish_engine_retries_total", engine=e)
        for e in ("e0", "e1")
    }
    assert retried == {"e0": 1, "e1": 1}
    assert after.sum("burnish_errors_total") == before.sum("burnish_errors_total"), "no client was told of it"


def test_an_engine_that_goes_away_is_ejected_and_costs_all_the_same(
    watched: Watched, pair: tuple[FakeEngine, FakeEngine]
) -> None:
    before = watched.page()
    pair[1].kill()
    try:
        away = wait_for(lambda: _when(watched, before, "burnish_engine_ejections_total", 1, engine="e1"), 10)
        assert away.sum("burnish_engine_up", engine="e1") == 0
        assert away.sum("burnish_engine_state", engine="e1", state="ejected") == 1
        cost = {"base_model": MODEL, "route": "", "currency": "USD"}
        wait_for(lambda: _when(watched, away, "burnish_cost_total", 3.0, **cost), 20)
    finally:
        pair[1].start()
    wait_for(lambda: watched.page().sum("burnish_engine_up") == 2, 20)


def test_promise_12_ten_thousand_models_and_keys_make_no_new_series(watched: Watched) -> None:
    watched.client().chat.completions.create(**ASK, user=USER)
    with pytest.raises(openai.NotFoundError):
        watched.client().chat.completions.create(**{**ASK, "model": "no-such-model"})
    with pytest.raises(openai.AuthenticationError):
        watched.server.client(api_key="sk-wrong").chat.completions.create(**ASK)
    before = watched.page()
    with ThreadPoolExecutor(4) as threads:
        statuses = [s for part in threads.map(lambda n: _strangers(watched, n), range(4)) for s in part]
    assert (statuses.count(404), statuses.count(401)) == (STRANGERS, STRANGERS)
    after = watched.page()
    assert set(after.values) == set(before.values)
    nobody = {"traffic": "interactive", "route": "", "variant": ""}
    for error in ("not_found", "unauthorized"):
        grew = after.sum("burnish_errors_total", **nobody, error=error) - before.sum(
            "burnish_errors_total", **nobody, error=error
        )
        assert grew == STRANGERS
    for secret in (watched.key, watched.admin, "sk-wrong", "stranger", "no-such-model", WORDS, USER):
        assert secret not in after.text


def test_a_fail_over_is_counted_at_the_variant_that_failed(engine: FakeEngine, tmp_path: Path) -> None:
    with running(tmp_path / "home", engines_config(engine)) as server:
        for seed in (1, 2):
            server.add_adapter("support", seed=seed)
        begin(server, challengers=[CHALLENGER], guardrails={"error_rate": None})
        user = user_of(server, CHALLENGER)
        before = Page(server.http().get("/metrics").text)
        engine.set(fault="refuse", fault_models=[served_name(server, CHALLENGER)])
        raw = server.client().chat.completions.with_raw_response.create(**{**ASK, "model": ROUTE}, user=user)
        engine.set(fault="load_as_base", fault_models=None)
        with pytest.raises(AssertionError, match="failed"):
            server.add_adapter("broken", seed=3)
        assert raw.headers["x-burnish-adapter"].startswith(f"{CONTROL} ")
        after = Page(server.http().get("/metrics").text)

    def grew(name: str, **labels: str) -> float:
        return after.sum(name, route=ROUTE, **labels) - before.sum(name, route=ROUTE, **labels)

    assert grew("burnish_fail_overs_total", variant=CHALLENGER) == 1
    assert grew("burnish_errors_total", variant=CHALLENGER) == grew("burnish_errors_total") == 1
    assert (
        grew("burnish_requests_total", variant=CONTROL, ending="complete")
        == grew("burnish_requests_total")
        == 1
    )
    assert after.sum("burnish_adapter_load_seconds_count", engine="e0") == 3
    assert after.sum("burnish_adapter_load_failures_total", engine="e0") == 1, (
        "it was loaded, and of no effect"
    )
    assert after.sum("burnish_engine_adapters", engine="e0") == 2


def _is_known(gateway: Watched) -> bool:
    headers = {"authorization": f"Bearer {gateway.admin}"}
    return httpx.get(f"{gateway.server.url}/metrics", headers=headers, trust_env=False).status_code == 200


def _when(gateway: Watched, before: Page, name: str, by: float, **labels: str) -> Page | None:
    """The page once the series have grown by so much."""
    page = gateway.page()
    return page if page.sum(name, **labels) - before.sum(name, **labels) >= by else None


def _strangers(gateway: Watched, part: int) -> list[int]:
    """A quarter of all models that there are not, and of all keys, each asked once; the answers' statuses."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.server.port, timeout=60)
    statuses = []
    for number in range(part, STRANGERS, 4):
        for model, key in ((f"stranger-{number}", gateway.key), (MODEL, f"sk-stranger-{number}")):
            body = json.dumps({**ASK, "model": model})
            connection.request("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
    connection.close()
    return statuses
