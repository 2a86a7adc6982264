"""What an answer is worth: one number for each row, and the measures that pair them.

Pure. A measure is a list of pairs, each what the candidate, the incumbent and the base model got on one row, so that
`gate` can compare like with like. Does not know how an answer was come by (`evaluate`), nor what is good enough
(`gate`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from adapters.manners import INVALID, fits_form, is_refusal, json_value, repeated_share
from adapters.messages import Message
from adapters.policy import FormatCheck

LENGTH_FACTOR = 2.0
"""An answer of half the accepted one's length, or of twice it, has drifted. Every cap is above that."""

LENGTH_SLACK_TOKENS = 16
"""Short answers vary by that much without any drift."""


class Role(StrEnum):
    PRIMARY = "primary"  # what the run is for: one of these must improve
    GUARD = "guard"  # what must not get worse
    REPORT = "report"  # shown, and decides nothing


@dataclass(frozen=True, slots=True)
class Pair:
    """What each side got on one row. None: that side was not asked, or gave nothing that could be measured."""

    unit: str
    """Whose row it is: rows of one unit are one voice."""
    candidate: float | None
    incumbent: float | None
    base: float | None
    key_id: str | None = None
    """The key that the row came by."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One kind of number on all the rows that it was asked of."""

    name: str
    role: Role
    pairs: tuple[Pair, ...]
    """Of every row asked, also where a side is missing: what is missing must show."""
    higher_is_better: bool = True
    worst: float | None = 0.0
    best: float | None = 1.0
    """The ends of the scale; None: open."""
    margin: float = 1.0
    """What the guards' margin is multiplied by for this measure."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said, and whether the cap cut it off."""

    text: str
    tokens: int
    truncated: bool


# -- one answer ------------------------------------------------------------------------------------
def text_of(message: Message) -> str:
    """An assistant message as one text: what it says, then what it calls, with arguments in one form."""
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content)
    calls = [_call_text(call) for call in message.get("tool_calls") or ()]
    return "\n".join([*([content] if content else []), *calls])


def exact_match(answer: Answer, reference: str) -> float:
    """1.0 if the two are the same but for white space. A cut answer is longer than any reference: no match."""
    return float(not answer.truncated and _plain(answer.text) == _plain(reference))


def begins(answer: Answer, reference: str) -> bool:
    """Whether the two may still become the same but for white space, were the answer to go on where it was cut."""
    said = _plain(answer.text.rstrip("\ufffd"))  # half a character
    return _plain(reference).startswith(said) and (answer.truncated or said == _plain(reference))


def json_match(answer: Answer, reference: str) -> float | None:
    """1.0 if both are the same JSON value; None where the reference is no JSON object or array."""
    wanted = json_value(reference)
    if not isinstance(wanted, dict | list):
        return None
    return float(not answer.truncated and json_value(answer.text) == wanted)


def chrf(answer: Answer, reference: str) -> float | None:
    """chrF2 (Popović 2015, by sacrebleu), 0 to 1. None for a cut answer: a part is no whole."""
    return None if answer.truncated else _chrf().sentence_score(answer.text, [reference]).score / 100


def rouge_l(answer: Answer, reference: str) -> float | None:
    """ROUGE-L's F-measure (Lin 2004, by rouge-score), 0 to 1; it knows Latin letters and digits alone."""
    if answer.truncated:
        return None
    return float(_rouge().score(reference, answer.text)["rougeL"].fmeasure)


def repetition(answer: Answer, reference: str | None) -> float:
    """The share of 4-grams of words that were there before, beyond the reference's own share. Also of a cut answer:
    those that run on and on are the ones it is for."""
    own = 0.0 if reference is None else repeated_share(reference)
    return max(0.0, repeated_share(answer.text) - own)


def refusal(answer: Answer, reference: str | None) -> float:
    """1.0 for an answer that declines where the accepted one does not."""
    return float(is_refusal(answer.text) and not (reference is not None and is_refusal(reference)))


def ended(answer: Answer) -> float:
    """1.0 for an answer that ended by itself, within the cap that all sides have."""
    return float(not answer.truncated)


def length_kept(answer: Answer, reference_tokens: int) -> float:
    """1.0 for an answer about as long as the accepted one. A cut one is longer than that, whatever its end."""
    low = reference_tokens / LENGTH_FACTOR - LENGTH_SLACK_TOKENS
    high = reference_tokens * LENGTH_FACTOR + LENGTH_SLACK_TOKENS
    return float(not answer.truncated and low <= answer.tokens <= high)


def complies(answer: Answer, form: FormatCheck) -> float | None:
    """1.0 for an answer of the form that the route declares. A cut one has not shown it. None: the schema is none."""
    fits = False if answer.truncated else fits_form(answer.text, form)
    return None if fits is None else float(fits)


# -- likelihoods -----------------------------------------------------------------------------------
def nll(logprobs: Sequence[float] | None) -> float | None:
    """Negative log-likelihood in nats a token; None where it could not be had."""
    return None if not logprobs else -math.fsum(logprobs) / len(logprobs)


def prefers(chosen: float | None, rejected: float | None) -> float | None:
    """From two `nll`s: 1.0 if the chosen answer is the likelier one, by length-normalised likelihood; a tie is 0.5."""
    if chosen is None or rejected is None:
        return None
    return 0.5 if chosen == rejected else float(chosen < rejected)


def balanced(values: Sequence[tuple[str, bool]]) -> tuple[float, ...]:
    """A weight for each (unit, liked) row so that liked and disliked rows weigh the same in a mean over units.

    Without it, a model that merely found every answer likelier would seem to know the liked ones from the others.
    Empty where one kind is missing: then there is nothing to tell apart.
    """
    rows_of = Counter(unit for unit, _ in values)
    voice = {
        kind: sum(1 / rows_of[unit] for unit, liked in values if liked is kind) for kind in (True, False)
    }
    if not voice[True] or not voice[False]:
        return ()
    return tuple(len(rows_of) / (2 * voice[liked]) for _, liked in values)


# -- how -------------------------------------------------------------------------------------------
def _plain(text: str) -> str:
    return " ".join(text.split())


def _call_text(call: dict[str, Any]) -> str:
    function = call["function"]
    arguments = json_value(function["arguments"])
    told = function["arguments"] if arguments is INVALID else json.dumps(arguments, sort_keys=True)
    return f"{function['name']}({told})"


# The two take a second to import, and there is nothing to measure with them in most processes.
@lru_cache(maxsize=1)
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


@lru_cache(maxsize=1)
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])
