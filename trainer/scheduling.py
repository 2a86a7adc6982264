"""What a run takes of the machine that it shares with the engines: how many threads, in which scheduling class, and how
much of a GPU's memory (promise 7).

Owns `Aside`: the thread that computes steps back, and the run's main thread, which writes to the database, does not.
A thread that waits for the processor while it holds SQLite's write lock holds up every record of the gateway: on two
busy cores one report took up to 1.7 s in SCHED_IDLE and 0.1 s at nice 10 (docs/log.md). Knows nothing of what is
computed, and imports no torch: the worker asks it too.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from adapters.hardware import usable_cores

log = logging.getLogger("burnish.run")

T = TypeVar("T")

NICE = 10
"""How far a session steps back, and a thread that the kernel lets into no lower class or that feeds a GPU (nice(2))."""


def threads_of(asked: int) -> int:
    """How many threads a run computes with; `asked` is `training.threads`, of which 0 leaves a core free."""
    return asked or max(1, usable_cores() - 1)


def thread_limits(threads: int) -> dict[str, str]:
    """The environment that holds the libraries of a process to so many threads each, as they are loaded: OpenMP's and
    the BLAS's, Arrow's (which heeds OpenMP's), the tokenizers'."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def step_back(on_gpu: bool) -> None:
    """Puts this thread behind everything else that wants the processor, with those that it will start.

    In SCHED_IDLE it runs where nobody else would (sched(7)), and whoever wakes up preempts it at once. A run that
    computes on a GPU is only nice: it has little to do, and the GPU waits for it.
    """
    if on_gpu:
        os.nice(NICE)
        return
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError as error:
        os.nice(NICE)
        log.warning("sched_idle_refused nice=%d: %s", NICE, error.strerror)


def lower_session(file: Path = Path("/proc/self/autogroup")) -> None:
    """Makes the session that this process's keeper leads nice. Where the kernel shares the processor out among sessions
    first (autogroups, sched(7)), the class of a thread counts within its session alone, and a run would have as large a
    part as an engine. Not lower than this, since the main thread is of the session too."""
    if os.getsid(0) != os.getppid():
        return  # it is not ours: a terminal's, or lowered by the run that has started this process
    try:
        file.write_text(str(NICE))
    except FileNotFoundError:
        return  # there are no such groups
    except OSError as error:
        log.warning("autogroup_refused: %s", error.strerror)


class Aside:
    """Does work in a thread of its own, and meanwhile in this one what the work asks for."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        """`prepare` is called first in the new thread."""
        self._prepare = prepare
        self._thread: threading.Thread | None = None
        self._questions: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def run(self, work: Callable[[], T]) -> T:
        """What `work` returns, or raises."""
        result: Future[T] = Future()
        self._thread = threading.Thread(target=self._work, args=(work, result), name="aside", daemon=True)
        self._thread.start()
        while (question := self._questions.get()) is not None:
            question()
        self._thread.join()
        self._thread = None
        return result.result()

    def ask(self, question: Callable[[], T]) -> T:
        """From within the work: has the thread that waits for it answer. From anywhere else it is a plain call."""
        if threading.current_thread() is not self._thread:
            return question()
        answer: Future[T] = Future()
        self._questions.put(lambda: _settle(answer, question))
        return answer.result()

    def _work(self, work: Callable[[], T], result: Future[T]) -> None:
        def prepared() -> T:
            self._prepare()
            return work()

        _settle(result, prepared)
        self._questions.put(None)


def hold_to_memory_share(share: float, cuda: Any) -> None:
    """Lets this process allocate no more than `share` of the memory of each GPU; `cuda` is `torch.cuda`. Before the first
    allocation; one that would go beyond it fails as one beyond the GPU's memory does."""
    for device in range(cuda.device_count()):
        cuda.set_per_process_memory_fraction(share, device)


def _settle(future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # whoever waits for the future raises it
        future.set_exception(error)
