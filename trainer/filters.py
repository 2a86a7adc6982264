"""Which drawn rows are not fit to learn from, each with the filter that says so and examples for a person.

Owns the rules: secrets and personal data, length, refusals that somebody liked, exact and near duplicates. Pure but
for what a given `lengths` or `detect` does; the order of the rows decides which of two duplicates stays. Knows no
split and no method: caps and held-out rows are `trainer.split`'s affair.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from datasketch import MinHash, MinHashLSH

from adapters.rows import Prompt, Row
from adapters.turns import words_of
from trainer.pii import Detector, masked

SHOWN_EXAMPLES = 3
SHOWN_CHARS = 80

SAME = 0.9
"""Rows whose prompts and answers both share so much (Jaccard) of what tells them apart are near duplicates."""

PERMUTATIONS = 128

COMMON_SHARE, COMMON_ROWS = 0.25, 5
"""Shingles that more than this share of the rows have, and more than so many, tell nothing apart: instructions and
answer forms that a whole route has in common."""

I_AM = r"(?:i['’]?m|i am|we['’]?re|we are)"
CANNOT = r"(?:can(?:['’]?t|not| not)|could(?:n['’]?t| not)|won['’]?t|will not)"
HELP = r"(?:help|assist|answer|do|provide|comply|fulfil|continue|discuss|share|create|generate|engage|comfortable|be able)"
REFUSAL = re.compile(
    rf"^\W*(?:{I_AM} (?:unable|not able|not allowed)\b"
    rf"|(?:{I_AM} (?:very |so |really |truly )?|(?:i|we) )?(?:sorry|afraid|apologies|apologi[sz]e|unfortunately)\b"
    rf"[\s\S]{{0,60}}?\b(?:i (?:{CANNOT}|must decline)\b|{I_AM} (?:unable|not able|not allowed)\b"
    rf"|we {CANNOT} {HELP}|not something (?:i|we) can\b)"
    rf"|(?:i|we) (?:{CANNOT}|must decline|do not feel|don['’]t feel) (?:to )?{HELP}"
    r"|as an? (?:ai|artificial|large language|language)\b[\s\S]{0,60}?\b(?:can(?:no|['’])t|unable|not able|do(?:n['’]t| not))"
    r"|i (?:have to|must) (?:refuse|decline))",
    re.IGNORECASE,
)
"""How assistants begin when they refuse; to be sorry is none. Only what somebody liked is looked at: what a person
wrote, they meant."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """What one filter took out."""

    name: str
    count: int
    examples: tuple[dict[str, Any], ...] = field(hash=False)  # row, text (shortened), and what else tells why


@dataclass(frozen=True, slots=True)
class Filtered:
    rows: tuple[Row, ...]
    dropped: tuple[Dropped, ...]


Lengths = Callable[[Row], tuple[int, int] | None]
"""(tokens of the longest text of a row, tokens of its shortest answer); None: the chat template refuses it."""


def run(rows: Sequence[Row], *, lengths: Lengths, max_length: int, detect: Detector | None) -> Filtered:
    """All filters. Personal data first: what the others drop is shown as it is. Then the cheap ones, which leave least
    to the dear ones."""
    kept: Sequence[Row] = rows
    dropped = []
    steps: tuple[Callable[[Sequence[Row]], tuple[list[Row], Dropped]], ...] = (
        functools.partial(personal_data, detect=detect),
        exact_duplicates,
        refusals,
        functools.partial(unfit_lengths, lengths=lengths, max_length=max_length),
        near_duplicates,
    )
    for step in steps:
        kept, report = step(kept)
        dropped.append(report)
    return Filtered(tuple(kept), tuple(dropped))


def unfit_lengths(rows: Iterable[Row], lengths: Lengths, max_length: int) -> tuple[list[Row], Dropped]:
    """Rows that are cut off by `max_length` tokens, and those whose answer says nothing."""
    kept, bad = [], []
    for row in rows:
        problem = _length_problem(lengths(row), row, max_length)
        if problem is None:
            kept.append(row)
        else:
            bad.append((row, {"why": problem}))
    return kept, _dropped("length", bad)


def exact_duplicates(rows: Iterable[Row]) -> tuple[list[Row], Dropped]:
    """The first of rows with the same content stays."""
    kept: list[Row] = []
    bad: list[tuple[Row, dict[str, Any]]] = []
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            bad.append((row, {}))
        else:
            seen.add(row.id)
            kept.append(row)
    return kept, _dropped("duplicate", bad)


def refusals(rows: Iterable[Row]) -> tuple[list[Row], Dropped]:
    """Refusals that were liked: they would be learned as what to say."""
    every = list(rows)
    bad = [row for row in every if row.liked is True and REFUSAL.search(words_of(row.answer)) is not None]
    refused = {id(row) for row in bad}
    return [row for row in every if id(row) not in refused], _dropped("refusal", [(row, {}) for row in bad])


def personal_data(rows: Sequence[Row], detect: Detector | None) -> tuple[list[Row], Dropped]:
    """Rows with secrets or personal data in what is said in them. Their examples are masked."""
    if detect is None:
        return list(rows), _dropped("personal_data", [])
    kept: list[Row] = []
    examples: list[dict[str, Any]] = []
    count = 0
    for row in rows:
        texts = (prompt_text(row.prompt), words_of(row.answer), words_of(row.rejected or {}))
        found = next(((text, places) for text in texts if (places := detect(text))), None)
        if found is None:
            kept.append(row)
            continue
        count += 1
        if len(examples) < SHOWN_EXAMPLES:
            text, places = found
            kinds = sorted({place.kind for place in places})
            first = min(place.start for place in places)
            examples.append({"row": row.id, "kinds": kinds, "text": _around(masked(text, places), first)})
    return kept, Dropped("personal_data", count, tuple(examples))


def near_duplicates(rows: Sequence[Row]) -> tuple[list[Row], Dropped]:
    """Rows that say almost the same as one before them (Broder 1997, by datasketch's MinHash and LSH).

    Candidates by MinHash are held against each other exactly: prompt, answer and rejected answer each. What they share
    with many rows does not count, so that a long instruction does not make different questions alike.
    """
    texts = [_shingled(row) for row in rows]
    common = _common(texts)
    told = [_telling(parts, common) for parts in texts]
    index = MinHashLSH(threshold=SAME, num_perm=PERMUTATIONS)
    kept: list[Row] = []
    bad: list[tuple[Row, dict[str, Any]]] = []
    for position, row in enumerate(rows):
        sketch = _sketch(row, told[position])
        twins = (int(found) for found in index.query(sketch))
        twin = next(
            (
                other
                for other in sorted(twins)
                if _same(rows[other], row, texts[other], texts[position], common)
            ),
            None,
        )
        if twin is None:
            index.insert(str(position), sketch)
            kept.append(row)
        else:
            bad.append((row, {"like": rows[twin].id}))
    return kept, _dropped("near_duplicate", bad)


# -- texts -----------------------------------------------------------------------------------------
def prompt_text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(words_of(message) for message in prompt)


def prompt_key(row: Row) -> bytes:
    """Equal for rows that ask the same."""
    return orjson.dumps([row.prompt, row.tools], option=orjson.OPT_SORT_KEYS)


def shortened(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= SHOWN_CHARS else f"{plain[: SHOWN_CHARS - 1]}…"


def _length_problem(found: tuple[int, int] | None, row: Row, max_length: int) -> str | None:
    if found is None:
        return "the chat template refuses it"
    longest, shortest_answer = found
    if longest > max_length:
        return f"{longest} tokens, at most {max_length} are read"
    if shortest_answer <= 1 or not words_of(row.answer):  # 1: what ends the turn
        return "empty answer"
    return None


def _dropped(name: str, bad: Sequence[tuple[Row, dict[str, Any]]]) -> Dropped:
    examples = tuple(
        {"row": row.id, **why, "text": shortened(_example(row))} for row, why in bad[:SHOWN_EXAMPLES]
    )
    return Dropped(name, len(bad), examples)


def _example(row: Row) -> str:
    last = row.prompt if isinstance(row.prompt, str) else words_of(row.prompt[-1]) if row.prompt else ""
    return f"{last[-200:]} → {words_of(row.answer)}"


def _around(shown: str, start: int) -> str:
    """The masked text from a little before the first find on."""
    return shortened(shown[max(0, start - 20) :])


# -- shingles --------------------------------------------------------------------------------------
Shingles = frozenset[str]


def _shingled(row: Row) -> tuple[Shingles, ...]:
    """Words, signs and pairs of them of prompt, answer and rejected answer."""
    return tuple(
        _shingles(text)
        for text in (prompt_text(row.prompt), words_of(row.answer), words_of(row.rejected or {}))
    )


def _shingles(text: str) -> Shingles:
    words = re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFKC", text).casefold())
    return frozenset(
        [*words, *(f"{first} {second}" for first, second in zip(words, words[1:], strict=False))]
    )


def _common(texts: Sequence[tuple[Shingles, ...]]) -> tuple[Shingles, ...]:
    """For each part the shingles that too many rows have to tell them apart."""
    limit = max(COMMON_ROWS, COMMON_SHARE * len(texts))
    parts = zip(*texts, strict=True) if texts else ()
    counts = [Counter(shingle for row in part for shingle in row) for part in parts]
    return tuple(frozenset(shingle for shingle, count in part.items() if count > limit) for part in counts)


def _telling(parts: tuple[Shingles, ...], common: tuple[Shingles, ...]) -> tuple[Shingles, ...]:
    """Without the common ones, so that not all rows of one long instruction are candidates; where nothing else is left,
    these are what the row says."""
    return tuple((part - some) or part for part, some in zip(parts, common, strict=True))


def _sketch(row: Row, parts: tuple[Shingles, ...]) -> MinHash:
    sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
    tagged = [f"{index} {shingle}" for index, part in enumerate(parts) for shingle in sorted(part)]
    sketch.update_batch([shingle.encode() for shingle in [f"{row.kind} {row.liked}", *tagged]])
    return sketch


def _same(
    one: Row,
    other: Row,
    ones: tuple[Shingles, ...],
    others: tuple[Shingles, ...],
    common: tuple[Shingles, ...],
) -> bool:
    if (one.kind, one.liked, one.tools) != (other.kind, other.liked, other.tools):
        return False
    return all(_alike(*parts) for parts in zip(ones, others, common, strict=True))


def _alike(a: Shingles, b: Shingles, common: Shingles) -> bool:
    """By Jaccard's index without what both share with many rows; a common word that one alone has tells them apart."""
    both, differing = len((a & b) - common), len(a ^ b)
    return not differing or both >= SAME * (both + differing)
