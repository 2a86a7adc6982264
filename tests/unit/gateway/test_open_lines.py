"""A batch's open lines: never more than there may be, the first failure is told, and none outlives being given up."""

from __future__ import annotations

import asyncio

import pytest

from adapters.errors import StaleWorker
from gateway.batch_files import OPEN_BYTES
from gateway.open_lines import OPEN_LINES, OpenLines


class Batch:
    """Lines that wait until they are told to end."""

    def __init__(self) -> None:
        self.is_over = False
        self.open = OpenLines(lambda: self.is_over)
        self.under_way = 0
        self.go = asyncio.Event()

    async def line(self) -> None:
        self.under_way += 1
        try:
            await self.go.wait()
        finally:
            self.under_way -= 1

    def fill(self, lines: int, size: int = 1) -> None:
        for _ in range(lines):
            self.open.add(self.line(), size)


async def fails(error: Exception) -> None:
    raise error


async def waits(waiting: asyncio.Task[None]) -> bool:
    """Whether it still waits after everything else had its turn."""
    for _ in range(20):
        await asyncio.sleep(0)
    return not waiting.done()


async def test_one_more_goes_when_one_has_ended() -> None:
    batch = Batch()
    batch.fill(OPEN_LINES - 1)
    await batch.open.until_room()
    batch.open.add(asyncio.sleep(0.01), 1)
    room = asyncio.create_task(batch.open.until_room())
    assert await waits(room)
    await room
    batch.go.set()
    await batch.open.until_none()
    assert batch.under_way == 0


async def test_long_lines_go_one_after_another() -> None:
    batch = Batch()
    batch.fill(1, size=OPEN_BYTES + 1)
    room = asyncio.create_task(batch.open.until_room())
    assert await waits(room), "one that is longer than all may be is alone"
    batch.go.set()
    await room


async def test_what_a_line_has_failed_with_is_told_to_whoever_waits() -> None:
    batch = Batch()
    batch.fill(3)
    end = asyncio.create_task(batch.open.until_none())
    assert await waits(end)
    batch.open.add(fails(RuntimeError("broken")), 1)
    with pytest.raises(RuntimeError, match="broken"):
        await end
    await batch.open.give_up()
    assert batch.under_way == 0


async def test_whoever_waits_hears_that_it_is_over() -> None:
    batch = Batch()
    batch.fill(OPEN_LINES)
    room = asyncio.create_task(batch.open.until_room())
    assert await waits(room)
    batch.is_over = True
    batch.open.look()
    await room
    await batch.open.give_up()
    assert batch.under_way == 0


async def test_lines_that_fail_when_nobody_needs_them_are_only_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    batch = Batch()

    async def clumsy() -> None:
        try:
            await batch.go.wait()
        finally:
            raise ValueError("a prompt, perhaps")

    batch.open.add(clumsy(), 1)
    await asyncio.sleep(0)
    await batch.open.give_up()
    assert "batch_line_failed: ValueError" in caplog.text
    assert "a prompt" not in caplog.text
    batch.is_over = True
    batch.open.add(fails(StaleWorker("another's")), 1)
    await batch.open.until_none()
