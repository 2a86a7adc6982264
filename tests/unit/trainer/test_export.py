"""A merged export answers as the base with the adapter does, without PEFT."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tests.lora import ALL_LINEAR, TINY_CONFIG, write_lora


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model and a tokenizer that goes with it."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TINY_CONFIG)).save_pretrained(folder)
    words = {"<unk>": 0, "a": 1, "b": 2}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "<unk>")))
    tokenizer.save_pretrained(folder)
    return folder


def export(weights: Path, adapter: Path, dest: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer.export", "--weights", str(weights), "--adapter", str(adapter)]
    return subprocess.run([*command, str(dest)], capture_output=True, text=True, timeout=120)


def test_the_merged_model_answers_as_base_and_adapter_do(weights: Path, tmp_path: Path) -> None:
    adapter = write_lora(tmp_path / "lora", TINY_CONFIG, seed=1, rank=8, scale=0.3, target_modules=ALL_LINEAR)
    done = export(weights, adapter, tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    ids = torch.tensor([[1, 2, 1, 1, 2]])
    base = AutoModelForCausalLM.from_pretrained(weights)
    plain = base(ids).logits
    with_adapter = PeftModel.from_pretrained(base, str(adapter))(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    assert torch.allclose(merged, with_adapter, atol=1e-4)
    assert not torch.allclose(merged, plain, atol=1e-2)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").get_vocab()["b"] == 2
    assert not list(tmp_path.glob(".merged*"))


def test_an_export_overwrites_nothing_and_leaves_nothing_half_done(weights: Path, tmp_path: Path) -> None:
    adapter = write_lora(tmp_path / "lora", TINY_CONFIG, seed=1)
    (tmp_path / "merged").mkdir()
    assert "is there already" in export(weights, adapter, tmp_path / "merged").stderr
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "nonsense"}))
    assert export(weights, adapter, tmp_path / "other").returncode != 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora", "merged"]
