"""A model as a folder that vLLM can serve: the shape of a known one, a tokenizer, and random weights where they are wanted.

Knows the file formats of Llama-like models. Downloads nothing.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.curves.adapters import module_shapes

SHAPES: dict[str, dict[str, Any]] = {
    "llama3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
    "llama3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 50000,
        "tie_word_embeddings": False,
    },
}

TOKENIZER_FILES = ("tokenizer_config.json", "chat_template.jinja", "generation_config.json")
CONTEXT_TOKENS = 8192

BLOCK = 1 << 26
SPREAD = 0.02
"""Of random weights: what such models are initialised with."""
WRITERS = 4


def write_model(folder: Path, shape: Mapping[str, Any], tokenizer: Path) -> Path:
    """config.json and a tokenizer of just so many tokens as the shape has; no weights yet. Raises RuntimeError."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(folder, tokenizer, shape["vocab_size"])
    ids = {f"{name}_token_id": vocabulary.get(token) for name, token in _special(tokenizer).items()}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": CONTEXT_TOKENS,
        "initializer_range": SPREAD,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        **{name: value for name, value in ids.items() if value is not None},
        **shape,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def write_weights(folder: Path, shape: Mapping[str, Any], seed: int = 0) -> None:
    """Random weights in bfloat16 beside the config.json: as fast as the disk takes them, since all are cut from one block
    of random numbers, again and again. What they say is noise either way.

    vLLM can make weights up by itself, but so small that no adapter shows on them, and none would be proved.
    """
    random = np.random.default_rng(seed)
    block = _bfloat16(random.standard_normal(BLOCK, dtype=np.float32) * SPREAD)
    files = _tensors(shape)
    with ThreadPoolExecutor(WRITERS) as pool:
        done = [pool.submit(_write, folder / file, tensors, block) for file, tensors in files.items()]
    for writing in done:
        writing.result()
    places = {name: file for file, tensors in files.items() for name in tensors}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _tensors(shape: Mapping[str, Any]) -> dict[str, dict[str, tuple[int, ...]]]:
    """By file: the tensors' names and sizes."""
    hidden, layers = shape["hidden_size"], range(shape["num_hidden_layers"])
    words = ["model.embed_tokens", *([] if shape["tie_word_embeddings"] else ["lm_head"])]
    ends = {f"{name}.weight": (shape["vocab_size"], hidden) for name in words}
    files: dict[str, dict[str, tuple[int, ...]]] = {
        "model-ends.safetensors": {**ends, "model.norm.weight": (hidden,)}
    }
    for number in layers:
        layer = f"model.layers.{number}"
        tensors: dict[str, tuple[int, ...]] = {
            f"{layer}.{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")
        }
        for name, (inside, outside) in module_shapes(shape).items():
            tensors[f"{layer}.{name}.weight"] = (outside, inside)
        files[f"model-{number:03d}.safetensors"] = tensors
    return files


def _write(file: Path, tensors: Mapping[str, tuple[int, ...]], block: npt.NDArray[np.uint16]) -> None:
    """A safetensors file: the length of its header, the header, the numbers. Norms are ones, as at every beginning."""
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, sizes in tensors.items():
        begin, end = end, end + 2 * math.prod(sizes)
        head[name] = {"dtype": "BF16", "shape": list(sizes), "data_offsets": [begin, end]}
    told = json.dumps(head).encode()
    ones = _bfloat16(np.ones(max(sizes[-1] for sizes in tensors.values()), dtype=np.float32))
    with file.open("wb") as out:
        out.write(len(told).to_bytes(8, "little") + told)
        for name, sizes in tensors.items():
            left = math.prod(sizes)
            source = ones if len(sizes) == 1 else block[zlib.crc32(name.encode()) % (BLOCK // 2) :]
            while left:
                left -= out.write(source[:left].tobytes()) // 2


def _bfloat16(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The upper half of each float32, which numpy has no type for."""
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)


def _write_tokenizer(folder: Path, tokenizer: Path, size: int) -> dict[str, int]:
    """A copy with as many tokens as the shape has, and its vocabulary. Those that it lacks are words that no text
    becomes, so that whatever the model says has a text."""
    try:
        told = json.loads((tokenizer / "tokenizer.json").read_text())
    except OSError as problem:
        raise RuntimeError(f"no tokenizer (--tokenizer DIR): {problem}") from None
    vocabulary: dict[str, int] = told["model"]["vocab"]
    known = len({*vocabulary.values(), *(token["id"] for token in told["added_tokens"])})
    if known > size:
        raise RuntimeError(f"{tokenizer}: it has {known} tokens, and the shape {size}")
    vocabulary |= {f"Ġw{number}": number for number in range(known, size)}
    (folder / "tokenizer.json").write_text(json.dumps(told))
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    return vocabulary | {token["content"]: token["id"] for token in told["added_tokens"]}


def _special(tokenizer: Path) -> dict[str, str]:
    """bos, eos and pad as the tokenizer's configuration names them."""
    told = json.loads((tokenizer / "tokenizer_config.json").read_text())
    return {
        name: told[f"{name}_token"]
        for name in ("bos", "eos", "pad")
        if isinstance(told.get(f"{name}_token"), str)
    }
