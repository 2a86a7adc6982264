"""Preflight: whether a PEFT directory is an adapter that our engines can serve, from its files alone (promise 4).

Owns the rules and their messages, which name the file, field or tensor. Pure: it reads files, runs nothing from
them, and knows neither registry nor engine. What only an engine can show is the reconciler's canary.

The rules follow PEFT's LoraConfig and what vLLM's PEFTHelper refuses. Shapes are PEFT's: A is [rank, in],
B is [out, rank], and the layer's change is (alpha / rank) * B @ A.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.artifacts import CONFIG_FILE, PROVENANCE_FILE, WEIGHTS_FILE
from adapters.errors import PreflightError
from adapters.tensors import Tensor, check_pairs, read_tensors

#: A rank-512 adapter of all linear layers of a 70B model in float32 is below this.
MAX_WEIGHTS_BYTES = 16 * 1024**3
MAX_JSON_BYTES = 1024**2
MAX_ENTRIES = 1000

#: Files that can carry code: unpickling runs it. Refused even though they would not be copied, because a folder
#: that holds them is not what it says it is.
REFUSED_SUFFIXES = frozenset(
    {
        ".bin",
        ".pt",
        ".pth",
        ".pkl",
        ".pickle",
        ".ckpt",
        ".npy",
        ".npz",
        ".py",
        ".pyc",
        ".so",
        ".sh",
        ".joblib",
    }
)

#: Initialisations that leave the base weights as they are. The others (PiSSA, OLoRA, CorDA, LoftQ) train against
#: a changed base, so that on the true base the adapter answers wrongly.
HARMLESS_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})

#: Features of PEFT that change what the adapter computes and that the engines do not have.
UNSUPPORTED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "a bias on LoRA B",
    "fan_in_fan_out": "transposed weights",
    "modules_to_save": "whole modules beside the LoRA",
    "trainable_token_indices": "trained token embeddings",
    "layer_replication": "layer replication",
    "alora_invocation_tokens": "activated LoRA",
    "target_parameters": "LoRA on raw parameters",
    "arrow_config": "Arrow routing",
    "auto_map": "custom code",
}


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    rank: int
    alpha: float
    target_modules: tuple[str, ...]  # those that have tensors, sorted
    base_model_name_or_path: (
        str | None
    )  # as PEFT wrote it: a hub id or somebody's path; a hint, never compared
    base_digest: str | None  # from burnish.json: the base weights it was trained on
    tensors: int
    size_bytes: int


def inspect(
    directory: Path,
    *,
    max_rank: int = 64,
    base_config: Mapping[str, Any] | None = None,
    base_digest: str | None = None,
) -> AdapterFacts:
    """All checks. `base_config`: the base model's config.json; None (a remote engine) leaves out what needs it.

    Raises PreflightError.
    """
    size_bytes = refuse_unsafe_files(directory)
    config = _json_object(directory / CONFIG_FILE)
    rank, alpha = _check_config(config, max_rank)
    provenance = _json_object(directory / PROVENANCE_FILE) if (directory / PROVENANCE_FILE).exists() else {}
    trained_on = _check_provenance(provenance, base_digest)
    tensors = _tensors(directory / WEIGHTS_FILE)
    modules = check_pairs(tensors, rank, base_config)
    base = config.get("base_model_name_or_path")
    return AdapterFacts(
        rank=rank,
        alpha=alpha,
        target_modules=modules,
        base_model_name_or_path=base if isinstance(base, str) else None,
        base_digest=trained_on,
        tensors=len(tensors),
        size_bytes=size_bytes,
    )


def refuse_unsafe_files(directory: Path) -> int:
    """Bytes of the adapter's own files; PreflightError for links, code, pickles and files out of bounds."""
    if directory.is_symlink() or not directory.is_dir():
        raise PreflightError("the adapter's path is no directory")
    entries = 0
    for folder, subfolders, files in os.walk(directory):
        for name in (*subfolders, *files):
            entries += 1
            _check_entry(Path(folder, name), directory)
        if entries > MAX_ENTRIES:
            raise PreflightError(
                f"the folder holds more than {MAX_ENTRIES} files; give one that holds the adapter only"
            )
    return sum(
        _bounded_size(directory / name, limit)
        for name, limit in (
            (CONFIG_FILE, MAX_JSON_BYTES),
            (WEIGHTS_FILE, MAX_WEIGHTS_BYTES),
            (PROVENANCE_FILE, MAX_JSON_BYTES),
        )
        if name != PROVENANCE_FILE or (directory / name).exists()
    )


def _check_entry(path: Path, root: Path) -> None:
    name = path.relative_to(root)
    if path.is_symlink():
        raise PreflightError(f"{name}: is a link; copy the files themselves (cp -L)")
    if not path.is_file() and not path.is_dir():
        raise PreflightError(f"{name}: is not a plain file")
    if path.is_file() and path.suffix.lower() in REFUSED_SUFFIXES:
        raise PreflightError(
            f"{name}: {path.suffix} files can carry code; only safetensors are taken. Remove it from the folder"
        )


def _bounded_size(file: Path, limit: int) -> int:
    if not file.is_file():
        raise PreflightError(f"{file.name}: there is no such file; is this a PEFT adapter's folder?")
    size = file.stat().st_size
    if size > limit:
        raise PreflightError(f"{file.name}: {size} bytes are more than the {limit} allowed")
    return size


def _json_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        raise PreflightError(f"{file.name}: is not valid JSON") from None
    if not isinstance(value, dict):
        raise PreflightError(f"{file.name}: is not a JSON object")
    return value


def _check_config(config: Mapping[str, Any], max_rank: int) -> tuple[int, float]:
    """(rank, alpha) of an adapter_config.json that the engines can serve."""
    if config.get("peft_type") != "LORA":
        raise _field("peft_type", f"is {config.get('peft_type')!r}, and only 'LORA' can be served")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise _field("task_type", f"is {config['task_type']!r}, and only 'CAUSAL_LM' can be served")
    for field, feature in UNSUPPORTED.items():
        if config.get(field):
            raise _field(field, f"asks for {feature}, which the engines cannot serve")
    if config.get("bias") not in (None, "none"):
        raise _field("bias", f"is {config['bias']!r}, and only 'none' can be served")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in HARMLESS_INITS:
        raise _field(
            "init_lora_weights",
            f"{init!r} changes the base weights too; convert it to a plain LoRA "
            "(PEFT's path_initial_model_for_weight_conversion)",
        )
    if not isinstance(config.get("target_modules"), (str, list)):
        raise _field("target_modules", "is missing")
    return _check_rank(config, max_rank)


def _check_rank(config: Mapping[str, Any], max_rank: int) -> tuple[int, float]:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise _field("r", f"is {rank!r}, not a rank of 1 or more")
    if rank > max_rank:
        raise _field(
            "r", f"is {rank}, more than the {max_rank} that the engines are started with (max_lora_rank)"
        )
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 < alpha < float("inf"):
        raise _field("lora_alpha", f"is {alpha!r}, not a number above 0")
    for field, value in (("rank_pattern", rank), ("alpha_pattern", alpha)):
        pattern = config.get(field) or {}
        if not isinstance(pattern, dict) or any(other != value for other in pattern.values()):
            raise _field(
                field, f"gives some modules another value than {value}; only one for all can be served"
            )
    return rank, float(alpha)


def _check_provenance(provenance: Mapping[str, Any], base_digest: str | None) -> str | None:
    trained_on = provenance.get("base_digest")
    if trained_on is None:
        return None
    if not isinstance(trained_on, str):
        raise PreflightError(f"{PROVENANCE_FILE}: field base_digest: is not a string")
    if base_digest is not None and trained_on != base_digest:
        raise PreflightError(
            f"{PROVENANCE_FILE}: field base_digest: it was trained on base weights {trained_on[:19]}…, "
            f"and the base model's are {base_digest[:19]}…",
            code="adapter_base_mismatch",
        )
    return trained_on


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(file)
    except ValueError as error:
        raise PreflightError(f"{file.name}: {error}") from None


def _field(field: str, problem: str) -> PreflightError:
    return PreflightError(f"{CONFIG_FILE}: field {field}: {problem}")
