"""The published clients pass their suite against a real gateway before a real engine.

Owns how the suites of `tests/clients` are run: each in its own environment (`make clients-venv`, `npm ci`), as
a subprocess that is told where the gateway is. What the clients expect stands there, not here.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "tests" / "clients"
PYTHON = ROOT / ".venv-clients" / "bin" / "python"


def clients_environment(stack: Any) -> dict[str, str]:
    """The coordinates of the gateway; without keys or proxies of the one who runs the tests."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OPENAI_", "ANTHROPIC_", "PYTEST_"))
    }
    return inherited | {
        "BURNISH_TEST_BASE_URL": stack.base_url,
        "BURNISH_TEST_MODEL": stack.model,
        "BURNISH_TEST_ADAPTER": stack.adapter_names[0],
        "BURNISH_TEST_KEY": stack.api_key or "",
        "NO_PROXY": "127.0.0.1,localhost",
    }


def run(command: list[str], environment: dict[str, str], folder: Path = ROOT) -> None:
    finished = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert finished.returncode == 0, f"{' '.join(command)}\n{finished.stdout[-20_000:]}"


def test_python_clients_pass(real_stack: Any) -> None:
    if not PYTHON.exists():
        pytest.fail("the clients' environment is missing: run `make clients-venv`")
    suite = [str(PYTHON), "-m", "pytest", "tests/clients/python", "--tb=short"]
    environment = clients_environment(real_stack)
    run([*suite, "-m", "not alone", "-n", "8", "--dist", "worksteal"], environment)
    run([*suite, "-m", "alone"], environment)


def test_node_clients_pass(real_stack: Any) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail("CI runs the Node clients too, and has no node and npm on its PATH")
        pytest.skip("no node and npm on the PATH: the Node clients are not tried (the Python ones are)")
    environment = clients_environment(real_stack)
    run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], environment, SUITE / "node")
    run(["npm", "test"], environment, SUITE / "node")
