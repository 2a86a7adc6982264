"""Where the weights of a supervised engine are, how they get there, and the digest that names them.

The default weights are made by `python -m trainer.weights` in a process of its own: that needs torch, which the
gateway never imports. Weights that a person names are used as they are.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson

from adapters.engine_settings import DEFAULT_MODEL, EngineSettings
from adapters.errors import SettingsError
from adapters.settings import Settings

MANIFEST = "burnish.json"
DIGESTS = "digests.json"
"""Under the weights' folder: the digests of weights that stand elsewhere, by path, sizes and times."""


def weights_path(settings: Settings, engine: EngineSettings) -> Path:
    """The folder of an engine's weights, whether they are there yet or not."""
    return engine.weights or settings.weights_root / engine.model


def ensure_weights(settings: Settings, engine: EngineSettings) -> Path:
    """The folder of an engine's weights, fetched first if they are the default ones. Raises SettingsError."""
    path = weights_path(settings, engine)
    if engine.weights is None and engine.model == DEFAULT_MODEL:
        if not (path / MANIFEST).is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            if subprocess.run([sys.executable, "-m", "trainer.weights", str(path)], check=False).returncode:
                raise SettingsError("the default weights could not be fetched; the lines above say why")
    elif not (path / "config.json").is_file():
        raise SettingsError(
            f"engine {engine.name!r}: there are no weights at {path} (no config.json); set `weights` to a model's folder"
        )
    return path


def weights_digest(settings: Settings, path: Path) -> str | None:
    """`sha256:…` of the weights in a folder; None where the folder is not there.

    Read from the manifest of weights we made; else worked out once and remembered.
    """
    if not path.is_dir():
        return None
    manifest = _read(path / MANIFEST)
    if isinstance(manifest.get("digest"), str):
        return str(manifest["digest"])
    files = [path / "config.json", *sorted(path.glob("*.safetensors"))]
    files = [file for file in files if file.is_file()]
    stamp = "|".join(f"{file}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)
    known = _read(settings.weights_root / DIGESTS)
    if stamp not in known:
        known[stamp] = _digest(files)
        settings.weights_root.mkdir(parents=True, exist_ok=True)
        (settings.weights_root / DIGESTS).write_bytes(orjson.dumps(known, option=orjson.OPT_INDENT_2))
    return str(known[stamp])


def base_digest(settings: Settings, model: str) -> str | None:
    """The digest of a base model's weights, where the settings or the weights' own folder tell it."""
    engines = [engine for engine in settings.engines if model in engine.served_models]
    for engine in engines:
        if engine.digest is not None:
            return engine.digest
    for engine in engines:
        if engine.kind == "supervised":
            return weights_digest(settings, weights_path(settings, engine))
    return None


def base_config(settings: Settings, model: str) -> dict[str, Any] | None:
    """The base model's `config.json`, against which an adapter's shapes are checked; None where it is not at hand."""
    for engine in settings.engines:
        if engine.kind == "supervised" and engine.model == model:
            return _read(weights_path(settings, engine) / "config.json") or None
    return None


def _read(file: Path) -> dict[str, Any]:
    try:
        value = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def _digest(files: list[Path]) -> str:
    """sha256 over the sorted lines `name\\0size\\0sha256\\n`, as `trainer.weights` writes it."""
    lines = []
    for file in files:
        with file.open("rb") as stream:
            inner = hashlib.file_digest(stream, "sha256").hexdigest()
        lines.append(f"{file.name}\0{file.stat().st_size}\0{inner}\n")
    return "sha256:" + hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
