"""Tasks of lm-evaluation-harness, asked of a served version: an extra for the report, which decides nothing.

Owns the command and the reading of its results. The harness is a program of its own (the extra `lm-eval`), run beside
the evaluation with its own pass; its data sets are the harness's to fetch.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters.errors import EngineFailed, InvalidRequest
from trainer.asking import Asker
from trainer.progress import Watch, obey

AT_ONCE = 4

MOST_SECONDS = 86400.0
"""How long the tasks may ask for one model: their pass ends then."""

NEEDED = ("lm_eval", "tenacity")
"""The harness, and what it asks an engine with, which only its extra `api` brings."""


def check_installed(tasks: Sequence[str]) -> None:
    """To be called before anything is trained. Raises InvalidRequest."""
    if tasks and any(importlib.util.find_spec(name) is None for name in NEEDED):
        raise InvalidRequest(
            "'lm_eval_tasks' needs lm-evaluation-harness, which is not installed: pip install 'lm-eval[api]'.",
            param="lm_eval_tasks",
            code="lm_eval_missing",
        )


def run_tasks(
    asker: Asker, model: str, tasks: Sequence[str], weights: Path, max_length: int, watch: Watch
) -> dict[str, dict[str, float]]:
    """Each task's numbers for `model`, which reads `max_length` tokens; `weights` is where its tokenizer is.

    Raises EngineFailed, Unavailable, Paused, Cancelled.
    """
    with tempfile.TemporaryDirectory(prefix="burnish-lm-eval-") as folder, asker.lend(MOST_SECONDS) as secret:
        # Unbuffered: what it printed earlier would come after its last words on stderr.
        environ = {**os.environ, "OPENAI_API_KEY": secret, "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
        command = command_of(f"{asker.url}/v1/completions", model, tasks, weights, max_length, Path(folder))
        process = subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        said = _followed(process, watch)
        if process.returncode:
            last = next((line for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
            raise EngineFailed(f"lm-evaluation-harness failed: {last.strip()[:300]}", code="lm_eval_failed")
        return results_in(Path(folder))


def command_of(
    url: str, model: str, tasks: Sequence[str], weights: Path, max_length: int, folder: Path
) -> list[str]:
    arguments = {
        "model": model,
        "base_url": url,
        "tokenizer": str(weights),
        "tokenizer_backend": "huggingface",
        "tokenized_requests": "True",
        "num_concurrent": str(AT_ONCE),
        "max_length": str(max_length),
    }
    given = ",".join(f"{name}={value}" for name, value in arguments.items())
    command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", given]
    return [*command, "--tasks", ",".join(tasks), "--output_path", str(folder)]


def results_in(folder: Path) -> dict[str, dict[str, float]]:
    """The numbers of the newest results file, by task; what could not be computed is none."""
    files = sorted(folder.rglob("results*.json"))
    if not files:
        raise EngineFailed("lm-evaluation-harness wrote no results.", code="lm_eval_failed")
    found: dict[str, Any] = json.loads(files[-1].read_text())["results"]
    return {
        task: {name: float(value) for name, value in values.items() if _is_number(value)}
        for task, values in found.items()
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _followed(process: subprocess.Popen[str], watch: Watch) -> str:
    """What the process said, once it has ended; it is ended where the watch wishes so."""
    try:
        while True:
            try:
                return process.communicate(timeout=1.0)[0]
            except subprocess.TimeoutExpired:
                obey(watch.step({}))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
