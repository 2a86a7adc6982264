"""What a load test is told: its flags, checked, as one frozen value.

`burnish loadtest` has the same flags (gateway/cli/loadtest.py) and passes them on; a test compares the two.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from loadtests.shapes import FORMS, Shape, constant, parse_seconds, parse_shape
from loadtests.targets import Target, parse_target, with_error_rate
from loadtests.workload import Lengths, zipf

PROGRAM = "burnish loadtest"
BAD_USAGE = 2
KEY_VARIABLE = "BURNISH_API_KEY"

DURATION_SECONDS = 60.0
LONGEST = 6
"""Times the median: a prompt or an answer has so many tokens at most."""


class User(StrEnum):
    """What a user does, again and again."""

    CHAT = "chat"
    MIXED = "mixed"
    FEEDBACK = "feedback"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Options:
    host: str
    models: Mapping[str, float]  # name -> weight; empty: the one that there is
    targets: tuple[Target, ...]
    users: Mapping[User, float]  # kind -> weight
    shape: Shape  # without the warm-up
    is_open: bool  # the shape is of requests a second, and nobody waits for an answer
    warm_up_seconds: float
    spawn_rate: float
    think_seconds: float
    lengths: Lengths
    shared_prefix_tokens: int
    turns: int
    stops: bool
    batch_lines: int
    cancel_share: float
    timeout_seconds: float
    seed: int
    api_key: str | None
    html: Path | None
    json: Path | None

    def told(self) -> dict[str, Any]:
        """For the report: all of it but the key."""
        return {
            "host": self.host,
            "models": dict(self.models),
            "kinds": {kind.value: weight for kind, weight in self.users.items()},
            "loop": "open" if self.is_open else "closed",
            "shape": [
                {"from": stage.first, "to": stage.last, "seconds": stage.seconds}
                for stage in self.shape.stages
            ],
            "duration_seconds": self.shape.seconds,
            "warm_up_seconds": self.warm_up_seconds,
            "spawn_rate": self.spawn_rate,
            "think_seconds": self.think_seconds,
            "prompt_tokens": self.lengths.prompt_tokens,
            "answer_tokens": self.lengths.answer_tokens,
            "shared_prefix_tokens": self.shared_prefix_tokens,
            "turns": self.turns,
            "stops": self.stops,
            "batch_lines": self.batch_lines,
            "cancel_share": self.cancel_share,
            "timeout_seconds": self.timeout_seconds,
            "seed": self.seed,
        }


class Parser(argparse.ArgumentParser):
    """Errors in one line, with the nearest right flag."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()[0] if message else ""
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(unknown.partition("=")[0], flags, n=1) if unknown[:2] == "--" else []
        self.exit(BAD_USAGE, f"{self.prog}: {message}{f'; is {near[0]} meant?' if near else ''}\n")


def parser() -> Parser:
    made = Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Loads a server and holds it to targets. Ends with 0 if all are met, 1 if one is missed, "
        "2 for wrong usage, 3 if it could not be measured.",
    )
    add = made.add_argument
    add("--host", type=_host, default="http://127.0.0.1:8000", help="the server's URL (%(default)s)")
    add("--model", type=_weighted, action="append", default=[], metavar="NAME[=WEIGHT]",
        help="may be given again; default: the one that there is")  # fmt: skip
    add("--zipf", type=_number, metavar="S", help="models' weights fall as 1 / rank^S")
    add("--target", type=_checked(parse_target), action="append", default=[], metavar="NAME=LIMIT",
        help="ttft_p95=500ms, itl_p95=50ms, error_rate=1%%, …; may be given again")  # fmt: skip
    add("--kind", type=_kind, action="append", default=[], metavar="KIND[=WEIGHT]",
        help="chat, mixed, feedback or batch; may be given again (chat)")  # fmt: skip
    add("--users", type=_count, help="at once, in a closed loop (10)")
    add("--spawn-rate", type=_above_zero, metavar="USERS", help="that begin in a second (all)")
    add("--think-time", type=_seconds, default=0.5, metavar="TIME", help="a user's mean pause (0.5s)")
    add("--rate", type=_above_zero, metavar="REQUESTS",
        help="a second, in an open loop: they come by chance and nobody waits for an answer")  # fmt: skip
    add("--duration", type=_seconds, metavar="TIME", help="30s, 5m, 8h: what is measured (60s)")
    add("--warm-up", type=_seconds, default=5.0, metavar="TIME", help="before it, left out (5s)")
    add("--shape", metavar="SHAPE", help=f"of users, or of requests/s with --open: {FORMS}")
    add("--open", action="store_true", help="--shape is of requests/s in an open loop")
    add("--prompt-tokens", type=_count, default=128, metavar="N", help="median (%(default)s)")
    add("--answer-tokens", type=_count, default=128, metavar="N", help="median (%(default)s)")
    add("--shared-prefix", type=_whole, default=0, metavar="N", help="tokens that all prompts begin with (0)")
    add("--turns", type=_count, default=1, metavar="N", help="questions of a conversation (1)")
    add("--stops", action="store_true", help="answers end where the model ends them, not at their length")
    add("--batch-lines", type=_count, default=50, metavar="N", help="of a batch (%(default)s)")
    add("--cancel-share", type=_share, default=0.0, metavar="SHARE", help="of batches that are cancelled (0)")
    add("--timeout", type=_seconds, default=120.0, metavar="TIME", help="of an answer (120s)")
    add("--seed", type=int, default=1, help="of all chance (%(default)s)")
    add("--api-key-env", default=KEY_VARIABLE, metavar="NAME",
        help="the variable that holds the key (%(default)s)")  # fmt: skip
    add("--html", type=_file, metavar="FILE", help="write the report there, with plots")
    add("--json", type=_file, metavar="FILE", help="write all figures there")
    return made


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Ends the process with status 2, and one line, for what is wrong."""
    made = parser()
    given = made.parse_args(arguments)
    try:
        return _options(given)
    except ValueError as error:
        made.error(str(error))


def _options(given: argparse.Namespace) -> Options:
    is_open = given.open or given.rate is not None
    kinds = dict(given.kind) or {"chat": 1.0}
    if is_open and given.users is not None:
        raise ValueError("--users is of a closed loop and --rate of an open one; leave one out")
    if is_open and given.turns > 1:
        raise ValueError(
            "--turns needs a closed loop: an open one does not wait for the answer before it asks on"
        )
    if given.open and given.shape is None:
        raise ValueError("--open goes with --shape; for a constant load say --rate")
    return Options(
        host=given.host,
        models=_models(given),
        targets=with_error_rate(given.target),
        users={User(kind): weight for kind, weight in kinds.items()},
        shape=_shape(given),
        is_open=is_open,
        warm_up_seconds=given.warm_up,
        spawn_rate=given.spawn_rate or given.users or 1e9,
        think_seconds=given.think_time,
        lengths=Lengths(
            given.prompt_tokens,
            given.answer_tokens,
            LONGEST * given.prompt_tokens,
            LONGEST * given.answer_tokens,
        ),
        shared_prefix_tokens=given.shared_prefix,
        turns=given.turns,
        stops=given.stops,
        batch_lines=given.batch_lines,
        cancel_share=given.cancel_share,
        timeout_seconds=given.timeout,
        seed=given.seed,
        api_key=_api_key(given.api_key_env),
        html=given.html,
        json=given.json,
    )


def _api_key(variable: str) -> str | None:
    """None where no key is needed. A variable that was named is there, or it is a mistake."""
    key = os.environ.get(variable)
    if not key and variable != KEY_VARIABLE:
        raise ValueError(f"--api-key-env: the variable {variable} is not set")
    return key or None


def _shape(given: argparse.Namespace) -> Shape:
    if given.duration == 0:
        raise ValueError("--duration must be above 0")
    if given.shape is None:
        return constant(given.rate or given.users or 10, given.duration or DURATION_SECONDS)
    if given.rate is not None or given.users is not None:
        raise ValueError("--shape says how much load there is; leave --users and --rate out (see --open)")
    return parse_shape(given.shape, given.duration)


def _models(given: argparse.Namespace) -> dict[str, float]:
    weights = dict(given.model)
    if given.zipf is None:
        return weights
    if any(weight != 1.0 for weight in weights.values()):
        raise ValueError("--zipf gives the models their weights; leave =WEIGHT out")
    return zipf(list(weights), given.zipf)


# -- values ----------------------------------------------------------------------------------------
def _checked(parse: Any) -> Any:
    """For argparse, which tells the text of its own error alone."""

    def checked(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


_seconds = _checked(parse_seconds)


def _host(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") not in ("", "v1"):
        raise argparse.ArgumentTypeError(f"{text!r} is no server; such is http://127.0.0.1:8000")
    return f"{parts.scheme}://{parts.netloc}"


def _weighted(text: str) -> tuple[str, float]:
    name, equals, weight = text.rpartition("=")
    return (name, _above_zero(weight)) if equals else (text, 1.0)


def _kind(text: str) -> tuple[str, float]:
    name, weight = _weighted(text)
    if name not in set(User):
        near = difflib.get_close_matches(name, [kind.value for kind in User], n=1)
        told = f"is {near[0]!r} meant?" if near else f"there are {', '.join(User)}"
        raise argparse.ArgumentTypeError(f"{name!r} is no kind of user; {told}")
    return name, weight


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _above_zero(text: str) -> float:
    number = _number(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _share(text: str) -> float:
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share from 0 to 1")
    return number


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def _count(text: str) -> int:
    number = _whole(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def _file(text: str) -> Path:
    file = Path(text)
    if not file.parent.is_dir() or file.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be written: {file.parent} is no folder, or it is one"
        )
    return file
