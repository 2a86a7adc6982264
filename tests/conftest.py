"""The processes that tests share: gateways on fake engines, and one real stack for a whole session.

Everything is a real process on a real socket: the `burnish` command, the fake engine of `loadtests`, and for
tests marked `slow` one real vLLM with two real adapters.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import settings

from loadtests.fake_engine.process import FakeEngine
from tests.lora import TINY_CONFIG, write_lora
from trainer.memory import descendants

# A shell that starts this in the background has its children ignore Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("shared machine", deadline=None)  # a neighbour's load is no failure
settings.load_profile("shared machine")

MODEL = "smollm2-135m-instruct"
START_SECONDS = 90.0

QUICK_HEALTH = """
[health]
probe_interval_seconds = 0.1
probe_timeout_seconds = 0.5
failures_to_eject = 2
backoff_initial_seconds = 0.2
backoff_max_seconds = 1.0
first_byte_timeout_seconds = 5.0
total_timeout_seconds = 20.0
hold_seconds = 3.0
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A running `burnish serve` and its home."""

    home: Path
    port: int
    process: subprocess.Popen[bytes]
    config: Path
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def log(self) -> str:
        return (self.home / "serve.log").read_text(errors="replace")

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            **{"base_url": self.base_url, "api_key": "none", "max_retries": 0, "timeout": 60, **options}
        )

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            **{"base_url": self.base_url, "api_key": "none", "max_retries": 0, "timeout": 60, **options}
        )

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def burnish(
        self, *arguments: str, check: bool = True, timeout: float = 180
    ) -> subprocess.CompletedProcess[str]:
        """Runs a verb of the CLI on this server's home."""
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli", *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(
                f"burnish {' '.join(arguments)} exited {done.returncode}: {done.stderr}{done.stdout}"
            )
        return done

    def add_adapter(self, name: str, **lora: Any) -> str:
        """Imports a new LoRA made of `lora` (see tests/lora.py) and waits until it is proved; its digest."""
        folder = write_lora(
            self.home / "sources" / f"{name}-{time.monotonic_ns()}", **{"base_config": TINY_CONFIG, **lora}
        )
        with self.http() as http:
            made = http.post("/v1/adapters", json={"name": name, "path": str(folder)})
            assert made.status_code == 201, made.text
            ref = made.json()["id"]
            found = wait_for(lambda: _settled(http.get(f"/v1/adapters/{ref}").json()), 60)
        assert found["state"] == "proved", found
        return str(found["digest"])

    def wait_up(self, seconds: float = START_SECONDS) -> None:
        wait_for(lambda: self._healthy(), seconds, lambda: self.log)

    def stop(self, seconds: float = 40.0) -> int:
        """SIGTERM, as an operator would; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def _healthy(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"burnish serve ended with {self.process.returncode}:\n{self.log}")
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/healthz", timeout=2, trust_env=False).status_code == 200
        return False


def _settled(version: dict[str, Any]) -> dict[str, Any] | None:
    return version if version.get("state") not in ("staged", None) else None


def wait_for(check: Callable[[], Any], seconds: float = 10.0, explain: Callable[[], str] = lambda: "") -> Any:
    """The first true value of `check`, asked again and again for at most `seconds`."""
    until = time.monotonic() + seconds
    while not (value := check()):
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} s: {check} {explain()[-3000:]}")
        time.sleep(0.02)
    return value


def start_server(home: Path, config: str, environ: dict[str, str] | None = None) -> Server:
    """Starts `burnish serve` with the text of a burnish.toml, on a free port."""
    home.mkdir(parents=True, exist_ok=True)
    file = home / "burnish.toml"
    file.write_text(config)
    port = free_port()
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("BURNISH_")},
        "BURNISH_HOME": str(home),
        "BURNISH_PORT": str(port),
        "BURNISH_CONFIG": str(file),
        **(environ or {}),
    }
    log = (home / "serve.log").open("ab")
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "serve"],
        env=env,
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
    )
    log.close()
    return Server(home, port, process, file, env)


def engines_config(*engines: FakeEngine, extra: str = "", places: int = 128) -> str:
    """A burnish.toml over fake engines that answer `places` at a time, with a health watch quick enough for tests."""
    tables = [
        f'[[engines]]\nname = "e{index}"\nkind = "vllm"\nmodel = "{engine.model}"\nurl = "{engine.url}"\n'
        f"max_concurrent = {places}\n"
        for index, engine in enumerate(engines)
    ]
    idle = "" if "[training]" in extra else "\n[training]\nworker = false\n"
    return extra + QUICK_HEALTH + idle + "\n".join(tables)


@contextlib.contextmanager
def running(home: Path, config: str, environ: dict[str, str] | None = None) -> Iterator[Server]:
    """A server that is up, and stopped at the end."""
    server = start_server(home, config, environ)
    try:
        server.wait_up()
        yield server
    finally:
        try:
            server.stop()
        except subprocess.TimeoutExpired:
            server.process.kill()
            raise


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine(MODEL) as fake:
        yield fake


@pytest.fixture
def engines() -> Iterator[tuple[FakeEngine, FakeEngine]]:
    with FakeEngine(MODEL) as first, FakeEngine(MODEL) as second:
        yield first, second


@pytest.fixture
def gateway_on_fakes(engines: tuple[FakeEngine, FakeEngine], tmp_path: Path) -> Iterator[Server]:
    """A gateway over two fake engines of one model."""
    with running(tmp_path / "home", engines_config(*engines)) as server:
        yield server


@pytest.fixture
def gateway_on_fake(engine: FakeEngine, tmp_path: Path) -> Iterator[Server]:
    """A gateway over one fake engine."""
    with running(tmp_path / "home", engines_config(engine)) as server:
        yield server


@dataclass
class RealStack:
    """A gateway with keys over one real vLLM, and two real adapters that answer otherwise than the base."""

    server: Server
    api_key: str
    adapter_names: tuple[str, str]
    model: str = MODEL

    @property
    def base_url(self) -> str:
        return self.server.base_url

    def client(self, **options: Any) -> openai.OpenAI:
        return self.server.client(api_key=self.api_key, **options)

    def http(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.api_key}"}
        return httpx.Client(base_url=self.server.url, timeout=120, trust_env=False, headers=headers)


@pytest.fixture(scope="session")
def weights() -> Path:
    """The default weights, fetched once for all sessions of this user."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "burnish-tests" / "weights"
    subprocess.run([sys.executable, "-m", "trainer.weights", str(root / MODEL)], check=True)
    return root


@pytest.fixture(scope="session")
def real_stack(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealStack]:
    """The one real vLLM of a session (slow: about a minute to start)."""
    home = tmp_path_factory.mktemp("real") / "home"
    home.mkdir()
    (home / "weights").symlink_to(weights)
    config = json.loads((weights / MODEL / "config.json").read_text())
    server = start_server(home, REAL_CONFIG)
    try:
        key = server.burnish("keys", "create", "--name", "tests", "--scope", "inference", "--scope", "admin")
        server.wait_up(240)
        stack = RealStack(server, key.stdout.strip(), ("support", "sales"))
        for seed, name in enumerate(stack.adapter_names, 1):
            lora = write_lora(
                home / "sources" / name, config, seed=seed, rank=16, scale=0.08, target_modules=ALL_LINEAR
            )
            server.burnish("adapters", "add", name, str(lora))
        yield stack
    finally:
        started = [*descendants(server.process.pid)]
        assert server.stop() == 0
        assert not [*filter(is_alive, started)], "SIGTERM left processes behind"


def processes_of(home: Path) -> list[int]:
    """The processes whose command line or environment names a server's home."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            if str(home).encode() in told and int(process.name) != os.getpid():
                found.append(int(process.name))
    return found


def state_of(pid: int) -> str:
    """One letter of proc(5): R, S, T (stopped), Z; "" once it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    return state_of(pid) not in ("", "Z")


REAL_CONFIG = """
[[engines]]
name = "local"
kind = "supervised"
max_model_len = 2048
kv_cache_gib = 1.0

# What a slow processor keeps as well: the defaults would have runs and their gates wait for it to become faster.
[targets]
ttft_p95_seconds = 5.0
itl_p95_seconds = 1.0
"""

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
