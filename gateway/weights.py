"""How the weights of a supervised engine get to where they ought to be.

The default weights are made by `python -m trainer.weights` in a process of its own: that needs torch, which the
gateway never imports. Weights that a person names are used as they are.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from adapters.base_weights import MANIFEST, weights_path
from adapters.engine_settings import DEFAULT_MODEL, EngineSettings
from adapters.errors import SettingsError
from adapters.settings import Settings


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
