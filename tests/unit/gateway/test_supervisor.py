"""The supervisor with cheap real children: whoever is killed, and however, no process is left and a new one starts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from multiprocessing import shared_memory
from pathlib import Path
from types import SimpleNamespace

import pytest

from adapters.engine_settings import EngineSettings
from adapters.errors import SettingsError
from gateway.supervisor import LOG_BYTES, SupervisedEngine

REPOSITORY = Path(__file__).parents[3]

# Like vLLM: a server, a child of it, and a grandchild that would never end by itself. Prints all three pids.
FAMILY = """
import os, subprocess, sys, time
grandchild = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
child = f"import os, subprocess, sys; print(os.getpid(), flush=True); subprocess.run([sys.executable, '-c', {grandchild!r}])"
print(os.getpid(), flush=True)
subprocess.run([sys.executable, "-c", child])
"""

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
code = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
time.sleep(600)
"""

POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("0", flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


class Supervised(SimpleNamespace):
    """An engine that runs a Python program, and the pids that the program has printed to its log."""

    engine: SupervisedEngine

    @property
    def pids(self) -> list[int]:
        with contextlib.suppress(OSError):
            return [int(line) for line in self.engine.log_path.read_text().split() if line.isdigit()]
        return []


@pytest.fixture
async def supervise(tmp_path: Path) -> AsyncIterator[Callable[..., Supervised]]:
    running: list[Supervised] = []

    def make(program: str, **options: float) -> Supervised:
        settings = EngineSettings(name="test", kind="supervised")
        command = [sys.executable, "-c", program]
        options = {"backoff_initial_seconds": 0.05, "backoff_max_seconds": 0.2} | options
        engine = SupervisedEngine(settings, tmp_path, tmp_path, tmp_path, command=command, **options)
        running.append(Supervised(engine=engine))
        return running[-1]

    yield make
    for supervised in running:
        await supervised.engine.stop(0)


async def test_an_engine_killed_hard_comes_back_and_its_orphans_are_gone(supervise) -> None:
    family = supervise(FAMILY)
    await family.engine.start()
    await until(lambda: len(family.pids) == 3)
    first = family.pids
    assert family.engine.pid == first[0]

    os.kill(first[0], signal.SIGKILL)

    await until(lambda: len(family.pids) == 6)
    assert family.engine.restarts == 1
    assert family.engine.last_exit.startswith("killed by SIGKILL")
    assert family.engine.pid == family.pids[3]
    assert not any(alive(pid) for pid in first)


async def test_an_engine_whose_keeper_was_killed_leaves_nothing_behind(supervise) -> None:
    family = supervise(FAMILY)
    await family.engine.start()
    await until(lambda: len(family.pids) == 3)

    os.kill(family.engine._keeper.pid, signal.SIGKILL)

    await until(lambda: len(family.pids) == 6)
    await until(lambda: not any(alive(pid) for pid in family.pids[:3]))


async def test_stop_leaves_no_process(supervise) -> None:
    family = supervise(FAMILY)
    await family.engine.start()
    await until(lambda: len(family.pids) == 3)

    await family.engine.stop(5)

    assert family.engine.pid is None
    assert not any(alive(pid) for pid in family.pids)
    assert len(family.pids) == 3


async def test_stop_lets_an_engine_end_by_itself(supervise) -> None:
    polite = supervise(POLITE)
    await polite.engine.start()
    await until(lambda: polite.pids)

    await polite.engine.stop(10)

    assert polite.engine.last_exit.startswith("exit code 0")


async def test_stop_kills_what_ignores_it_even_in_a_session_of_its_own(supervise) -> None:
    stubborn = supervise(STUBBORN)
    await stubborn.engine.start()
    await until(lambda: len(stubborn.pids) == 2)
    began = time.monotonic()

    await stubborn.engine.stop(0.3)

    assert not any(alive(pid) for pid in stubborn.pids)
    assert 0.3 <= time.monotonic() - began < 8


async def test_stop_during_the_back_off_does_not_wait_for_it(supervise) -> None:
    failing = supervise("raise SystemExit(3)", backoff_initial_seconds=60, backoff_max_seconds=60)
    await failing.engine.start()
    await until(lambda: failing.engine.last_exit)
    began = time.monotonic()

    await failing.engine.stop(10)

    assert time.monotonic() - began < 2
    assert failing.engine.restarts == 0


async def test_restarts_go_on_with_growing_pauses(supervise) -> None:
    failing = supervise("import time; print('0', flush=True); raise SystemExit(3)")
    began = time.monotonic()
    await failing.engine.start()
    await until(lambda: failing.engine.restarts >= 4)
    assert time.monotonic() - began >= 0.05 + 0.1 + 0.2


async def test_last_exit_names_the_error_of_this_run_and_no_older_one(supervise, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "engine-test.log").write_text("OldError: of the run before\n")
    failing = supervise(
        "import sys; print('RuntimeError: no memory', flush=True); print('bye', flush=True); sys.exit(3)",
        backoff_initial_seconds=60,
    )
    await failing.engine.start()
    await until(lambda: failing.engine.last_exit)
    assert failing.engine.last_exit == "exit code 3: RuntimeError: no memory"

    silent = supervise("import sys; sys.exit(4)", backoff_initial_seconds=60)
    await silent.engine.start()
    await until(lambda: silent.engine.last_exit)
    assert silent.engine.last_exit == "exit code 4"


async def test_a_socket_left_by_a_killed_engine_is_removed_before_the_next(supervise) -> None:
    program = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); print('0', flush=True); time.sleep(600)"
    bound = supervise(program)
    bound.engine._command.append(str(bound.engine.socket))
    await bound.engine.start()
    await until(lambda: len(bound.pids) == 1)
    assert bound.engine.url == f"unix://{bound.engine.socket}"

    os.kill(bound.engine.pid, signal.SIGKILL)

    await until(lambda: len(bound.pids) == 2)


async def test_a_large_log_is_set_aside_at_the_next_start_and_is_private(supervise, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "engine-test.log").write_bytes(b"x" * (LOG_BYTES + 1))
    polite = supervise(POLITE)
    await polite.engine.start()
    await until(lambda: polite.pids)
    assert (logs / "engine-test.log.1").stat().st_size == LOG_BYTES + 1
    assert (logs / "engine-test.log").stat().st_mode & 0o077 == 0


async def test_shared_memory_of_a_killed_engine_is_given_back(supervise) -> None:
    program = """
import os, time
from multiprocessing import shared_memory
block = shared_memory.SharedMemory(create=True, size=4096)
print(f"{os.getpid()}\\nblock={block.name}", flush=True)
time.sleep(600)
"""
    sharing = supervise(program)
    await sharing.engine.start()
    await until(lambda: "block=" in sharing.engine.log_path.read_text())
    name = sharing.engine.log_path.read_text().split("block=")[1].split()[0]
    os.kill(sharing.engine.pid, signal.SIGKILL)
    await until(lambda: sharing.engine.restarts)
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(name=name)


PARENT = """
import asyncio, sys
from pathlib import Path
from adapters.engine_settings import EngineSettings
from gateway.supervisor import SupervisedEngine

async def main():
    home = Path(sys.argv[1])
    settings = EngineSettings(name="test", kind="supervised")
    engine = SupervisedEngine(settings, home, home, home, command=[sys.executable, "-c", sys.argv[2]])
    await engine.start()
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("program", [FAMILY, STUBBORN], ids=["family", "stubborn"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_a_dead_gateway_leaves_no_engine(tmp_path: Path, number: int, program: str) -> None:
    log = tmp_path / "logs" / "engine-test.log"

    def pids() -> list[int]:
        return [int(word) for word in log.read_text().split() if word.isdigit()] if log.exists() else []

    expected = 3 if program is FAMILY else 2
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PARENT,
        str(tmp_path),
        program,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await until(lambda: len(pids()) == expected)
        parent.send_signal(number)
        await asyncio.wait_for(parent.wait(), 10)
        await until(lambda: not any(alive(pid) for pid in pids()))
    finally:
        with contextlib.suppress(ProcessLookupError):
            parent.kill()
    assert len(pids()) == expected


async def test_a_command_that_does_not_exist_is_reported_and_tried_again(supervise) -> None:
    missing = supervise("")
    missing.engine._command[:] = ["/no/such/program"]
    await missing.engine.start()
    await until(lambda: missing.engine.restarts >= 2)
    assert missing.engine.last_exit == "exit code 127: /no/such/program: No such file or directory"


def test_a_socket_path_that_linux_cannot_hold_is_refused_with_the_remedy(tmp_path: Path) -> None:
    settings = EngineSettings(name="test", kind="supervised")
    with pytest.raises(SettingsError, match="TMPDIR"):
        SupervisedEngine(settings, tmp_path, tmp_path, tmp_path / ("x" * 120))
