"""Whether a request's client is still there, and the exchange that ends with it.

A client that leaves, streaming or not, closes the exchange, and so ends the engine's work on it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.exchange import Exchange
from gateway.reply import Receive


class ClientGone(Exception):
    """The client has left; nothing is to be said to anybody."""


class Presence:
    """Whether the client is still there; closes the exchange of one that has left."""

    __slots__ = ("_task", "exchange", "gone")

    def __init__(self, receive: Receive) -> None:
        self.gone = False
        self.exchange: Exchange | None = None
        self._task = asyncio.ensure_future(receive())
        self._task.add_done_callback(self._leave)

    def _leave(self, task: asyncio.Future[Any]) -> None:
        if not task.cancelled():
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

    def forget(self) -> None:
        """Stops watching."""
        self._task.cancel()
