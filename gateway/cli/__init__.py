"""The command `burnish`: its verbs, its exit codes, its errors in one line.

    0 done   1 refused or failed   2 wrong usage or settings   130 Ctrl-C

One module a noun beside this one. Verbs work on the database and the artifact store directly, so that they need
no running gateway; `serve` and `engines` import what is slow only when they are called.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from adapters.errors import BurnishError, SettingsError
from gateway.cli import (
    adapters,
    batches,
    experiments,
    feedback,
    forget,
    jobs,
    keys,
    loadtest,
    routes,
    server,
    train,
)

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Serves a language model with many LoRA adapters and makes it better from being used.",
)
app.command("serve")(server.serve)
app.command("worker")(server.worker)
app.add_typer(adapters.app, name="adapters")
app.add_typer(routes.app, name="routes")
app.command("promote")(routes.promote)
app.command("rollback")(routes.rollback)
app.add_typer(experiments.app, name="experiments")
app.add_typer(feedback.app, name="feedback")
app.command("forget")(forget.forget)
app.command("train")(train.train)
app.add_typer(jobs.app, name="jobs")
app.add_typer(batches.app, name="batches")
app.add_typer(keys.app, name="keys")
app.command("loadtest")(loadtest.loadtest)
app.command("engines")(server.engines)
app.command("settings")(server.settings)


@app.callback(invoke_without_command=True)
def burnish(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="settings; default $BURNISH_CONFIG, then ./burnish.toml"
        ),
    ] = None,
) -> None:
    context.obj = config
    if config is not None:  # for the processes that a verb starts
        os.environ["BURNISH_CONFIG"] = str(config.absolute())
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> int:
    """Runs the command line; the process's exit status."""
    try:
        status = typer.main.get_command(app)(prog_name="burnish", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except BurnishError as error:
        return _fail(error.message, 2 if isinstance(error, SettingsError) else 1)
    except typer.TyperException as error:
        return _fail(error.format_message() + _usage(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # `burnish … | head`: nobody reads on, and the interpreter must not flush into it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(str(error), 1)


def _fail(problem: str, status: int) -> int:
    print("burnish:", " ".join(problem.split()), file=sys.stderr)
    return status


def _usage(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f" See `{context.command_path} --help`." if context is not None else ""
