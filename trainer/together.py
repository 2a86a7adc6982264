"""Training in several processes, as `accelerate launch` starts them: each a `trainer.run` that takes part in the training.

Owns what the run and these processes tell each other: the first of them (rank 0) follows the job's wishes and leaves in
a file how it ended, the others do what it does. What one of them does is `trainer.train`, as in a run of one process.

    RUN/together.json   {"ended": "trained" | "paused" | "cancelled" | "claim_lost" | "failed", "error": {…}}
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from adapters.errors import BurnishError, InvalidRequest, StaleWorker
from adapters.jobs import Job
from trainer import memory
from trainer.progress import Cancelled, Paused

POLL_SECONDS = 0.5
OUTCOME = "together.json"

PART = "part"
"""The third argument of a `trainer.run` that takes part in the training and does nothing else."""


def command_of(config: Path) -> list[str]:
    """What starts the processes that an Accelerate configuration asks for."""
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]


def configuration(config: Path | None) -> dict[str, Any] | None:
    """What is configured, for the recipe. Raises InvalidRequest where it cannot be read."""
    if config is None:
        return None
    try:
        found = yaml.safe_load(config.read_text())
    except OSError as error:
        raise _unreadable(error.strerror or type(error).__name__) from None  # its text names the path
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise _unreadable(str(error)) from None
    if not isinstance(found, dict):
        raise _unreadable("it is no mapping")
    return found


def launch(command: Sequence[str], job: Job, folder: Path, is_stopping: Callable[[], bool]) -> None:
    """Returns when all processes have trained to the end, whose result `trainer.train.finished` then finds.

    Raises what the first of them raised: Paused, Cancelled, StaleWorker, BurnishError; RuntimeError where they died.
    """
    (folder / OUTCOME).unlink(missing_ok=True)
    process = subprocess.Popen([*command, "-m", "trainer.run", job.id, str(job.token), PART])
    told = False
    while True:
        try:
            status = process.wait(POLL_SECONDS)
            break
        except subprocess.TimeoutExpired:
            if is_stopping() and not told:
                _ask_to_stop(process.pid)
                told = True
    _raise(_outcome(folder), status)


def is_first() -> bool:
    """Whether this process is the one of several that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def tell(folder: Path, error: BaseException | None) -> None:
    """Leaves how the training ended in this process, for whoever launched it."""
    found: dict[str, Any] = {"ended": _ending(error)}
    if isinstance(error, BurnishError):
        found["error"] = {"code": error.code, "message": error.message, "param": error.param}
    partial = folder / f".{OUTCOME}"
    partial.write_text(json.dumps(found))
    partial.rename(folder / OUTCOME)


def _ask_to_stop(launcher: int) -> None:
    """Asks those that take part. The launcher itself would end before them, or give them half a minute."""
    parts = [pid for pid in memory.descendants(launcher) if _takes_part(pid)]
    for pid in parts or [launcher]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _takes_part(pid: int) -> bool:
    """Launchers have the same words in their command, behind their own."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return words[words.index(b"-m") + 1] == b"trainer.run"
    return False


def _unreadable(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"training.accelerate_config cannot be read ({why.splitlines()[0]}); `accelerate config` writes one.",
        param="training.accelerate_config",
        code="accelerate_config_unreadable",
    )


def _ending(error: BaseException | None) -> str:
    kinds = {Paused: "paused", Cancelled: "cancelled", StaleWorker: "claim_lost", BurnishError: "failed"}
    return next((ending for kind, ending in kinds.items() if isinstance(error, kind)), "trained")


def _outcome(folder: Path) -> dict[str, Any]:
    file = folder / OUTCOME
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"ended": None}
    return found


def _raise(outcome: dict[str, Any], status: int) -> None:
    match outcome["ended"]:
        case "trained":
            return
        case "paused":
            raise Paused
        case "cancelled":
            raise Cancelled
        case "claim_lost":
            raise StaleWorker(outcome["error"]["message"])
        case "failed":
            raise BurnishError(**outcome["error"])
    raise RuntimeError(f"the training processes ended with exit code {status} and said nothing")
