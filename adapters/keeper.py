"""The keeper: runs one command and sees to it that nothing of it outlives its time.

    python -I keeper.py COMMAND ...        standard input: a pipe whose other end only the parent holds

    standard input ends     the parent is gone, however it went: kill everything now
    SIGTERM, SIGINT         ask the command to stop (SIGTERM); it takes the time it needs
    the command ends        end what it left behind, then exit with its status (128 + n for signal n)

Needed because vLLM's API server, killed hard, leaves its engine core and workers running for ever. The keeper is
their subreaper (prctl(2)), so whatever loses its parent becomes its child and is found. Were the keeper itself
killed, the kernel kills the command, and the supervisor the rest of the process group.
Knows nothing of engines, settings or logs, and imports the standard library only, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

STOP_SECONDS = 2.0
"""How long what the command left behind has, after SIGTERM, to end by itself."""

TRACKER_SECONDS = 2.0
"""How long resource trackers have to tidy up once everything else is dead."""

POLL_SECONDS = 0.02


def main(command: list[str]) -> int:
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    wakeups = _wake_on_signals()
    main_pid = _spawn(command)
    ended: dict[int, int] = {}
    while main_pid not in ended and _parent_lives(wakeups, main_pid):
        _reap(ended)
    if main_pid in ended:
        _signal_descendants(signal.SIGTERM)
        _await_end(ended, STOP_SECONDS)
    _kill_descendants(ended)
    status = ended.get(main_pid, -signal.SIGKILL)
    return status if status >= 0 else 128 - status


def _spawn(command: list[str]) -> int:
    keeper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == keeper:  # else the keeper died before the line above could count
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)


def _wake_on_signals() -> int:
    """A descriptor that becomes readable with the number of each signal that came."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return reader


def _parent_lives(wakeups: int, main_pid: int) -> bool:
    """Waits for the next event, passing on a request to stop."""
    readable, _, _ = select.select([0, wakeups], [], [])
    if wakeups in readable and set(os.read(wakeups, 512)) & {signal.SIGTERM, signal.SIGINT}:
        _signal(main_pid, signal.SIGTERM)
    return 0 not in readable or bool(os.read(0, 512))


def _kill_descendants(ended: dict[int, int]) -> None:
    # Python's resource trackers go last: when their users are dead they unlink the shared memory (400 MB for a
    # vLLM) and end by themselves; killed with the rest they would leave it in /dev/shm.
    while any(not _is_tracker(pid) for pid in _living(os.getpid())):
        _signal_descendants(signal.SIGKILL)
        _reap(ended)
        time.sleep(POLL_SECONDS)
    _await_end(ended, TRACKER_SECONDS)
    for pid in _living(os.getpid()):
        _signal(pid, signal.SIGKILL)
    _await_end(ended, TRACKER_SECONDS)


def _await_end(ended: dict[int, int], seconds: float) -> None:
    """Until no descendant is left, which for a subreaper is as long as it has a child, or the time is over."""
    deadline = time.monotonic() + seconds
    while _reap(ended) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _reap(ended: dict[int, int]) -> bool:
    """Notes the exit status of every child that has ended; whether others are left."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return True
            ended[pid] = os.waitstatus_to_exitcode(status)
    return False


def _signal_descendants(number: int) -> None:
    for pid in _living(os.getpid()):
        if not _is_tracker(pid):
            _signal(pid, number)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _living(pid: int) -> Iterator[int]:
    """The descendants of a process that are no zombies."""
    for child in _children(pid):
        yield from _living(child)
        if _text(child, "cmdline"):  # empty for a zombie
            yield child


def _children(pid: int) -> list[int]:
    # Each thread has its own list of the processes that it made.
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in path.read_text().split()]
    return found


def _is_tracker(pid: int) -> bool:
    return "multiprocessing.resource_tracker" in _text(pid, "cmdline")


def _text(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
