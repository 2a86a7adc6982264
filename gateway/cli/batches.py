"""`burnish batches`: many requests from a file: create, list, show, watch, cancel, fetch the results.

Works on the records, as the other verbs do: a running gateway takes up a batch that was made here, and answers it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from adapters.batches import Batches
from adapters.errors import BurnishError, Conflict, InvalidRequest, NotFound
from adapters.files import Files, Purpose, StoredFile
from adapters.jobs import Job, JobState
from adapters.rows import bounded_lines
from adapters.settings import Batches as BatchSettings
from gateway.batch_input import BATCH_ENDPOINTS, Examined, examine, window_seconds
from gateway.batch_shapes import batch_shape, status_of
from gateway.cli import terminal
from gateway.cli.batch_watch import NO_GATEWAY, done_of, watched
from gateway.cli.records import Records, open_records
from gateway.cli.terminal import Json
from gateway.imports import a_gateway_is_alive
from gateway.protocol import checks
from gateway.shapes import page

SHOWN_PROBLEMS = 20

app = typer.Typer(help="Batches: many requests from a file, answered when there is room.")

Id = Annotated[str, typer.Argument(metavar="BATCH", help="its id: batch_…")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="write the answers there")
]


def _endpoint(value: str) -> str:
    if value not in BATCH_ENDPOINTS:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(BATCH_ENDPOINTS)}.")
    return value


def _window(value: str) -> str:
    try:
        window_seconds(value)
    except InvalidRequest as error:
        raise typer.BadParameter("a number of s, m, h or d, such as 24h, from 1s to 30d.") from error
    return value


def _pairs(values: list[str] | None) -> list[str]:
    for value in values or []:
        if not value.partition("=")[0] or "=" not in value:
            raise typer.BadParameter(f"{value!r} is not NAME=VALUE.")
    return values or []


@app.command("create")
def create(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL: one request a line")],
    endpoint: Annotated[
        str, typer.Option(metavar="PATH", callback=_endpoint, help="what every line asks")
    ] = BATCH_ENDPOINTS[0],
    window: Annotated[
        str, typer.Option(callback=_window, help="after which it expires: 30m, 24h, 7d")
    ] = "24h",
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", callback=_pairs, help="may be given again")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="follow it until it has ended")] = False,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Make a batch of a file; a running gateway takes it up."""
    if output is not None and not watch:
        raise typer.BadParameter("--output goes with --watch; later: burnish batches results BATCH.")
    pairs = checks.plain_metadata(dict(pair.split("=", 1) for pair in metadata or []))
    with open_records(context) as records:
        job = _created(records, file, endpoint, window, pairs)
        if watch:
            terminal.note(job.id)
            _tell_end(records, watched(records, job.id), output, as_json)
            return
        if as_json:
            terminal.print_json(batch_shape(job))
        else:
            print(job.id)
        if not a_gateway_is_alive(records.placements):
            terminal.note(NO_GATEWAY)
        terminal.note(f"follow it: burnish batches watch {job.id}")


@app.command("list")
def list_(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="so many at most")] = 20,
    as_json: Json = False,
) -> None:
    """List batches, newest first."""
    with open_records(context) as records:
        jobs, has_more = Batches(records.db).list(limit=limit)
    if as_json:
        terminal.print_json(page([batch_shape(job) for job in jobs], has_more))
        return
    terminal.print_table(
        ("batch", "endpoint", "model", "status", "done", "failed", "created"), [_cells(job) for job in jobs]
    )
    if has_more:
        terminal.note("there are more: --limit")


@app.command("show")
def show(context: typer.Context, id: Id, as_json: Json = False) -> None:
    """Show one batch."""
    with open_records(context) as records:
        job = Batches(records.db).get(id)
    if as_json:
        terminal.print_json(batch_shape(job))
        return
    terminal.print_fields({name: value for name, value in _fields(job).items() if value})
    for problem in (job.result or {}).get("errors", ())[:SHOWN_PROBLEMS]:
        print(_problem(problem))


@app.command("watch")
def watch(context: typer.Context, id: Id, as_json: Json = False) -> None:
    """Follow a batch until it has ended; Ctrl-C leaves it going."""
    with open_records(context) as records:
        _tell_end(records, watched(records, id), None, as_json)


@app.command("cancel")
def cancel(context: typer.Context, id: Id, as_json: Json = False) -> None:
    """End a batch; the lines that were answered by then are in its files."""
    with open_records(context) as records:
        job = Batches(records.db).cancel(id, records.actor)
    if as_json:
        terminal.print_json(batch_shape(job))
    else:
        print(f"{job.id}  {status_of(job)}")


@app.command("results")
def results(
    context: typer.Context,
    id: Id,
    errors: Annotated[bool, typer.Option("--errors", help="the lines that failed, with the reasons")] = False,
    output: Output = None,
) -> None:
    """Print the answers of a batch that has ended, or those of its error file: JSONL, one line a request."""
    with open_records(context) as records:
        job = Batches(records.db).get(id)
        if not job.has_ended:
            raise Conflict(f"{id} is {status_of(job)}; follow it: burnish batches watch {id}")
        _copy(records, job, errors, output)


# -- creating --------------------------------------------------------------------------------------
def _created(records: Records, file: Path, endpoint: str, window: str, metadata: dict[str, str]) -> Job:
    """The lines are checked before anything is stored or made."""
    _refuse_bad_lines(file, _examined(file, endpoint, records.settings.batches))
    with file.open("rb") as stream:
        stored = _files(records).put(stream, file.name, Purpose.BATCH, None)
    return Batches(records.db).create(
        input_file=stored.id,
        endpoint=endpoint,
        window=window,
        window_seconds=window_seconds(window),
        metadata=metadata,
        key_id=None,
    )


def _examined(file: Path, endpoint: str, settings: BatchSettings) -> Examined:
    with terminal.progress(f"checking {file.name} ..."), file.open("rb") as stream:
        size = file.stat().st_size
        if size > settings.max_file_bytes:
            raise InvalidRequest(f"{file} has {size} bytes, and may have {settings.max_file_bytes}")
        return examine(bounded_lines(stream), endpoint, settings.max_lines)


def _refuse_bad_lines(file: Path, found: Examined) -> None:
    for problem in found.problems[:SHOWN_PROBLEMS]:
        terminal.note(f"{file}: {problem}")
    if found.problem_count:
        count = found.problem_count
        raise InvalidRequest(
            f"{count} {'problem' if count == 1 else 'problems'} in {file}; no batch was made"
        )


def _files(records: Records) -> Files:
    return Files(records.db, records.settings.file_root)


# -- results ---------------------------------------------------------------------------------------
def _tell_end(records: Records, job: Job, output: Path | None, as_json: bool) -> None:
    """What an ended batch has come to. Raises BurnishError for one that was not completed."""
    if as_json:
        terminal.print_json(batch_shape(job))
    if output is not None and _file_of(job, is_error=False) is not None:
        _copy(records, job, False, output)
    if job.state is not JobState.SUCCEEDED:
        raise BurnishError(_failure(job))
    if not as_json:
        print("  ".join(filter(None, (job.id, status_of(job), _outcome(job)))))


def _copy(records: Records, job: Job, errors: bool, output: Path | None) -> None:
    file_id = _file_of(job, is_error=errors)
    if file_id is None:
        other = "" if errors or _file_of(job, is_error=True) is None else "; see --errors"
        raise NotFound(f"{job.id} has no {'failed' if errors else 'answered'} lines{other}")
    files = _files(records)
    file: StoredFile = files.get(file_id)
    with files.path(file_id).open("rb") as stream:
        if output is None:
            shutil.copyfileobj(stream, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return
        with output.open("wb") as target:
            shutil.copyfileobj(stream, target)
    terminal.note(f"{terminal.size(file.size_bytes)} in {output}")


def _file_of(job: Job, *, is_error: bool) -> str | None:
    id = (job.result or {}).get("error_file" if is_error else "output_file")
    return None if id is None else str(id)


# -- words -----------------------------------------------------------------------------------------
def _failure(job: Job) -> str:
    """Why a batch was not completed, in one line."""
    if job.state is JobState.FAILED and job.error is not None:
        problems = (job.result or {}).get("errors", ())
        first = _problem(problems[0]) if problems else f"{job.error['message']} ({job.error['code']})"
        more = f"; and {len(problems) - 1} more: burnish batches show {job.id}" if len(problems) > 1 else ""
        return f"{job.id} failed: {first}{more}"
    kept = f"; what was answered: burnish batches results {job.id}" if _file_of(job, is_error=False) else ""
    return f"{job.id} is {status_of(job)}, {done_of(job)} lines done{kept}"


def _problem(problem: dict[str, Any]) -> str:
    where = "" if problem.get("line") is None else f"line {problem['line']}: "
    return f"{where}{problem['message']} ({problem['code']})"


def _outcome(job: Job) -> str:
    answers, errors = (_file_of(job, is_error=is_error) for is_error in (False, True))
    return "  ".join(
        f"{name} {id}" for name, id in (("answers", answers), ("errors", errors)) if id is not None
    )


def _cells(job: Job) -> tuple[str, ...]:
    return (
        job.id,
        str(job.payload["endpoint"]),
        str(job.progress.get("model") or ""),
        status_of(job),
        done_of(job),
        str(job.progress.get("failed", 0)),
        terminal.moment(job.created),
    )


def _fields(job: Job) -> dict[str, str]:
    shape = batch_shape(job)
    moments = {
        name.removesuffix("_at").replace("_", " "): terminal.moment(at)
        for name, at in shape.items()
        if name.endswith("_at") and at is not None
    }
    usage = shape["usage"]
    return {
        "batch": job.id,
        "status": shape["status"],
        "endpoint": shape["endpoint"],
        "model": shape["model"] or "",
        "input": shape["input_file_id"],
        "answers": shape["output_file_id"] or "",
        "errors": shape["error_file_id"] or "",
        "done": done_of(job),
        "failed": str(shape["request_counts"]["failed"]),
        "tokens": f"{usage['input_tokens']} read, {usage['output_tokens']} written",
        "window": shape["completion_window"],
        "metadata": ", ".join(f"{name}={value}" for name, value in job.metadata.items()),
        "gateway": job.worker or "",
        **moments,
    }
