"""W3C trace context: which trace a request belongs to, and what its engine is told of it.

Pure. Owns the headers `traceparent` and `tracestate` (https://www.w3.org/TR/trace-context/) and the choice of the traces
that are drawn. A trace that begins here has the request's own id, so that who has one finds the other. Draws nothing.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.passage import Passage

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_STATE = re.compile(r"[\x20-\x7e]{1,512}", re.ASCII)
_SAMPLED = 0x01


@dataclass(frozen=True, slots=True)
class Trace:
    """One request's place in a trace. Ids in hex."""

    trace_id: str
    span_id: str
    """The request's own span; where nothing is drawn here and nothing was begun here, the client's."""
    parent_id: str | None
    """The client's span."""
    is_sampled: bool
    is_drawn: bool
    """Whether spans are made of it here."""
    state: str | None = None

    def header_lines(self, span_id: str) -> bytes:
        """What the engine gets, whose spans are children of this one."""
        state = f"tracestate: {self.state}\r\n" if self.state else ""
        return f"traceparent: 00-{self.trace_id}-{span_id}-{self.is_sampled:02x}\r\n{state}".encode()


def begin(passage: Passage, share: float) -> Trace:
    """The trace of a request: the client's, drawn if the client has it sampled, or a new one, drawn if it is of the
    `share`. A `traceparent` that makes no sense is none."""
    given = parse(passage.trace_parent)
    if given is not None:
        trace_id, parent_id, is_sampled = given
        state = _sound_state(passage.trace_state)
        return Trace(trace_id, new_span_id(), parent_id, is_sampled, is_sampled, state)
    trace_id = passage.request_id.removeprefix("req_")
    is_sampled = is_of_share(trace_id, share)
    return Trace(trace_id, new_span_id(), None, is_sampled, is_sampled)


def pass_on(passage: Passage) -> Trace | None:
    """The client's trace, where none are drawn here: the engine gets it as it came."""
    given = parse(passage.trace_parent) if passage.trace_parent is not None else None
    if given is None:
        return None
    trace_id, parent_id, is_sampled = given
    return Trace(trace_id, parent_id, parent_id, is_sampled, False, _sound_state(passage.trace_state))


def parse(header: str | None) -> tuple[str, str, bool] | None:
    """Trace id, parent's id and whether it is sampled; None where the header is no `traceparent`."""
    found = _PARENT.fullmatch(header.strip()) if header is not None else None
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    is_void = version == "ff" or (version == "00" and more) or not (int(trace_id, 16) and int(parent_id, 16))
    return None if is_void else (trace_id, parent_id, bool(int(flags, 16) & _SAMPLED))


def is_of_share(trace_id: str, share: float) -> bool:
    """Whether a trace is one of the `share` that are told of: the same word for the same id, everywhere."""
    return share >= 1 or int(trace_id[16:], 16) < share * 2**64


def new_span_id() -> str:
    return secrets.token_hex(8)


def _sound_state(state: str | None) -> str | None:
    return state if state is not None and _STATE.fullmatch(state) else None
