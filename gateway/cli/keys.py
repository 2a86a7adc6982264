"""`burnish keys`: make, list, limit and end API keys."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from adapters.keys import BY_SETTINGS, MAX_LIMIT, Quota, Scope
from gateway.cli import terminal
from gateway.cli.records import open_records
from gateway.cli.terminal import Json
from gateway.shapes import key_shape, listing

app = typer.Typer(help="API keys. Once one was made, every request needs one.")

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="its id, or its name where only one has it")]
Rpm = Annotated[int | None, typer.Option(min=0, max=MAX_LIMIT, help="requests a minute; 0: no limit")]
Tpm = Annotated[int | None, typer.Option(min=0, max=MAX_LIMIT, help="tokens a minute; 0: no limit")]
Concurrent = Annotated[int | None, typer.Option(min=0, max=MAX_LIMIT, help="requests at once; 0: no limit")]


@app.command("create")
def create(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="whose it is, or what for")] = "default",
    scope: Annotated[list[Scope] | None, typer.Option(help="what it opens; default: inference")] = None,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="whether what is asked with it is recorded")
    ] = True,
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrent: Concurrent = None,
    as_json: Json = False,
) -> None:
    """Make a key; its secret is printed now and never again. Limits that are not given are those of the settings."""
    with open_records(context) as records:
        key, secret = records.keys.create(
            name,
            scope or [Scope.INFERENCE],
            records.actor,
            records=record,
            limits=Quota(rpm, tpm, concurrent).said(),
        )
        is_first = len(records.keys.list()) == 1
    if as_json:
        terminal.print_json({**key_shape(key), "secret": secret})
    else:
        print(secret)
    terminal.note(f"{key.id} ({', '.join(sorted(key.scopes))}): keep the secret, it is not shown again")
    if is_first:
        terminal.note("from now on every request needs a key")


@app.command("list")
def list_(context: typer.Context, as_json: Json = False) -> None:
    """List all keys, revoked ones too."""
    with open_records(context) as records:
        keys = records.keys.list()
    if as_json:
        terminal.print_json(listing(key_shape(key) for key in keys))
        return
    rows = [
        (
            key.id,
            key.name,
            f"{key.prefix}…",
            ", ".join(sorted(key.scopes)),
            "yes" if key.records else "no",
            _told(key.limits),
            terminal.moment(key.created),
            "in use" if key.revoked is None else f"revoked {terminal.moment(key.revoked)}",
        )
        for key in keys
    ]
    terminal.print_table(("id", "name", "secret", "scopes", "recorded", "limits", "created", "state"), rows)


@app.command("limit")
def limit(
    context: typer.Context,
    key: KeyArgument,
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrent: Concurrent = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="take from the settings what is not given here")
    ] = False,
    as_json: Json = False,
) -> None:
    """Limit what may be asked with a key, at once; limits that are not given stay as they are."""
    given = Quota(rpm, tpm, concurrent).said()
    if not given and not reset:
        raise typer.BadParameter("say which limit: --rpm, --tpm, --concurrent, or --reset.")
    wanted = {**asdict(BY_SETTINGS), **given} if reset else given
    with open_records(context) as records:
        changed = records.keys.change_limits(key, wanted, records.actor)
    if as_json:
        terminal.print_json(key_shape(changed))
    else:
        print(f"{changed.id}  {_told(changed.limits)}")


@app.command("revoke")
def revoke(context: typer.Context, key: KeyArgument, as_json: Json = False) -> None:
    """End a key for ever."""
    with open_records(context) as records:
        revoked = records.keys.revoke(key, records.actor)
    if as_json:
        terminal.print_json(key_shape(revoked))
    else:
        print(f"{revoked.id}  revoked")


def _told(quota: Quota) -> str:
    """A key's own limits for a person."""
    parts = (
        ("rpm", quota.requests_per_minute),
        ("tpm", quota.tokens_per_minute),
        ("at once", quota.concurrent_requests),
    )
    told = [f"{limit or 'any'} {unit}" for unit, limit in parts if limit is not None]
    return ", ".join(told) or "by settings"
