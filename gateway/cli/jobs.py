"""`burnish jobs`: list, show, follow, pause, resume and cancel training jobs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from adapters.jobs import Job, Jobs
from gateway.cli import terminal
from gateway.cli.follow import follow, refuse_unsuccessful, stage
from gateway.cli.records import open_records
from gateway.cli.terminal import Json
from gateway.job_shapes import event_shape, job_shape, method_of, shown_hyperparameters, status_of
from gateway.shapes import listing

SHOWN_EVENTS = 10

app = typer.Typer(help="Training jobs: list, show, watch, pause, resume, cancel.")

Id = Annotated[str, typer.Argument(metavar="JOB", help="its id: ftjob-…")]


@app.command("list")
def list_(
    context: typer.Context,
    route: Annotated[str | None, typer.Option(help="of this route alone")] = None,
    limit: Annotated[int, typer.Option(min=1, help="so many at most")] = 20,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    with open_records(context) as records:
        jobs, has_more = Jobs(records.db).list(route=route, limit=limit)
    if as_json:
        terminal.print_json(listing([job_shape(job) for job in jobs], has_more=has_more))
        return
    rows = [
        (
            job.id,
            str(job.payload.get("adapter", "")),
            _source(job),
            method_of(job),
            stage(job),
            terminal.moment(job.created),
            _outcome(job),
        )
        for job in jobs
    ]
    terminal.print_table(("job", "adapter", "from", "method", "state", "created", "outcome"), rows)
    if has_more:
        terminal.note("there are more: --limit")


@app.command("show")
def show(context: typer.Context, id: Id, as_json: Json = False) -> None:
    """Show one job and what happened to it last."""
    with open_records(context) as records:
        jobs = Jobs(records.db)
        job = jobs.get(id)
        events, _ = jobs.events(id, limit=SHOWN_EVENTS)
    if as_json:
        terminal.print_json({**job_shape(job), "events": [event_shape(event) for event in events]})
        return
    terminal.print_fields({name: value for name, value in _fields(job).items() if value})
    print()
    for event in reversed(events):
        print(f"{terminal.moment(event.at)}  {event.message}")


@app.command("watch")
def watch(context: typer.Context, id: Id, as_json: Json = False) -> None:
    """Follow a job until it has ended; Ctrl-C leaves it running."""
    with open_records(context) as records:
        tell_end(follow(records.db, id), as_json)


@app.command("pause")
def pause(context: typer.Context, id: Id, as_json: Json = False) -> None:
    """Pause a job; a running one after its current step."""
    with open_records(context) as records:
        _print(Jobs(records.db).pause(id, records.actor), as_json)


@app.command("resume")
def resume(context: typer.Context, id: Id, as_json: Json = False) -> None:
    """Let a paused job go on where it was."""
    with open_records(context) as records:
        _print(Jobs(records.db).resume(id, records.actor), as_json)


@app.command("cancel")
def cancel(context: typer.Context, id: Id, as_json: Json = False) -> None:
    """End a job; it publishes nothing any more."""
    with open_records(context) as records:
        _print(Jobs(records.db).cancel(id, records.actor), as_json)


def tell_end(job: Job, as_json: bool) -> None:
    """What an ended job has made. Raises BurnishError for one that made nothing."""
    if as_json:
        terminal.print_json(job_shape(job))
    refuse_unsuccessful(job)
    if not as_json:
        print((job.result or {}).get("fine_tuned_model") or job.id)


def _print(job: Job, as_json: bool) -> None:
    if as_json:
        terminal.print_json(job_shape(job))
    else:
        wish = f" (asked to {job.wish.value})" if job.wish is not None else ""
        print(f"{job.id}  {job.state.value}{wish}")


def _source(job: Job) -> str:
    source = job.payload.get("source", {})
    return str(source.get("training_file") or f"feedback of {source.get('route')}")


def _outcome(job: Job) -> str:
    if job.error is not None:
        return f"{job.error['code']}: {job.error['message']}"
    return str((job.result or {}).get("fine_tuned_model") or "")


def _fields(job: Job) -> dict[str, str]:
    def moment(at: float | None) -> str:
        return "" if at is None else terminal.moment(at)

    payload = job.payload
    fields: dict[str, Any] = {
        "job": job.id,
        "state": status_of(job),
        "stage": stage(job) if status_of(job) == "running" else "",
        "outcome": _outcome(job),
        "adapter": payload.get("adapter"),
        "route": job.route,
        "base model": payload.get("base_model"),
        "starts from": payload.get("start_from"),
        "learns from": _source(job),
        "method": method_of(job),
        "settings": ", ".join(f"{name}={value}" for name, value in shown_hyperparameters(job).items()),
        "seed": payload.get("seed"),
        "gate": payload.get("gate"),
        "release": payload.get("release"),
        "asked by": payload.get("actor"),
        "worker": job.worker,
        "attempts": job.attempts or "",
        "created": moment(job.created),
        "started": moment(job.started),
        "finished": moment(job.finished),
    }
    return {name: "" if value is None else str(value) for name, value in fields.items()}
