"""Ids are all different, in a forked process too."""

from __future__ import annotations

import subprocess
import sys

from gateway.ids import hex_id

FORKS = """
import os
from gateway.ids import hex_id

hex_id()  # more are drawn ahead
child = os.fork()
ids = [hex_id() for _ in range(300)]
if child:
    os.waitpid(child, 0)
print(*ids)
"""


def test_ids_are_hex_and_all_different() -> None:
    ids = {hex_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(id) == 32 and int(id, 16) >= 0 for id in ids)


def test_a_forked_process_draws_others() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS], capture_output=True, text=True, check=True, timeout=60
    )
    ids = done.stdout.split()
    assert len(ids) == 600
    assert len(set(ids)) == 600
