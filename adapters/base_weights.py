"""Where a base model's weights, its chat template and its configuration are, and the digest that names the weights.

Owns what can be told from the settings and the weights' folder. Fetches nothing and loads nothing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import orjson

from adapters.engine_settings import DEFAULT_MODEL, EngineSettings
from adapters.settings import Settings

MANIFEST = "burnish.json"
DIGESTS = "digests.json"
"""Under the weights' folder: the digests of weights that stand elsewhere, by path, sizes and times."""

SMOLLM2_TEMPLATE = Path(__file__).with_name("templates") / "smollm2.jinja"
"""The default weights' own template knows no tools. Engine and trainer must use the same one."""


def weights_path(settings: Settings, engine: EngineSettings) -> Path:
    """The folder of an engine's weights, whether they are there yet or not."""
    return engine.weights or settings.weights_root / engine.model


def chat_template(engine: EngineSettings) -> Path | None:
    """The template that an engine we start is given in place of its weights' own; None: their own."""
    is_default = engine.kind == "supervised" and engine.weights is None and engine.model == DEFAULT_MODEL
    return SMOLLM2_TEMPLATE if is_default else None


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
