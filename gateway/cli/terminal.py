"""What the command prints: tables for a person, aligned text for a pipe, JSON for a machine.

Owns the form; does not know what is shown. Results go to stdout, everything about the way there to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
import typer

Json = Annotated[bool, typer.Option("--json", help="print JSON, for machines")]


def print_json(value: Any) -> None:
    print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """On a terminal by rich, which wraps what is too wide; else one line a row, whatever its width."""
    if sys.stdout.isatty():
        _print_rich(columns, rows)
        return
    table = [[column.upper() for column in columns], *rows]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_fields(fields: Mapping[str, str]) -> None:
    """One record, a line a field."""
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        print(f"{name.ljust(width)}  {value}".rstrip())


def note(text: str) -> None:
    """A remark to the person, which no pipe takes for a result."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(text: str) -> Iterator[Callable[[str], None]]:
    """A spinner with `text` while the block runs, or one line where nobody watches. Yields what changes the text."""
    if not sys.stderr.isatty():
        note(text)
        yield lambda text: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(text)) as status:
        yield lambda text: status.update(Text(text))


def moment(at: float) -> str:
    """Epoch seconds as ISO 8601, UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: "0:01:20"."""
    minutes, left = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}"


def size(count: float) -> str:
    """Bytes for a person: "921.6 kB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.1f} GB"


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: a cell is never markup
    Console().print(table)
