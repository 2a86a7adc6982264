"""What is asked and when: prompts and lengths, conversations, models by weight, arrivals. Pure.

All of it comes from a seed, so that every run asks the same. Owns requests' bodies; knows nothing of how they are sent.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CHAT = "/v1/chat/completions"

Message = dict[str, str]

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
    """Medians and bounds of the log-normal lengths, in tokens; a prompt is counted in words.

    Logs of chats look so: most questions and answers are short, and a few are many times as long.
    """

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


def asks(seed: int, lengths: Lengths) -> Iterator[Ask]:
    """One after another, without end and without times: for closed loops, or the lines of a batch."""
    rng = random.Random(f"lengths {seed}")
    while True:
        words = _length(rng, lengths.prompt_tokens, PROMPT_SPREAD, lengths.most_prompt_tokens)
        answer = _length(rng, lengths.answer_tokens, ANSWER_SPREAD, lengths.most_answer_tokens)
        yield Ask(0.0, " ".join(rng.choices(WORDS, k=words)), answer)


def crowd(seed: int, count: int, lengths: Lengths) -> tuple[Ask, ...]:
    """The first `count` of them."""
    return tuple(itertools.islice(asks(seed, lengths), count))


def arrivals(seed: int) -> Iterator[float]:
    """A Poisson process of rate one, without end. Where the rate is r, n of its units take n / r seconds."""
    clock = random.Random(f"arrivals {seed}")
    at = 0.0
    while True:
        at += clock.expovariate(1.0)
        yield at


def trace(seed: int, seconds: float, rate: float, lengths: Lengths) -> tuple[Ask, ...]:
    """A Poisson process of `rate` requests a second over `seconds`. What the n-th asks does not depend on the rate."""
    times = itertools.takewhile(lambda at: at < seconds, (unit / rate for unit in arrivals(seed)))
    return tuple(
        Ask(at, ask.prompt, ask.answer_tokens) for at, ask in zip(times, asks(seed, lengths), strict=False)
    )


def words(seed: int, count: int) -> str:
    """Text of `count` words, such as many requests begin with."""
    return " ".join(random.Random(f"words {seed}").choices(WORDS, k=count))


def body(
    ask: Ask, model: str, mark: str, *, streams: bool, before: Sequence[Message] = (), stops: bool = False
) -> dict[str, Any]:
    """A chat request for just so many tokens (`ignore_eos`, as vLLM has it); fewer where it `stops` by itself.

    The `mark` opens the question: with another one no engine finds it in its prefix cache, whoever asked it before.
    What stands `before` it is sent as it is.
    """
    made: dict[str, Any] = {
        "model": model,
        "messages": [*before, question(ask, mark)],
        "max_tokens": ask.answer_tokens,
        "temperature": 0,
    }
    if not stops:
        made["ignore_eos"] = True
    if streams:
        made |= {"stream": True, "stream_options": {"include_usage": True}}
    return made


def question(ask: Ask, mark: str) -> Message:
    return {"role": "user", "content": f"{mark} {ask.prompt}"}


def zipf(names: Sequence[str], exponent: float) -> dict[str, float]:
    """Weights that fall with the rank: the n-th name has 1 / n^exponent. With 0 all have the same."""
    return {name: 1.0 / rank**exponent for rank, name in enumerate(names, 1)}


def drawn(rng: random.Random, weights: Mapping[str, float]) -> str:
    """One of the names, by its weight."""
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def _length(rng: random.Random, median: int, spread: float, most: int) -> int:
    return max(2, min(most, round(rng.lognormvariate(math.log(median), spread))))
