"""`burnish feedback`: what was said of completions: list it, take it in from files, take it out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from adapters.errors import InvalidRequest
from adapters.feedback import Feedback, FeedbackStore
from adapters.feedback_files import ExportFormat, export_lines, good_rows, import_rows
from adapters.rows import Checked, bounded_lines, examine, parse_training
from gateway.cli import terminal
from gateway.cli.records import open_records
from gateway.cli.terminal import Json
from gateway.shapes import feedback_shape, listing

app = typer.Typer(help="Feedback: list it, import it from files, export it.")

RouteOption = Annotated[str | None, typer.Option(metavar="NAME", help="of this route only")]


@app.command("list")
def list_(
    context: typer.Context,
    route: RouteOption = None,
    completion: Annotated[str | None, typer.Option(metavar="ID", help="of this completion only")] = None,
    name: Annotated[str | None, typer.Option(help="of this score only")] = None,
    user: Annotated[str | None, typer.Option(help="by this end user only")] = None,
    limit: Annotated[int, typer.Option(min=1, help="the newest so many")] = 20,
    as_json: Json = False,
) -> None:
    """List feedback, newest first."""
    with open_records(context) as records:
        found, has_more = FeedbackStore(records.db).list(
            None, all_keys=True, completion_id=completion, route=route, name=name, user=user, limit=limit
        )
    if as_json:
        terminal.print_json(listing((feedback_shape(feedback) for feedback in found), has_more=has_more))
        return
    columns = ("id", "created", "route", "completion", "name", "value", "says", "user")
    terminal.print_table(columns, [_cells(feedback) for feedback in found])


@app.command("import")
def import_(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="JSONL: chat, prompt/completion, preference, KTO or Alpaca rows")
    ],
    route: Annotated[str, typer.Option(metavar="NAME", help="the route that is to learn from it")],
    user: Annotated[str | None, typer.Option(help="whose rows they are that name no user")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="leave bad lines out")] = False,
    as_json: Json = False,
) -> None:
    """Take in judged rows from a file; the same file again changes nothing."""
    with open_records(context) as records:
        records.routes.get(route)
        with file.open("rb") as stream:
            checked = examine(bounded_lines(stream))
            _tell(checked, skip_bad)
            stream.seek(0)
            rows = good_rows(bounded_lines(stream)) if skip_bad else parse_training(bounded_lines(stream))
            done = import_rows(records.db, route, rows, time.time(), user=user)
    if as_json:
        counts = {"new": done.new, "known": done.known, "bad": checked.problem_count, "job": done.job}
        terminal.print_json({"route": route, **counts})
        return
    print(f"{done.new} new, {done.known} known, {checked.problem_count} bad")
    if done.job is not None:
        terminal.note(f"enough for a training job: {done.job}")


@app.command("export")
def export(
    context: typer.Context,
    route: RouteOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="else stdout")] = None,
    format: Annotated[ExportFormat, typer.Option(help="burnish: each row in the form that fits it")] = (
        ExportFormat.BURNISH
    ),
) -> None:
    """Write what there is to learn from, as JSONL that can be imported again."""
    with open_records(context) as records, records.db.read() as connection:
        if route is not None:
            records.routes.get(route)
        lines = export_lines(connection, route, format)
        if output is None:
            _write(sys.stdout.buffer, lines)
            return
        with output.open("wb") as stream:
            count = _write(stream, lines)
    terminal.note(f"{count} rows in {output}")


def _write(stream: BinaryIO, lines: Iterable[bytes]) -> int:
    count = 0
    for line in lines:
        stream.write(line)
        count += 1
    stream.flush()
    return count


def _tell(checked: Checked, skip_bad: bool) -> None:
    """Names every bad line, as many as are known. Raises InvalidRequest unless they are to be left out."""
    if not checked.problem_count:
        return
    for problem in checked.problems:
        terminal.note(str(problem))
    if not skip_bad:
        raise InvalidRequest(
            f"{checked.problem_count} bad lines, nothing was imported; --skip-bad leaves them out"
        )


def _cells(feedback: Feedback) -> tuple[str, ...]:
    value = "" if feedback.value is None else f"{feedback.value:g}"
    return (
        feedback.id,
        terminal.moment(feedback.created),
        feedback.route,
        feedback.completion_id,
        feedback.name,
        value,
        _says(feedback),
        feedback.user or "",
    )


def _says(feedback: Feedback) -> str:
    """What else it says, and how much of it; the words themselves are in --json."""
    parts = {
        "comment": feedback.comment is not None,
        "demonstration": feedback.demonstration is not None,
        f"over {feedback.preferred_over}": feedback.preferred_over is not None,
    }
    return ", ".join(part for part, is_there in parts.items() if is_there)
