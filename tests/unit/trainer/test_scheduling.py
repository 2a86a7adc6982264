"""What a run takes of the machine: its classes, its threads, its share of a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from adapters import keeper
from adapters.hardware import usable_cores
from trainer.scheduling import NICE, Aside, hold_to_memory_share, step_back, thread_limits, threads_of


def stay() -> None:
    """The thread is as it was made."""


def policies() -> tuple[int, int]:
    """The class of this thread, and of one that it starts."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0)))
    thread.start()
    thread.join()
    return os.sched_getscheduler(0), found[0]


# -- the class -------------------------------------------------------------------------------------
def test_promise_07_what_computes_on_a_cpu_is_idle_and_what_writes_is_not() -> None:
    aside = Aside(lambda: step_back(on_gpu=False))
    before = os.sched_getscheduler(0)
    assert aside.run(policies) == (os.SCHED_IDLE, os.SCHED_IDLE)
    assert aside.run(lambda: aside.ask(lambda: os.sched_getscheduler(0))) == before
    assert os.sched_getscheduler(0) == before


def test_what_feeds_a_gpu_is_only_nice() -> None:
    def found() -> tuple[int, int]:
        return os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)

    policy, nice = found()
    assert Aside(lambda: step_back(on_gpu=True)).run(found) == (policy, min(19, nice + NICE))
    assert found() == (policy, nice)


def test_where_the_kernel_refuses_the_class_it_is_nice_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*given: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    got = Aside(lambda: step_back(on_gpu=False)).run(lambda: os.getpriority(os.PRIO_PROCESS, 0))
    assert got == min(19, nice + NICE)
    assert "sched_idle_refused nice=10: Operation not permitted" in caplog.text


LOWERS = """
import sys
from pathlib import Path
from trainer.scheduling import lower_session
lower_session(Path(sys.argv[1]))
"""


def test_a_session_is_lowered_where_a_keeper_leads_it_and_no_other(tmp_path: Path) -> None:
    root, file = Path(__file__).resolve().parents[3], tmp_path / "autogroup"
    lower = [sys.executable, "-c", LOWERS, str(file)]
    subprocess.run(lower, cwd=root, check=True)  # in the session of these tests
    assert not file.exists()
    command = [sys.executable, "-I", str(keeper.__file__), *lower]
    # As the worker starts a run: the keeper leads, and its standard input stays open.
    process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, start_new_session=True)
    assert process.wait(60) == 0
    assert process.stdin is not None
    process.stdin.close()
    assert file.read_text() == str(NICE)


# -- aside -----------------------------------------------------------------------------------------
def test_work_aside_asks_the_thread_that_waits_for_it() -> None:
    aside, here = Aside(stay), threading.current_thread()
    there, answered = aside.run(lambda: (threading.current_thread(), aside.ask(threading.current_thread)))
    assert there is not here
    assert answered is here
    assert aside.ask(threading.current_thread) is here  # outside of the work it is a plain call
    assert aside.run(lambda: 7) == 7  # and it can be used again


def test_what_work_aside_raises_is_raised_where_it_is_waited_for() -> None:
    def refuse() -> None:
        raise LookupError("not here")

    def ends() -> None:
        raise SystemExit(0)

    aside = Aside(stay)
    with pytest.raises(LookupError, match="not here"):
        aside.run(refuse)
    with pytest.raises(SystemExit):
        aside.run(ends)
    with pytest.raises(LookupError, match="not here"):
        aside.run(lambda: aside.ask(refuse))  # by way of the work, which could have caught it

    def catches() -> str:
        try:
            aside.ask(refuse)
        except LookupError:
            return "caught"
        return "not raised"

    assert aside.run(catches) == "caught"


def test_work_that_cannot_be_begun_is_an_error_and_no_hang() -> None:
    def fail() -> None:
        raise OSError("no such class")

    with pytest.raises(OSError, match="no such class"):
        Aside(fail).run(stay)


TERMINATED = """
import signal, sys, time
from trainer.scheduling import Aside
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
def work():
    print("working", flush=True)
    while not stopped:
        time.sleep(0.01)
    return 5
sys.exit(Aside(lambda: None).run(work))
"""


def test_a_signal_is_heard_while_work_is_waited_for() -> None:
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen([sys.executable, "-c", TERMINATED], cwd=root, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"working\n"
        time.sleep(0.1)  # it now waits, and nothing is asked of it
        process.terminate()
        assert process.wait(20) == 5
    finally:
        process.kill()
        process.communicate()


# -- threads and memory ----------------------------------------------------------------------------
def test_a_run_leaves_a_core_free_unless_it_is_told_otherwise() -> None:
    assert threads_of(0) == max(1, usable_cores() - 1)
    assert threads_of(3) == 3


def test_no_library_of_a_run_computes_with_more_threads_than_it_may() -> None:
    """In a new process, as the worker starts one: torch's threads, Arrow's, and those of numpy's BLAS."""
    program = (
        "import torch, pyarrow, numpy; from pathlib import Path;"
        "a = numpy.ones((400, 400)); a @ a;"
        "torch.ones(400, 400) @ torch.ones(400, 400);"
        "print(torch.get_num_threads(), pyarrow.cpu_count())"
    )
    environment = {**os.environ, **thread_limits(1)}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["1", "1"]
    assert thread_limits(2)["RAYON_NUM_THREADS"] == "2"  # the tokenizers'


class RecordingCuda:
    """Stands in for torch.cuda on a machine with two GPUs."""

    def __init__(self) -> None:
        self.held: list[tuple[float, int]] = []

    def device_count(self) -> int:
        return 2

    def set_per_process_memory_fraction(self, fraction: float, device: int) -> None:
        self.held.append((fraction, device))


def test_promise_07_a_run_holds_to_its_share_of_every_gpu() -> None:
    cuda = RecordingCuda()
    hold_to_memory_share(0.3, cuda)
    assert cuda.held == [(0.3, 0), (0.3, 1)]
