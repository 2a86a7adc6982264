"""/metrics/engines: a real gateway's page of what its engines tell, and of those that do not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, Server, engines_config, running, wait_for
from tests.scraped import Page

UP = "burnish_engine_metrics_up"


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[FakeEngine, FakeEngine]]:
    with FakeEngine(MODEL) as one, FakeEngine(MODEL) as other:
        yield one, other


@pytest.fixture(scope="module")
def server(
    engines: tuple[FakeEngine, FakeEngine], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("engine-metrics") / "home"
    # A third engine, of another kind, has no metrics at all: nobody listens there.
    away = '\n[[engines]]\nname = "cloud"\nkind = "openai"\nmodel = "gpt"\nurl = "http://127.0.0.1:9"\n'
    with running(home, engines_config(*engines) + away) as server:
        yield server


@pytest.fixture(autouse=True)
def as_new(engines: tuple[FakeEngine, FakeEngine]) -> None:
    for engine in engines:
        engine.reset()


def scraped(server: Server) -> Page:
    answer = httpx.get(f"{server.url}/metrics/engines", timeout=30, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Page(answer.text)


def test_every_sample_says_whose_it_is_and_a_family_is_there_once(
    server: Server, engines: tuple[FakeEngine, FakeEngine]
) -> None:
    for question in range(8):
        server.client().chat.completions.create(
            model=MODEL, max_tokens=4, messages=[{"role": "user", "content": f"hello {question}"}]
        )
    told = {f"e{n}": engine.stats()["tokens"] for n, engine in enumerate(engines)}
    page = scraped(server)
    for name, tokens in told.items():
        labels = {"engine": name, "exported_engine": "0", "model_name": MODEL}
        assert page["vllm:generation_tokens_total", labels] == tokens
    assert sum(told.values()) >= 8 * 4
    assert {sample.labels["engine"] for sample in page.samples} == {"e0", "e1", "cloud"}
    assert {s.labels["engine"]: s.value for s in page.all(UP)} == {"e0": 1, "e1": 1, "cloud": 0}
    assert not any(name.startswith(("process_", "python_")) for name in page.families)
    assert "vllm:lora_requests_info" not in page.families, "its labels are bounded by nothing"


def test_an_engine_that_is_silent_or_tells_nonsense_is_left_out_in_time(
    server: Server, engines: tuple[FakeEngine, FakeEngine]
) -> None:
    silent, nonsense = engines
    silent.set(fault="hang", fault_paths=["/metrics"])
    nonsense.set(fault="html_200", fault_paths=["/metrics"])
    began = time.monotonic()
    page = scraped(server)
    assert time.monotonic() - began < 15, "two seconds and what the machine adds to them"
    assert {s.labels["engine"]: s.value for s in page.all(UP)} == {"e0": 0, "e1": 0, "cloud": 0}
    assert page.families == {UP}
    for engine in engines:
        engine.reset()
    assert {s.labels["engine"]: s.value for s in scraped(server).all(UP)} == {"e0": 1, "e1": 1, "cloud": 0}


def test_models_have_the_names_that_clients_know(engine: FakeEngine, tmp_path: Path) -> None:
    with FakeEngine("served-as") as renamed:
        tables = (
            f'[[engines]]\nname = "other"\nkind = "vllm"\nmodel = "{MODEL}"\nupstream_model = "served-as"\n'
            f'url = "{renamed.url}"\n'
        )
        with running(tmp_path / "home", "[training]\nworker = false\n" + tables) as server:
            page = scraped(server)
            assert page["vllm:num_requests_running", {"engine": "other", "model_name": MODEL}] == 0


def test_it_needs_the_same_key_as_the_gateways_own_metrics(engine: FakeEngine, tmp_path: Path) -> None:
    with running(tmp_path / "home", engines_config(engine)) as server:
        keys = {
            scope: server.burnish("keys", "create", "--name", scope, "--scope", scope).stdout.strip()
            for scope in ("inference", "admin")
        }

        def status(key: str | None) -> int:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            return httpx.get(f"{server.url}/metrics/engines", headers=headers, trust_env=False).status_code

        wait_for(lambda: status(None) == 401)
        assert status(keys["inference"]) == 403
        assert status(keys["admin"]) == 200


def test_the_setting_turns_it_off(engine: FakeEngine, tmp_path: Path) -> None:
    config = engines_config(engine, extra="[metrics]\nscrape_engines = false\n")
    with running(tmp_path / "home", config) as server:
        answer = httpx.get(f"{server.url}/metrics/engines", trust_env=False)
        assert answer.status_code == 404
        assert "metrics.scrape_engines" in answer.json()["error"]["message"]
        assert engine.stats()["paths"].get("GET /metrics") is None
