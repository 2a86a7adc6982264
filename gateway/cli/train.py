"""`burnish train`: a training job from a route's feedback or from files, followed until it has ended."""

from __future__ import annotations

import time
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from adapters.errors import InvalidRequest
from adapters.files import Files, Purpose, Staged, StoredFile
from adapters.hyperparameters import check_hyperparameters
from adapters.jobs import EventDraft, Job, Jobs
from adapters.policy import Method, Release
from adapters.rows import Checked, RowKind, bounded_lines, examine
from adapters.triggers import enqueue_route_training
from adapters.uploads import MAX_UPLOAD_BYTES
from gateway.cli import terminal
from gateway.cli.follow import NO_WORKER, follow
from gateway.cli.jobs import tell_end
from gateway.cli.records import Records, open_records
from gateway.cli.terminal import Json
from gateway.job_shapes import job_shape
from gateway.orders import Order, Orders
from gateway.validation import MIN_ROWS, file_error

KIND = "training"
SHOWN_PROBLEMS = 20


class Gate(StrEnum):
    REQUIRE = "require"
    REPORT = "report"


class Tracker(StrEnum):
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    MLFLOW = "mlflow"


def train(
    context: typer.Context,
    target: Annotated[str | None, typer.Argument(metavar="ROUTE", help="train from its feedback")] = None,
    data: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="JSONL to learn from")] = None,
    route: Annotated[
        str | None, typer.Option(metavar="NAME", help="whose default the result becomes")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="ADAPTER", help="default: the route's name")] = None,
    method: Annotated[Method, typer.Option(help="auto: told from the data")] = Method.AUTO,
    epochs: Annotated[int | None, typer.Option(help="times through the data")] = None,
    batch_size: Annotated[int | None, typer.Option(help="rows an optimizer step")] = None,
    rank: Annotated[int | None, typer.Option(help="of the LoRA matrices")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="at its peak")] = None,
    beta: Annotated[float | None, typer.Option(help="of dpo and kto")] = None,
    validation: Annotated[Path | None, typer.Option(metavar="FILE", help="rows held out")] = None,
    gate: Annotated[Gate, typer.Option(help="report: publish whatever it says, on record")] = Gate.REQUIRE,
    release: Annotated[Release | None, typer.Option(help="ask: wait for `burnish promote`")] = None,
    base: Annotated[str | None, typer.Option(metavar="MODEL", help="the base model")] = None,
    start_from: Annotated[str | None, typer.Option(metavar="NAME@N", help="a version to go on from")] = None,
    seed: Annotated[int | None, typer.Option(help="default: drawn, and kept with the job")] = None,
    report_to: Annotated[list[Tracker] | None, typer.Option(help="trackers of the run")] = None,
    nf4: Annotated[bool, typer.Option("--nf4", help="QLoRA: the base model in 4 bits")] = False,
    wait: Annotated[bool, typer.Option(help="follow the job until it has ended")] = True,
    as_json: Json = False,
) -> None:
    """Train from the feedback of ROUTE, or from files with --data, and follow the run."""
    if target is not None and route is not None and target != route:
        raise typer.BadParameter(f"two routes: {target!r} and --route {route!r}.")
    if base is not None and start_from is not None:
        raise typer.BadParameter("--start-from says the base model too; leave --base out.")
    given = {
        "n_epochs": epochs,
        "batch_size": batch_size,
        "rank": rank,
        "learning_rate": learning_rate,
        "beta": beta,
    }
    order = Order(
        model=start_from or base,
        route=target or route,
        adapter=name,
        method=method.value,
        hyperparameters=check_hyperparameters(given),
        seed=seed,
        gate=gate.value,
        release=None if release is None else release.value,
        report_to=tuple(report_to or ["tensorboard"]),
        quantization="nf4" if nf4 else None,
    )
    with open_records(context) as records:
        job = _ordered(records, order, data or [], validation)
        _follow(records, job, wait, as_json)


def _ordered(records: Records, order: Order, data: list[Path], validation: Path | None) -> Job:
    files = Files(records.db, records.settings.file_root)
    orders = Orders(records.settings, records.registry, records.routes, files)
    if data:
        return _from_files(records, orders, order, data, validation)
    if order.route is None:
        raise typer.BadParameter("say what to learn from: ROUTE for its feedback, or --data FILE.")
    if validation is not None or order.adapter is not None:
        raise typer.BadParameter("--validation and --name go with --data.")
    return _from_feedback(records, orders, order)


def _from_feedback(records: Records, orders: Orders, order: Order) -> Job:
    route = records.routes.get(order.route or "")
    overrides = orders.overrides(order, route)
    with records.db.begin() as connection:
        return enqueue_route_training(
            connection, route, "on demand", None, records.actor, time.time(), **overrides
        )


def _from_files(
    records: Records, orders: Orders, order: Order, data: list[Path], validation: Path | None
) -> Job:
    """The lines are checked before anything is stored or made."""
    if order.route is None and order.adapter is None:
        raise typer.BadParameter("say what the result is called: --route NAME, or --name ADAPTER.")
    method = _checked(data, order.method, MIN_ROWS) or order.method
    if validation is not None:
        _checked([validation], method, 1)
    payload = orders.payload(order, records.actor, is_admin=True)
    kept = _keep(orders.files, data)
    held = None if validation is None else _keep(orders.files, [validation]).id
    source = {"kind": "file", "training_file": kept.id, "validation_file": held}
    return Jobs(records.db).enqueue(
        kind=KIND,
        route=order.route,
        payload={**payload, "source": source, "method": method},
        events=[EventDraft(f"Training file {kept.id}: {', '.join(path.name for path in data)}")],
    )


def _checked(paths: list[Path], method: str, least: int) -> str | None:
    """The method that the rows are for, if it is one. Raises InvalidRequest with every bad line, by file."""
    rows: Counter[RowKind] = Counter()
    with terminal.progress(f"checking {', '.join(path.name for path in paths)} ..."):
        found = [(path, _examine(path, method)) for path in paths]
    bad = [(path, checked) for path, checked in found if checked.problem_count]
    for path, checked in bad:
        for problem in checked.problems[:SHOWN_PROBLEMS]:
            terminal.note(f"{path}: {problem}")
    if bad:
        count = sum(checked.problem_count for _, checked in bad)
        raise InvalidRequest(f"{count} bad {'line' if count == 1 else 'lines'}; nothing was started")
    for _, checked in found:
        rows.update(checked.rows)
    whole = Checked((), 0, 0, rows)
    error = file_error(whole, "training_file", least)
    if error is not None:
        raise InvalidRequest(error["message"])
    return whole.method


def _examine(path: Path, method: str) -> Checked:
    with path.open("rb") as stream:
        return examine(bounded_lines(stream), method)


def _keep(files: Files, paths: list[Path]) -> StoredFile:
    """The files as one, each on lines of its own."""
    with files.stage(MAX_UPLOAD_BYTES) as staged:
        for path in paths:
            _copy(path, staged)
        return files.keep(staged, paths[0].name, Purpose.FINE_TUNE, None)


def _copy(path: Path, staged: Staged) -> None:
    with path.open("rb") as stream:
        for line in bounded_lines(stream):
            plain = line.removeprefix(b"\xef\xbb\xbf")  # it may stand at the beginning of a file only
            staged.write(plain if plain.endswith(b"\n") else plain + b"\n")


def _follow(records: Records, job: Job, wait: bool, as_json: bool) -> None:
    if wait:
        terminal.note(f"{job.id}  {job.payload['base_model']} -> {job.payload['adapter']}")
        tell_end(follow(records.db, job.id), as_json)
        return
    _tell_made(job, as_json)
    terminal.note(f"follow it: burnish jobs watch {job.id}")
    if not Jobs(records.db).workers():
        terminal.note(NO_WORKER)


def _tell_made(job: Job, as_json: bool) -> None:
    if as_json:
        terminal.print_json(job_shape(job))
    else:
        print(job.id)
