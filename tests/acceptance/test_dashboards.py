"""Every panel has something to show: a real Prometheus scrapes a real gateway on which everything happens once.

The gateway is `burnish serve` over the fake engine: people talk to two variants and judge them, an experiment goes on and
another one ends, a batch is answered, the tiny model is trained, and things go wrong. Prometheus takes the project's own
configuration, but that it scrapes and evaluates each second.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from tests.acceptance.experimenting import CHALLENGER, ROUTE, served_name, user_of
from tests.acceptance.workshop import HYPERPARAMETERS, RUN_SECONDS, TOLERANT, Workshop, teach, workshop
from tests.conftest import MODEL, Server, free_port, wait_for
from tests.unit.dashboards.asked import PROMETHEUS, boards, of_panels, panels, replaced
from trainer.memory import descendants

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="Debian's package: prometheus")

DATA_SECONDS = 90.0
"""How long after all has happened the last panel may still have nothing to show: a look at the experiment has to come, and
a second scrape of a new series."""

PLACES = 16
"""How many the one engine answers at a time."""

RECORDS_SECONDS = 3.0
"""As `metrics.records_seconds` below, and one more to be scraped."""

SETTINGS = """
[metrics]
records_seconds = 2.0

[admission]
max_waiting = 4

[costs]
engine_hour = 2.0

[targets]
window_seconds = 2  # of which a run that rests is to hear soon

[tracing]
endpoint = "http://127.0.0.1:9"  # nobody is there: what is dropped is counted
"""

GPU = (
    'gpu="0",UUID="GPU-604ac76c-d9cf-fef3-62e9-d92044ab6e52",pci_bus_id="00000000:04:00.0",device="nvidia0",'
    'modelName="NVIDIA H100 80GB HBM3",Hostname="gpu-1",DCGM_FI_DRIVER_VERSION="550.54.15"'
)
GPU_FIELDS = {
    "GPU_TEMP": ("GPU temperature (in C).", "61"),
    "POWER_USAGE": ("Power draw (in W).", "412.503000"),
    "GPU_UTIL": ("GPU utilization (in %).", "87"),
    "MEM_COPY_UTIL": ("Memory utilization (in %).", "54"),
    "FB_FREE": ("Framebuffer memory free (in MiB).", "7412"),
    "FB_USED": ("Framebuffer memory used (in MiB).", "73647"),
}
"""One H100, with the labels and words of NVIDIA's dcgm-exporter."""


# -- Prometheus ------------------------------------------------------------------------------------
@dataclass
class Prometheus:
    """A running one, with the project's configuration."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path
    began: float = field(default_factory=time.time)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **parameters: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30, trust_env=False)
        body = answer.json()
        assert body["status"] == "success", (path, parameters, body)
        return body["data"]

    def has_data(self, expr: str) -> bool:
        """Whether the expression had a value, a number, at any moment since the start."""
        found = self.get("query_range", query=expr, start=self.began, end=time.time(), step=1)["result"]
        return any(value != "NaN" for series in found for _, value in series["values"])

    def target_states(self) -> dict[str, str]:
        """Of each target that there is: its job, and `up`, `down` or `unknown`."""
        active = self.get("targets", state="active")["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in active}


@contextlib.contextmanager
def watching(
    folder: Path, *, gateways: list[str], gpus: list[str], key: str | None = None
) -> Iterator[Prometheus]:
    """Prometheus with a copy of the project's folder, where only times, targets and the key are others."""
    shutil.copytree(PROMETHEUS, folder / "config")
    file = folder / "config" / "prometheus.yml"
    text = file.read_text()
    if key is not None:
        text = re.sub(r"^    # (authorization:|  credentials_file:)", r"    \1", text, flags=re.M)
        (folder / "config" / "burnish.key").write_text(key)
    config = yaml.safe_load(text)
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    file.write_text(yaml.safe_dump(config))
    for name, targets in (("gateways", gateways), ("dcgm", gpus)):
        (folder / "config" / "targets" / f"{name}.yml").write_text(yaml.safe_dump([{"targets": targets}]))
    port, log = free_port(), folder / "prometheus.log"
    command = [
        *("prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    prometheus = Prometheus(port, process, log)
    try:
        wait_for(lambda: _is_ready(prometheus), 30, lambda: log.read_text(errors="replace"))
        yield prometheus
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(prometheus: Prometheus) -> bool:
    assert prometheus.process.poll() is None, prometheus.log.read_text(errors="replace")
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{prometheus.url}/-/ready", timeout=2, trust_env=False).status_code == 200
    return False


class _Exporter(BaseHTTPRequestHandler):
    """What dcgm-exporter serves on a machine with one H100."""

    def do_GET(self) -> None:
        page = "".join(
            f"# HELP DCGM_FI_DEV_{name} {text}\n# TYPE DCGM_FI_DEV_{name} gauge\nDCGM_FI_DEV_{name}{{{GPU}}} {value}\n"
            for name, (text, value) in GPU_FIELDS.items()
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "text/plain; version=0.0.4")
        self.send_header("content-length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def gpu_exporter() -> Iterator[str]:
    """Its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Exporter)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# -- what happens on the gateway -------------------------------------------------------------------
@dataclass
class People:
    """They ask the route, stream by stream and now and then not, and judge what they get, until told to stop."""

    server: Server
    failures: list[openai.APIError] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> People:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        client = self.server.client()
        for number in itertools.count():
            if self._stop.wait(0.1):
                return
            try:
                self._talk(client, number)
            except openai.APIError as error:
                self.failures.append(error)

    def _talk(self, client: openai.OpenAI, number: int) -> None:
        ask: dict[str, Any] = {
            "model": ROUTE,
            "messages": [{"role": "user", "content": f"Question {number}?"}],
            "max_tokens": 8,
            "safety_identifier": f"somebody-{number % 400}",
        }
        if number % 4:
            pieces = list(client.chat.completions.create(**ask, stream=True))
            completion = pieces[0].id
        else:
            completion = client.chat.completions.create(**ask).id
        thumb = {"completion_id": completion, "name": "rating", "value": number % 3 != 0}
        client.post("/feedback", body=thumb, cast_to=object)


def things_go_wrong(shop: Workshop) -> None:
    """An unknown model, an engine that fails, a challenger in whose stead the control answers, more than there is room for."""
    client, engine, server = shop.client, shop.engine, shop.server
    hello: Any = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", **hello)
    engine.set(fault="refuse", fault_models=[MODEL])
    with pytest.raises(openai.APIStatusError):
        client.chat.completions.create(model=MODEL, **hello)
    user = user_of(server, CHALLENGER)
    engine.set(fault="refuse", fault_models=[served_name(server, CHALLENGER)])
    client.chat.completions.create(model=ROUTE, **hello, safety_identifier=user)
    engine.set(fault=None, ttft_seconds=1.0)
    with ThreadPoolExecutor(2 * PLACES) as crowd:
        answered = [*crowd.map(lambda _: asks_in_vain(client, hello), range(2 * PLACES))]
    assert "overloaded" in answered
    engine.set(ttft_seconds=0)


def asks_in_vain(client: openai.OpenAI, hello: Any) -> str | None:
    """The error's code, if there is no room."""
    try:
        client.chat.completions.create(model=MODEL, **hello)
    except openai.APIStatusError as error:
        return error.code
    return None


def loses_its_worker(shop: Workshop, job: str) -> None:
    """The worker is killed while it trains; the gateway starts another, which takes the run up when the lease is over."""
    wait_for(lambda: shop.job(job).progress.get("stage") == "train", RUN_SECONDS, lambda: shop.log_of(job))
    started = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(shop.server.process.pid)}
    (worker,) = (
        pid for pid, command in started.items() if command.split(b"\0")[1:3] == [b"-m", b"trainer.worker"]
    )
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: shop.job(job).attempts == 2, 60, lambda: shop.server.log)


def rests(shop: Workshop, job: str) -> None:
    """People wait too long for their first token until the run has given way."""
    shop.engine.set(ttft_seconds=1.5)
    wait_for(lambda: shop.job(job).progress.get("resting"), RUN_SECONDS, lambda: shop.log_of(job))
    time.sleep(RECORDS_SECONDS)
    shop.engine.set(ttft_seconds=0)


def begin(server: Server, route: str, **plan: Any) -> str:
    with server.http() as http:
        made = http.post("/v1/experiments", json={"route": route, "plan": plan})
        assert made.status_code == 201, made.text
        return str(made.json()["name"])


def experiments(server: Server) -> None:
    """One that goes on, and one that a person stops."""
    begin(server, ROUTE, challengers=[CHALLENGER], guardrails={"error_rate": None})
    stopped = begin(server, "sales", challengers=["sales@2"])
    with server.http() as http:
        http.post(f"/v1/experiments/{stopped}/stop", json={"reason": "seen enough"}).raise_for_status()


def batch(client: openai.OpenAI) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    text = "\n".join(json.dumps({**line, "custom_id": str(n)}) for n in range(40)).encode()
    file = client.files.create(file=("lines.jsonl", text), purpose="batch")
    client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")


@dataclass(frozen=True)
class Watched:
    shop: Workshop
    prometheus: Prometheus
    people: People
    until: float = field(default_factory=lambda: time.monotonic() + DATA_SECONDS)

    @property
    def patience_seconds(self) -> float:
        return max(self.until - time.monotonic(), 5.0)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    with (
        workshop(
            folder / "home", f"{SETTINGS}{TOLERANT}lease_seconds = 5.0\n", worker=True, places=PLACES
        ) as shop,
        gpu_exporter() as gpus,
        watching(folder, gateways=[shop.server.url.removeprefix("http://")], gpus=[gpus]) as prometheus,
    ):
        teach(shop.engine, better=["orders"])
        for name, seed in (("support", 1), ("support", 2), ("sales", 3), ("sales", 4)):
            shop.server.add_adapter(name, seed=seed)
        shop.make_route("orders")
        experiments(shop.server)
        with People(shop.server) as people:
            long = {**HYPERPARAMETERS, "n_epochs": 25}  # so that its steps are seen by more than one look
            job = shop.order("orders", extra_body={"route": "orders"}, hyperparameters=long)
            batch(shop.client)
            things_go_wrong(shop)
            loses_its_worker(shop, job.id)
            rests(shop, job.id)
            ended = shop.until_ended(job.id)
            assert ended.status == "succeeded", shop.log_of(job.id)
            batch(shop.client)  # once more: a rate is of what rises after it was seen for the first time
            yield Watched(shop, prometheus, people)
            others = [failed for failed in people.failures if failed.code != "overloaded"]
            assert len(others) <= 2, others[:3]  # those that met a fault


# -- what is seen of it ----------------------------------------------------------------------------
def test_every_target_is_up(watched: Watched) -> None:
    wanted = {"burnish": "up", "burnish-engines": "up", "dcgm": "up"}
    wait_for(
        lambda: watched.prometheus.target_states() == wanted,
        20,
        lambda: str(watched.prometheus.target_states()),
    )


@pytest.mark.parametrize("name", sorted(boards()))
def test_every_panels_query_has_data(watched: Watched, name: str) -> None:
    silent = [asked for asked in of_panels() if asked.board == name]
    assert silent

    def all_have() -> bool:
        silent[:] = [asked for asked in silent if not watched.prometheus.has_data(asked.expr)]
        return not silent

    wait_for(
        all_have, watched.patience_seconds, lambda: "\n".join(f"{asked}: {asked.expr}" for asked in silent)
    )


def test_every_variable_has_something_to_choose(watched: Watched) -> None:
    asked = {
        variable["query"]["query"]
        for board in boards().values()
        for variable in board["templating"]["list"]
        if variable["type"] == "query"
    }
    assert len(asked) >= 4
    for query in asked:
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
        assert found, query
        wait_for(
            lambda found=found: watched.prometheus.get(f"label/{found[2]}/values", **{"match[]": found[1]}),
            20,
        )


def test_every_rule_is_evaluated_without_an_error(watched: Watched) -> None:
    def health() -> dict[str, str]:
        groups = watched.prometheus.get("rules")["groups"]
        return {
            rule["name"]: rule.get("lastError") or rule["health"]
            for group in groups
            for rule in group["rules"]
        }

    wait_for(lambda: set(health().values()) == {"ok"}, 20, lambda: str(health()))


def test_what_happened_is_what_is_shown(watched: Watched) -> None:
    """Not only that there are numbers: that they are these."""

    def labels(expr: str, name: str) -> set[str]:
        found = watched.prometheus.get("query", query=expr)["result"]
        return {series["metric"].get(name, "") for series in found}

    expected = {
        ('burnish_errors_total{error="not_found"} > 0', "variant"): {""},
        ("burnish_fail_overs_total > 0", "variant"): {CHALLENGER},
        ("burnish_training_gate_total == 1", "route"): {"orders"},
        ("burnish_training_gate_total == 1", "outcome"): {"pass"},
        ("burnish_experiment_verdict == 1", "experiment"): {"sales-1"},
        ('burnish_experiment_state{state="running"} == 1', "experiment"): {f"{ROUTE}-1"},
        ("burnish_feedback_total > 0", "variant"): {f"{ROUTE}@1", CHALLENGER},
        ('burnish_batches{state="completed"} == 2', "state"): {"completed"},
        ("vllm:num_requests_running", "engine"): {"e0"},
        ("burnish_overloaded_total > 0", "class"): {"interactive"},
        ("burnish_job_attempts_lost_total > 0", "kind"): {"training"},
    }
    for (expr, name), values in expected.items():
        wait_for(
            lambda expr=expr, name=name, values=values: labels(expr, name) == values,
            60,
            lambda expr=expr: f"{expr}: {watched.prometheus.get('query', query=expr)['result']}",
        )


def test_tables_show_what_is_now(watched: Watched) -> None:
    """Queries of tables are asked once, not over time."""
    now = [
        (panel["title"], replaced(target["expr"]))
        for board in boards().values()
        for panel in panels(board)
        for target in panel["targets"]
        if target.get("instant")
    ]
    assert now
    for title, expr in now:
        assert wait_for(lambda expr=expr: watched.prometheus.get("query", query=expr)["result"], 20), title


# -- with keys -------------------------------------------------------------------------------------
def test_a_gateway_with_keys_is_scraped_with_an_admins(tmp_path: Path, gateway_on_fake: Server) -> None:
    made = gateway_on_fake.burnish("keys", "create", "--name", "prometheus", "--scope", "admin")
    address = gateway_on_fake.url.removeprefix("http://")
    with gateway_on_fake.http() as http:
        wait_for(lambda: http.get("/metrics").status_code == 401, 10)
    with watching(tmp_path / "without", gateways=[address], gpus=[]) as prometheus:
        wait_for(lambda: prometheus.target_states().get("burnish") == "down", 20)
    with watching(tmp_path / "with", gateways=[address], gpus=[], key=made.stdout.strip()) as prometheus:
        wait_for(lambda: set(prometheus.target_states().values()) == {"up"}, 20)
