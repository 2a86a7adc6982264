"""README's "Watch it learn", run as it stands on the real stack: its shell blocks in order, in one shell."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import RealStack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "http://127.0.0.1:8000"


def test_the_readers_route_learns_from_a_file_and_answers(real_stack: RealStack, tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().split("\n## Watch it learn\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S)
    assert len(blocks) == 3
    # The stack has keys, which the reader may not have: curl gets one from its own settings.
    (tmp_path / ".curlrc").write_text(f'header = "authorization: Bearer {real_stack.api_key}"\n')
    environ = {
        **real_stack.server.environ,
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks).replace(ADDRESS, real_stack.server.url)],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stage: train" in done.stderr
    assert "stage: evaluate" in done.stderr
    assert "\norders@1\n" in done.stdout
    assert "Gate: **pass**" in done.stdout
    answer = json.loads(done.stdout.splitlines()[-1])
    said = json.loads(answer["choices"][0]["message"]["content"])
    assert said == {"item": "lamp", "color": "green", "count": 7, "name": "Greta", "city": "Oslo"}
