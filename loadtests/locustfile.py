"""The same users for Locust's own command: its pages, its charts, its workers on many machines.

    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000 --model support ChatUser

Name the users that are to come: ChatUser, MixedUser, FeedbackUser, BatchUser; without a name all four do. TTFT, ITL and
TOKENS/S are lines of their own in its statistics. There are no targets here: `burnish loadtest` holds a server to them.
"""

from __future__ import annotations

import argparse
from typing import Any

from locust import events

from loadtests.batch_user import BatchUser
from loadtests.measurement import Measurement
from loadtests.options import KEY_VARIABLE, parse
from loadtests.plan import Plan
from loadtests.users import BurnishUser, ChatUser, FeedbackUser, MixedUser

__all__ = ["BatchUser", "ChatUser", "FeedbackUser", "MixedUser"]

TEXTS = {
    "think-time": "a user's mean pause, such as 0.5s",
    "prompt-tokens": "median",
    "answer-tokens": "median",
    "shared-prefix": "tokens that all prompts begin with",
    "turns": "questions of a conversation",
    "batch-lines": "of a batch",
    "seed": "of all chance",
    "api-key-env": f"the variable that holds the key ({KEY_VARIABLE})",
}
"""Flags of `burnish loadtest` that this command has too."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", action="append", default=[], help="NAME[=WEIGHT], may be given again")
    for flag, help in TEXTS.items():
        parser.add_argument(f"--{flag}", default="", help=help)


def make_plan(environment: Any, **_: Any) -> None:
    given = vars(environment.parsed_options)
    told = [f"--model={model}" for model in given["model"]]
    told += [f"--{flag}={given[flag.replace('-', '_')]}" for flag in TEXTS if given[flag.replace("-", "_")]]
    options = parse(told)
    if not options.models:
        raise SystemExit("say which model is asked: --model NAME")
    BurnishUser.plan = Plan(options, Measurement(options), options.models)


events.init_command_line_parser.add_listener(add_flags)  # type: ignore[no-untyped-call]
events.init.add_listener(make_plan)  # type: ignore[no-untyped-call]
