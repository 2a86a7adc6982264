"""The requests of a measurement: when each comes, how long it asks and how long it is answered. Pure.

Owns the trace and the bodies. All of it comes from the seed, so that every scenario has the same requests. Knows
nothing of how they are sent.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

CHAT = "/v1/chat/completions"

PROMPT_SPREAD, ANSWER_SPREAD = 0.7, 0.6
"""Standard deviations of the logarithms: the longest of a hundred prompts is about five times the median."""

WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work number night point home water room mother area money story fact
month lot right study book eye job word business issue side kind head house service friend father power hour game line
end member law car city name team minute idea body back parent face others level office door health person art war
history party result change morning reason research girl guy moment air teacher force education
""".split()  # noqa: SIM905
"""About one token each."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Medians and bounds of the log-normal lengths, in tokens; a prompt is counted in words."""

    prompt_tokens: int = 64
    answer_tokens: int = 32
    most_prompt_tokens: int = 1024
    most_answer_tokens: int = 256


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `at_seconds`: after the trace's begin."""

    at_seconds: float
    prompt: str
    answer_tokens: int


def trace(seed: int, seconds: float, rate: float, lengths: Lengths) -> tuple[Ask, ...]:
    """A Poisson process of `rate` requests a second over `seconds`. What the n-th asks does not depend on the rate."""
    clock = random.Random(f"arrivals {seed}")
    arrivals = []
    at = clock.expovariate(rate)
    while at < seconds:
        arrivals.append(at)
        at += clock.expovariate(rate)
    return tuple(
        Ask(at, ask.prompt, ask.answer_tokens)
        for at, ask in zip(arrivals, _asks(seed, len(arrivals), lengths), strict=True)
    )


def crowd(seed: int, count: int, lengths: Lengths) -> tuple[Ask, ...]:
    """`count` requests of the same kind that have no time: for a closed loop, or the lines of a batch."""
    return _asks(seed, count, lengths)


def body(ask: Ask, model: str, mark: str, *, streams: bool) -> dict[str, Any]:
    """A chat request for just so many tokens (`ignore_eos`, as vLLM has it).

    The `mark` opens the prompt: with another one no engine finds it in its prefix cache, whoever asked it before.
    """
    made: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": f"{mark} {ask.prompt}"}],
        "max_tokens": ask.answer_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    if streams:
        made |= {"stream": True, "stream_options": {"include_usage": True}}
    return made


def _asks(seed: int, count: int, lengths: Lengths) -> tuple[Ask, ...]:
    rng = random.Random(f"lengths {seed}")
    made = []
    for _ in range(count):
        words = _length(rng, lengths.prompt_tokens, PROMPT_SPREAD, lengths.most_prompt_tokens)
        answer = _length(rng, lengths.answer_tokens, ANSWER_SPREAD, lengths.most_answer_tokens)
        made.append(Ask(0.0, " ".join(rng.choices(WORDS, k=words)), answer))
    return tuple(made)


def _length(rng: random.Random, median: int, spread: float, most: int) -> int:
    return max(2, min(most, round(rng.lognormvariate(math.log(median), spread))))
