"""`burnish adapters export`: a version's files for use elsewhere, as they are, merged into the base model, or as GGUF."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from adapters.base_weights import chat_template, weights_path
from adapters.engine_settings import EngineSettings
from adapters.errors import Conflict, NotFound
from adapters.settings import Settings
from adapters.versions import VersionRecord
from gateway.cli import terminal
from gateway.cli.records import open_records

CONVERTER = "convert_hf_to_gguf.py"
CONVERTER_VARIABLE = "BURNISH_GGUF_CONVERTER"


def export(
    context: typer.Context,
    ref: Annotated[str, typer.Argument(help="NAME@N")],
    dest: Annotated[Path, typer.Argument(help="a folder (with --gguf a file) that is not there yet")],
    merge: Annotated[
        bool, typer.Option("--merge", help="the whole model with the adapter in it, as safetensors")
    ] = False,
    gguf: Annotated[
        bool, typer.Option("--gguf", help=f"the merged model as GGUF, by llama.cpp's {CONVERTER}")
    ] = False,
) -> None:
    """Write a version's files for use elsewhere: the PEFT folder, or the model with the adapter merged in."""
    with open_records(context) as records:
        version = records.registry.version(ref)
        source = records.registry.artifacts.get(version.digest).path
        settings = records.settings
    dest = dest.expanduser().absolute()
    if dest.exists():
        raise Conflict(f"{dest} is there already; name one that is not")
    if gguf:
        _export_gguf(settings, version, source, dest)
    elif merge:
        _merge(settings, version, source, dest)
    else:
        dest.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, dest)
    print(dest)


def _merge(settings: Settings, version: VersionRecord, adapter: Path, dest: Path) -> None:
    engine = _engine(settings, version.base_model)
    weights = weights_path(settings, engine)
    if not (weights / "config.json").is_file():
        raise NotFound(f"there are no weights of {version.base_model!r} at {weights} to merge with")
    command = [sys.executable, "-m", "trainer.export", "--weights", str(weights), "--adapter", str(adapter)]
    if (template := chat_template(engine)) is not None:
        command += ["--template", str(template)]
    with terminal.progress(f"merging {version.ref} into {version.base_model} ..."):
        _run([*command, str(dest)])


def _export_gguf(settings: Settings, version: VersionRecord, adapter: Path, dest: Path) -> None:
    converter = os.environ.get(CONVERTER_VARIABLE) or shutil.which(CONVERTER)
    if converter is None:
        raise NotFound(
            f"llama.cpp's {CONVERTER} is not on the PATH; install llama.cpp, or set {CONVERTER_VARIABLE} to the script"
        )
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dest.parent) as folder:
        merged = Path(folder) / "merged"
        _merge(settings, version, adapter, merged)
        with terminal.progress("converting to GGUF ..."):
            _run([sys.executable, converter, str(merged), "--outfile", str(Path(folder) / "model.gguf")])
        (Path(folder) / "model.gguf").rename(dest)


def _engine(settings: Settings, base_model: str) -> EngineSettings:
    engines = [e for e in settings.engines if e.takes_adapters and e.model == base_model]
    if not engines:
        raise NotFound(f"no engine of the settings serves {base_model!r}, so its weights are not known")
    return min(engines, key=lambda engine: engine.kind != "supervised")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise Conflict(f"it could not be made: {lines[-1] if lines else f'exit code {done.returncode}'}")
