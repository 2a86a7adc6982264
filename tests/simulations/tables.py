"""Results as markdown tables. Knows nothing of what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence

Cell = str | int | float | None


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    lines = [head, ["---"] * len(head), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_error(share: float, experiments: int) -> str:
    """A share of experiments, with its Monte-Carlo standard error."""
    return f"{share:.4f} ± {standard_error(share, experiments):.4f}"


def standard_error(share: float, experiments: int) -> float:
    return math.sqrt(share * (1 - share) / experiments)


def _text(cell: Cell) -> str:
    if cell is None:
        return "—"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
