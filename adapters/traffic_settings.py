"""The settings of traffic: what latency is wanted, who waits for whom, how much one key may ask for.

Owns `[targets]`, `[priority]`, `[admission]`, `[batches]` and `[key_limits]`. Knows nothing of how they are kept.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from adapters.engine_settings import Count, Seconds, Section

MIB = 1024 * 1024


class RouteTarget(Section):
    """What one route wants otherwise than the others."""

    ttft_p95_seconds: Seconds | None = None
    itl_p95_seconds: Seconds | None = None


class Targets(Section):
    """The latency that interactive requests should have: 95 of 100 at most so long.

    A first token within a second keeps a person's thought going (Nielsen, 1993); five tokens a second are as fast as
    people read (238 words a minute: Brysbaert, 2019).
    """

    ttft_p95_seconds: Seconds = 1.0
    itl_p95_seconds: Seconds = 0.2
    window_seconds: Annotated[float, Field(ge=1, le=600)] = 10.0
    routes: dict[str, RouteTarget] = Field(default_factory=dict)

    def of(self, route: str) -> tuple[float, float]:
        """Seconds to the first token and between tokens, for a route, a base model or a pinned version."""
        own = self.routes.get(route, RouteTarget())
        return own.ttft_p95_seconds or self.ttft_p95_seconds, own.itl_p95_seconds or self.itl_p95_seconds


class Priority(Section):
    """Interactive before batch, batch before training. `enabled = false` is for measuring what that does."""

    enabled: bool = True
    pause_below: Annotated[float, Field(ge=0, lt=1)] = 0.1
    full_above: Annotated[float, Field(gt=0, le=1)] = 0.4
    min_batch: Annotated[int, Field(ge=0)] = 1
    quiet_seconds: Seconds = 15.0

    @property
    def middle(self) -> float:
        """Headroom half-way between the bounds: what batch lines are steered to."""
        return (self.pause_below + self.full_above) / 2

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.pause_below >= self.full_above:
            raise ValueError("pause_below must be below full_above")
        return self


class Admission(Section):
    """How many interactive requests may wait for an engine with room, and for how long."""

    max_waiting: Annotated[int, Field(ge=0)] = 256
    max_wait_seconds: Seconds = 5.0


class Batches(Section):
    """What one batch may be, and how many are worked on at once."""

    max_lines: Count = 50_000
    max_file_bytes: Count = 200 * MIB
    max_list: Count = 128
    max_attempts: Count = 4
    at_once: Count = 8


class KeyLimits(Section):
    """What one key may ask for. None: as much as there is."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_requests: Count | None = None
