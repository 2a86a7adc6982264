"""Runs a local process - a vLLM, the trainer's worker - and a new one whenever it ends.

Owns the child process, its log, and the private Unix socket that a vLLM serves on. Knows nothing of health, adapters
or jobs: `vllm_command` says how vLLM is called, `health` judges the engine by its answers, `reconcile` fills it.

The child is `adapters/keeper.py`, which runs the command and leaves no process behind, whoever is killed and however.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from adapters import keeper
from adapters.engine_settings import EngineSettings
from adapters.errors import SettingsError
from gateway.vllm_command import serves_on_gpu, vllm_command, vllm_environment

log = logging.getLogger("burnish.supervisor")

KEEPER = Path(keeper.__file__)

SOCKET_PATH_BYTES = 107
"""The longest path of a Unix socket on Linux (unix(7): sun_path holds 108 with its end)."""

LOG_BYTES = 10_000_000
"""A log larger than this is set aside at the next start; one older log is kept."""

LOG_TAIL_BYTES = 16_384
LINE_CHARS = 300

ERROR = re.compile(r"(^|\] )[\w.]*(Error|Exception|Exit|Interrupt)\b|: error: ")
"""The last line of a traceback, bare or behind vLLM's own prefix, or of argparse."""

STEADY_SECONDS = 300.0
"""A process that ran this long is healthy: the next restart waits the initial back-off again."""

KILL_SECONDS = 10.0
"""What the keeper may take to kill everything; its own bounds add up to less."""


class SupervisedProcess:
    """One local process, restarted for ever with back-off until it is stopped."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log_path: Path,
        *,
        backoff_initial_seconds: float = 1.0,
        backoff_max_seconds: float = 30.0,
    ) -> None:
        self.name = name
        self.log_path = log_path
        self.restarts = 0
        self.last_exit: str | None = None
        self._command = list(command)
        self._environment = dict(environment)
        self._backoff_seconds = (backoff_initial_seconds, backoff_max_seconds)
        self._keeper: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._grace_seconds = 0.0
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The process itself (of an engine: the API server), while there is one."""
        if self._keeper is None or self._keeper.returncode is not None:
            return None
        children = Path(f"/proc/{self._keeper.pid}/task/{self._keeper.pid}/children")
        with contextlib.suppress(OSError, IndexError):
            return int(children.read_text().split()[0])
        return None

    async def start(self) -> None:
        """Starts the process and begins to watch it; does not wait until it answers."""
        self._keeper = await self._spawn()
        self._watching = asyncio.create_task(self._watch(), name=f"supervise {self.name}")

    async def stop(self, grace_seconds: float) -> None:
        """Ends the process and everything it started: politely for `grace_seconds`, then by force."""
        self._grace_seconds = grace_seconds
        self._stopping.set()
        if self._watching is not None:
            await self._watching

    async def _watch(self) -> None:
        delay = self._backoff_seconds[0]
        while not self._stopping.is_set():
            began = time.monotonic()
            await self._run_to_end()
            if self._stopping.is_set():
                break
            if time.monotonic() - began > STEADY_SECONDS:
                delay = self._backoff_seconds[0]
            log.warning("process_exited process=%s restart_in=%.1f %s", self.name, delay, self.last_exit)
            await _sleep_unless(self._stopping, delay)
            delay = min(delay * 2, self._backoff_seconds[1])
            await self._restart()

    async def _run_to_end(self) -> None:
        keeper = self._keeper
        if keeper is None:
            return
        ended = asyncio.create_task(keeper.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not ended.done():
            await _end(keeper, ended, self._grace_seconds)
        # The last resort where the keeper was killed: its process group is the command's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(keeper.pid, signal.SIGKILL)
        self.last_exit = _exit_reason(await ended, self.log_path, self._log_start)

    async def _restart(self) -> None:
        if self._stopping.is_set():
            return
        self.restarts += 1
        try:
            self._keeper = await self._spawn()
        except OSError as error:  # out of memory, of processes, of disk: that may pass
            self._keeper = None
            self.last_exit = f"could not start: {error.strerror or error}"

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._prepare()
        with _open_log(self.log_path) as file:
            self._log_start = file.tell()
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                str(KEEPER),
                *self._command,
                stdin=subprocess.PIPE,  # never written: its end tells the keeper that we are gone
                stdout=file,
                stderr=file,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for us, not for it
            )

    def _prepare(self) -> None:
        """What has to be done before each start."""


class SupervisedEngine(SupervisedProcess):
    """One vLLM process and its private Unix socket."""

    def __init__(
        self,
        settings: EngineSettings,
        home: Path,
        weights: Path,
        socket_dir: Path,
        *,
        command: Sequence[str] | None = None,
        training_share: float | None = None,
        backoff_initial_seconds: float = 1.0,
        backoff_max_seconds: float = 30.0,
    ) -> None:
        """`socket_dir` must be private (mode 0700); `command` runs something else than vLLM; `training_share` is kept
        free of the GPU's memory."""
        self.settings = settings
        self.socket = socket_dir / f"{settings.name}.sock"
        gpu = serves_on_gpu()
        super().__init__(
            settings.name,
            command or vllm_command(settings, weights, self.socket, gpu, training_share),
            vllm_environment(settings, home, socket_dir, gpu, os.environ),
            home / "logs" / f"engine-{settings.name}.log",
            backoff_initial_seconds=backoff_initial_seconds,
            backoff_max_seconds=backoff_max_seconds,
        )
        if len(os.fsencode(self.socket)) > SOCKET_PATH_BYTES:
            raise SettingsError(
                f"engine {settings.name!r}: its socket's path is too long; set TMPDIR to a shorter one"
            )

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def _prepare(self) -> None:
        # vLLM refuses a socket path that exists, and a killed one leaves its own behind.
        self.socket.unlink(missing_ok=True)


async def _end(keeper: asyncio.subprocess.Process, ended: asyncio.Task[int], grace_seconds: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        keeper.send_signal(signal.SIGTERM)
    await asyncio.wait({ended}, timeout=grace_seconds)
    if not ended.done() and keeper.stdin is not None:
        keeper.stdin.close()
        await asyncio.wait({ended}, timeout=KILL_SECONDS)
    if not ended.done():
        os.killpg(keeper.pid, signal.SIGKILL)


async def _sleep_unless(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


def _open_log(path: Path) -> BinaryIO:
    """The log, opened to append; a large one is set aside first. Nobody else may read it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def _exit_reason(status: int, log_path: Path, start: int) -> str:
    """How the process ended, and the line of its log (from `start` on) that says most about why."""
    number = -status if status < 0 else status - 128
    try:
        how = f"killed by {signal.Signals(number).name}"
    except ValueError:
        how = f"exit code {status}"
    line = _telling_line(log_path, start)
    return f"{how}: {line}" if line else how


def _telling_line(path: Path, start: int) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(start, path.stat().st_size - LOG_TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if ERROR.search(line)]
        return (errors or lines or [""])[-1][:LINE_CHARS]
    return ""
