"""A LoRA's tensors: read from safetensors without torch, paired, and held against the base model's shapes.

Owns the names, shapes and dtypes that preflight demands of weights. Knows neither PEFT's config nor the registry.
Safetensors is 8 bytes of header length, a JSON header, then raw little-endian data; the library checks the header,
and we map the data ourselves because numpy has no bfloat16.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from adapters.errors import PreflightError
from adapters.modules import ATTENTION, MLP

LORA_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
LAYER_MODULE = re.compile(
    r"model\.layers\.(?P<layer>0|[1-9][0-9]*)\.(?P<block>self_attn|mlp)\.(?P<kind>[a-z_]+)"
)

#: dtype -> (integers of the same width, the mask of the exponent's bits). All exponent bits set: infinite or NaN.
EXPONENTS: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F32": (np.uint32, 0x7F800000),
}

#: Elements looked at at once, so that a large tensor needs little memory.
CHUNK_ELEMENTS = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    dtype: str  # safetensors' name: "BF16", "F32", …
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]  # raw bytes, mapped from the file

    def is_finite(self) -> bool:
        mask = EXPONENTS[self.dtype][1]
        return not any(bool(((bits & mask) == mask).any()) for bits in self._chunks())

    def is_zero(self) -> bool:
        """Whether every element is +0 or -0."""
        sign = 1 << (8 * EXPONENTS[self.dtype][0]().itemsize - 1)
        return not any(bool((bits & (sign - 1)).any()) for bits in self._chunks())

    def _chunks(self) -> Iterator[npt.NDArray[Any]]:
        bits = np.frombuffer(self.data, dtype=EXPONENTS[self.dtype][0])
        for start in range(0, len(bits), CHUNK_ELEMENTS):
            yield bits[start : start + CHUNK_ELEMENTS]


@dataclass(frozen=True, slots=True)
class BaseShapes:
    """The sizes of a Llama-shaped base model, from its config.json."""

    layers: int
    hidden: int
    intermediate: int
    query: int  # heads * head_dim
    key_value: int  # key-value heads * head_dim

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> BaseShapes:
        """Raises PreflightError naming the field of config.json that is missing."""
        text = config.get("text_config")  # multi-modal models keep the language model's sizes one level down
        sizes = text if isinstance(text, dict) else config

        def size(field: str, default: int | None = None) -> int:
            value = sizes.get(field) or default
            if not isinstance(value, int):
                raise PreflightError(
                    f"the base model's config.json has no {field}", code="base_config_invalid"
                )
            return value

        heads, hidden = size("num_attention_heads"), size("hidden_size")
        head_dim = size("head_dim", hidden // heads)
        key_value = size("num_key_value_heads", heads) * head_dim
        return cls(size("num_hidden_layers"), hidden, size("intermediate_size"), heads * head_dim, key_value)

    def of_module(self, kind: str) -> tuple[int, int]:
        """(in, out) features of a layer's linear module."""
        return {
            "q_proj": (self.hidden, self.query),
            "k_proj": (self.hidden, self.key_value),
            "v_proj": (self.hidden, self.key_value),
            "o_proj": (self.query, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }[kind]


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Name -> tensor, data unread. Raises ValueError for a file that is not sound safetensors."""
    try:
        with safe_open(file, framework="numpy"):  # checks lengths, overlaps and dtypes
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"is not sound safetensors ({error})") from None
    content = np.memmap(file, dtype=np.uint8, mode="r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    return {
        name: Tensor(
            about["dtype"], tuple(about["shape"]), content[slice(*(start + o for o in about["data_offsets"]))]
        )
        for name, about in header.items()
        if name != "__metadata__"
    }


def check_pairs(
    tensors: Mapping[str, Tensor], rank: int, base_config: Mapping[str, Any] | None
) -> tuple[str, ...]:
    """The kinds of modules adapted, sorted ("k_proj", "q_proj", …). Raises PreflightError naming the tensor."""
    base = None if base_config is None else BaseShapes.of(base_config)
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, side = _parse(name)
        _check_values(name, tensor)
        modules.setdefault(module, {})[side] = tensor
    if not modules:
        raise PreflightError("the weights hold no tensors", code="adapter_no_effect")
    kinds = {_check_module(module, sides, rank, base) for module, sides in modules.items()}
    if all(sides["A"].is_zero() or sides["B"].is_zero() for sides in modules.values()):
        raise PreflightError(
            "the adapter has no effect: in every module lora_A or lora_B is all zeros, so it answers as the base model",
            code="adapter_no_effect",
        )
    return tuple(sorted(kinds))


def _parse(name: str) -> tuple[str, str]:
    """(module, "A" or "B") of a tensor's name."""
    match = LORA_TENSOR.fullmatch(name)
    if match is None:
        hint = (
            " (DoRA)" if "lora_magnitude" in name else " (an embedding)" if "lora_embedding" in name else ""
        )
        raise _problem(name, f"is not base_model.model.<module>.lora_A.weight or lora_B{hint}")
    return match["module"], match["side"]


def _check_values(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in EXPONENTS:
        raise _problem(name, f"has dtype {tensor.dtype}; {', '.join(EXPONENTS)} can be served")
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise _problem(name, f"has shape {list(tensor.shape)}, not two dimensions")
    if not tensor.is_finite():
        raise _problem(name, "holds infinite values or NaN")


def _check_module(module: str, sides: Mapping[str, Tensor], rank: int, base: BaseShapes | None) -> str:
    """The module's kind, if it exists in the base, the engines can serve it and its pair has the right shapes."""
    kind = _kind(module, base)
    for side in "AB":
        if side not in sides:
            raise _problem(
                f"base_model.model.{module}.lora_{side}.weight", "is missing, though its other half is there"
            )
    a, b = sides["A"].shape, sides["B"].shape
    inputs, outputs = (a[1], b[0]) if base is None else base.of_module(kind)
    for side, shape, expected in (("A", a, (rank, inputs)), ("B", b, (outputs, rank))):
        if shape != expected:
            name = f"base_model.model.{module}.lora_{side}.weight"
            source = "r in adapter_config.json" if base is None else "r and the base model"
            raise _problem(name, f"has shape {list(shape)}, but by {source} it must be {list(expected)}")
    return kind


def _kind(module: str, base: BaseShapes | None) -> str:
    match = LAYER_MODULE.fullmatch(module)
    served = match is not None and match["kind"] in (ATTENTION if match["block"] == "self_attn" else MLP)
    if match is None or not served:
        raise _problem(
            module, f"is not a module that the engines can adapt ({', '.join(sorted(ATTENTION | MLP))})"
        )
    if base is not None and int(match["layer"]) >= base.layers:
        raise _problem(module, f"does not exist: the base model has {base.layers} layers")
    return match["kind"]


def _problem(tensor: str, problem: str) -> PreflightError:
    return PreflightError(f"adapter_model.safetensors: tensor {tensor}: {problem}")
