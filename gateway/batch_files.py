"""The files of a batch, for threads: the lines of the input that have no answer yet, and the two files of results.

Owns reading ahead by pages and writing with rests. Does not know what becomes of a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from adapters.batches import Batches
from adapters.files import Files, Purpose, StoredFile
from adapters.jobs import Job
from adapters.rows import bounded_lines
from gateway.batch_input import Line, parse_line
from gateway.gently import gently

OPEN_BYTES = 64 * 1024 * 1024
"""Of one batch's lines in memory: lines may be long."""

READ_LINES = 64
PAGE_LINES = 500

MAX_RESULT_BYTES = 16 * 1024**3


class Reader:
    """The lines of a sound file that have no answer yet, a page at a time, for a thread."""

    def __init__(self, path: Path, answered: frozenset[int]) -> None:
        self._stream = path.open("rb")
        self._lines = self._unanswered(answered)

    def page(self) -> list[tuple[Line, int]]:
        """The next ones, with their sizes in bytes; none at the end."""
        page: list[tuple[Line, int]] = []
        size = 0
        while len(page) < READ_LINES and size < OPEN_BYTES // 4 and (one := next(self._lines, None)):
            page.append(one)
            size += one[1]
        return page

    def close(self) -> None:
        self._stream.close()

    def _unanswered(self, answered: frozenset[int]) -> Iterator[tuple[Line, int]]:
        for number, raw in enumerate(bounded_lines(self._stream), 1):
            if number not in answered and (line := parse_line(number, raw)) is not None:
                yield line, len(raw)


def write_results(
    batches: Batches, files: Files, job: Job, go_on: Callable[[], None]
) -> dict[bool, StoredFile | None]:
    """The file of good lines (False) and that of errors (True), each None where it would be empty. Their bytes are in
    place, for a transaction of the caller's. `go_on` may raise, between two rests."""

    def write(is_error: bool) -> StoredFile | None:
        with files.stage(MAX_RESULT_BYTES) as staged:
            for body in gently(_bodies(batches, job.id, is_error), go_on):
                staged.write(orjson.dumps(body) + b"\n")
            if not staged.size:
                return None
            name = f"{job.id}_{'error' if is_error else 'output'}.jsonl"
            seconds = job.payload.get("output_seconds")
            return files.place(staged, name, Purpose.BATCH_OUTPUT, job.key_id, seconds)

    return {is_error: write(is_error) for is_error in (False, True)}


def _bodies(batches: Batches, id: str, is_error: bool) -> Iterator[Mapping[str, Any]]:
    after = -1
    while page := batches.results(id, is_error=is_error, after=after, limit=PAGE_LINES):
        yield from (result.body for result in page)
        after = page[-1].line
