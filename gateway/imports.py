"""Importing an adapter and finishing its removal, as both the API and the CLI do it.

Owns what an import needs beside the files: which base model, its config, and the largest rank that every one of
its engines takes. Knows neither HTTP nor terminals; the checks and the rows are the registry's.
"""

from __future__ import annotations

from pathlib import Path

from adapters.base_weights import base_config, base_digest
from adapters.errors import InvalidRequest
from adapters.placements import Placements
from adapters.registry import Registry
from adapters.settings import Settings
from adapters.versions import VersionRecord, VersionState

GATEWAY_SILENT_SECONDS = 15.0
"""A gateway that has said nothing for so long is gone: seven heartbeats, so that a busy machine is not taken for it."""


def import_adapter(
    registry: Registry, settings: Settings, name: str, path: Path, base_model: str | None, actor: str
) -> VersionRecord:
    """A new version of adapter `name` from a PEFT folder. Raises InvalidRequest, PreflightError, Conflict."""
    base = choose_base(registry, settings, name, base_model)
    registry.register_base(
        base, base_digest(settings, base)
    )  # the first import may come before the first `serve`
    return registry.import_adapter(
        name, path, base, base_config(settings, base), actor, max_rank=largest_rank(settings, base)
    )


def choose_base(registry: Registry, settings: Settings, name: str, base_model: str | None) -> str:
    """The base model given, else the one that `name` is for already, else the only one there is.

    Raises InvalidRequest naming the models that engines with adapters serve.
    """
    adaptable = adaptable_models(settings)
    if not adaptable:
        raise InvalidRequest(
            'no engine takes adapters: add one of kind "supervised" or "vllm" to the settings',
            param="base_model",
            code="no_adapter_engine",
        )
    if base_model is None:
        known = {version.base_model for version in registry.versions(name, removed=True)}
        candidates = [model for model in adaptable if model in known] or adaptable
        if len(candidates) == 1:
            return candidates[0]
        problem = "the engines serve several base models; say which one the adapter is for"
        raise InvalidRequest(
            f"{problem}: {', '.join(adaptable)}", param="base_model", code="base_model_required"
        )
    if base_model not in adaptable:
        problem = f"no engine that takes adapters serves {base_model!r}; it can be"
        raise InvalidRequest(f"{problem} {', '.join(adaptable)}", param="base_model", code="model_not_found")
    return base_model


def adaptable_models(settings: Settings) -> list[str]:
    """The base models that engines with adapters serve, in the order of the settings."""
    models = [model for engine in settings.engines if engine.takes_adapters for model in engine.served_models]
    return list(dict.fromkeys(models))


def largest_rank(settings: Settings, base_model: str) -> int:
    """The largest rank that every engine of a base model takes: a version is proved by all of them or by none."""
    return min(
        e.max_lora_rank for e in settings.engines if e.takes_adapters and base_model in e.served_models
    )


def a_gateway_is_alive(placements: Placements) -> bool:
    return bool(placements.live_gateways(GATEWAY_SILENT_SECONDS))


def advance_removal(registry: Registry, placements: Placements, ref: str) -> VersionRecord:
    """The version being removed as it stands now; removed on the spot where no gateway is alive to serve it."""
    version = registry.version(ref)
    if version.state is not VersionState.REMOVING or a_gateway_is_alive(placements):
        return version
    for placement in placements.list(ref=ref):
        placements.remove(placement.engine, ref)
    return registry.finish_remove(ref)
