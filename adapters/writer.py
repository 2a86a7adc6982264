"""The writer: one thread that commits completions and feedback, a group at a time, and wakes those who wait.

Owns the order and the commits: what is handed over while one group is being written is the next group, so that a commit
(one wait for the disk) is shared by all who wait. Does not know what is written.

Within a group completions come first, so that feedback on one finds it. When a group fails, each item is tried alone:
a bad one fails by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from adapters.buckets import Buckets
from adapters.completions import Completion, insert_completions
from adapters.database import Database
from adapters.errors import NotRecorded

log = logging.getLogger("burnish.writer")

MAX_GROUP = 256
"""Items of one commit: as much as one bad item makes be written twice."""

SPACING_SECONDS = 0.002
"""From the end of one commit to the beginning of the next, at least. A commit costs 0.4 ms of processor time whatever is
in it, so that under load it pays to let a group grow; what comes after a pause does not wait."""

COMMIT_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

T = TypeVar("T")
Work = Callable[[Connection], Any]
Waiter = Future[Any] | asyncio.Future[Any]


class NotWritten(Exception):
    """The database could not be reached or did not commit: it is not the item's own fault."""


@dataclass(slots=True, eq=False)
class _Item:
    """A completion (or what makes one, called in the writer's thread), or work; and who waits for it."""

    completion: Completion | Callable[[], Completion] | None
    work: Work | None
    waiter: Waiter
    made: Completion | None = None
    result: Any = None
    error: BaseException | None = None


class Writer:
    """The one thread that writes records. Hand over from any thread, or from an event loop with the `_soon` twins.

    `failing` says that the last commit failed for the database's own reasons: a full disk, a server that is away.
    """

    def __init__(self, db: Database, max_queue: int) -> None:
        self._db = db
        self._max_queue = max_queue
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._closed = False
        self.failing = False
        self.commit_seconds = Buckets(COMMIT_BOUNDS)
        """Of each transaction, from its beginning until it is on disk."""
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many items are still to be taken up."""
        return self._queue.qsize()

    def put(self, completion: Completion | Callable[[], Completion]) -> Future[None]:
        """Stores a completion; the future is done once it is on disk. Never raises and never waits: a queue that is
        full, or a database that cannot write, is the future's NotRecorded."""
        waiter: Future[None] = _uncancellable()
        self._hand_over(_Item(completion, None, waiter))
        return waiter

    def submit(self, work: Callable[[Connection], T]) -> Future[T]:
        """Calls `work` within a transaction, in a savepoint of its own; the future has what it returned or raised, once
        that is on disk. It may be called again after a commit that failed."""
        waiter: Future[T] = _uncancellable()
        self._hand_over(_Item(None, work, waiter))
        return waiter

    def put_soon(self, completion: Completion | Callable[[], Completion]) -> asyncio.Future[None]:
        """As `put`, for the running event loop: a loop is woken once a group, however many of it wait."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hand_over(_Item(completion, None, waiter))
        return waiter

    def submit_soon(self, work: Callable[[Connection], T]) -> asyncio.Future[T]:
        """As `submit`, for the running event loop."""
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._hand_over(_Item(None, work, waiter))
        return waiter

    def close(self) -> None:
        """Writes what was handed over, and ends the thread."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        while not self._queue.empty():  # handed over in the moment of closing
            if (item := self._queue.get()) is not None:
                self._refuse(item)

    def _hand_over(self, item: _Item) -> None:
        if self._closed or self._queue.qsize() >= self._max_queue:
            self._refuse(item)
        else:
            self._queue.put(item)

    def _refuse(self, item: _Item) -> None:
        why = "it is closed" if self._closed else f"{self._max_queue} items wait already"
        item.error = _not_recorded(NotWritten(why))
        _settle([item])

    # -- the thread ------------------------------------------------------------------------------
    def _run(self) -> None:
        is_open, next_at = True, 0.0
        while is_open:
            group = [self._queue.get()]
            if (wait := next_at - time.monotonic()) > 0 and not self._closed:
                time.sleep(wait)
            # Nobody else takes from the queue, so that what is there stays there.
            group += [self._queue.get() for _ in range(min(self._queue.qsize(), MAX_GROUP - 1))]
            is_open = None not in group
            items = [item for item in group if item is not None]
            try:
                self._write(items)
            except BaseException as error:  # a bug of ours must not leave everybody waiting for ever
                log.exception("writer_failed")
                for item in items:
                    item.error = item.error or error
            _settle(items)
            del group, items  # the next may be long in coming
            next_at = time.monotonic() + SPACING_SECONDS

    def _write(self, items: Sequence[_Item]) -> None:
        ready = [item for item in items if _make(item)]
        try:
            self._commit(ready)
        except NotWritten as error:
            self._fail(ready, error)
        except Exception:
            self._write_each(ready)

    def _write_each(self, items: Sequence[_Item]) -> None:
        for index, item in enumerate(items):
            try:
                self._write_alone(item)
            except NotWritten as error:
                self._fail(items[index:], error)
                return

    def _write_alone(self, item: _Item) -> None:
        item.error = None
        try:
            self._commit([item])
        except NotWritten:
            raise
        except (IntegrityError, DataError) as error:
            item.error = _not_recorded(error)
        except SQLAlchemyError as error:
            self._fail([item], error)
        except Exception as error:
            item.error = error

    def _commit(self, items: Sequence[_Item]) -> None:
        """One transaction. Raises NotWritten where it could not even begin, and whatever keeps it from its end."""
        if not items:
            return
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(self._db.begin())
            except Exception as error:
                raise NotWritten("no transaction could be begun") from error
            insert_completions(connection, [item.made for item in items if item.made is not None])
            for item in items:
                if item.work is not None:
                    _work(connection, item)
        self.commit_seconds.add(time.monotonic() - began)
        self.failing = False

    def _fail(self, items: Sequence[_Item], error: Exception) -> None:
        self.failing = True
        for item in items:
            item.error = _not_recorded(error)


def _uncancellable() -> Future[Any]:
    """A future that stays when whoever waits for it is cancelled: what was handed over is written."""
    waiter: Future[Any] = Future()
    waiter.set_running_or_notify_cancel()
    return waiter


def _make(item: _Item) -> bool:
    """Makes the item's completion where it has one to make; whether there is something to write."""
    try:
        item.made = item.completion() if callable(item.completion) else item.completion
    except Exception as error:
        item.error = error
    return item.error is None


def _work(connection: Connection, item: _Item) -> None:
    """Errors of the work are its own; those of the database end the whole group."""
    assert item.work is not None
    try:
        with connection.begin_nested():
            item.result = item.work(connection)
    except (IntegrityError, DataError) as error:
        item.error = error
    except SQLAlchemyError:
        raise
    except Exception as error:
        item.error = error


def _not_recorded(error: Exception) -> NotRecorded:
    failure = NotRecorded("The record cannot be written now.", retry_after_seconds=1)
    failure.__cause__ = error
    return failure


def _settle(items: Sequence[_Item]) -> None:
    """Tells everybody who waits; one wake-up an event loop."""
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[_Item]] = defaultdict(list)
    for item in items:
        if isinstance(item.waiter, asyncio.Future):
            by_loop[item.waiter.get_loop()].append(item)
        else:
            _tell(item)
    for loop, waiting in by_loop.items():
        with contextlib.suppress(RuntimeError):  # a loop that is closed waits for nothing
            loop.call_soon_threadsafe(_tell_all, waiting)


def _tell_all(items: Sequence[_Item]) -> None:
    for item in items:
        _tell(item)


def _tell(item: _Item) -> None:
    waiter = item.waiter
    if waiter.cancelled() or waiter.done():
        return
    if item.error is not None:
        waiter.set_exception(item.error)
    else:
        waiter.set_result(item.result)
