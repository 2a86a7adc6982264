"""The systems under test as processes: started on a core of their own, stopped, and their CPU time read.

Knows how a prototype and how Burnish are started, and nothing of what is measured.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from loadtests.transports.load import CHAT, ENGINE_MODEL, JSON_HEADERS, MODEL, request_body

LOAD_CORE, RELAY_CORE = 0, 1
HAS_BOTH = {LOAD_CORE, RELAY_CORE} <= os.sched_getaffinity(0)
START_SECONDS = 60.0
STOP_SECONDS = 10.0


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """This process, and those it starts in the block, run on one core, where there are two."""
    before = os.sched_getaffinity(0)
    if HAS_BOTH:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """User and system time of all the threads a process has had: the clock that clock_getcpuclockid(3) names."""
    return time.clock_gettime((~pid << 3) | 2)


@contextmanager
def child(*command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python module as a process on the relay's core, for as long as the block runs.

    What it says on standard error is shown only where the block fails.
    """
    with tempfile.TemporaryFile() as log:
        with on_core(RELAY_CORE):
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        try:
            yield process
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode())
            raise
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    with process:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def prototype(server: str, client: str, upstream: str) -> Iterator[tuple[str, int]]:
    """The address and process id of a prototype."""
    with child("loadtests.transports.prototypes", server, client, upstream) as process:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        yield f"http://127.0.0.1:{port}", process.pid


@contextmanager
def burnish(upstream: str) -> Iterator[tuple[str, int]]:
    """The address and process id of `burnish serve`, once it answers."""
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        config = Path(home, "burnish.toml")
        config.write_text(
            f'[[engines]]\nname = "fake"\nkind = "vllm"\nurl = "{upstream}"\n'
            f'model = "{MODEL}"\nupstream_model = "{ENGINE_MODEL}"\n'
        )
        places = {"BURNISH_HOME": home, "BURNISH_CONFIG": str(config), "BURNISH_PORT": str(port)}
        with child("gateway.cli", "serve", **places) as process:
            url = f"http://127.0.0.1:{port}"
            wait_for_answer(url, process)
            yield url, process.pid


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def wait_for_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            body = request_body(MODEL, 1, streams=False)
            if httpx.post(url + CHAT, content=body, headers=JSON_HEADERS, trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer (exit code {process.poll()})")
