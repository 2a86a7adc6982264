"""The GPU command where there is no GPU: the model's folder, the order of the stages, and what is left of a failed one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from loadtests.gpu.engine import Order, vllm
from loadtests.gpu.model import SHAPES, write_model, write_weights
from loadtests.servers import free_port

SOURCE = Path(__file__).resolve().parents[3]
SMALL = SHAPES["tiny"] | {"vocab_size": 600, "hidden_size": 64, "intermediate_size": 96}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A byte-level BPE tokenizer of a few hundred tokens, as those of Llama-like models are made."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        ["a few words for it"] * 9,
        trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
        ),
    )
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    return folder


def test_every_token_that_the_model_can_say_has_a_text(tmp_path: Path, tokenizer: Path) -> None:
    folder = write_model(tmp_path / "model", SMALL, tokenizer)
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert made.get_vocab_size() == 600
    assert all(made.decode([number], skip_special_tokens=False) for number in range(600))
    assert (
        made.encode("a few words").ids
        == Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode("a few words").ids
    )
    config = json.loads((folder / "config.json").read_text())
    assert (config["eos_token_id"], config["vocab_size"]) == (1, 600)
    assert (folder / "chat_template.jinja").is_file()


def test_a_tokenizer_that_is_too_large_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(RuntimeError, match="tokens, and the shape 100"):
        write_model(tmp_path / "model", SMALL | {"vocab_size": 100}, tokenizer)
    with pytest.raises(RuntimeError, match="--tokenizer"):
        write_model(tmp_path / "other", SMALL, tmp_path / "nowhere")


@pytest.mark.parametrize("is_tied", [True, False])
def test_random_weights_are_all_that_the_shape_has(tmp_path: Path, is_tied: bool) -> None:
    shape = SMALL | {"tie_word_embeddings": is_tied}
    write_weights(tmp_path, shape)
    files: dict[str, str] = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert ("lm_head.weight" in files) is not is_tied
    assert len(files) == 2 + (not is_tied) + 9 * shape["num_hidden_layers"]
    with safe_open(tmp_path / files["model.layers.1.mlp.down_proj.weight"], "pt") as opened:
        found = opened.get_tensor("model.layers.1.mlp.down_proj.weight")
        norm = opened.get_tensor("model.layers.1.input_layernorm.weight")
    assert tuple(found.shape) == (64, 96)
    assert 0.01 < float(found.float().std()) < 0.03
    assert norm.float().tolist() == [1.0] * 64


def test_an_engine_that_does_not_come_up_is_told_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fallen = tmp_path / "vllm" / "entrypoints" / "openai"
    fallen.mkdir(parents=True)
    for folder in (fallen, fallen.parent, fallen.parent.parent):
        (folder / "__init__.py").write_text("")
    (fallen / "api_server.py").write_text("raise SystemExit('no GPU, and that is why')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    order = Order(tmp_path / "model", "x", 4, 16, 16, 0.5)
    with (
        pytest.raises(RuntimeError, match="no GPU, and that is why"),
        vllm(order, free_port(), tmp_path / "engine.log", time.monotonic() + 120),
    ):
        pytest.fail("it came up")
    assert (tmp_path / "engine.log").read_text().count("that is why") == 3  # every way to start it was tried


def run(out: Path, tokenizer: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "loadtests.gpu", "--engine", "fake", "--shape", "tiny"),
            *("--tokenizer", str(tokenizer), "--out", str(out), "--seconds", "1"),
            *("--prompt-tokens", "8", "--answer-tokens", "4", *arguments),
        ],
        cwd=SOURCE, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    return ended.returncode, json.loads((out / "gpu.json").read_text()), ended.stdout + ended.stderr


def test_every_stage_leaves_its_result(tmp_path: Path, tokenizer: Path) -> None:
    code, found, told = run(
        tmp_path / "out", tokenizer,
        *("--levels", "1,4", "--adapters", "0,2", "--at-once", "4", "--budget", "200"),
        *("--stages", "concurrency,adapters,users", "--price-per-hour", "2"),
    )  # fmt: skip
    assert code == 0, told
    assert found["stages"] == {"concurrency": "done", "adapters": "done", "users": "done"}
    asked = [(point["target"], point["streams"]) for point in found["points"]["concurrency"]]
    assert asked == [("the engine alone", 1), ("Burnish", 1), ("the engine alone", 4), ("Burnish", 4)]
    assert [point["adapters"] for point in found["points"]["adapters"]] == [0, 2]
    assert all(not point["errors"] for points in found["points"].values() for point in points)
    assert "burnish_" in (tmp_path / "out" / "metrics.txt").read_text()
    assert "cost per million" in (tmp_path / "out" / "tables.md").read_text()


def test_what_does_not_fit_is_left_out_and_said(tmp_path: Path, tokenizer: Path) -> None:
    code, found, told = run(
        tmp_path / "out", tokenizer,
        *("--levels", "1", "--stages", "concurrency,users", "--budget", "45"),
    )  # fmt: skip
    assert code == 1, told
    assert found["stages"]["users"].startswith("TimeoutError")
