"""`python -m dashboards` writes dashboards/built/*.json; `--check` compares them and changes nothing (1: they differ)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import batches, engines, experiments, overview, training

BUILT = Path(__file__).with_name("built")
DASHBOARDS: dict[str, Callable[[], Dashboard]] = {
    "overview": overview.dashboard,
    "experiments": experiments.dashboard,
    "training": training.dashboard,
    "engines": engines.dashboard,
    "batches": batches.dashboard,
}


def built() -> dict[str, str]:
    """The text of each file, by its name; the same on every call."""
    encoder = JSONEncoder(indent=2, sort_keys=True)
    return {f"{name}.json": encoder.encode(make()) + "\n" for name, make in DASHBOARDS.items()}


def stale(folder: Path = BUILT) -> list[str]:
    """The files that are not as the code says: missing, other, or of no dashboard."""
    wanted = built()
    there = {file.name: file.read_text() for file in folder.glob("*.json")}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def write(folder: Path = BUILT) -> None:
    wanted = built()
    folder.mkdir(exist_ok=True)
    for file in folder.glob("*.json"):
        if file.name not in wanted:
            file.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dashboards", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if a file is not up to date"
    )
    if not parser.parse_args(arguments).check:
        write()
        return 0
    if old := stale():
        print(f"not up to date: {', '.join(old)}; run python -m dashboards", file=sys.stderr)
    return 1 if old else 0


if __name__ == "__main__":
    raise SystemExit(main())
