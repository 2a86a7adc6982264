"""What the users of one run share: what to ask next, the run's clock, and where they tell what they met.

Pure but for its clock. Knows neither Locust nor HTTP.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from loadtests.figures import Act, Sample
from loadtests.measurement import Measurement
from loadtests.options import Options
from loadtests.workload import Ask, Message, asks, body, drawn, words

VOICES = 100
"""Users that the requests name. `burnish forget loadtest-0` deletes what one of them has left."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request to be sent."""

    number: int
    model: str
    ask: Ask
    mark: str

    @property
    def user(self) -> str:
        return f"loadtest-{self.number % VOICES}"


class Plan:
    """`begin`: when the run began, on time.monotonic's clock."""

    def __init__(self, options: Options, measurement: Measurement, models: Mapping[str, float]) -> None:
        self.options = options
        self.measurement = measurement
        self.models = models
        self.headers = {} if options.api_key is None else {"authorization": f"Bearer {options.api_key}"}
        self.begin = time.monotonic()
        self.is_over = False
        self._asks: Iterator[Ask] = asks(options.seed, options.lengths)
        self._numbers = itertools.count()
        self._run = f"{random.SystemRandom().getrandbits(24):06x}"
        self._system: tuple[Message, ...] = ()
        if options.shared_prefix_tokens:
            text = words(options.seed, options.shared_prefix_tokens)
            self._system = ({"role": "system", "content": text},)

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.begin

    @property
    def end_seconds(self) -> float:
        return self.measurement.window.end

    def question(self, model: str | None = None) -> Question:
        """The next one, of this model or of one drawn by weight.

        The n-th is the same in every run but for its mark, which no run has twice.
        """
        number = next(self._numbers)
        return Question(number, model or self.model(number), next(self._asks), f"{self._run}-{number}")

    def chance(self, number: int) -> random.Random:
        """What is by chance for one question, or one user."""
        return random.Random(f"chance {self.options.seed} {number}")

    def model(self, number: int) -> str:
        return drawn(self.chance(number), self.models)

    def body(self, question: Question, before: tuple[Message, ...] = (), *, streams: bool) -> dict[str, Any]:
        made = body(
            question.ask,
            question.model,
            question.mark,
            streams=streams,
            before=(*self._system, *before),
            stops=self.options.stops,
        )
        return {**made, "user": question.user}

    def tell(self, act: Act, model: str, due: float, sent: float, ended: float, **met: Any) -> None:
        """What an act met; times on time.monotonic's clock."""
        self.measurement.add(Sample(act, model, due - self.begin, sent - due, ended - due, **met))
