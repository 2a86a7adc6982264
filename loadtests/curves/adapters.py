"""Random LoRAs of full size, written as PEFT does and put into Burnish, for load alone: what they say is noise.

Knows the shapes of Llama-like models and Burnish's API. The layer's change is 2 * B @ A with A of N(0, 1/in) and B of
N(0, scale), strong enough that no two answer alike, which Burnish checks before it serves one.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import save_file

SCALE = 0.08
POLL_SECONDS = 0.5
HALF = np.float16
"""As large on disk as bfloat16, which numpy does not have."""


def write_adapter(folder: Path, config: Mapping[str, Any], rank: int, seed: int) -> Path:
    """A LoRA on all linear modules of a base model with that config.json; the same seed is the same adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module, (inside, outside) in module_shapes(config).items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            a = random.standard_normal((rank, inside), dtype=np.float32) * inside**-0.5
            b = random.standard_normal((outside, rank), dtype=np.float32) * SCALE
            tensors[f"{name}.lora_A.weight"] = a.astype(HALF)
            tensors[f"{name}.lora_B.weight"] = b.astype(HALF)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    modules = [module.partition(".")[2] for module in module_shapes(config)]
    told = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    told |= {"target_modules": modules, "base_model_name_or_path": None}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


def module_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """(in, out) features of the linear modules of a layer."""
    hidden, inner, heads = (
        config[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    head = config.get("head_dim") or hidden // heads
    query, key_value = heads * head, config.get("num_key_value_heads", heads) * head
    return {
        "self_attn.q_proj": (hidden, query),
        "self_attn.k_proj": (hidden, key_value),
        "self_attn.v_proj": (hidden, key_value),
        "self_attn.o_proj": (query, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }


async def import_adapters(url: str, model: str, folders: Sequence[Path], wait_seconds: float) -> list[str]:
    """Puts the adapters into Burnish, and returns their names (NAME@N) once it has proved all of them.

    Raises RuntimeError with its words where it refuses one, or is not done in time.
    """
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
        refs = []
        for folder in folders:
            asked = {"name": folder.name, "path": str(folder.absolute()), "base_model": model}
            answer = await http.post("/v1/adapters", json=asked)
            if not answer.is_success:
                raise RuntimeError(f"POST /v1/adapters: {answer.status_code} {answer.text[:500]}")
            refs.append(str(answer.json()["id"]))
        until = time.monotonic() + wait_seconds
        for ref in refs:
            await _until_proved(http, ref, until)
    return refs


async def _until_proved(http: httpx.AsyncClient, ref: str, until: float) -> None:
    while True:
        told = (await http.get(f"/v1/adapters/{ref}")).raise_for_status().json()
        if told["state"] == "proved":
            return
        if told["state"] == "failed" or time.monotonic() > until:
            raise RuntimeError(f"{ref} was not proved: {told['state']} {told.get('reason') or ''}")
        await asyncio.sleep(POLL_SECONDS)
