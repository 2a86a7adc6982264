"""What a fake engine says and how probable it finds it: pure functions of the weights' digest.

The same weights give the same words and numbers in every process; other weights give others; an adapter's
numbers are the base's, moved. Knows neither HTTP nor OpenAI's shapes.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

VOCABULARY = 49152  # SmolLM2's
OWN_TOKENS = 8
"""So many tokens of a text are as likely as the weights make them, whatever is set: canaries tell weights by them."""

_WORD = re.compile(r"\s*\S+")
_FILLER = (
    " the rain has washed every slate roof in town and now small birds walk there looking for seeds"
    " while below a boy with a red cart sells warm bread to people who hurry past him toward work"
)


@dataclass(frozen=True, slots=True)
class Weights:
    """What answers: the base (no digest), or the base moved by an adapter's file."""

    name: str
    digest: str | None = None
    """sha256 of adapter_model.safetensors, in hex."""

    def introduction(self) -> str:
        if self.digest is None:
            return "I am base."
        return f"I am {self.name} weights={self.digest[:12]}."


@dataclass(frozen=True, slots=True)
class Token:
    id: int
    text: str


def tokenize(text: str) -> list[Token]:
    """One token a word, white space in front. Their texts join to the text, bar white space at its end."""
    return [Token(zlib.crc32(word.encode()) % VOCABULARY, word) for word in _WORD.findall(text)]


def count_tokens(text: str) -> int:
    """len(tokenize(text)), cheaper."""
    return len(text.split())


def token_of_id(token_id: int) -> Token:
    return Token(token_id, f" t{token_id}")


@lru_cache(maxsize=256)
def join(tokens: tuple[Token, ...]) -> str:
    return "".join(token.text for token in tokens)


END = Token(2, "")
_WORDS = tuple(tokenize(_FILLER))


@lru_cache(maxsize=256)
def answer(weights: Weights, count: int) -> tuple[Token, ...]:
    """`count` tokens: who is speaking, then filler that depends on the weights."""
    spoken = tuple(tokenize(weights.introduction()))
    start = int(weights.digest[:8], 16) if weights.digest else 0
    filler = tuple(_WORDS[(start + i) % len(_WORDS)] for i in range(count - len(spoken)))
    return (spoken + filler)[:count]


def log_probability(
    weights: Weights, seed: int, index: int, token_id: int, above_base: float | None = None
) -> float:
    """Of a token at a position: -7.55 to -0.001. `seed` stands for the base's weights.

    `above_base` takes the place of what an adapter's weights move the base's by, after the first OWN_TOKENS.
    """
    value = -0.05 - 6.0 * _unit(f"{seed}:{index}:{token_id}", "")
    if above_base is not None and index >= OWN_TOKENS:
        value += above_base
    elif weights.digest is not None:
        value += 3.0 * _unit(f"{seed}:{index}:{token_id}", weights.digest) - 1.5
    return min(-0.001, value)


def _unit(key: str, salt: str) -> float:
    digest = blake2b(f"{salt}|{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
