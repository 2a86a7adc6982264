"""Which rows each optimizer step reads. Pure.

All steps of all epochs are laid down beforehand: so a run that goes on after a kill reads on where it was, whatever
the libraries keep of their samplers; rows of like length come together, so that little is padded; and no step of an
epoch is much smaller than the others.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from adapters.errors import InvalidRequest

Piece = TypeVar("Piece")

POOL_STEPS = 6
"""Rows are sorted by length within so many steps, which are then shuffled."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`steps[step][part]` are positions of rows; every step has the same number of parts."""

    steps: tuple[tuple[tuple[int, ...], ...], ...]
    steps_an_epoch: int

    @property
    def parts(self) -> int:
        return len(self.steps[0])

    def batches(self, process: int = 0, processes: int = 1) -> list[list[int]]:
        """What one of several processes reads, in order."""
        return [list(part) for step in self.steps for part in step[process::processes]]


def lay_down(
    lengths: Sequence[int],
    *,
    epochs: int,
    batch_size: int,
    parts: int,
    least_rows: int,
    seed: int,
    processes: int = 1,
) -> Plan:
    """Each row once an epoch, in steps of about `batch_size` rows, each in `parts` (more where the processes would not
    have as many each, fewer where there are too few rows for `least_rows` in each). Raises InvalidRequest."""
    if len(lengths) < least_rows * processes:
        raise InvalidRequest(
            f"There is too little to learn from: {len(lengths)} of the rows fit, and a step takes at least "
            f"{least_rows * processes}.",
            code="too_few_rows",
        )
    parts = processes * min(-(-parts // processes), len(lengths) // (least_rows * processes))
    steps = max(1, min(round(len(lengths) / batch_size), len(lengths) // (parts * least_rows)))
    found: list[tuple[tuple[int, ...], ...]] = []
    for epoch in range(epochs):
        chance = random.Random(f"{seed} {epoch}")
        found += [_cut(step, parts) for step in _epoch(lengths, steps, chance)]
    return Plan(tuple(found), steps)


def _epoch(lengths: Sequence[int], steps: int, chance: random.Random) -> list[tuple[int, ...]]:
    rows = list(range(len(lengths)))
    chance.shuffle(rows)
    found: list[tuple[int, ...]] = []
    for pool in _cut(_cut(rows, steps), -(-steps // POOL_STEPS)):
        by_length = sorted((row for step in pool for row in step), key=lambda row: lengths[row])
        found += _cut(by_length, len(pool))
    chance.shuffle(found)
    return found


def _cut(whole: Sequence[Piece], pieces: int) -> tuple[tuple[Piece, ...], ...]:
    """Into so many pieces, whose sizes differ by one at most."""
    size, rest = divmod(len(whole), pieces)
    ends = [size * (index + 1) + min(index + 1, rest) for index in range(pieces)]
    return tuple(tuple(whole[start:end]) for start, end in zip([0, *ends], ends, strict=False))
