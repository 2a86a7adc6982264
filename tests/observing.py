"""`python -m tests.observing`: what it costs to watch, in processor time of the thread that pays for it.

The least of several rounds, since other work on the machine can only add. The numbers are in docs/log.md.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

from adapters.settings import Settings, Tracing
from adapters.traffic_settings import Targets
from gateway.answer_tally import AnswerTally
from gateway.labels import Labels
from gateway.latency import Latencies
from gateway.passage import Attempt
from gateway.tracing import Traces
from gateway.traffic import Traffic
from tests.unit.gateway.test_tally import answer, passage, tally

ROUNDS = 7
SEED = 1
NOWHERE = "http://127.0.0.1:9"


def main() -> None:
    rows = [*_counting(), *_tracing(), *_reading_answers()]
    print("| what | µs |\n|---|---:|")
    for name, microseconds in rows:
        print(f"| {name} | {microseconds:.1f} |")


def microseconds(work: Callable[[], object], times: int) -> float:
    """Of this thread's processor time, for one call."""

    def once() -> float:
        began = time.thread_time()
        for _ in range(times):
            work()
        return time.thread_time() - began

    return min(once() for _ in range(ROUNDS)) / times * 1e6


def _counting() -> list[tuple[str, float]]:
    counts, over = tally(), passage(prompt_tokens=5, answer_tokens=7, attempts=[Attempt("e0", 1.0)])
    timing = Latencies(Targets()).begin("chat", Traffic.INTERACTIVE, variant="support@1")
    return [
        ("event loop, a request: its passage is counted", microseconds(lambda: counts.ended(over), 20_000)),
        ("event loop, a piece of a stream: its time is counted", microseconds(timing.piece, 100_000)),
    ]


def _tracing() -> list[tuple[str, float]]:
    """A queue of one, which is full: what is handed over beyond it is dropped, and costs the event loop as much."""
    settings = Settings(tracing=Tracing(endpoint=NOWHERE, max_queue=1))
    traces = Traces(settings, instance="gateway-1", environ=os.environ)

    def traced() -> None:
        request = passage()
        request.trace = traces.begin(request)
        traces.ended(request)

    try:
        made = microseconds(lambda: passage(), 5_000)
        return [
            (
                "event loop, a request: its trace's ids, and handing it over",
                microseconds(traced, 5_000) - made,
            )
        ]
    finally:
        traces.close()


def _reading_answers() -> list[tuple[str, float]]:
    draw = random.Random(SEED)
    found = []
    for words in (100, 400, 2500):
        text = " ".join(f"w{draw.randrange(3000)}" for _ in range(words))
        read = AnswerTally(Labels(10))
        said = answer(text, completion_tokens=words)
        cost = microseconds(lambda read=read, said=said: read.made(said), 20_000 // words)  # type: ignore[misc]
        found.append((f"writer's thread, an answer of {words} words", cost))
    return found


if __name__ == "__main__":
    main()
