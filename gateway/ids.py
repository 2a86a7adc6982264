"""Random ids of requests and answers. No secrets: those are drawn one by one, where they are made."""

from __future__ import annotations

import os

HEX_CHARS = 32

_DRAWN_AT_ONCE = 256

_drawn: list[str] = []


def hex_id() -> str:
    """32 random hex digits, of the kernel's; it is asked for many at a time, since three a request were 6 % of its cost."""
    try:
        return _drawn.pop()
    except IndexError:
        digits = os.urandom(_DRAWN_AT_ONCE * HEX_CHARS // 2).hex()
        made = [digits[at : at + HEX_CHARS] for at in range(0, len(digits), HEX_CHARS)]
        _drawn.extend(made[1:])
        return made[0]


# Of two processes that had been one each would give the same ids.
os.register_at_fork(after_in_child=_drawn.clear)
