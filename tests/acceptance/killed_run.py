"""A run with accidents: the real `trainer.run`, in which something happens at given points, once each.

    python tests/acceptance/killed_run.py FOLDER POINT:WHAT ... JOB_ID TOKEN

FOLDER remembers what has happened, so that the attempt after an accident comes further, and gets a line `TOKEN STEP
TIME` in `steps` for each optimizer step. Nothing of the run itself is changed.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerState

from adapters import artifacts
from adapters.artifacts import ArtifactStore
from adapters.registry import Registry
from trainer import dataset, publish, run, train
from trainer.asking import Answers
from trainer.run import Run

STEP_SECONDS = 0.25
GROWTH_BYTES = 128 * 1024**2


@dataclass(frozen=True)
class Point:
    """Before the `nth` call of a function in this process (of those that `counts`), or after it."""

    owner: Any
    name: str
    before: bool
    nth: int = 1
    counts: Callable[[Any, tuple[Any, ...]], bool] = lambda result, given: True


def _is_step(result: Any, given: tuple[Any, ...]) -> bool:
    return "loss" in given[1]


POINTS = {
    "drawn": Point(dataset, "_move", before=False),  # the rows lie in the folder and are not on record
    "recorded": Point(dataset, "snapshot", before=False),
    "step": Point(Run, "step", before=True, nth=3, counts=_is_step),
    "checkpoint": Point(TrainerState, "save_to_json", before=True, nth=2),  # its last file is not there yet
    "saved": Point(train, "_write_adapter", before=False),  # in a folder of no name yet, without its numbers
    "trained": Point(Registry, "import_adapter", before=True),
    "copying": Point(artifacts, "_copy", before=True, nth=2),  # one file of it lies in the staging folder
    "renamed": Point(ArtifactStore, "_publish", before=False),  # in the transaction of the version's row
    "imported": Point(Registry, "import_adapter", before=False),
    "loading": Point(Run, "_is_held", before=False, nth=4, counts=lambda is_held, given: not is_held),
    "evaluating": Point(Answers, "put", before=False, nth=12),
    "proved": Point(publish, "publish", before=True),
    "publishing": Point(publish, "finish", before=False),  # the job's end, in the transaction of all the rest
    "published": Point(publish, "publish", before=False),
}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    """Stands still until somebody sends SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


def grow() -> None:
    """Takes more and more memory until somebody ends it."""
    held = []
    while True:
        held.append(b"x" * GROWTH_BYTES)
        time.sleep(0.1)


ACCIDENTS = {"kill": kill, "stop": stop, "grow": grow}


def wait_for_accident(point: Point, accident: Callable[[], None], mark: Path) -> None:
    original = getattr(point.owner, point.name)
    calls = 0

    def happens(result: Any, given: tuple[Any, ...]) -> None:
        nonlocal calls
        calls += point.counts(result, given)
        if calls == point.nth and not mark.exists():
            mark.touch()
            accident()

    @functools.wraps(original)
    def watched(*given: Any, **named: Any) -> Any:
        if point.before:
            happens(None, given)
        result = original(*given, **named)
        if not point.before:
            happens(result, given)
        return result

    setattr(point.owner, point.name, watched)


def note_steps(file: Path, seconds: float) -> None:
    """A line a step; each step takes `seconds` longer than it would."""
    original = Run.step

    def noted(self: Run, metrics: dict[str, Any]) -> Any:
        if "loss" in metrics:
            time.sleep(seconds)
            with file.open("a") as steps:
                steps.write(f"{self.job.token} {metrics['step']} {time.time()}\n")
        return original(self, metrics)

    Run.step = noted  # type: ignore[method-assign]


def main() -> int:
    folder, *accidents, job_id, token = sys.argv[1:]
    is_slow = "step:wait" in accidents
    for each in accidents:
        point, _, what = each.partition(":")
        if what != "wait":
            wait_for_accident(POINTS[point], ACCIDENTS[what], Path(folder) / each)
    note_steps(Path(folder) / "steps", STEP_SECONDS if is_slow else 0.0)
    return run.main(job_id, int(token))


if __name__ == "__main__":
    raise SystemExit(main())
