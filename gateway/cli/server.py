"""`burnish serve`, `burnish engines` and `burnish settings`: the server, what it sees and what it goes by."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import typer

from adapters.errors import BurnishError, Unavailable
from adapters.settings import Settings
from gateway.cli import terminal
from gateway.cli.records import open_records, settings_of
from gateway.cli.terminal import Json
from gateway.imports import GATEWAY_SILENT_SECONDS

ASK_TIMEOUT_SECONDS = 10.0
HIDDEN = "***"
SECRET_ARGUMENT = re.compile(r"--?[\w-]*(?:key|token|secret|password)[\w-]*", re.IGNORECASE)


def serve(context: typer.Context) -> None:
    """Start the engines and the gateway; Ctrl-C stops everything."""
    settings = settings_of(context)
    from gateway.serve import serve as run  # slow to import, and no other verb needs it

    raise typer.Exit(run(settings))


def worker(context: typer.Context) -> None:
    """Train, beside or without a gateway on this machine; `serve` starts a worker by itself."""
    settings_of(context)  # a mistake in them is told here, in one line
    os.execv(sys.executable, [sys.executable, "-m", "trainer.worker"])


def engines(context: typer.Context, as_json: Json = False) -> None:
    """List the engines as the running gateway sees them ($BURNISH_API_KEY: an admin key, where keys are in use)."""
    with open_records(context) as records:
        gateways = records.placements.live_gateways(GATEWAY_SILENT_SECONDS)
    if not gateways:
        raise Unavailable("no gateway is running; start one: burnish serve")
    found = _ask(f"{gateways[0].url}/v1/engines")
    if as_json:
        terminal.print_json(found)
        return
    rows = [
        (
            engine["id"],
            engine["kind"],
            ", ".join(engine["models"]),
            engine["state"],
            str(engine["outstanding"]),
            ", ".join(engine["adapters"]),
            engine["reason"] or "",
        )
        for engine in found["data"]
    ]
    terminal.print_table(("engine", "kind", "model", "state", "requests", "adapters", "reason"), rows)


def settings(context: typer.Context, as_json: Json = False) -> None:
    """Print the settings in effect; secrets are left out."""
    values = _without_secrets(settings_of(context))
    if as_json:
        terminal.print_json(values)
    else:
        terminal.print_fields(dict(_flat("", values)))


def _ask(url: str) -> dict[str, Any]:
    import httpx

    key = os.environ.get("BURNISH_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(trust_env=False, timeout=ASK_TIMEOUT_SECONDS) as client:
            answer = client.get(url, headers=headers)
            body: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise Unavailable(f"the gateway gave no answer at {url} ({error or type(error).__name__})") from None
    if answer.status_code in (401, 403):
        raise BurnishError(f"{body['error']['message']} Set BURNISH_API_KEY to a key of scope admin.")
    if answer.is_error:
        raise BurnishError(str(body["error"]["message"]))
    return body


def _without_secrets(settings: Settings) -> dict[str, Any]:
    """The settings as plain values; passwords in URLs, engines' variables and keys among their arguments hidden."""
    values = settings.model_dump(mode="json")
    values["database_url"] = _without_password(settings.database)
    for engine in values["engines"]:
        engine["env"] = dict.fromkeys(engine["env"], HIDDEN)
        engine["args"] = list(_arguments(engine["args"]))
        if engine["url"] is not None:
            engine["url"] = _without_password(engine["url"])
    return values


def _without_password(url: str) -> str:
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", rf"\1:{HIDDEN}@", url)


def _arguments(arguments: list[str]) -> Iterator[str]:
    """`--api-key X` and `--api-key=X` without X."""
    hide = False
    for argument in arguments:
        option, equals, _ = argument.partition("=")
        is_secret = SECRET_ARGUMENT.fullmatch(option) is not None
        if hide and not argument.startswith("-"):
            yield HIDDEN
        elif is_secret and equals:
            yield f"{option}={HIDDEN}"
        else:
            yield argument
        hide = (is_secret and not equals) or (hide and not argument.startswith("-"))


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """("health.max_attempts", "3"): one pair a leaf, named as the settings' errors name it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{path}.{key}" if path else key, inner)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for index, inner in enumerate(value):
            yield from _flat(f"{path}[{index}]", inner)
    elif isinstance(value, list):
        yield path, ", ".join(map(str, value))
    else:
        yield path, "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
