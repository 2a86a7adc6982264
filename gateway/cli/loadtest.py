"""`burnish loadtest`: loads a server and holds it to targets.

Passes its options on to `python -m loadtests.run`, which becomes this process: Locust patches the one that it runs in. What
a value may be is known there; a test holds the two lists of options together.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

Text = str | None
Several = list[str] | None


def loadtest(
    context: typer.Context,
    host: Annotated[
        Text, typer.Option(metavar="URL", help="the server; default: http://127.0.0.1:8000")
    ] = None,
    model: Annotated[
        Several,
        typer.Option(metavar="NAME[=WEIGHT]", help="may be given again; default: the one that there is"),
    ] = None,
    zipf: Annotated[Text, typer.Option(metavar="S", help="models' weights fall as 1 / rank^S")] = None,
    target: Annotated[
        Several, typer.Option(metavar="NAME=LIMIT", help="ttft_p95=500ms, itl_p95=50ms, error_rate=1%, …")
    ] = None,
    kind: Annotated[
        Several, typer.Option(metavar="KIND[=WEIGHT]", help="chat (default), mixed, feedback or batch")
    ] = None,
    users: Annotated[Text, typer.Option(metavar="N", help="at once, in a closed loop; default: 10")] = None,
    spawn_rate: Annotated[
        Text, typer.Option(metavar="USERS", help="that begin in a second; default: all")
    ] = None,
    think_time: Annotated[
        Text, typer.Option(metavar="TIME", help="a user's mean pause; default: 0.5s")
    ] = None,
    rate: Annotated[
        Text, typer.Option(metavar="REQUESTS", help="a second, in an open loop: nobody waits for an answer")
    ] = None,
    duration: Annotated[
        Text, typer.Option(metavar="TIME", help="what is measured: 30s, 5m, 8h; default: 60s")
    ] = None,
    warm_up: Annotated[Text, typer.Option(metavar="TIME", help="before it, left out; default: 5s")] = None,
    shape: Annotated[
        Text, typer.Option(metavar="SHAPE", help="steps=10,50,100, steps=10:30s,50:2m or ramp=1,100")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="--shape is of requests/s in an open loop")] = False,
    prompt_tokens: Annotated[Text, typer.Option(metavar="N", help="median; default: 128")] = None,
    answer_tokens: Annotated[Text, typer.Option(metavar="N", help="median; default: 128")] = None,
    shared_prefix: Annotated[
        Text, typer.Option(metavar="N", help="tokens that all prompts begin with")
    ] = None,
    turns: Annotated[Text, typer.Option(metavar="N", help="questions of a conversation; default: 1")] = None,
    stops: Annotated[
        bool, typer.Option("--stops", help="answers end where the model ends them, not at their length")
    ] = False,
    batch_lines: Annotated[Text, typer.Option(metavar="N", help="of a batch; default: 50")] = None,
    cancel_share: Annotated[Text, typer.Option(metavar="SHARE", help="of batches that are cancelled")] = None,
    timeout: Annotated[Text, typer.Option(metavar="TIME", help="of an answer; default: 120s")] = None,
    seed: Annotated[Text, typer.Option(metavar="N", help="of all chance; default: 1")] = None,
    api_key_env: Annotated[
        Text, typer.Option(metavar="NAME", help="variable that holds the key; default: BURNISH_API_KEY")
    ] = None,
    html: Annotated[Text, typer.Option(metavar="FILE", help="write the report there, with plots")] = None,
    json: Annotated[Text, typer.Option(metavar="FILE", help="write all figures there")] = None,
) -> None:
    """Load a server and hold it to targets: 0 all met, 1 one missed, 3 it could not be measured."""
    arguments = [
        part
        for parameter in context.command.params
        for part in _passed(parameter.opts[0], context.params.get(str(parameter.name)))
    ]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "loadtests.run", *arguments])


def _passed(option: str, value: object) -> list[str]:
    match value:
        case None | False:
            return []
        case True:
            return [option]
        case list() | tuple():
            return [f"{option}={each}" for each in value]
        case _:
            return [f"{option}={value}"]
