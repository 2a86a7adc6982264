"""How often a variant is promoted over its own twin, with a look after every observation."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from tests.simulations.streams import Design, draw, exact_above, sequence_above, z_above
from tests.simulations.tables import table, with_error

ALPHA = 0.05
EXPECTED_UNITS = 2000
LEAST_UNITS = 30
AT_ONCE = 200_000  # observations in memory

DESIGNS = [
    *(
        Design((rate, rate), words=words, delay=delay)
        for rate in (0.05, 0.2, 0.5, 0.9)
        for words in (1, 5)
        for delay in (0.0, 200.0)
    ),
    *(Design((0.5, 0.5), units=1000, words=20, delay=delay) for delay in (200.0, 1000.0)),
    # a challenger on a tenth of the traffic, at rates near the ends: what the variance's guard is for
    *(Design((rate, rate), share=0.1) for rate in (0.02, 0.05, 0.5, 0.9, 0.98)),
]
SHORT = [
    Design((0.5, 0.5), units=800),
    Design((0.9, 0.9), units=400, words=5, delay=100.0),
    Design((0.98, 0.98), units=1500, share=0.1),
]


@dataclass(frozen=True, slots=True)
class FalseAlarms:
    """Shares of the experiments in which a rule ever spoke, though there was nothing to say."""

    design: Design
    experiments: int
    sequence: float  # difference_sequence above zero
    either_way: float  # difference_sequence without zero
    settled: float  # the same, with units that speak again taken as if they did not
    exact: float  # log_e_rate_excess
    naive: float  # the z interval above zero


def simulate(designs: Iterable[Design], experiments: int, workers: int = 1) -> list[FalseAlarms]:
    one = partial(_simulate_one, experiments=experiments)
    if workers == 1:
        return [one(design) for design in designs]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(one, designs))


def _simulate_one(design: Design, experiments: int) -> FalseAlarms:
    random = np.random.default_rng(20260101)
    chunk = max(1, AT_ONCE // (design.units * design.words))
    spoke = np.zeros(5)
    revised = design.words > 1
    for done in range(0, experiments, chunk):
        stream = draw(design, min(chunk, experiments - done), random)
        above, either = sequence_above(stream, ALPHA, EXPECTED_UNITS, LEAST_UNITS, revised)
        _, settled = sequence_above(stream, ALPHA, EXPECTED_UNITS, LEAST_UNITS)
        rules = (above, either, settled, exact_above(stream, ALPHA), z_above(stream, ALPHA, LEAST_UNITS))
        spoke += [looks.any(axis=1).sum() for looks in rules]
    return FalseAlarms(design, experiments, *(float(count) / experiments for count in spoke))


def run(quick: bool) -> str:
    found = simulate(DESIGNS, 1000 if quick else 10_000, workers=2)
    head = (
        "rate",
        "share",
        "thumbs",
        "delay",
        "> 0",
        "without 0",
        "without 0, as if settled",
        "exact",
        "naive",
    )
    rows = [
        (
            result.design.rates[0],
            result.design.share,
            result.design.words,
            result.design.delay,
            *(
                with_error(share, result.experiments)
                for share in (
                    result.sequence,
                    result.either_way,
                    result.settled,
                    result.exact,
                    result.naive,
                )
            ),
        )
        for result in found
    ]
    return f"{found[0].experiments} A/A experiments each, alpha {ALPHA}\n\n" + table(head, rows)
