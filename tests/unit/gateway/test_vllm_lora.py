"""LoRA on a CPU: every row its own adapter's, and none where there is none. On a real vLLM: tests/integration/test_real_engine.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gateway import vllm_lora

SLOTS, RANK, IN, SIZES = 4, 2, 6, (5, 3)


def matrices(dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """As vLLM stacks them; every slot is filled."""
    made = torch.Generator().manual_seed(1)
    a = [torch.randn(SLOTS, 1, RANK, IN, generator=made).to(dtype) for _ in SIZES]
    b = [torch.randn(SLOTS, 1, size, RANK, generator=made).to(dtype) for size in SIZES]
    return a, b


class Wrapper:
    """The part of vLLM's that counts."""

    indices: tuple[int, ...] = ()

    @property
    def token_lora_indices(self) -> torch.Tensor:
        return torch.tensor(self.indices, dtype=torch.long)

    def update_metadata(self, indices: Sequence[int]) -> None:
        self.indices = tuple(indices)

    def add_lora_linear(self, *_: Any, **__: Any) -> None:
        raise AssertionError("this is vLLM's way")


def known() -> Any:
    """A class of the test's own, replaced twice."""
    made = type("Known", (Wrapper,), {})
    assert vllm_lora.replace(made)
    assert vllm_lora.replace(made)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(
    indices=st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=9), scale=st.sampled_from([1.0, 0.5])
)
def test_promise_06_every_row_gets_its_own_adapters_and_the_others_nothing(
    dtype: torch.dtype, indices: list[int], scale: float
) -> None:
    a, b = matrices(dtype)
    x = torch.randn(len(indices), IN, generator=torch.Generator().manual_seed(2)).to(dtype)
    y = torch.ones(len(indices), sum(SIZES), dtype=dtype)
    wrapper = known()()
    wrapper.update_metadata(indices)
    wrapper.add_lora_linear(y, x, a, b, scale, SIZES, add_inputs=True)
    for row, slot in enumerate(indices):
        if slot < 0:
            assert torch.equal(y[row], torch.ones(sum(SIZES), dtype=dtype))
            continue
        own = [
            x[row].float() @ down[slot, 0].float().t() * scale @ up[slot, 0].float().t()
            for down, up in zip(a, b, strict=True)
        ]
        near = 0.1 if dtype is torch.bfloat16 else 1e-5
        torch.testing.assert_close(y[row].float(), 1 + torch.cat(own), rtol=near, atol=near)


def test_a_batch_without_an_adapter_multiplies_nothing() -> None:
    wrapper = known()()
    wrapper.update_metadata([-1, -1])
    assert wrapper.burnish_slots == []


def test_more_dimensions_are_rows_too() -> None:
    a, b = matrices(torch.float32)
    wrapper = known()()
    wrapper.update_metadata([3, -1])
    y = torch.zeros(1, 2, sum(SIZES))
    wrapper.add_lora_linear(y, torch.ones(1, 2, IN), a, b, 1.0, SIZES)
    assert y[0, 0].abs().sum() > 0
    assert y[0, 1].abs().sum() == 0


def test_another_class_is_left_as_it_is() -> None:
    other = type("Other", (), {"update_metadata": lambda self: None})
    before = dict(vars(other))
    assert not vllm_lora.replace(other)
    assert dict(vars(other)) == before
