"""vLLM as a process: its flags, plainer ones where it does not come up, and its end.

Its flags are those that Burnish itself starts an engine with, as far as vLLM 0.26 knows them too, but on a TCP port, so
that it can be asked without Burnish as well. Knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to start it."""

    how: str
    flags: tuple[str, ...]
    environment: dict[str, str]
    patience_seconds: float


ATTEMPTS = (
    Attempt(
        "compiled", ("--cudagraph-capture-sizes", "1", "2", "4", "8", "16", "32", "64", "128"), {}, 260.0
    ),
    Attempt("eager", ("--enforce-eager",), {}, 120.0),
    Attempt("eager, older runner", ("--enforce-eager",), {"VLLM_USE_V2_MODEL_RUNNER": "0"}, 120.0),
)
"""Tried in this order."""

LEAST_SECONDS = 30.0
"""No attempt is made with less."""

LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STREAMS = 128
CONTEXT_TOKENS = 4096
STOP_SECONDS = 20.0
LOG_LINES = 25


@dataclass(frozen=True, slots=True)
class Engine:
    """One that answers."""

    url: str
    how: str  # the name of the attempt that came up
    start_seconds: float


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be served, and how."""

    model: Path
    name: str
    max_loras: int
    max_cpu_loras: int
    rank: int
    memory_share: float  # of the GPU's
    extra: tuple[str, ...] = ()


@contextlib.contextmanager
def vllm(
    order: Order, port: int, log: Path, until: float, *, first: str = ATTEMPTS[0].how, patience: float = 1.0
) -> Iterator[Engine]:
    """A vLLM, up for as long as the block runs, and by `until` (time.monotonic's clock) at the latest.
    `patience`: a factor on the seconds that each attempt gets.

    Raises RuntimeError with the end of its log where no attempt from the `first` on brought it up.
    """
    told = "no time was left to start it"
    for attempt in itertools.dropwhile(lambda attempt: attempt.how != first, ATTEMPTS):
        began = time.monotonic()
        if began + LEAST_SECONDS > until:
            break
        process = _start([*_command(order, port), *attempt.flags, *order.extra], attempt.environment, log)
        try:
            problem = _wait(
                process, f"http://127.0.0.1:{port}", min(began + patience * attempt.patience_seconds, until)
            )
            if problem is None:
                yield Engine(f"http://127.0.0.1:{port}", attempt.how, time.monotonic() - began)
                return
            told = f"{attempt.how}: {problem}; its log ends with\n" + "\n".join(_tail(log))
            print(told, file=sys.stderr, flush=True)
        finally:
            _stop(process)
    raise RuntimeError(f"vLLM did not come up; {told}")


def _command(order: Order, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(order.model), "--served-model-name", order.name),
        *("--dtype", "bfloat16"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--max-model-len", str(CONTEXT_TOKENS), "--max-num-seqs", str(STREAMS)),
        *("--enable-lora", "--max-loras", str(order.max_loras), "--max-cpu-loras", str(order.max_cpu_loras)),
        *("--max-lora-rank", str(order.rank), "--lora-target-modules", *LORA_MODULES),
        *("--scheduling-policy", "priority", "--gpu-memory-utilization", f"{order.memory_share:.3g}"),
        *("--no-enable-log-requests", "--disable-uvicorn-access-log"),
    ]


def _start(command: Sequence[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    ours = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
    }
    print(" ".join(command), file=sys.stderr, flush=True)
    with log.open("ab") as file:
        # In a session of its own, so that all that it starts is ended with it.
        return subprocess.Popen(
            command,
            env={**os.environ, **ours, **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def _wait(process: subprocess.Popen[bytes], url: str, until: float) -> str | None:
    """None once it answers; else what is wrong."""
    while time.monotonic() < until:
        if process.poll() is not None:
            return f"it ended with {process.returncode}"
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200:
                return None
        time.sleep(0.5)
    return "it was not up in time"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Politely, then by force; with all that it has started."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _tail(log: Path) -> list[str]:
    return [line[:300] for line in log.read_text(errors="replace").splitlines()[-LOG_LINES:]]
