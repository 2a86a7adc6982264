"""Long work in a thread beside the event loop, with rests. Parsing holds the interpreter, and requests in flight need
it more. Knows nothing of the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

WORK_SECONDS, REST_SECONDS = 0.005, 0.002

T = TypeVar("T")


def gently(items: Iterable[T], go_on: Callable[[], None]) -> Iterator[T]:
    """The items, with a rest of REST_SECONDS after each WORK_SECONDS; before it `go_on` may raise to end the work."""
    worked = time.monotonic()
    for item in items:
        if time.monotonic() - worked > WORK_SECONDS:
            go_on()
            time.sleep(REST_SECONDS)
            worked = time.monotonic()
        yield item
