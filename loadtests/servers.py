"""The system under load: `burnish serve` on an engine, with a fresh home, ended whatever happens.

Knows its settings by name, and nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from loadtests.fake_engine.process import FakeEngine

MODEL = "smollm2-135m-instruct"

START_SECONDS = 600.0
"""Weights may have to be fetched, and an engine on a GPU compiles."""
STOP_SECONDS = 90.0
LOG_CHARS = 3000

FAKE_TTFT_SECONDS, FAKE_ITL_SECONDS = 0.03, 0.005
"""They do not grow with load, so that nothing is learned from them but whether the harness works."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The latency that interactive requests should have, 95 of 100."""

    ttft_seconds: float
    itl_seconds: float


@dataclass(frozen=True, slots=True)
class System:
    """What is served and how: the same for all servers of a measurement."""

    engine: str  # "real", "fake", or the URL of a vLLM
    weights: Path  # a folder of base models' folders; the default weights are fetched into it once
    settings: Mapping[
        str, Mapping[str, Any]
    ]  # table -> key -> value of burnish.toml; "engine" is the engine's

    @property
    def model(self) -> str:
        return str(self.settings.get("engine", {}).get("model", MODEL))


@contextlib.contextmanager
def serving(
    system: System, targets: Targets | None, *, priority: bool, log: Path | None = None
) -> Iterator[str]:
    """The URL of a server, up for as long as the block runs. `targets` None: those that Burnish has by default. `log`: a
    file that what it says goes to; else it goes with its home.

    Raises RuntimeError with the end of its log where it does not come up.
    """
    with contextlib.ExitStack() as stack:
        url = system.engine
        if url == "fake":
            engine = stack.enter_context(FakeEngine(system.model))
            engine.set(ttft_seconds=FAKE_TTFT_SECONDS, itl_seconds=FAKE_ITL_SECONDS)
            url = engine.url
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="burnish-load-")), "home")
        home.mkdir()
        system.weights.mkdir(parents=True, exist_ok=True)
        (home / "weights").symlink_to(system.weights.absolute())
        (home / "burnish.toml").write_text(settings_text(system, url, targets, priority=priority))
        yield stack.enter_context(_burnish(home, log or home / "serve.log"))


def settings_text(system: System, engine_url: str, targets: Targets | None, *, priority: bool) -> str:
    """A burnish.toml. What the system's settings say is said last, and wins."""
    tables: dict[str, dict[str, Any]] = {"priority": {"enabled": priority}, "training": {"nice": priority}}
    if targets is not None:
        tables["targets"] = {
            "ttft_p95_seconds": targets.ttft_seconds,
            "itl_p95_seconds": targets.itl_seconds,
        }
    engine: dict[str, Any] = {"name": "local", "kind": "supervised", "model": system.model}
    if system.engine != "real":
        engine |= {"kind": "vllm", "url": engine_url}
    for name, values in system.settings.items():
        (engine if name == "engine" else tables.setdefault(name, {})).update(values)
    return "".join(_table(f"[{name}]", values) for name, values in tables.items()) + _table(
        "[[engines]]", engine
    )


def _table(head: str, values: Mapping[str, Any]) -> str:
    return "\n".join([head, *(f"{key} = {_value(value)}" for key, value in values.items()), "\n"])


def _value(value: Any) -> str:
    """JSON's scalars and lists are TOML's; its objects are not."""
    if not isinstance(value, Mapping):
        return json.dumps(value)
    return "{ " + ", ".join(f"{json.dumps(key)} = {_value(each)}" for key, each in value.items()) + " }"


@contextlib.contextmanager
def _burnish(home: Path, log_file: Path) -> Iterator[str]:
    port = free_port()
    places = {
        "BURNISH_HOME": str(home),
        "BURNISH_CONFIG": str(home / "burnish.toml"),
        "BURNISH_PORT": str(port),
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BURNISH_")}
    with log_file.open("ab") as log:
        # In a session of its own: Ctrl-C reaches us alone, and the server is asked to stop once, by us. Asked twice,
        # it would not wait for anything.
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "serve"],
            env=inherited | places,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_up(url, process, log_file)
        yield url
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, as an operator would; it ends its engine and its trainer itself, also where it is killed."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_up(url: str, process: subprocess.Popen[bytes], log_file: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/healthz", timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(0.2)
    told = log_file.read_text(errors="replace")[-LOG_CHARS:]
    raise RuntimeError(
        f"burnish serve did not come up (exit status {process.poll()}); its log ends with\n{told}"
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
