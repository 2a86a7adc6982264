"""The three classes of traffic, and how an engine is told of them. Pure.

Interactive requests are somebody's who waits; batch lines are asked by a batch, or by one call with many requests;
training's are the questions of an evaluation. Each goes before the next (promise 7).
"""

from __future__ import annotations

from enum import StrEnum


class Traffic(StrEnum):
    INTERACTIVE = "interactive"
    BATCH = "batch"
    TRAINING = "training"


ENGINE_PRIORITY = {Traffic.INTERACTIVE: 0, Traffic.BATCH: 100, Traffic.TRAINING: 200}
"""vLLM's `priority`: lower numbers are served first, and preempt higher ones where memory is short."""
