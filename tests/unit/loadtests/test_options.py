"""The flags of a load test: what they come to, what is refused and how, and that the command has the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from gateway.cli import app
from loadtests.options import User, parse, parser


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


def test_what_is_not_said_is_a_minute_of_ten_users_who_chat() -> None:
    options = parse([])
    assert (options.host, options.users, options.is_open) == (
        "http://127.0.0.1:8000",
        {User.CHAT: 1.0},
        False,
    )
    (stage,) = options.shape.stages
    assert (stage.first, stage.seconds) == (10, 60)
    assert options.lengths.most_answer_tokens > options.lengths.answer_tokens == 128


def test_models_and_kinds_have_weights() -> None:
    options = parse(["--model", "a=3", "--model", "b", "--kind", "mixed", "--kind", "feedback=0.5"])
    assert options.models == {"a": 3.0, "b": 1.0}
    assert options.users == {User.MIXED: 1.0, User.FEEDBACK: 0.5}
    ranked = parse(["--model", "a", "--model", "b", "--zipf", "1"])
    assert ranked.models == pytest.approx({"a": 1.0, "b": 0.5})


def test_a_rate_is_an_open_loop() -> None:
    options = parse(["--rate", "12.5", "--duration", "5m"])
    assert options.is_open
    assert (options.shape.stages[0].first, options.shape.seconds) == (12.5, 300)
    assert parse(["--shape", "steps=1,2", "--open", "--duration", "1m"]).is_open


def test_the_hosts_path_may_be_the_sdks() -> None:
    assert parse(["--host", "http://127.0.0.1:8000/v1/"]).host == "http://127.0.0.1:8000"


def test_the_key_is_that_of_the_named_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-1")
    monkeypatch.delenv("BURNISH_API_KEY", raising=False)
    assert parse(["--api-key-env", "MY_KEY"]).api_key == "sk-1"
    assert parse([]).api_key is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--target", "ttft_p59=1s"], "is no target; is 'ttft_p"),
        (["--target", "ttft_p95=fast"], "such is ttft_p95=500ms or 1.5s"),
        (["--kind", "chta"], "is 'chat' meant?"),
        (["--kind", "x1"], "there are chat, mixed, feedback, batch"),
        (["--usres", "3"], "is --users meant?"),
        (["--users", "none"], "'none' is no whole number"),
        (["--users", "0"], "must be above 0"),
        (["--duration", "soon"], "'soon' is no time"),
        (["--duration", "0"], "--duration must be above 0"),
        (["--rate", "-1"], "is not above 0"),
        (["--model", "a=0"], "0 is not above 0"),
        (["--cancel-share", "2"], "no share from 0 to 1"),
        (["--host", "localhost:8000"], "is no server; such is http://127.0.0.1:8000"),
        (["--users", "3", "--rate", "3"], "leave one out"),
        (["--rate", "3", "--turns", "2"], "--turns needs a closed loop"),
        (["--open"], "--open goes with --shape"),
        (["--shape", "steps=1,2", "--users", "3"], "leave --users and --rate out"),
        (["--shape", "stairs=1"], "is no shape; such are steps="),
        (["--zipf", "1", "--model", "a=3"], "leave =WEIGHT out"),
        (["--api-key-env", "NO_SUCH_KEY_OF_OURS"], "NO_SUCH_KEY_OF_OURS is not set"),
        (["--json", "/no/such/folder/out.json"], "cannot be written"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_with_the_remedy(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert told in refused(capsys, *arguments)


def test_files_to_be_written_are_looked_at_before_the_load_begins(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert parse(["--html", str(tmp_path / "report.html")]).html == tmp_path / "report.html"
    assert "cannot be written" in refused(capsys, "--html", str(tmp_path))


def test_the_command_has_the_same_options() -> None:
    commands: Any = typer.main.get_command(app)
    ours = {option for each in commands.commands["loadtest"].params for option in each.opts}
    theirs = {flag for action in parser()._actions for flag in action.option_strings}
    assert ours - {"--help"} == theirs - {"--help", "-h"}
