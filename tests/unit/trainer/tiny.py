"""A base model of a few thousand parameters with a tokenizer and a ChatML template, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adapters.messages import Message
from adapters.rows import Prompt, Row, RowKind, row_id
from tests.lora import TINY_CONFIG

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """A byte is a token, and the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id for id, token in enumerate([*SPECIAL, *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
        chat_template=template,
    )


def write_weights(folder: Path, **changes: Any) -> Path:
    """Random weights, the same every time."""
    torch.manual_seed(0)
    made = tokenizer()
    config = LlamaConfig(
        **{
            **TINY_CONFIG,
            "vocab_size": len(made),
            "max_position_embeddings": 512,
            "bos_token_id": made.bos_token_id,
            "eos_token_id": made.eos_token_id,
            "pad_token_id": made.pad_token_id,
            "tie_word_embeddings": True,
            **changes,
        }
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def row(
    prompt: Prompt,
    answer: str = "yes",
    rejected: str | None = None,
    *,
    liked: bool | None = None,
    **more: Any,
) -> Row:
    kind = RowKind.DEMONSTRATION if liked is None else RowKind.LABEL
    kind = kind if rejected is None else RowKind.PREFERENCE
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    worse = None if rejected is None else said(rejected)
    id = row_id(kind, asked, said(answer), worse, liked)
    unit = more.pop("unit", f"conversation:{prompt}")
    return Row(id, kind, asked, said(answer), worse, liked, unit=unit, **more)
