"""vLLM's /v1/embeddings of a Matryoshka model: vectors of unit length, as numbers or in base64, shortened on demand.

Follows vllm/entrypoints/pooling/embed/{protocol,serving}.py and the checks of vllm/pooling_params.py. A text's vector is
the sum of its words', so that texts with words in common are near each other; other weights have others.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import shake_128
from typing import Any

import orjson

from loadtests.fake_engine import errors
from loadtests.fake_engine.generation import Generation
from loadtests.fake_engine.language import Weights
from loadtests.fake_engine.replies import Stream, full_usage

FORMATS = ("float", "base64")


@dataclass(frozen=True, slots=True)
class EmbeddingReply:
    generation: Generation
    size: int
    """How many numbers a vector has; the request may ask for fewer."""

    def __post_init__(self) -> None:
        """Raises errors.Rejected with vLLM's 400 for what it does not take."""
        body = self.generation.body
        dimensions, wanted = body.get("dimensions"), body.get("encoding_format") or "float"
        if dimensions is not None and not isinstance(dimensions, int):
            raise errors.Rejected(errors.invalid("Input should be a valid integer", "body.dimensions"))
        if dimensions is not None and not 1 <= dimensions <= self.size:
            message = (
                f"Model {self.generation.model!r} only supports dimensions in range [1, {self.size}], "
                f"got {dimensions}."
            )
            raise errors.Rejected(errors.failure(400, "BadRequestError", message))
        if wanted not in FORMATS:
            named = " or ".join(f"'{name}'" for name in FORMATS)
            raise errors.Rejected(errors.invalid(f"Input should be {named}", "body.encoding_format"))

    def whole(self) -> bytes:
        generation = self.generation
        data = [
            {"index": index, "object": "embedding", "embedding": self._written(index)}
            for index in range(len(generation.prompts))
        ]
        return orjson.dumps(
            {
                "id": f"embd-{generation.id}",
                "object": "list",
                "created": generation.created,
                "model": generation.model,
                "data": data,
                "usage": full_usage(generation.usage()),
            }
        )

    def stream(self) -> Stream:
        raise NotImplementedError("embeddings come whole, whatever `stream` says")

    def _written(self, index: int) -> Any:
        words = (token.text.strip() for token in self.generation.prompt_of(index))
        size = self.generation.body.get("dimensions") or self.size
        found = vector(self.generation.weights, words, size)
        if self.generation.body.get("encoding_format") != "base64":
            return found
        return base64.b64encode(struct.pack(f"<{size}f", *found)).decode()


def vector(weights: Weights, words: Iterable[str], size: int) -> list[float]:
    """The direction of a text: the first `size` numbers of the sum of its words' directions, made one long."""
    rows = [_direction(weights.digest or "", word, size) for word in words] or [_direction("", "", size)]
    sums = [math.fsum(column) for column in zip(*rows, strict=True)]
    length = math.hypot(*sums) or 1.0
    return [value / length for value in sums]


@lru_cache(maxsize=4096)
def _direction(salt: str, word: str, size: int) -> tuple[float, ...]:
    """`size` numbers from -1 to 1, the first ones the same for every size."""
    return tuple(byte / 127.5 - 1.0 for byte in shake_128(f"{salt}|{word}".encode()).digest(size))
