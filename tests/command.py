"""`burnish` as a person and a script type it, on a home of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gateway.cli import main

COMMAND = (sys.executable, "-m", "gateway.cli")


class Command:
    """The verbs behind the words `first`. What `run` and its like run, they run in this process, since an interpreter of its own
    imports for a second; `start` gives the verb a process, for what only a process has: signals, pipes, a terminal."""

    def __init__(self, home: Path, *first: str) -> None:
        self.home = home
        self.first = first
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("BURNISH_")}
        self.environ = {**inherited, "BURNISH_HOME": str(home)}

    def run(self, *arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        words = [*self.first, *map(str, arguments)]
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        with (
            patch.dict(os.environ, self.environ, clear=True),
            patch.object(sys, "argv", ["burnish", *words]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            found = main()
        said, complained = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
        assert found == status, said + complained
        return subprocess.CompletedProcess(words, found, said, complained)

    def out(self, *arguments: str | Path) -> str:
        return self.run(*arguments).stdout

    def json(self, *arguments: str | Path, status: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", status=status).stdout)

    def refused(self, *arguments: str | Path, status: int = 1) -> str:
        """The one line that an error is."""
        done = self.run(*arguments, status=status)
        (line,) = done.stderr.splitlines()
        assert line.startswith("burnish: ")
        assert done.stdout == ""
        return line

    def start(self, *arguments: str | Path, **streams: Any) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        command = [*COMMAND, *self.first, *map(str, arguments)]
        return subprocess.Popen(command, env=self.environ, text=True, **pipes)
