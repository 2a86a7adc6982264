"""Whether a request's client is still there, and the exchange that ends with it.

A client that leaves, streaming or not, closes the exchange, and so ends the engine's work on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from gateway.exchange import Exchange
from gateway.reply import Receive

WhenLeft = Callable[[Callable[[], None]], Callable[[], None]]
"""Calls what it is given once the client has left, at once perhaps, until what it returns is called."""


class ClientGone(Exception):
    """The client has left; nothing is to be said to anybody."""


class Presence:
    """Whether the client is still there; closes the exchange of one that has left."""

    __slots__ = ("exchange", "forget", "gone")

    def __init__(self, when_left: WhenLeft) -> None:
        self.gone = False
        self.exchange: Exchange | None = None
        self.forget = when_left(self._leave)
        """Stops watching."""

    def _leave(self) -> None:
        self.gone = True
        self.close_exchange()

    def watch(self, exchange: Exchange) -> None:
        """From now on this is the exchange to close."""
        self.exchange = exchange
        if self.gone:
            exchange.close()

    def let_go(self) -> None:
        """The answer is complete: only its end on the wire is to come."""
        if self.exchange is not None:
            self.exchange.let_go()
            self.exchange = None

    def close_exchange(self) -> None:
        """Ends the engine's work on the current exchange, if it goes on."""
        if self.exchange is not None:
            self.exchange.close()
            self.exchange = None


def by_receiving(receive: Receive) -> WhenLeft:
    """As ASGI has it: whoever is awaited after the body has come has left."""

    def when_left(left: Callable[[], None]) -> Callable[[], None]:
        task = asyncio.ensure_future(receive())
        task.add_done_callback(lambda task: None if task.cancelled() else left())
        return lambda: _cancel(task)

    return when_left


def _cancel(task: asyncio.Future[Any]) -> None:
    task.cancel()
