"""Which rows are held out, and how many of one voice are learned from. Pure.

Owns two promises: nobody who is held out is trained on, and no single voice decides (promise 10). A unit (an end user,
else a conversation) is on one side only, and so is a prompt. Everything is decided by keyed hashes of the rows, so that
the same rows and keys give the same answer whatever their order.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from adapters.rows import Row, RowKind
from trainer.filters import prompt_key

MOST_HELD_OUT = 0.5
"""However few there are: no more than this share of the rows is held out, nor of their accepted answers."""


@dataclass(frozen=True, slots=True)
class Parts:
    train: tuple[Row, ...]
    held_out: tuple[Row, ...]
    left_out: int  # rows that would have been on the other side of their prompt or their unit


@dataclass(frozen=True, slots=True)
class Cap:
    """What a cap did. `applied` False: with so few voices nobody's share can be so small."""

    of: str  # "key" or "user"
    share: float
    voices: int
    applied: bool
    dropped: int


def has_accepted_answer(row: Row) -> bool:
    """Whether its answer is one that should be given: what a held-out row is judged by."""
    return row.kind is not RowKind.LABEL or row.liked is True


def split(
    rows: Sequence[Row],
    *,
    share: float,
    least_rows: int,
    least_units: int,
    key: str,
    trained: Sequence[Row] = (),
) -> Parts:
    """Holds out whole units until `share` of the accepted answers is there, and at least `least_rows` of them from
    `least_units` units, if the smallest units can give so many (see MOST_HELD_OUT).

    `key` decides who; it stays the same for all runs of an adapter, so that who was held out once is so again, unless
    units came since that are before them in the order of the hashes. `trained` is what the run's start has learned
    from: none of its units is held out, and none of its prompts.
    """
    held = _choose(rows, share, least_rows, least_units, key, trained)
    asked = {prompt_key(row) for row in (*trained, *rows) if row.unit not in held}
    held_out = tuple(row for row in rows if row.unit in held and prompt_key(row) not in asked)
    held = {row.unit for row in held_out}  # whoever asks nothing that others do not is learned from after all
    train = tuple(row for row in rows if row.unit not in held)
    return Parts(train, held_out, len(rows) - len(train) - len(held_out))


def split_by_file(rows: Sequence[Row], validation: Sequence[Row], trained: Sequence[Row] = ()) -> Parts:
    """The validation file's rows are held out, but those that share prompt or unit with what was `trained` before;
    what shares them with the rest is not trained on."""
    held_out = _apart(validation, trained)
    train = _apart(rows, held_out)
    return Parts(train, held_out, len(rows) + len(validation) - len(train) - len(held_out))


def _apart(rows: Iterable[Row], others: Sequence[Row]) -> tuple[Row, ...]:
    """The rows that share neither unit nor prompt with the others."""
    units = {row.unit for row in others}
    prompts = {prompt_key(row) for row in others}
    return tuple(row for row in rows if row.unit not in units and prompt_key(row) not in prompts)


def _choose(
    rows: Sequence[Row], share: float, least_rows: int, least_units: int, key: str, trained: Sequence[Row]
) -> set[str]:
    """Units in the order of their hash. Those with much more rows than are missing come last, the smallest first, and
    only for what is wanted at least; where even so it is not there, the smallest units are taken in the first place."""
    units: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        units[row.unit].append(row)
    accepted = _accepted(rows)
    most = math.floor(MOST_HELD_OUT * accepted)
    least = min(least_rows, most)
    wanted = min(max(math.ceil(share * accepted), least_rows), most)
    learned = {row.unit for row in trained}
    known = [unit for unit, own in units.items() if unit not in learned and _accepted(own)]
    by_hash = sorted(known, key=lambda unit: keyed_hash(key, unit))
    by_size = sorted(by_hash, key=lambda unit: len(units[unit]))
    small = [unit for unit in by_hash if len(units[unit]) <= max(1, wanted // 2)]
    large = by_size[len(small) :]
    first = _Choice(units, trained)
    first.take(small, wanted, least_units)
    first.take(large, least, least_units)
    if first.has(least, least_units):
        return first.held
    second = _Choice(units, trained)
    second.take(by_size, least, least_units)
    return second.held if second.has(least, least_units) else first.held


class _Choice:
    """Units that are held out, one after another, and the accepted answers among them that count: those to what
    nobody else asks."""

    def __init__(self, units: dict[str, list[Row]], trained: Iterable[Row]) -> None:
        self.held: set[str] = set()
        self._units = units
        self._rows_left = math.floor(MOST_HELD_OUT * sum(map(len, units.values())))
        self._accepted_left = math.floor(MOST_HELD_OUT * sum(map(_accepted, units.values())))
        self._outside = Counter(prompt for rows in units.values() for prompt in _prompts(rows))
        self._outside.update(_prompts(trained))  # which never come to be inside
        self._waiting: dict[bytes, list[str]] = defaultdict(
            list
        )  # units of the answers that do not count yet
        self._judged: Counter[str] = Counter()  # answers that do, of each unit

    def has(self, rows: int, units: int) -> bool:
        return self._judged.total() >= rows and len(self._judged) >= units

    def take(self, order: Iterable[str], rows: int, units: int) -> None:
        """Until there are so many rows of so many units; one that is too large is passed over."""
        for unit in order:
            if self.has(rows, units):
                return
            own = self._units[unit]
            if len(own) <= self._rows_left and _accepted(own) <= self._accepted_left:
                self._hold(unit, own)

    def _hold(self, unit: str, own: list[Row]) -> None:
        self.held.add(unit)
        self._rows_left -= len(own)
        self._accepted_left -= _accepted(own)
        for row in filter(has_accepted_answer, own):
            self._waiting[prompt_key(row)].append(unit)
        for prompt in _prompts(own):
            self._outside[prompt] -= 1
            if not self._outside[prompt]:
                self._judged.update(self._waiting.pop(prompt, ()))


def _accepted(rows: Iterable[Row]) -> int:
    return sum(map(has_accepted_answer, rows))


def _prompts(rows: Iterable[Row]) -> set[bytes]:
    return {prompt_key(row) for row in rows}


# -- caps ------------------------------------------------------------------------------------------
Voice = Callable[[Row], Hashable | None]


def cap_voices(
    rows: Sequence[Row], *, per_key: float, per_user: float, seed: int
) -> tuple[tuple[Row, ...], tuple[Cap, ...]]:
    """The rows with nobody's share above the caps: which rows of a loud voice go is decided by a seeded hash.

    A voice's share is of what is left in the end, for each of the two. Where there are fewer voices than 1 / share no
    choice of rows can hold the cap, and it is not applied; one cap can leave too few voices for the other.
    """
    caps = (("key", key_of, per_key), ("user", voice_of, per_user))
    kept = tuple(rows)
    dropped: Counter[str] = Counter()
    changed = True
    while changed:  # what one cap takes away makes others' shares larger
        changed = False
        for of, voice, share in caps:
            fewer = _capped(kept, voice, share, seed)
            dropped[of] += len(kept) - len(fewer)
            changed = changed or len(fewer) < len(kept)
            kept = fewer
    return kept, tuple(_cap(of, kept, voice, share, dropped[of]) for of, voice, share in caps)


def key_of(row: Row) -> str | None:
    """None: a row of a file, or of a time without keys: nobody's in particular."""
    return row.key_id


def voice_of(row: Row) -> str:
    """Who said it: the end user, else the conversation."""
    return f"user:{row.user}" if row.user else row.unit


def keyed_hash(key: str, text: str) -> bytes:
    return hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), key=hashlib.sha256(key.encode()).digest()
    ).digest()


def _capped(rows: tuple[Row, ...], voice: Voice, share: float, seed: int) -> tuple[Row, ...]:
    counts = Counter(voice(row) for row in rows)
    nobody = counts.pop(None, 0)
    if not _can_hold(counts, nobody, share):
        return rows
    most = _most_each(counts.values(), nobody, share)
    said: dict[Hashable | None, list[Row]] = defaultdict(list)
    for row in rows:
        said[voice(row)].append(row)
    gone = {
        id(row)
        for who, some in said.items()
        if who is not None and len(some) > most
        for row in _in_turns(some, seed)[most:]
    }
    return tuple(row for row in rows if id(row) not in gone)


def _in_turns(rows: Iterable[Row], seed: int) -> list[Row]:
    """By a seeded hash, but nobody's second row before everybody's first: so that a cap for keys takes from the loud
    users of a key and silences no quiet one, as far as there is room."""
    turns: Counter[Hashable] = Counter()
    ranked = []
    for row in sorted(rows, key=lambda row: keyed_hash(str(seed), row.id)):
        who = (key_of(row), voice_of(row))
        ranked.append((turns[who], row))
        turns[who] += 1
    return [row for _, row in sorted(ranked, key=lambda turn: turn[0])]


def _can_hold(counts: Counter[Hashable | None], nobody: int, share: float) -> bool:
    return share < 1 and bool(counts) and share * (len(counts) + nobody) >= 1


def _most_each(counts: Iterable[int], nobody: int, share: float) -> int:
    """The largest number of rows for each voice that is within the share of all that are then left."""
    sizes = sorted(counts)
    low, high = 1, max(sizes)
    while low < high:
        middle = (low + high + 1) // 2
        left = nobody + sum(min(size, middle) for size in sizes)
        if middle <= share * left:
            low = middle
        else:
            high = middle - 1
    return low


def _cap(of: str, kept: Sequence[Row], voice: Voice, share: float, dropped: int) -> Cap:
    counts = Counter(voice(row) for row in kept)
    nobody = counts.pop(None, 0)
    return Cap(of, share, len(counts), _can_hold(counts, nobody, share), dropped)
