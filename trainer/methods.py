"""Which method learns from which rows. Pure.

    supervised   demonstrations, liked answers, and of pairs the better answer
    dpo          pairs: the better answer against the worse; demonstrations beside them learn by the supervised term
    kto          single answers, each liked or not

Owns the rule of `auto` and the conversions between kinds of rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapters.errors import InvalidRequest
from adapters.rows import Row, RowKind, row_id

PAIRS_SHARE = 0.25
"""`auto` takes dpo where at least so many of the usable rows are pairs."""

METHODS = ("supervised", "dpo", "kto")


@dataclass(frozen=True, slots=True)
class Choice:
    method: str
    asked: str
    why: str


@dataclass(frozen=True, slots=True)
class Kinds:
    """What there is to learn from."""

    demonstrations: int
    pairs: int
    liked: int
    disliked: int

    @property
    def accepted(self) -> int:
        return self.demonstrations + self.pairs + self.liked


def kinds_of(rows: Iterable[Row]) -> Kinds:
    counts = Counter((row.kind, row.liked) for row in rows)
    return Kinds(
        demonstrations=counts[RowKind.DEMONSTRATION, None],
        pairs=counts[RowKind.PREFERENCE, None],
        liked=counts[RowKind.LABEL, True],
        disliked=counts[RowKind.LABEL, False],
    )


def choose_method(rows: Sequence[Row], asked: str = "auto") -> Choice:
    """The asked method, or the one that the data ask for. Raises InvalidRequest where it cannot learn from them."""
    kinds = kinds_of(rows)
    choice = Choice(asked, asked, "asked for") if asked != "auto" else _by_data(kinds)
    problem = _problem(choice.method, kinds)
    if problem is not None:
        raise InvalidRequest(
            f"Method '{choice.method}' cannot learn from these rows: {problem}.",
            param="method",
            code="nothing_to_learn",
        )
    return choice


def _by_data(kinds: Kinds) -> Choice:
    if kinds.pairs and kinds.pairs >= PAIRS_SHARE * kinds.accepted:
        return Choice(
            "dpo", "auto", f"{kinds.pairs} of {kinds.accepted} accepted answers stand against a worse one"
        )
    if kinds.disliked > kinds.demonstrations + kinds.pairs and kinds.accepted:
        return Choice(
            "kto", "auto", f"{kinds.disliked} dislikes, {kinds.liked} likes and few written answers"
        )
    if kinds.accepted:
        return Choice(
            "supervised", "auto", f"{kinds.accepted} accepted answers, few or none against a worse one"
        )
    return Choice("kto", "auto", "nothing but dislikes")


def _problem(method: str, kinds: Kinds) -> str | None:
    if method == "supervised" and not kinds.accepted:
        return "no demonstration, correction, preference or liked answer is among them"
    if method == "dpo" and not kinds.pairs:
        return "no correction or preference is among them"
    if method == "kto" and not kinds.accepted:
        return "it would only learn what not to say; at least one liked answer or demonstration is needed"
    return None


def usable(rows: Iterable[Row], choice: Choice) -> tuple[list[Row], dict[str, int]]:
    """The rows, as they are, that the method learns from, and how many of each kind it leaves out."""
    kept, left_out = [], Counter[str]()
    for row in rows:
        reason = _unused(row, choice)
        if reason is None:
            kept.append(row)
        else:
            left_out[reason] += 1
    return kept, dict(left_out)


def _unused(row: Row, choice: Choice) -> str | None:
    if row.liked is False and choice.method != "kto":
        return f"disliked answers, which {choice.method} cannot learn from"
    if choice.method == "dpo" and choice.asked == "dpo" and row.kind is not RowKind.PREFERENCE:
        return "answers without a worse one, while dpo was asked for"
    return None


def convert(rows: Iterable[Row], method: str) -> list[Row]:
    """The rows as the method takes them: demonstrations, pairs (and demonstrations), or labels; each once."""
    made = {each.id: each for row in rows for each in _converted(row, method)}
    return list(made.values())


def _converted(row: Row, method: str) -> list[Row]:
    if method == "kto":
        return _labels(row)
    if row.liked is False:
        return []
    if row.kind is RowKind.PREFERENCE and method == "dpo":
        return [row]
    return [_as(row, RowKind.DEMONSTRATION, rejected=None, liked=None)]


def _labels(row: Row) -> list[Row]:
    if row.kind is RowKind.LABEL:
        return [row]
    liked = _as(row, RowKind.LABEL, rejected=None, liked=True)
    if row.rejected is None:
        return [liked]
    return [liked, _as(row, RowKind.LABEL, answer=row.rejected, rejected=None, liked=False)]


def _as(row: Row, kind: RowKind, **changes: Any) -> Row:
    made = replace(row, kind=kind, **changes)
    return replace(made, id=row_id(kind, made.prompt, made.answer, made.rejected, made.liked, made.tools))
