"""`burnish routes`, `burnish promote` and `burnish rollback`: which version a public model name stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapters.policy import policy_json
from adapters.routes import Route
from adapters.versions import is_ref, parse_ref
from gateway.cli import terminal
from gateway.cli.assignments import assign, read_object, share
from gateway.cli.records import open_records
from gateway.cli.terminal import Json
from gateway.shapes import listing, route_shape

app = typer.Typer(help="Routes: the public model names and what each stands for.")

Name = Annotated[str, typer.Argument(help="the route: what clients put in `model`")]
Variant = Annotated[str, typer.Argument(help="NAME@N, or a model of an engine")]


@app.command("list")
def list_(context: typer.Context, as_json: Json = False) -> None:
    """List all routes."""
    with open_records(context) as records:
        routes = records.routes.list()
    if as_json:
        terminal.print_json(listing(route_shape(route) for route in routes))
        return
    rows = [
        (r.name, r.variant, r.history[-1] if r.history else "", terminal.moment(r.created)) for r in routes
    ]
    terminal.print_table(("route", "variant", "before", "created"), rows)


@app.command("show")
def show(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Show one route and its former defaults."""
    with open_records(context) as records:
        route = records.routes.get(name)
    if as_json:
        terminal.print_json(route_shape(route))
        return
    fields = {
        "route": route.name,
        "variant": route.variant,
        "challengers": ", ".join(f"{each.variant} {each.share:.1%}" for each in route.challengers) or "none",
        "before": ", ".join(reversed(route.history)) or "nothing",
        "training": _training(route),
        "created": terminal.moment(route.created),
    }
    terminal.print_fields(fields)


@app.command("policy")
def policy(
    context: typer.Context,
    name: Name,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON with the parts to change")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="such as training.enabled=true")
    ] = None,
) -> None:
    """Print what a route declares, as JSON, after changing the given parts of it."""
    parts = {} if file is None else read_object(file)
    for assignment in change or ():
        assign(parts, assignment)
    with open_records(context) as records:
        routes = records.routes
        route = routes.change_policy(name, parts, records.actor) if parts else routes.get(name)
    terminal.print_json(policy_json(route.policy))


@app.command("challenge")
def challenge(
    context: typer.Context,
    name: Name,
    shares: Annotated[
        list[str] | None,
        typer.Argument(metavar="VARIANT=SHARE...", help="such as support@3=0.05; none: the default has all"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Give variants a share of a route's traffic beside its default; those not named lose theirs."""
    wanted = dict(share(text) for text in shares or ())
    with open_records(context) as records:
        _print(records.routes.challenge(name, wanted, records.actor), as_json)


@app.command("create")
def create(context: typer.Context, name: Name, variant: Variant, as_json: Json = False) -> None:
    """Make a public model name that stands for VARIANT."""
    with open_records(context) as records:
        _print(records.routes.create(name, variant, records.actor), as_json)


@app.command("delete")
def delete(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Take a public model name away; its versions stay."""
    with open_records(context) as records:
        records.routes.delete(name, records.actor)
    if as_json:
        terminal.print_json({"id": name, "object": "route", "deleted": True})
    else:
        print(f"{name}  deleted")


def promote(
    context: typer.Context,
    variant: Variant,
    route: Annotated[str | None, typer.Option(help="the route, unless it has the adapter's name")] = None,
    as_json: Json = False,
) -> None:
    """Make a version the default of its route, at once."""
    if route is None and not is_ref(variant):
        raise typer.BadParameter(f"{variant!r} is not NAME@N, so say which route: --route NAME.")
    name = route or parse_ref(variant)[0]
    with open_records(context) as records:
        _print(records.routes.promote(name, variant, records.actor), as_json)


def rollback(
    context: typer.Context,
    name: Name,
    to: Annotated[str | None, typer.Option(metavar="VARIANT", help="a former default; else the last")] = None,
    as_json: Json = False,
) -> None:
    """Return a route to its former default, at once."""
    with open_records(context) as records:
        _print(records.routes.rollback(name, to, records.actor), as_json)


def _training(route: Route) -> str:
    training = route.policy.training
    if not training.enabled:
        return f"by hand (burnish routes policy {route.name} --set training.enabled=true)"
    period = "" if training.every_seconds is None else f", or every {training.every_seconds:g} s"
    return f"by itself after {training.min_new_rows} new rows{period}"


def _print(route: Route, as_json: bool) -> None:
    if as_json:
        terminal.print_json(route_shape(route))
        return
    before = f"  (before: {route.history[-1]})" if route.history else ""
    print(f"{route.name} -> {route.variant}{before}")
    for challenger in route.challengers:
        print(f"  {challenger.share:.1%} -> {challenger.variant}")
