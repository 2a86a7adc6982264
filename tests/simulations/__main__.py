"""`python -m tests.simulations [--quick] [--only NAME]`: prints every simulation's table, and how long it took."""

from __future__ import annotations

import argparse
import time

from tests.simulations import bandit, false_alarms, off_policy, power, sample_ratio

SIMULATIONS = {
    "false_alarms": false_alarms.run,
    "power": power.run,
    "bandit": bandit.run,
    "off_policy": off_policy.run,
    "sample_ratio": sample_ratio.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulations", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the experiments")
    parser.add_argument("--only", choices=SIMULATIONS, metavar="NAME", help=", ".join(SIMULATIONS))
    wanted = parser.parse_args()
    for name in [wanted.only] if wanted.only else SIMULATIONS:
        start = time.monotonic()
        told = SIMULATIONS[name](wanted.quick)
        print(f"## {name}\n\n{told}\n\n{time.monotonic() - start:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
