from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from adapters import preflight
from adapters.errors import PreflightError
from adapters.preflight import AdapterFacts
from adapters.tensors import Tensor
from tests.lora import TINY_CONFIG, write_lora

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYER = "base_model.model.model.layers.0"
Q_A, Q_B = f"{LAYER}.self_attn.q_proj.lora_A.weight", f"{LAYER}.self_attn.q_proj.lora_B.weight"

Tensors = dict[str, Any]


def inspect(folder: Path, **kwargs: Any) -> AdapterFacts:
    return preflight.inspect(folder, base_config=TINY_CONFIG, **kwargs)


def refusal(folder: Path, **kwargs: Any) -> PreflightError:
    with pytest.raises(PreflightError) as caught:
        inspect(folder, **kwargs)
    assert str(folder) not in caught.value.message  # promise 11: no path leaks
    return caught.value


def with_config(folder: Path, **fields: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def with_tensors(folder: Path, change: Callable[[Tensors], Any]) -> Path:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return folder


def save_raw(file: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    """Safetensors by hand, for dtypes that numpy does not have."""
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def as_bfloat16(folder: Path, change: Callable[[np.ndarray[Any, Any]], None] = lambda bits: None) -> Path:
    """The same adapter in bfloat16: the upper half of each float32. `change` alters Q_A's bits."""
    file = folder / "adapter_model.safetensors"
    raw = {}
    for name, values in load_file(file).items():
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        if name == Q_A:
            change(bits)
        raw[name] = ("BF16", list(bits.shape), bits.tobytes())
    save_raw(file, raw)
    return folder


def test_a_sound_adapter_passes_and_its_facts_are_told(tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "a", TINY_CONFIG, rank=4, target_modules=ALL_LINEAR)
    facts = inspect(folder)
    assert facts == AdapterFacts(
        rank=4,
        alpha=8.0,
        target_modules=tuple(sorted(ALL_LINEAR)),
        base_model_name_or_path="/somewhere/else/base",
        base_digest=None,
        tensors=2 * 2 * 7,
        size_bytes=sum(file.stat().st_size for file in folder.iterdir()),
    )


def test_without_the_base_models_config_everything_else_is_still_checked(lora: Path) -> None:
    other = TINY_CONFIG | {"hidden_size": 64}
    assert preflight.inspect(lora).target_modules == ("q_proj", "v_proj")
    with pytest.raises(PreflightError, match="by r and the base model it must be"):
        preflight.inspect(lora, base_config=other)
    with_tensors(lora, lambda t: t.update({Q_A: t[Q_A][:2]}))
    with pytest.raises(PreflightError, match="by r in adapter_config"):
        preflight.inspect(lora)


def test_bfloat16_and_float16_are_served_too(lora: Path, tmp_path: Path) -> None:
    assert inspect(as_bfloat16(lora)).tensors == 8
    half = write_lora(tmp_path / "half", TINY_CONFIG)
    with_tensors(half, lambda t: t.update({name: v.astype(np.float16) for name, v in t.items()}))
    assert inspect(half).tensors == 8


def test_sizes_of_a_multi_modal_base_are_found_in_its_text_config(lora: Path) -> None:
    preflight.inspect(lora, base_config={"text_config": TINY_CONFIG})
    with pytest.raises(PreflightError, match=r"config\.json has no num_attention_heads"):
        preflight.inspect(lora, base_config={})


def test_head_dim_and_key_value_heads_have_llamas_defaults(tmp_path: Path) -> None:
    config = {name: TINY_CONFIG[name] for name in ("hidden_size", "num_attention_heads", "intermediate_size")}
    config["num_hidden_layers"] = 1
    folder = write_lora(tmp_path / "a", config, target_modules=ALL_LINEAR)
    assert preflight.inspect(folder, base_config=config).tensors == 14


@pytest.mark.parametrize(
    "name",
    ["adapter_model.bin", "training_args.bin", "x.pt", "x.PKL", "modeling_llama.py", "deep/er/optimizer.pth"],
)
def test_promise_04_files_that_can_carry_code_are_refused(lora: Path, name: str) -> None:
    (lora / name).parent.mkdir(parents=True, exist_ok=True)
    (lora / name).write_bytes(b"\x80\x04.")
    error = refusal(lora)
    assert error.message.startswith(f"{name}: ")
    assert "only safetensors" in error.message
    assert (error.status, error.code) == (400, "adapter_invalid")


def test_promise_04_links_are_refused_wherever_they_point(lora: Path, tmp_path: Path) -> None:
    (lora / "README.md").symlink_to(lora / "adapter_config.json")
    assert "README.md: is a link" in refusal(lora).message
    (lora / "README.md").unlink()
    (lora / "sub").symlink_to(tmp_path)
    assert "sub: is a link" in refusal(lora).message
    (lora / "sub").unlink()
    (tmp_path / "linked").symlink_to(lora)
    assert "is no directory" in refusal(tmp_path / "linked").message


def test_promise_04_devices_and_pipes_are_refused(lora: Path) -> None:
    os.mkfifo(lora / "pipe")
    assert "pipe: is not a plain file" in refusal(lora).message


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_promise_04_a_missing_file_is_named(lora: Path, name: str) -> None:
    (lora / name).unlink()
    assert refusal(lora).message.startswith(f"{name}: there is no such file")


def test_promise_04_sizes_are_bounded(lora: Path, tmp_path: Path) -> None:
    with (lora / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(preflight.MAX_WEIGHTS_BYTES + 1)  # sparse: takes no disk
    assert "adapter_model.safetensors: 17179869185 bytes are more than" in refusal(lora).message
    other = write_lora(tmp_path / "other", TINY_CONFIG)
    (other / "adapter_config.json").write_text(" " * (preflight.MAX_JSON_BYTES + 1))
    assert "adapter_config.json: 1048577 bytes" in refusal(other).message
    many = write_lora(tmp_path / "many", TINY_CONFIG)
    for index in range(preflight.MAX_ENTRIES):
        (many / f"{index}.txt").touch()
    assert "more than 1000 files" in refusal(many).message


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\udcff", "[" * 100_000])
def test_promise_04_a_config_that_is_no_json_object_is_refused(lora: Path, content: str) -> None:
    (lora / "adapter_config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert refusal(lora).message.startswith("adapter_config.json: is not ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("task_type", "SEQ_CLS"),
        ("use_dora", True),
        ("use_qalora", True),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1, 2]),
        ("layer_replication", [[0, 1]]),
        ("alora_invocation_tokens", [1]),
        ("target_parameters", ["experts"]),
        ("auto_map", {"AutoModel": "evil.Model"}),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "loftq"),
        ("target_modules", None),
        ("r", 0),
        ("r", -1),
        ("r", 65),
        ("r", 8.0),
        ("r", True),
        ("r", "8"),
        ("r", None),
        ("lora_alpha", 0),
        ("lora_alpha", -1),
        ("lora_alpha", None),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("rank_pattern", {"q_proj": 4}),
        ("rank_pattern", [4]),
        ("alpha_pattern", {"q_proj": 4}),
    ],
)
def test_promise_04_a_config_that_cannot_be_served_is_refused_by_field(
    lora: Path, field: str, value: Any
) -> None:
    assert refusal(with_config(lora, **{field: value})).message.startswith(
        f"adapter_config.json: field {field}: "
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"task_type": None},
        {"bias": None},
        {"use_rslora": True},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva"},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 16}},
        {"rank_pattern": None},
        {"target_modules": "all-linear"},
        {"lora_alpha": 0.5},
        {"some_new_field_of_peft": 1},
    ],
)
def test_a_config_that_changes_nothing_the_engines_lack_passes(lora: Path, fields: dict[str, Any]) -> None:
    assert inspect(with_config(lora, **fields)).rank == 8


def test_promise_04_a_rank_above_the_engines_is_refused(lora: Path) -> None:
    assert "more than the 4 that the engines are started with" in refusal(lora, max_rank=4).message
    assert inspect(lora, max_rank=8).rank == 8


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (f"{LAYER}.self_attn.q_proj.lora_magnitude_vector", "(DoRA)"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "(an embedding)"),
        (f"{LAYER}.self_attn.q_proj.weight", "is not base_model.model.<module>"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "is not base_model.model.<module>"),
        ("base_model.model.lm_head.lora_A.weight", "cannot"),
        ("base_model.model.model.embed_tokens.lora_A.weight", "cannot"),
        (f"{LAYER}.self_attn.qkv_proj.lora_A.weight", "cannot"),
        (f"{LAYER}.mlp.q_proj.lora_A.weight", "cannot"),
        (f"{LAYER}.mlp.experts.0.up_proj.lora_A.weight", "cannot"),
        ("base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight", "the base model has 2 layers"),
        ("base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight", "cannot"),
        (f"{LAYER}.mlp.up_proj.lora_A.weight", "lora_B.weight: is missing"),
        (f"{LAYER}.mlp.up_proj.lora_B.weight", "lora_A.weight: is missing"),
    ],
)
def test_promise_04_a_tensor_that_no_engine_can_place_is_refused_by_name(
    lora: Path, name: str, hint: str
) -> None:
    with_tensors(lora, lambda t: t.update({name: np.ones((8, 32), np.float32)}))
    message = refusal(lora).message
    assert message.startswith("adapter_model.safetensors: tensor ")
    assert ("is not a module that the engines can adapt" if hint == "cannot" else hint) in message
    module = name.removeprefix("base_model.model.").split(".lora_")[0]
    assert module in message


@pytest.mark.parametrize("module", ALL_LINEAR)
@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("axis", [0, 1])
def test_promise_04_a_shape_that_is_not_the_base_models_is_refused(
    tmp_path: Path, module: str, side: str, axis: int
) -> None:
    folder = write_lora(tmp_path / "a", TINY_CONFIG, target_modules=ALL_LINEAR)

    def widen(tensors: Tensors) -> None:
        (name,) = (n for n in tensors if n.startswith(LAYER) and n.endswith(f"{module}.lora_{side}.weight"))
        tensors[name] = np.concatenate([tensors[name], tensors[name]], axis=axis)

    message = refusal(with_tensors(folder, widen)).message
    assert message.startswith(f"adapter_model.safetensors: tensor {LAYER}.")
    assert f"{module}.lora_{side}.weight: has shape" in message


@pytest.mark.parametrize("shape", [(8,), (8, 32, 1), (8, 0)])
def test_promise_04_a_tensor_that_is_no_matrix_is_refused(lora: Path, shape: tuple[int, ...]) -> None:
    with_tensors(lora, lambda t: t.update({Q_A: np.zeros(shape, np.float32)}))
    assert f"tensor {Q_A}: has shape {list(shape)}, not two dimensions" in refusal(lora).message


@pytest.mark.parametrize("dtype", [np.int8, np.float64, np.bool_])
def test_promise_04_a_dtype_that_the_engines_do_not_take_is_refused(lora: Path, dtype: Any) -> None:
    with_tensors(lora, lambda t: t.update({Q_A: t[Q_A].astype(dtype)}))
    assert f"tensor {Q_A}: has dtype" in refusal(lora).message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_promise_04_values_that_are_not_finite_are_refused(lora: Path, value: float, dtype: Any) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[Q_B] = tensors[Q_B].astype(dtype)
        tensors[Q_B][-1, -1] = value

    assert f"tensor {Q_B}: holds infinite values or NaN" in refusal(with_tensors(lora, spoil)).message


@pytest.mark.parametrize("bits", [0x7FC0, 0xFFC1, 0x7F80, 0xFF80])
def test_promise_04_bfloat16_that_is_not_finite_is_refused(lora: Path, bits: int) -> None:
    def spoil(values: np.ndarray[Any, Any]) -> None:
        values[3, 5] = bits

    assert f"tensor {Q_A}: holds infinite values or NaN" in refusal(as_bfloat16(lora, spoil)).message


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_finite_and_zero_agree_with_numpy(values: list[float]) -> None:
    array = np.array([values], np.float32)
    tensor = Tensor("F32", array.shape, array.view(np.uint8).reshape(-1))
    assert tensor.is_finite() == bool(np.isfinite(array).all())
    assert tensor.is_zero() == bool((array == 0).all())


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_promise_04_an_adapter_without_effect_is_refused(lora: Path, side: str, zero: float) -> None:
    def silence(tensors: Tensors) -> None:
        for name in tensors:
            if f"lora_{side}" in name:
                tensors[name][:] = zero

    error = refusal(with_tensors(lora, silence))
    assert error.code == "adapter_no_effect"
    assert "answers as the base model" in error.message


def test_a_module_without_effect_beside_others_passes(lora: Path) -> None:
    with_tensors(lora, lambda t: t[Q_B].fill(0))
    assert inspect(lora).tensors == 8


def test_promise_04_weights_without_tensors_are_refused(lora: Path) -> None:
    with_tensors(lora, lambda t: t.clear())
    assert refusal(lora).code == "adapter_no_effect"


@given(cut=st.integers(0, 10_000), flip=st.integers(0, 2**20))
def test_promise_04_weights_that_are_damaged_are_refused_or_sound(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int
) -> None:
    folder = write_lora(tmp_path_factory.mktemp("damaged"), TINY_CONFIG)
    file = folder / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[flip // 8 % 1024] ^= 1 << flip % 8  # in the header, where it hurts
    file.write_bytes(content[: max(0, len(content) - cut)] if cut % 2 else content)
    with contextlib.suppress(PreflightError):  # any other exception is a bug
        assert inspect(folder).rank == 8


def test_promise_04_another_base_models_adapter_is_refused_by_its_provenance(tmp_path: Path) -> None:
    mine, other = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    folder = write_lora(tmp_path / "a", TINY_CONFIG, provenance={"base_digest": mine})
    assert inspect(folder, base_digest=mine).base_digest == mine
    assert inspect(folder, base_digest=None).base_digest == mine
    error = refusal(folder, base_digest=other)
    assert error.code == "adapter_base_mismatch"
    assert error.message.startswith("burnish.json: field base_digest: ")
    (folder / "burnish.json").write_text('{"base_digest": 1}')
    assert "is not a string" in refusal(folder).message
    (folder / "burnish.json").write_text("{")
    assert "burnish.json: is not valid JSON" in refusal(folder).message
