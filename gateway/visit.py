"""What one request through `inference` is asked with, what it holds on its way, and its answer where nobody is streamed to.

Values only. Knows neither engines nor HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gateway import routing
from gateway.access import Caller
from gateway.admission import Place
from gateway.endpoints import Endpoint
from gateway.latency import Timing
from gateway.passage import Passage
from gateway.presence import Presence
from gateway.quotas import Ticket
from gateway.recorder import Record
from gateway.reply import Message
from gateway.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks, and how, before anything that is asked has been looked at."""

    endpoint: Endpoint
    request_id: str
    authorize: Callable[[routing.Snapshot], Caller]
    conversation: str | None = None
    traffic: Traffic | None = None
    """None: as the caller's key says."""
    owner: str | None = None
    """Who shares places fairly with others of the class; None: the caller's key."""
    evict: Callable[[], None] | None = None
    """Ends the request where its place is needed; None: it may not be ended so."""
    trace_parent: str | None = None
    trace_state: str | None = None
    """W3C trace context, as the client sent it."""


@dataclass(slots=True)
class Visit:
    """What one request holds, to be given back whatever becomes of it."""

    passage: Passage
    presence: Presence | None = None
    record: Record | None = None
    ticket: Ticket | None = None
    timing: Timing | None = None
    place: Place | None = None

    @property
    def is_gone(self) -> bool:
        return self.presence is not None and self.presence.gone


@dataclass(slots=True)
class Eviction:
    """Word to a request of this process's own that its place is needed: its client, so to speak, leaves."""

    is_over: bool = False
    left: Callable[[], None] | None = None

    def evict(self) -> None:
        self.is_over = True
        if self.left is not None:
            self.left()

    def when_left(self, left: Callable[[], None]) -> Callable[[], None]:
        """See `presence.WhenLeft`."""
        self.left = left
        if self.is_over:
            left()
        return self.forget

    def forget(self) -> None:
        self.left = None


@dataclass(frozen=True, slots=True)
class Answered:
    """A whole answer that was asked for within this process."""

    status: int
    request_id: str
    body: bytes
    retry_after_seconds: int | None


@dataclass(slots=True)
class Collected:
    """What `Reply` sends, put together."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.pieces.append(message["body"])

    def answered(self, request_id: str) -> Answered:
        wait = self.headers.get(b"retry-after")
        return Answered(self.status, request_id, b"".join(self.pieces), None if wait is None else int(wait))
