"""`burnish experiments`: begin, list, show, stop and decide comparisons of a route's variants; estimate; plot."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from adapters.errors import Conflict
from adapters.experiment_records import Experiment
from adapters.plans import Policy, parse_plan
from gateway.cli import experiment_view, terminal
from gateway.cli.assignments import assign, maybe_share, read_object
from gateway.cli.records import open_records
from gateway.cli.terminal import Json
from gateway.imports import a_gateway_is_alive
from gateway.shapes import experiment_shape, listing

app = typer.Typer(help="Experiments: compare a route's variants on live feedback, and decide.")

Name = Annotated[str, typer.Argument(help="the experiment's name, or its id")]
Route = Annotated[str, typer.Argument(help="the route whose variants are compared")]


@app.command("create")
def create(
    context: typer.Context,
    route: Route,
    challenger: Annotated[
        list[str] | None,
        typer.Option(metavar="VARIANT[=SHARE]", help="against the route's default; may be given again"),
    ] = None,
    policy: Annotated[Policy | None, typer.Option(help="default: test")] = None,
    name: Annotated[str | None, typer.Option(help="default: the route's, with a number")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="of the plan, such as alpha=0.01")
    ] = None,
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON with the plan")] = None,
    as_json: Json = False,
) -> None:
    """Begin an experiment on ROUTE, at once."""
    parts = {} if plan is None else read_object(plan)
    if challenger:
        parts["challengers"] = _challengers(challenger)
    if policy is not None:
        parts["policy"] = policy.value
    for assignment in change or ():
        assign(parts, assignment)
    parsed = parse_plan(parts, "plan")
    with open_records(context) as records:
        made = records.experiments.create(route, parsed, records.actor, name=name)
        alive = a_gateway_is_alive(records.placements)
    _print(made, as_json)
    look = f"look at it: burnish experiments show {made.name}"
    terminal.note(look if alive else "it begins when serving starts: burnish serve")


@app.command("list")
def list_(
    context: typer.Context,
    route: Annotated[str | None, typer.Option(help="of this route alone")] = None,
    as_json: Json = False,
) -> None:
    """List experiments, the newest first."""
    with open_records(context) as records:
        found = records.experiments.list(route)
    if as_json:
        terminal.print_json(listing(experiment_shape(each) for each in found))
        return
    columns = ("experiment", "route", "policy", "state", "traffic", "began", "verdict")
    terminal.print_table(columns, [experiment_view.row(each) for each in found])


@app.command("show")
def show(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Show what there is to see: variants, comparisons, guardrails, the verdict."""
    with open_records(context) as records:
        experiment = records.experiments.get(name)
        from adapters.looks import current  # numpy, which other verbs need not wait for

        seen = current(records.db, experiment, time.time())
    if as_json:
        terminal.print_json(experiment_shape(experiment, seen))
    else:
        experiment_view.print_experiment(experiment, seen)


@app.command("stop")
def stop(
    context: typer.Context,
    name: Name,
    reason: Annotated[str, typer.Option(help="why; it is kept with the experiment")] = "",
    as_json: Json = False,
) -> None:
    """End an experiment without a decision: all traffic goes to the route's default."""
    with open_records(context) as records:
        _print(records.experiments.stop(name, records.actor, reason), as_json)


@app.command("decide")
def decide(
    context: typer.Context,
    name: Name,
    variant: Annotated[str, typer.Argument(help="the control, or a challenger")],
    as_json: Json = False,
) -> None:
    """Make VARIANT the route's default, or keep it, and end the experiment."""
    with open_records(context) as records:
        _print(records.experiments.decide(name, variant, records.actor), as_json)


@app.command("estimate")
def estimate(
    context: typer.Context,
    route: Route,
    variant: Annotated[str, typer.Argument(help="what all of the route's traffic would go to")],
    score: Annotated[str, typer.Option(help="one of the route's scores")] = "rating",
    alpha: Annotated[float, typer.Option(help="how often the intervals may be wrong")] = 0.05,
    as_json: Json = False,
) -> None:
    """Estimate what VARIANT would score, from what the route's experiments have logged."""
    from adapters import estimates  # numpy

    with open_records(context) as records:
        found = estimates.estimate(records.db, route, {variant: 1.0}, score=score, alpha=alpha)
    shape = estimates.estimate_json(found)
    if as_json:
        terminal.print_json(shape)
    else:
        experiment_view.print_estimate(variant, shape)


@app.command("plot")
def plot(
    context: typer.Context,
    name: Name,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="an SVG file to write")],
) -> None:
    """Draw how an experiment went: the difference, the shares and the guardrails over time."""
    with open_records(context) as records:
        experiment = records.experiments.get(name)
        looks = records.experiments.looks(experiment.id)
    if not looks:
        raise Conflict(
            f"nobody has looked at {experiment.name!r} yet: a gateway does, once there are answers to look at"
        )
    from gateway.cli.plot import svg

    output.write_bytes(svg(experiment, looks, time.time()))
    print(output)


def _challengers(given: list[str]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for text in given:
        variant, share = maybe_share(text)
        if variant in found:
            raise typer.BadParameter(f"{variant!r} is there twice.")
        found[variant] = share
    return found


def _print(experiment: Experiment, as_json: bool) -> None:
    if as_json:
        terminal.print_json(experiment_shape(experiment))
        return
    told: dict[str, Any] = experiment.verdict or {}
    print(f"{experiment.name}  {experiment.state.value}" + (f": {told['done']}" if told else ""))
    if experiment.is_open:
        for variant, share in experiment.shares.items():
            print(f"  {share:.1%} -> {variant}")
