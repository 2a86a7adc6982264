"""`burnish experiments`, as a person and a script meet it. The test itself is the traffic, and the gateway that looks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.artifacts import ArtifactStore
from adapters.database import Database
from adapters.experiment_records import Experiment
from adapters.experiments import Experiments
from adapters.looks import Looks
from adapters.registry import Registry
from adapters.routes import Routes
from tests.command import Command
from tests.migrated import migrated
from tests.observed import crowd, plan, proved_versions

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def cli(tmp_path: Path) -> Command:
    return Command(tmp_path / "home", "experiments")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """The records that the command works on: route `support` on support@1, and two more proved versions."""
    database = migrated(tmp_path / "home" / "burnish.db")
    registry = Registry(database, ArtifactStore(tmp_path / "home" / "artifacts"))
    registry.register_base("base-model", None)
    proved_versions(registry, tmp_path)
    yield database
    database.close()


@pytest.fixture
def experiments(db: Database) -> Experiments:
    return Experiments(db, Routes(db))


@pytest.fixture
def looks(db: Database) -> Looks:
    return Looks(db, Routes(db))


@pytest.fixture
def running(db: Database, experiments: Experiments) -> Experiment:
    """support@2 against support@1, with guardrails on errors and on the time to first token."""
    return experiments.create("support", plan("support@2", horizon_seconds=1e9), "anna", now=1000.0)


def fields(text: str) -> dict[str, str]:
    """The lines of a record, by their names."""
    parts = (re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines())
    return {part[0]: part[1] for part in parts if len(part) == 2}


def line(text: str, begin: str) -> str:
    return next(each for each in text.splitlines() if each.startswith(begin))


# -- begun ---------------------------------------------------------------------------------------
def test_an_experiment_begins_in_one_line(cli: Command, db: Database, experiments: Experiments) -> None:
    done = cli.run("create", "support", "--challenger", "support@2")
    assert done.stdout == "support-1  running\n  50.0% -> support@1\n  50.0% -> support@2\n"
    assert done.stderr == "it begins when serving starts: burnish serve\n"
    (made,) = experiments.list()
    assert made.actor.startswith("cli:")
    assert made.plan.policy.value == "test"


def test_shares_policy_name_and_the_plans_keys_can_be_given(cli: Command, db: Database) -> None:
    made = cli.json(
        *("create", "support", "--challenger", "support@2=0.1", "--challenger", "support@3=0.2"),
        *("--policy", "fixed", "--name", "autumn", "--set", "alpha=0.01", "--set", "on_promote=act"),
        *("--set", "guardrails.refusal_rate=0.1", "--set", 'scores=["rating"]'),
    )
    assert (made["object"], made["name"], made["policy"]) == ("experiment", "autumn", "fixed")
    assert made["shares"] == pytest.approx({"support@1": 0.7, "support@2": 0.1, "support@3": 0.2})
    assert (made["plan"]["alpha"], made["plan"]["on_promote"]) == (0.01, "act")
    assert made["plan"]["guardrails"]["refusal_rate"] == 0.1
    assert made["plan"]["guardrails"]["error_rate"] == 0.02


def test_a_plan_comes_from_a_file_and_what_is_said_beside_it_wins(
    cli: Command, db: Database, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"challengers": ["support@2"], "policy": "canary", "alpha": 0.1}))
    made = cli.json("create", "support", "--plan", file, "--set", "alpha=0.2")
    assert (made["policy"], made["plan"]["alpha"]) == ("canary", 0.2)
    assert made["shares"] == {"support@1": 0.99, "support@2": 0.01}
    cli.run("stop", "support-1")
    made = cli.json("create", "support", "--plan", file, "--policy", "test", "--challenger", "support@3=0.4")
    assert (made["policy"], made["shares"]) == ("test", {"support@1": 0.6, "support@3": 0.4})


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["create", "support"], 1, "must name at least one variant"),
        (["create"], 2, "Missing argument"),
        (["create", "nowhere", "--challenger", "support@2"], 1, "no route 'nowhere'"),
        (["create", "support", "--challenger", "support@9"], 1, "no adapter version support@9"),
        (["create", "support", "--challenger", "support@1"], 1, "and so the control"),
        (["create", "support", "--challenger", "support@2=much"], 2, "not VARIANT=SHARE"),
        (["create", "support", "--challenger", "support@2=1"], 1, "below 1"),
        (
            ["create", "support", "--challenger", "support@2", "--challenger", "support@2=0.1"],
            2,
            "'support@2' is there twice",
        ),
        (["create", "support", "--challenger", "support@2", "--policy", "guess"], 2, "'guess'"),
        (["create", "support", "--challenger", "support@2", "--set", "alpha"], 2, "not KEY=VALUE"),
        (
            ["create", "support", "--challenger", "support@2", "--set", "alpah=1"],
            1,
            "did you mean `alpha`?",
        ),
        (["create", "support", "--challenger", "support@2", "--set", "alpha=2"], 1, "`plan.alpha`"),
        (["create", "support", "--challenger", "support@2", "--name", "No"], 1, "is not a valid name"),
        (["create", "support", "--plan", "NONE"], 1, "No such file"),
        (["create", "support", "--plan", "BAD"], 1, "is no JSON"),
        (["create", "support", "--plan", "LIST"], 1, "must hold a JSON object"),
        (["show", "nothing"], 1, "no experiment 'nothing'"),
        (["stop", "nothing"], 1, "no experiment 'nothing'"),
        (["decide", "nothing", "support@1"], 1, "no experiment 'nothing'"),
        (["plot", "nothing", "-o", "x.svg"], 1, "no experiment 'nothing'"),
        (["plot", "nothing"], 2, "Missing option"),
        (["estimate", "nowhere", "support@2"], 1, "no route 'nowhere'"),
        (["estimate", "support", "support@2", "--score", "fun"], 1, "declares no score 'fun'"),
        (["estimate", "support", "support@2", "--alpha", "1"], 1, "alpha must be above 0"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    cli: Command, db: Database, tmp_path: Path, arguments: list[str], status: int, words: str
) -> None:
    files = {name: tmp_path / name.lower() for name in ("NONE", "BAD", "LIST")}
    files["BAD"].write_text("{nope")
    files["LIST"].write_text("[]")
    told = cli.refused(*(files.get(argument, argument) for argument in arguments), status=status)
    assert words in told
    assert cli.json("list")["data"] == []


def test_a_route_has_one_experiment(cli: Command, running: Experiment) -> None:
    told = cli.refused("create", "support", "--challenger", "support@3")
    assert "has an experiment already: 'support-1' (running)" in told


# -- seen ----------------------------------------------------------------------------------------
def test_experiments_are_listed_the_newest_first(cli: Command, running: Experiment) -> None:
    cli.run("stop", "support-1", "--reason", "too early")
    cli.run("create", "support", "--challenger", "support@3=0.25")
    header, newest, oldest = cli.out("list").splitlines()
    assert header.split() == ["EXPERIMENT", "ROUTE", "POLICY", "STATE", "TRAFFIC", "BEGAN", "VERDICT"]
    assert newest.startswith("support-2   support  test    running  support@1 75.0%, support@3 25.0%")
    assert oldest.startswith("support-1 ")
    assert oldest.endswith("stopped by a person")
    assert [each["name"] for each in cli.json("list", "--route", "support")["data"]] == [
        "support-2",
        "support-1",
    ]
    assert cli.json("list", "--route", "other")["data"] == []


def test_too_few_voices_are_shown_as_cannot_tell_yet(cli: Command, running: Experiment) -> None:
    shown = cli.out("show", "support-1")
    told = fields(shown)
    assert (told["state"], told["policy"], told["route"]) == ("running", "test", "support")
    assert told["decides"].startswith("rating, alpha 0.05; at the latest 2001-")
    assert told["promotes"] == "by a person's word"
    assert "by anna" in told["began"]
    assert "ended" not in told
    assert line(shown, "support@2 against").startswith(
        "support@2 against support@1: rating cannot tell yet: 0 units"
    )
    assert "not measured yet" in shown
    assert told["sample ratio"].startswith("as it should be")


def test_every_number_of_a_running_experiment_is_on_the_screen(
    cli: Command, db: Database, running: Experiment
) -> None:
    crowd(db, running, "support@1", 40, liked=20, log_ttft=-2.302585, log_length=3.912023)
    crowd(db, running, "support@2", 40, liked=24, log_ttft=-1.609438, log_length=4.60517)
    shown = cli.out("show", running.id)
    header = line(shown, "VARIANT ").split()
    columns = ["SHARE", "UNITS", "ANSWERS", "VOICES", "RATING", "ERRORS", "TTFT", "TOKENS"]
    assert header == ["VARIANT", *columns]
    control = re.split(r"\s{2,}", line(shown, "support@1 (control)"))
    challenger = re.split(r"\s{2,}", line(shown, "support@2  "))
    assert control[1:5] == ["50.0%", "40", "40", "40"]
    assert re.fullmatch(r"0\.500 \(0\.\d{3} to 0\.\d{3}\)", control[5])
    assert control[6:] == ["0.0%", "0.100 s", "50"]
    assert challenger[6:] == ["0.0%", "0.200 s", "100"]
    assert re.fullmatch(
        r"support@2 against support@1: rating \+0\.100 \(-0\.\d{3} to \+0\.\d{3}\)",
        line(shown, "support@2 against"),
    )
    ttft = re.split(r"\s{2,}", next(row for row in shown.splitlines() if " ttft_seconds " in row))
    assert ttft[:4] == ["support@2", "ttft_seconds", "+50%", "+100%"]
    errors = re.split(r"\s{2,}", next(row for row in shown.splitlines() if " error_rate " in row))
    assert errors == ["support@2", "error_rate", "+2.0%", "+0.0%", "holds"]
    assert "verdict" not in fields(shown)


def test_the_machines_view_has_the_same_numbers(cli: Command, db: Database, running: Experiment) -> None:
    crowd(db, running, "support@2", 40, liked=24)
    shown = cli.json("show", "support-1")
    assert shown["id"] == running.id
    arm = shown["current"]["arms"]["support@2"]
    assert (arm["units"], arm["scores"]["rating"]["estimate"]) == (40, 0.6)


def test_a_verdict_is_shown_with_its_reasons_and_what_was_done(
    cli: Command, db: Database, running: Experiment, looks: Looks
) -> None:
    crowd(db, running, "support@1", 200, liked=20)
    crowd(db, running, "support@2", 200, liked=180)
    looks.look_at_all(5000.0)
    shown = cli.out("show", "support-1")
    told = fields(shown)
    assert (told["state"], told["verdict"]) == ("awaiting", "promote support@2")
    assert told["by"] == "experiment, 1970-01-01T01:23:20Z"
    assert told["rule"].startswith("asymptotic confidence sequence")
    assert told["because"].startswith("support@2 against support@1: rating +0.800")
    assert told["done"] == "waits for a person: burnish experiments decide support-1 support@2"


def test_a_challenger_that_a_guardrail_has_stopped_is_named_with_the_reason(
    cli: Command, db: Database, experiments: Experiments, looks: Looks
) -> None:
    both = experiments.create("support", plan("support@2", "support@3"), "anna", now=1000.0)
    crowd(db, both, "support@1", 60)
    crowd(db, both, "support@2", 60)
    crowd(db, both, "support@3", 60, error=1.0)
    looks.look_at_all(1500.0)
    shown = cli.out("show", "support-1")
    assert line(shown, "support@3 has no traffic any more: ").count("error_rate is +100.0%")
    assert cli.json("show", "support-1")["shares"].keys() == {"support@1", "support@2"}


def test_a_breach_that_ends_it_is_marked(
    cli: Command, db: Database, running: Experiment, looks: Looks
) -> None:
    crowd(db, running, "support@1", 60)
    crowd(db, running, "support@2", 60, error=1.0)
    looks.look_at_all(1500.0)
    shown = cli.out("show", "support-1")
    assert fields(shown)["verdict"] == "stopped by guardrail support@2"
    errors = re.split(r"\s{2,}", next(row for row in shown.splitlines() if " error_rate " in row))
    assert errors == ["support@2", "error_rate", "+2.0%", "+100.0%", "breached"]


def test_a_broken_split_is_said_loudly(cli: Command, db: Database, running: Experiment, looks: Looks) -> None:
    crowd(db, running, "support@1", 300, liked=150)
    crowd(db, running, "support@2", 30, liked=15)
    looks.look_at_all(1500.0)
    told = fields(cli.out("show", "support-1"))
    assert told["verdict"] == "stopped: sample ratio"
    assert told["sample ratio"].startswith("BROKEN")
    assert "chi-square p" in told["sample ratio"]


def test_of_a_route_that_is_gone_there_is_nothing_to_see(
    cli: Command, db: Database, running: Experiment
) -> None:
    Routes(db).delete("support", "anna")
    assert "there is nothing to see" in cli.out("show", "support-1")


# -- steered -------------------------------------------------------------------------------------
def test_stopping_says_where_the_traffic_went(cli: Command, running: Experiment) -> None:
    stopped = cli.out("stop", "support-1", "--reason", "a holiday")
    assert stopped == "support-1  ended: all traffic to the default of support\n"
    told = fields(cli.out("show", "support-1"))
    assert (told["verdict"], told["because"]) == ("stopped by a person", "a holiday")
    assert told["ended"]
    assert "has ended" in cli.refused("stop", "support-1")
    assert "has ended" in cli.refused("decide", "support-1", "support@2")


def test_a_person_decides(cli: Command, db: Database, running: Experiment) -> None:
    assert "is no variant of 'support-1': support@1, support@2" in cli.refused(
        "decide", "support-1", "support@3"
    )
    assert cli.out("decide", "support-1", "support@2") == "support-1  ended: promoted support@2\n"
    assert Routes(db).get("support").variant == "support@2"


def test_the_control_can_be_kept(cli: Command, db: Database, running: Experiment) -> None:
    kept = cli.json("decide", "support-1", "support@1")
    assert (kept["state"], kept["verdict"]["outcome"]) == ("ended", "keep")
    assert Routes(db).get("support").variant == "support@1"


# -- estimated -----------------------------------------------------------------------------------
def test_an_estimate_has_its_intervals_and_its_caveat(
    cli: Command, db: Database, running: Experiment
) -> None:
    crowd(db, running, "support@1", 60, liked=20)
    crowd(db, running, "support@2", 60, liked=45)
    told = fields(cli.out("estimate", "support", "support@2", "--alpha", "0.1"))
    assert (told["variant"], told["score"]) == ("support@2", "rating")
    assert told["answers"] == "120 judged, of 120 voices that weigh 60.0"
    for estimator in ("doubly robust", "self-normalised", "inverse propensity"):
        assert re.fullmatch(r"0\.7\d\d \(0\.\d{3} to [01]\.\d{3}\)", told[estimator]), told[estimator]
    assert told["intervals"] == "at 0.9, for one look: an experiment decides"
    assert cli.json("estimate", "support", "support@2")["rows"] == 120


def test_a_log_that_cannot_say_is_an_answer_and_no_failure(cli: Command, db: Database) -> None:
    told = fields(cli.out("estimate", "support", "support@2"))
    assert told["value"].startswith("cannot tell: no judged answer of 'support'")
    assert cli.json("estimate", "support", "support@2")["value"] is None


# -- drawn ---------------------------------------------------------------------------------------
def drawn(file: Path) -> tuple[dict[str, ET.Element], list[str]]:
    """The drawing's parts by their names, and its texts."""
    root = ET.parse(file).getroot()
    assert root.tag == f"{SVG}svg"
    parts = {element.get("id", ""): element for element in root.iter(f"{SVG}g")}
    return parts, ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def marks(part: ET.Element) -> int:
    """The points of a series."""
    return len(list(part.iter(f"{SVG}use")))


def test_the_plot_has_three_panels_with_all_series_and_the_verdict(
    cli: Command, db: Database, experiments: Experiments, looks: Looks, tmp_path: Path
) -> None:
    running = experiments.create("support", plan("support@2", on_promote="act"), "anna", now=1000.0)
    for day in range(1, 7):
        for variant, liked in (("support@1", 4), ("support@2", 7)):
            for part, seconds in enumerate((-2.0, -1.8 + liked / 50)):
                measured = {"log_ttft": seconds, "log_inter_token": seconds - 2}
                crowd(db, running, variant, 12, liked=liked, name=f"{day}-{part}", **measured)
        looks.look_at_all(1000.0 + day * 86400)
    kept = len(Experiments(db, Routes(db)).looks("support-1"))
    assert kept >= 3
    file = tmp_path / "x.svg"
    assert cli.out("plot", "support-1", "-o", file) == f"{file}\n"
    parts, texts = drawn(file)
    panels = {"difference", "shares", "guardrails"}
    series = {
        *(
            "zero",
            "tolerated",
            "difference:support@2",
            "band:support@2",
            "share:support@1",
            "share:support@2",
        ),
        *(f"guardrail:support@2:{m}" for m in ("error_rate", "ttft_seconds", "inter_token_seconds")),
        *(f"verdict:{panel}" for panel in panels),
    }
    assert panels | series <= set(parts)
    assert parts["difference"].find(".//*[@id='band:support@2']") is not None
    assert parts["shares"].find(".//*[@id='share:support@1']") is not None
    assert marks(parts["difference:support@2"]) == kept
    assert marks(parts["guardrail:support@2:ttft_seconds"]) == kept
    assert not any(name.startswith("breach:") for name in parts)
    for words in ("support-1: test on support", "days since it began", "promote support@2"):
        assert words in texts


def test_the_plot_marks_a_breach(
    cli: Command, db: Database, running: Experiment, looks: Looks, tmp_path: Path
) -> None:
    crowd(db, running, "support@1", 60)
    crowd(db, running, "support@2", 60, error=1.0)
    looks.look_at_all(1500.0)
    cli.run("plot", "support-1", "-o", tmp_path / "x.svg")
    parts, texts = drawn(tmp_path / "x.svg")
    assert marks(parts["breach:support@2:error_rate"]) == 1
    assert "stopped by guardrail support@2" in texts
    assert "minutes since it began" in texts


def test_a_guardrail_that_tolerates_nothing_and_an_odd_name_can_be_drawn(
    cli: Command, db: Database, experiments: Experiments, looks: Looks, tmp_path: Path
) -> None:
    """A canary's score may not fall at all, and a model may be called what a formula would be."""
    odd = "a$b$<&>"
    with_odd = Experiments(db, Routes(db, [odd]))
    canary = with_odd.create("support", plan(odd, policy="canary"), "anna", now=1000.0)
    crowd(db, canary, "support@1", 60, liked=30)
    crowd(db, canary, odd, 1, liked=1)
    looks.look_at_all(1500.0)
    cli.run("plot", "support-1", "-o", tmp_path / "x.svg")
    parts, texts = drawn(tmp_path / "x.svg")
    assert marks(parts[f"guardrail:{odd}:score"]) == 1
    assert f"{odd} score" in texts


def test_the_same_looks_make_the_same_file(
    cli: Command, db: Database, running: Experiment, looks: Looks, tmp_path: Path
) -> None:
    crowd(db, running, "support@1", 60)
    crowd(db, running, "support@2", 60, error=1.0)
    looks.look_at_all(1500.0)
    for name in ("a.svg", "b.svg"):
        cli.run("plot", "support-1", "-o", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_without_a_look_there_is_nothing_to_draw(cli: Command, running: Experiment, tmp_path: Path) -> None:
    file = tmp_path / "x.svg"
    assert "nobody has looked at 'support-1' yet" in cli.refused("plot", "support-1", "-o", file)
    assert not file.exists()


def test_a_plot_that_cannot_be_written_is_one_line(
    cli: Command, db: Database, running: Experiment, looks: Looks, tmp_path: Path
) -> None:
    crowd(db, running, "support@1", 5)
    looks.look_at_all(1500.0)
    assert "No such file" in cli.refused("plot", "support-1", "-o", tmp_path / "nowhere" / "x.svg")


def test_verbs_that_compute_nothing_load_nothing_that_computes() -> None:
    program = "import sys, gateway.cli.experiments, gateway.cli.plot; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"numpy", "scipy", "matplotlib"} & set(loaded.stdout.split()) == set()
