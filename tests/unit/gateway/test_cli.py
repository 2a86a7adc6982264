"""The command as a person and a script meet it: a real process, a real database, its two streams and its exit code."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.artifacts import ArtifactStore
from adapters.changes import events
from adapters.database import Database
from adapters.placements import Placements
from adapters.registry import Registry
from adapters.versions import VersionState
from tests.command import COMMAND, Command
from tests.lora import TINY_CONFIG, write_lora
from tests.migrated import migrated

BASE = "smollm2-135m-instruct"


@pytest.fixture
def cli(tmp_path: Path) -> Command:
    return Command(tmp_path / "home")


@pytest.fixture
def db(cli: Command) -> Iterator[Database]:
    """The records that the command works on."""
    database = migrated(cli.home / "burnish.db")
    yield database
    database.close()


@pytest.fixture
def registry(cli: Command, db: Database) -> Registry:
    return Registry(db, ArtifactStore(cli.home / "artifacts"))


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return write_lora(tmp_path / "lora", TINY_CONFIG)


@pytest.fixture
def two_versions(registry: Registry, tmp_path: Path) -> None:
    """support@1, the route's default, and support@2; both proved."""
    registry.register_base(BASE, None)
    for number in (1, 2):
        folder = write_lora(tmp_path / f"lora-{number}", TINY_CONFIG, seed=number)
        registry.import_adapter("support", folder, BASE, None, "test")
        registry.set_state(f"support@{number}", VersionState.PROVED, None, "test")


def test_without_a_verb_it_says_what_there_is(cli: Command) -> None:
    help_text = cli.run().stdout
    for verb in ("serve", "adapters", "routes", "promote", "rollback", "keys", "engines", "settings"):
        assert f"\n  {verb} " in help_text


def test_the_installed_command_is_the_same(cli: Command) -> None:
    installed = Path(sys.executable).with_name("burnish")
    if not installed.exists():
        pytest.skip("burnish is not installed in this environment")
    done = subprocess.run([installed, "--help"], capture_output=True, text=True, env=cli.environ, timeout=60)
    assert "\n  adapters " in done.stdout


def test_verbs_load_nothing_that_is_slow() -> None:
    """So that `burnish adapters list` takes less than a second."""
    slow = {"torch", "vllm", "fastapi", "uvicorn", "httpx", "rich", "numpy", "alembic"}
    program = "import sys, gateway.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert slow & set(loaded.stdout.split()) == set()


def test_an_adapter_added_while_nothing_serves_waits_for_serve(cli: Command, lora: Path) -> None:
    done = cli.run("adapters", "add", "support", str(lora))
    assert done.stdout.startswith("support@1  staged  sha256:")
    assert done.stderr == "it will be loaded and proved when serving starts: burnish serve\n"
    assert cli.json("routes", "show", "support")["variant"] == "support@1"


def test_an_adapters_path_may_be_relative(cli: Command, lora: Path) -> None:
    relative = os.path.relpath(lora)
    assert cli.json("adapters", "add", "support", relative)["id"] == "support@1"


def test_the_list_is_aligned_text_in_a_pipe_and_json_for_machines(cli: Command, two_versions: None) -> None:
    header, first, second = cli.run("adapters", "list").stdout.splitlines()
    assert header.split()[:2] == ["VERSION", "STATE"]
    assert first.index("proved") == second.index("proved") == header.index("STATE")
    listed = cli.json("adapters", "list")
    assert (listed["object"], listed["has_more"]) == ("list", False)
    assert [version["id"] for version in listed["data"]] == ["support@1", "support@2"]


def test_a_version_shows_what_it_is_and_who_let_it_in(cli: Command, two_versions: None) -> None:
    shown = cli.json("adapters", "show", "support@2")
    assert (shown["object"], shown["base_model"], shown["state"]) == ("adapter.version", BASE, "proved")
    assert shown["approval"]["kind"] == "override"
    assert shown["target_modules"] == ["q_proj", "v_proj"]
    text = cli.run("adapters", "show", "support@2").stdout
    assert shown["digest"] in text
    assert f"override {shown['approval']['by']} imported by hand" in text
    assert [version["id"] for version in cli.json("adapters", "show", "support")["versions"]] == [
        "support@1",
        "support@2",
    ]


def test_on_a_terminal_the_table_is_drawn(cli: Command, two_versions: None) -> None:
    ours, theirs = pty.openpty()
    environ = {**cli.environ, "TERM": "xterm", "COLUMNS": "200"}
    done = subprocess.run([*COMMAND, "adapters", "list"], env=environ, stdout=theirs, timeout=60)
    os.close(theirs)
    drawn = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "support@2" in drawn
    assert "───" in drawn


def test_what_preflight_refuses_is_one_line_and_leaves_nothing(cli: Command, lora: Path) -> None:
    (lora / "adapter_model.safetensors").write_bytes(b"not safetensors at all")
    assert "adapter_model.safetensors" in cli.refused("adapters", "add", "support", str(lora))
    assert cli.json("adapters", "list")["data"] == []


def test_unknown_things_are_refused_with_exit_code_1(cli: Command) -> None:
    assert "no adapter 'nothing'" in cli.refused("adapters", "show", "nothing")
    assert "no route 'nothing'" in cli.refused("promote", "nothing@1")
    assert "no key 'nothing'" in cli.refused("keys", "revoke", "nothing")


def test_wrong_usage_is_exit_code_2_and_names_the_help(cli: Command) -> None:
    assert cli.refused("adapters", "add", "support", status=2).endswith("See `burnish adapters add --help`.")
    assert "No such command 'adapter'" in cli.refused("adapter", status=2)
    assert "--route" in cli.refused("promote", BASE, status=2)


def test_wrong_settings_are_exit_code_2_and_name_the_key(cli: Command, tmp_path: Path) -> None:
    file = tmp_path / "burnish.toml"
    file.write_text("prot = 8001\n")
    assert "did you mean `port`?" in cli.refused("--config", str(file), "adapters", "list", status=2)
    cli.environ["BURNISH_PORT"] = "many"
    assert "BURNISH_PORT" in cli.refused("settings", status=2)


def test_promote_and_rollback_change_what_the_route_stands_for(
    cli: Command, db: Database, two_versions: None
) -> None:
    assert cli.run("promote", "support@2").stdout == "support -> support@2  (before: support@1)\n"
    assert cli.json("routes", "show", "support")["history"] == ["support@1"]
    assert cli.run("rollback", "support").stdout == "support -> support@1\n"
    assert "no former default" in cli.refused("rollback", "support")
    actors = {event.actor for event in events(db) if event.action in ("route.promoted", "route.rolled_back")}
    assert len(actors) == 1
    assert actors.pop().startswith("cli:")


def test_a_route_of_another_name_is_promoted_and_rolled_back_by_name(
    cli: Command, two_versions: None
) -> None:
    assert cli.json("routes", "create", "beta", BASE)["variant"] == BASE
    assert cli.json("promote", "support@1", "--route", "beta")["variant"] == "support@1"
    cli.run("promote", "support@2", "--route", "beta")
    assert cli.json("rollback", "beta", "--to", BASE)["variant"] == BASE
    assert [route["id"] for route in cli.json("routes", "list")["data"]] == ["beta", "support"]
    cli.run("routes", "delete", "beta")
    assert "beta" not in cli.run("routes", "list").stdout


def test_a_challenger_gets_its_share_and_loses_it(cli: Command, two_versions: None) -> None:
    told = cli.run("routes", "challenge", "support", "support@2=0.05").stdout
    assert told == "support -> support@1\n  5.0% -> support@2\n"
    assert cli.json("routes", "show", "support")["challengers"] == {"support@2": 0.05}
    assert "below 1" in cli.refused("routes", "challenge", "support", "support@2=1.5")
    assert "not VARIANT=SHARE" in cli.refused("routes", "challenge", "support", "support@2", status=2)
    assert cli.run("routes", "challenge", "support").stdout == "support -> support@1\n"


def test_an_unproved_version_is_not_promoted(cli: Command, lora: Path, two_versions: None) -> None:
    cli.run("adapters", "add", "support", str(lora))
    line = cli.refused("promote", "support@3")
    assert "staged" in line
    assert "canary" in line


def test_removing_ends_at_once_when_nothing_serves(
    cli: Command, registry: Registry, two_versions: None
) -> None:
    digest = registry.version("support@2").digest
    assert cli.run("adapters", "remove", "support@2").stdout == "support@2  removed\n"
    assert not registry.artifacts.exists(digest)
    assert "answers for route support" in cli.refused("adapters", "remove", "support@1")
    removed = cli.json("adapters", "list", "--removed")["data"][1]
    assert (removed["id"], removed["state"]) == ("support@2", "removed")


def test_a_keys_secret_is_all_of_stdout_and_shown_once(cli: Command) -> None:
    done = cli.run("keys", "create", "--name", "app", "--scope", "inference", "--scope", "admin")
    secret = done.stdout.strip()
    assert secret.startswith("sk-burnish-")
    assert "every request needs a key" in done.stderr
    listed = cli.run("keys", "list").stdout
    assert "admin, inference" in listed
    assert secret not in listed
    assert secret not in (cli.home / "burnish.db").read_bytes().decode("latin-1")
    made = cli.json("keys", "create", "--name", "other")
    assert made["scopes"] == ["inference"]
    cli.run("keys", "revoke", "app")
    assert [key["revoked"] is None for key in cli.json("keys", "list")["data"]] == [False, True]
    cli.refused("keys", "create", "--name", "x", "--scope", "everything", status=2)


def test_a_keys_limits_are_given_shown_changed_and_lifted(cli: Command) -> None:
    made = cli.json("keys", "create", "--name", "app", "--rpm", "60", "--concurrent", "4")
    limits = {"requests_per_minute": 60, "tokens_per_minute": None, "concurrent_requests": 4}
    assert made["limits"] == limits
    assert "60 rpm, 4 at once" in cli.run("keys", "list").stdout
    done = cli.run("keys", "limit", "app", "--tpm", "90000", "--concurrent", "0")
    assert done.stdout == f"{made['id']}  60 rpm, 90000 tpm, any at once\n"
    limits |= {"tokens_per_minute": 90000, "concurrent_requests": 0}
    assert cli.json("keys", "list")["data"][0]["limits"] == limits
    limits = dict.fromkeys(limits, None) | {"tokens_per_minute": 5}
    assert cli.json("keys", "limit", "app", "--reset", "--tpm", "5")["limits"] == limits
    assert cli.run("keys", "limit", "app", "--reset").stdout == f"{made['id']}  by settings\n"
    assert "no key 'nothing'" in cli.refused("keys", "limit", "nothing", "--rpm", "1")
    assert "--rpm" in cli.run("keys", "limit", "app", status=2).stderr
    assert "--rpm" in cli.run("keys", "limit", "app", "--rpm", "-1", status=2).stderr


def test_settings_are_shown_without_secrets(cli: Command, tmp_path: Path) -> None:
    file = tmp_path / "burnish.toml"
    file.write_text(
        'database_url = "postgresql://burnish:hush-1@db/burnish"\n'
        '[[engines]]\nname = "local"\nkind = "supervised"\n'
        'args = ["--api-key", "hush-2", "--token=hush-3", "--seed", "7"]\nenv = { HF_TOKEN = "hush-4" }\n'
        '[[engines]]\nname = "far"\nkind = "vllm"\nmodel = "far"\nurl = "https://me:hush-5@far"\n'
    )
    for arguments in (["settings"], ["settings", "--json"]):
        shown = cli.run("--config", str(file), *arguments).stdout
        assert "hush" not in shown
        assert "--seed" in shown
        assert "HF_TOKEN" in shown
    assert json.loads(shown)["database_url"] == "postgresql://burnish:***@db/burnish"


def test_engines_need_a_gateway(cli: Command, db: Database) -> None:
    assert "burnish serve" in cli.refused("engines")
    _be_a_gateway(db)
    assert "http://127.0.0.1:9" in cli.refused("engines")


def test_add_waits_for_a_living_gateway_and_tells_its_verdict(
    cli: Command, db: Database, registry: Registry, lora: Path
) -> None:
    _be_a_gateway(db)
    adding = cli.start("adapters", "add", "support", str(lora), "--json")
    _until(lambda: registry.versions("support"))
    registry.set_state("support@1", VersionState.FAILED, "engine e0: too odd", "test")
    out, err = adding.communicate(timeout=60)
    assert adding.returncode == 1
    assert json.loads(out)["state"] == "failed"
    waiting, refusal = err.splitlines()
    assert waiting.endswith("loaded and proved it ...")
    assert refusal.startswith("burnish: support@1 is failed: engine e0: too odd;")


def test_add_can_be_told_how_long_to_wait(cli: Command, db: Database, lora: Path) -> None:
    _be_a_gateway(db)
    done = cli.run("adapters", "add", "support", str(lora), "--timeout", "0.2", status=1)
    assert "not proved yet" in done.stderr
    assert "it is being loaded" in cli.run("adapters", "add", "support", str(lora), "--no-wait").stderr


def test_ctrl_c_is_exit_code_130_and_no_traceback(
    cli: Command, db: Database, registry: Registry, lora: Path
) -> None:
    _be_a_gateway(db)
    adding = cli.start("adapters", "add", "support", str(lora))
    _until(lambda: registry.versions("support"))
    adding.send_signal(signal.SIGINT)
    _, err = adding.communicate(timeout=60)
    assert adding.returncode == 130
    assert "Traceback" not in err


def test_a_reader_that_leaves_early_is_no_error_to_speak_of(cli: Command) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, "settings"], env=cli.environ, stdout=writing, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def _until(check: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _be_a_gateway(db: Database) -> None:
    """The sign of life of a gateway that nobody can reach (9 is the discard port), good for the test's time."""
    Placements(db).heartbeat("gateway-1", "http://127.0.0.1:9", now=time.time() + 600)
