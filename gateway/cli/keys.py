"""`burnish keys`: make, list and end API keys."""

from __future__ import annotations

from typing import Annotated

import typer

from adapters.keys import Scope
from gateway.cli import terminal
from gateway.cli.records import open_records
from gateway.cli.terminal import Json
from gateway.shapes import key_shape, listing

app = typer.Typer(help="API keys. Once one was made, every request needs one.")


@app.command("create")
def create(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="whose it is, or what for")] = "default",
    scope: Annotated[list[Scope] | None, typer.Option(help="what it opens; default: inference")] = None,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="whether what is asked with it is recorded")
    ] = True,
    as_json: Json = False,
) -> None:
    """Make a key; its secret is printed now and never again."""
    with open_records(context) as records:
        key, secret = records.keys.create(name, scope or [Scope.INFERENCE], records.actor, records=record)
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
            terminal.moment(key.created),
            "in use" if key.revoked is None else f"revoked {terminal.moment(key.revoked)}",
        )
        for key in keys
    ]
    terminal.print_table(("id", "name", "secret", "scopes", "recorded", "created", "state"), rows)


@app.command("revoke")
def revoke(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="its id, or its name where only one has it")],
    as_json: Json = False,
) -> None:
    """End a key for ever."""
    with open_records(context) as records:
        revoked = records.keys.revoke(key, records.actor)
    if as_json:
        terminal.print_json(key_shape(revoked))
    else:
        print(f"{revoked.id}  revoked")
