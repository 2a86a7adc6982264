"""LoRA on a CPU, for the class of vLLM 0.32 that does it there (`PunicaWrapperCPU`); `vllm_plugin` puts it in.

vLLM copies an adapter's matrices out once for each token of a batch, a thousand tokens a thousand times, and takes the
index -1, which means no adapter, for the last slot: once that slot is filled, whoever asks the base model beside somebody who
asks an adapter is answered by the last slot's. Here the tokens of one adapter are multiplied together with the matrices where
they lie, and tokens without an adapter are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def slots_of(indices: Iterable[int]) -> dict[int, list[int]]:
    """The rows of each slot, by vLLM's index of each row: -1 is none."""
    found: dict[int, list[int]] = {}
    for row, slot in enumerate(indices):
        if slot >= 0:
            found.setdefault(slot, []).append(row)
    return found


def add_lora(
    y: Any, x: Any, a: Sequence[Any], b: Sequence[Any], scale: float, sizes: Sequence[int], slots: Any
) -> None:
    """y += scale · x Aᵀ Bᵀ, by slot and slice, in place.

    `y`: [rows, sum(sizes)]; `x`: [rows, in]; of each slice `a`: [slots, 1, rank, in] and `b`: [slots, 1, out, rank]. `slots`:
    pairs of a slot and the tensor of its rows, None for all of them. The product with A is in float32, as vLLM has it.
    """
    for slot, rows in slots:
        given = (x if rows is None else x[rows]).float()
        end = 0
        for down, up, size in zip(a, b, sizes, strict=True):
            start, end = end, end + size
            inner = (given @ down[slot, 0].float().t()).mul_(scale)
            added = inner.to(y.dtype) @ up[slot, 0].to(y.dtype).t()
            if rows is None:
                y[:, start:end] += added
            else:
                y[rows, start:end] += added


def replace(wrapper: Any) -> bool:
    """Gives the class these ways; False, and nothing done, if it is none that we know. It may be told several times."""
    if not all(
        hasattr(wrapper, name) for name in ("update_metadata", "token_lora_indices", "add_lora_linear")
    ):
        return False
    if hasattr(wrapper, "burnish_slots"):
        return True
    update = wrapper.update_metadata

    def update_metadata(self: Any, *given: Any, **named: Any) -> None:
        update(self, *given, **named)
        indices = self.token_lora_indices
        found = slots_of(indices.tolist())
        self.burnish_slots = [
            (slot, None if len(rows) == len(indices) else indices.new_tensor(rows))
            for slot, rows in found.items()
        ]

    def add_lora_linear(
        self: Any, y: Any, x: Any, a: Any, b: Any, scale: float, output_slices: Any, **_: Any
    ) -> None:
        flat_y, flat_x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        add_lora(flat_y, flat_x, a, b, scale, output_slices, self.burnish_slots)

    wrapper.burnish_slots = ()
    wrapper.update_metadata = update_metadata
    wrapper.add_lora_linear = add_lora_linear
    return True
