"""Real PEFT LoRA directories, made with numpy alone, for tests of every level.

Knows the shapes of Llama-like models and PEFT's file format; imports nothing of Burnish, so that a mistake there
cannot hide here. The layer's change is (alpha / rank) * B @ A with alpha = 2 * rank: A is N(0, 1/in), B N(0, scale),
so that about `scale` decides how far the answers are from the base model's.

    python -m tests.lora DIR --config WEIGHTS/config.json --seed 1

writes one for a base model at hand. Its weights are random: it answers otherwise than the base, not better.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")

#: A small model's config.json, with as many key-value heads and as odd a head_dim as tests need.
TINY_CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
}


def write_lora(
    directory: Path,
    base_config: Mapping[str, Any],
    seed: int = 0,
    rank: int = 8,
    scale: float = 0.05,
    target_modules: Sequence[str] = ("q_proj", "v_proj"),
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Writes adapter_config.json and adapter_model.safetensors (float32); the same arguments give the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = lora_tensors(base_config, seed, rank, scale, target_modules)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = lora_config(rank, target_modules)
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    if provenance is not None:
        (directory / "burnish.json").write_text(json.dumps(provenance))
    return directory


def lora_config(rank: int, target_modules: Sequence[str]) -> dict[str, Any]:
    """An adapter_config.json as PEFT writes it, all defaults spelled out."""
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "/somewhere/else/base",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 2 * rank,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "target_modules": list(target_modules),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def lora_tensors(
    base_config: Mapping[str, Any], seed: int, rank: int, scale: float, target_modules: Sequence[str]
) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """PEFT's names -> A [rank, in] and B [out, rank] of every layer."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(base_config["num_hidden_layers"]):
        for module in target_modules:
            inputs, outputs = module_shape(base_config, module)
            block = "self_attn" if module in ATTENTION else "mlp"
            name = f"base_model.model.model.layers.{layer}.{block}.{module}"
            a = random.normal(0.0, inputs**-0.5, (rank, inputs))
            tensors[f"{name}.lora_A.weight"] = a.astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = random.normal(0.0, scale, (outputs, rank)).astype(np.float32)
    return tensors


def module_shape(base_config: Mapping[str, Any], module: str) -> tuple[int, int]:
    """(in, out) features of a module of a Llama-shaped layer."""
    hidden, heads = base_config["hidden_size"], base_config["num_attention_heads"]
    head_dim = base_config.get("head_dim") or hidden // heads
    query = heads * head_dim
    key_value = base_config.get("num_key_value_heads", heads) * head_dim
    intermediate = base_config["intermediate_size"]
    shapes = {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key_value),
        "v_proj": (hidden, key_value),
        "o_proj": (query, hidden),
        "gate_proj": (hidden, intermediate),
        "up_proj": (hidden, intermediate),
        "down_proj": (intermediate, hidden),
    }
    return shapes[module]


def main() -> None:
    """`python -m tests.lora`. The defaults are strong enough to be seen in the words of a small model's answer."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.lora",
        description="Writes a PEFT LoRA folder with random weights, to have an adapter that answers otherwise.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="the folder to write")
    parser.add_argument("--config", type=Path, required=True, help="the base model's config.json")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another adapter")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--scale", type=float, default=0.08, help="how far it moves the answers")
    options = parser.parse_args()
    config = json.loads(options.config.expanduser().read_text())
    write_lora(options.directory, config, options.seed, options.rank, options.scale, ALL_LINEAR)
    print(f"{options.directory}: random LoRA weights of rank {options.rank}, seed {options.seed}")


if __name__ == "__main__":
    main()
