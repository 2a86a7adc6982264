"""README's five-minute tour, run as it stands: its shell and Python blocks in order, in one shell.

The server is a real `burnish serve` on the fake engine in place of `make serve`, and the commands are those that a
reader types; only the port differs. Does not judge the prose.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.settings import load_settings
from loadtests.fake_engine.process import FakeEngine
from tests.conftest import MODEL, Server, engines_config, running
from tests.lora import TINY_CONFIG

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"

PREPARED = {"source .venv/bin/activate\n"}
"""Blocks that the test does in its own way: it brings its own PATH."""

HANDS_SECONDS = 1.5
"""Between two blocks: a person takes longer, and a gateway sees what another process wrote within 0.2 s."""


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    said: str = ""


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(text: str) -> list[Block]:
    return [Block(kind, code) for kind, code in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose home is where README looks for it, with a base model small enough for quick adapters."""
    home = tmp_path_factory.mktemp("reader") / ".burnish"
    config = home / "weights" / MODEL / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps(TINY_CONFIG))
    with FakeEngine(MODEL) as engine, running(home, engines_config(engine)) as started:
        yield started


@pytest.fixture(scope="module")
def tour(server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[Block]:
    """The tour's blocks with what each of them said."""
    if shutil.which("curl") is None:
        pytest.skip("no curl on the PATH, and the tour asks with it")
    todo = [
        b
        for b in blocks(section("A five-minute tour"))
        if b.kind in ("sh", "python") and b.text not in PREPARED
    ]
    script = "".join(
        f"echo '<<<block {index}>>>'\n{_shell(block)}\nsleep {HANDS_SECONDS}\n"
        for index, block in enumerate(todo)
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace(ADDRESS, server.url)],
        cwd=tmp_path_factory.mktemp("folder"),
        env=_environment(server),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.split(r"<<<block \d+>>>\n", done.stdout)[1:]
    assert len(said) == len(todo)
    return [Block(block.kind, block.text, words) for block, words in zip(todo, said, strict=True)]


def _shell(block: Block) -> str:
    return block.text if block.kind == "sh" else f"python - <<'PYTHON'\n{block.text}PYTHON"


def _environment(server: Server) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return server.environ | {
        "HOME": str(server.home.parent),
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def said_by(tour: list[Block], words: str) -> str:
    """What the one block that holds `words` said."""
    found = [block.said for block in tour if words in block.text]
    assert len(found) == 1, words
    return found[0]


def after(tour: list[Block], words: str) -> str:
    """What the block after the one that holds `words` said."""
    (index,) = [index for index, block in enumerate(tour) if words in block.text]
    return tour[index + 1].said


def adapters_of(said: str) -> list[str]:
    """The adapter version of every answer with headers."""
    assert "HTTP/1.1 200" in said, said
    return re.findall(r"^x-burnish-adapter: (\S+) sha256:[0-9a-f]{64}\r?$", said, re.M)


def test_the_first_curl_is_answered_by_the_model(tour: list[Block]) -> None:
    answer = json.loads(said_by(tour, "curl -s http://127.0.0.1:8000/v1/chat/completions"))
    assert answer["model"] == MODEL
    assert answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize("words", ["print(answer.", "stream=True"])
def test_the_sdk_prints_an_answer(tour: list[Block], words: str) -> None:
    assert said_by(tour, words).startswith("I am base.")


def test_an_adapter_is_proved_and_is_its_routes_default(tour: list[Block]) -> None:
    assert re.search(r"^support@1  proved  sha256:", said_by(tour, "./my-lora "), re.M)
    said = said_by(tour, "ask() {")
    assert adapters_of(said) == ["support@1", "support@1"]
    assert re.findall(r"^x-burnish-route: (\S+)\r?$", said, re.M) == ["support", "support@1"]


def test_a_second_version_is_listed_beside_the_first(tour: list[Block]) -> None:
    table = said_by(tour, "burnish adapters list").split("\nVERSION ")[1]
    assert re.findall(r"^(support@\d) +(\w+)", table, re.M) == [
        ("support@1", "proved"),
        ("support@2", "proved"),
    ]


def test_promote_and_roll_back_change_what_the_route_answers_with(tour: list[Block]) -> None:
    assert adapters_of(after(tour, "burnish promote")) == ["support@2"]
    assert adapters_of(after(tour, "burnish rollback")) == ["support@1"]


def test_an_experiment_splits_the_route_and_cannot_tell_yet(tour: list[Block]) -> None:
    said = said_by(tour, "burnish experiments show")
    assert "support@2" in said
    assert "cannot tell yet" in said
    assert "ended" in said_by(tour, "burnish experiments stop")


def test_with_a_key_made_a_request_needs_one(tour: list[Block]) -> None:
    allowed, refused = [json.loads(line) for line in after(tour, "burnish keys create").splitlines()]
    assert {"support", "support@1", "support@2", MODEL} <= {model["id"] for model in allowed["data"]}
    assert refused["error"]["code"] == "missing_api_key"


def test_the_settings_file_of_the_tour_is_one(tmp_path: Path) -> None:
    (block,) = [block for block in blocks(section("A five-minute tour")) if block.kind == "toml"]
    file = tmp_path / "burnish.toml"
    file.write_text(block.text)
    settings = load_settings(file, {})
    assert [engine.kind for engine in settings.engines] == ["supervised", "openai"]
    assert settings.models == (MODEL, "llama3.2")


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    (block,) = blocks(section("Two commands"))
    makefile = (ROOT / "Makefile").read_text()
    for command in block.text.splitlines():
        assert re.search(rf"^{command.removeprefix('make ')}:", makefile, re.M), command
