"""What one request will be answered with: the prompt's tokens, the tokens to be said, how it ends.

The same for every endpoint; knows nothing of shapes, pace or the wire.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from loadtests.fake_engine import language
from loadtests.fake_engine.language import END, Token, Weights
from loadtests.fake_engine.prompts import Asked

DEFAULT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Speech:
    """The tokens of each choice, an end token of no text included where it stops by itself."""

    tokens: tuple[Token, ...]
    finish_reason: str
    stop_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    body: dict[str, Any]
    model: str
    """The served name, which goes into every chunk."""
    weights: Weights
    """What really answers."""
    prompts: list[str | list[int]]
    speech: Speech
    id: str
    seed: int = 0
    noise: float = 0.0
    above_base: float | None = None
    """Nats a token that every text is likelier than to the base; None: as the weights have it."""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def n(self) -> int:
        return int(self.body.get("n") or 1)

    @property
    def tokens(self) -> tuple[Token, ...]:
        return self.speech.tokens

    @property
    def text(self) -> str:
        return language.join(self.speech.tokens)

    @property
    def prompt_tokens(self) -> int:
        return sum(count_prompt(prompt) for prompt in self.prompts)

    @property
    def completion_tokens(self) -> int:
        return len(self.speech.tokens) * self.n * len(self.prompts)

    def usage(self, completion_tokens: int | None = None) -> dict[str, int]:
        prompt = self.prompt_tokens
        spoken = self.completion_tokens if completion_tokens is None else completion_tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + spoken, "completion_tokens": spoken}

    def prompt_of(self, index: int) -> list[Token]:
        prompt = self.prompts[index]
        if isinstance(prompt, str):
            return language.tokenize(prompt)
        return [language.token_of_id(token_id) for token_id in prompt]

    def log_probability(self, position: int, token: Token) -> float:
        """Of a token at a position in prompt and answer together."""
        value = language.log_probability(self.weights, self.seed, position, token.id, self.above_base)
        return value + random.uniform(-self.noise, self.noise) if self.noise else value

    def ranked(self, position: int, token: Token, top: int) -> list[tuple[Token, float]]:
        """The token, always the likeliest to this model, and its runners-up: `top` in all, at least one."""
        first = self.log_probability(position, token)
        others = [
            language.token_of_id((token.id + 7 * place) % language.VOCABULARY) for place in range(1, top)
        ]
        return [
            (token, first),
            *((other, first - 0.5 * place) for place, other in enumerate(others, start=1)),
        ]

    def prompt_logprobs(self, index: int, top: int) -> list[dict[str, Any] | None]:
        """vLLM's prompt_logprobs of one prompt: keyed by token id, none for the first token."""
        rows: list[dict[str, Any] | None] = [None]
        for position, token in enumerate(self.prompt_of(index)[1:], start=1):
            row = {}
            for rank, (other, value) in enumerate(self.ranked(position, token, top), start=1):
                row[str(other.id)] = {"logprob": value, "rank": rank, "decoded_token": other.text}
            rows.append(row)
        return rows


def count_prompt(prompt: str | list[int]) -> int:
    return language.count_tokens(prompt) if isinstance(prompt, str) else len(prompt)


def recite(answer: str, max_tokens: int | None) -> Speech:
    """Say what was set to be said, as far as the request lets it."""
    tokens = (*language.tokenize(answer), END)
    if max_tokens is not None and len(tokens) > max_tokens:
        return Speech(tokens[:max_tokens], "length")
    return Speech(tokens, "stop")


def speak(weights: Weights, body: dict[str, Any], asked: Asked, preset: int | None) -> Speech:
    """Decide what is said. `preset` is the `tokens` setting; `ignore_eos` in the body overrules it."""
    cue: Callable[[int], tuple[Token, ...]] = lambda count: language.answer(weights, count)  # noqa: E731
    shortest = 0
    if body.get("fake_echo"):
        introduction = tuple(language.tokenize(weights.introduction()))
        opening = introduction + tuple(language.tokenize(f" You said: {asked.last_user_message}"))
        shortest = len(opening) + 1

        def cue(count: int) -> tuple[Token, ...]:
            filler = language.answer(weights, len(introduction) + max(0, count - len(opening)))
            return (opening + filler[len(introduction) :])[:count]

    count, stops = _length(asked.max_tokens, preset, shortest, bool(body.get("ignore_eos")))
    tokens = (*cue(count - 1), END) if stops else cue(count)
    return _cut(tokens, body.get("stop") or ()) or Speech(tokens, "stop" if stops else "length")


def _length(max_tokens: int | None, preset: int | None, shortest: int, ignore_eos: bool) -> tuple[int, bool]:
    """How many tokens, and whether the model stops by itself rather than being cut."""
    if max_tokens is not None and (preset is None or preset > max_tokens or ignore_eos):
        return max_tokens, False
    if preset is not None:
        return max(1, preset), True
    return max(DEFAULT_TOKENS, shortest), True


def _cut(tokens: tuple[Token, ...], stop: str | list[str] | tuple[str, ...]) -> Speech | None:
    """The tokens up to the first stop string, the last one shortened; None where none occurs."""
    if not stop:
        return None
    text = language.join(tokens)
    found = [(text.find(word), word) for word in ([stop] if isinstance(stop, str) else stop) if word in text]
    if not found:
        return None
    left, word = min(found)
    kept: list[Token] = []
    for token in tokens:
        if left <= 0:
            break
        kept.append(Token(token.id, token.text[:left]))
        left -= len(token.text)
    return Speech(tuple(kept) or (END,), "stop", word)
