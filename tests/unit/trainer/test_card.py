"""What a model card tells, and what it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.jobs import Job, JobState
from adapters.versions import VersionRecord, VersionState
from trainer import card
from trainer.publish import Origin

JOB = Job(
    id="ftjob-1",
    kind="training",
    route="help",
    key_id=None,
    state=JobState.RUNNING,
    wish=None,
    payload={"start_from": "support@2", "route": "help"},
    progress={},
    result=None,
    error=None,
    worker="w",
    token=1,
    attempts=1,
    lease_until=None,
    created=0.0,
    started=0.0,
    finished=None,
    metadata={},
)
LINE = {
    "measure": "exact_match",
    "role": "primary",
    "against": "incumbent",
    "rival": 0.25,
    "candidate": 0.75,
    "difference": 0.5,
    "low": 0.3,
    "high": None,
    "rows": 12,
    "finding": "better",
}
REPORT: dict[str, Any] = {
    "incumbent": "support@2",
    "base": "base-model",
    "confidence": 0.95,
    "lines": [LINE],
    "reasons": ["exact_match is better than the incumbent's"],
    "parity": {"rows": 3, "mean": 0.01, "worst_row_mean": 0.02, "max": 0.05},
    "tasks": {"candidate": {"arc": {"acc": 0.5}}},
    "load_test": {},
    "evaluation": {
        "rows": 12,
        "cap_tokens": 99,
        "cut": {"candidate": 0, "base": 7},
        "refused": {"too long": 2},
    },
}
ORIGIN = Origin(
    "dpo",
    "sha256:rows",
    1234,
    {
        "drawn": 20,
        "filters": [
            {"name": "duplicate", "count": 2, "examples": [{"text": "a secret prompt"}]},
            {"name": "empty", "count": 0, "examples": []},
        ],
        "left_out": {"another engine's": 3},
        "caps": [{"of": "user", "dropped": 4}, {"of": "key", "dropped": 0}],
        "replay": {"taken": 5},
        "train": {"rows": 10, "units": 5, "kinds": {"preference": 8, "demonstration": 2}},
        "held_out": {"rows": 8, "units": 8, "kinds": {"preference": 8}},
    },
    {
        "recipe": {"method": "dpo", "seed": 7, "dropout": 0.0, "quantization": None, "report_to": []},
        "device": "cpu",
        "dtype": "float32",
        "versions": {"trl": "1.16", "peft": "0.21"},
        "notes": [],
    },
)
PASSED = {"kind": "gate", "by": "ftjob-1", "outcome": "pass"}


VERSION = VersionRecord(
    name="support",
    number=3,
    digest="sha256:" + "a" * 64,
    base_model="base-model",
    base_digest=None,
    rank=16,
    target_modules=("q_proj",),
    size_bytes=1,
    state=VersionState.PROVED,
    reason=None,
    origin="ftjob-1",
    approval={},
    fingerprint=None,
    created=1_700_000_000.0,
)


def text(
    report: dict[str, Any] = REPORT,
    origin: Origin = ORIGIN,
    approval: dict[str, Any] = PASSED,
    job: Job = JOB,
) -> str:
    return card.text(VERSION, job, report, origin, approval)


def test_a_card_has_its_parts_in_order() -> None:
    headings = [line for line in text().splitlines() if line.startswith("#")]
    assert headings == ["# support@3", "## Data", "## Recipe", "## Results", "## Limits", "## Lineage"]


def test_it_says_what_was_made_and_who_approved_it() -> None:
    assert (
        "A LoRA of rank 16 for `base-model`, made 2023-11-14 22:13 UTC by run `ftjob-1` (dpo). "
        "Gate: **pass**. Approval: gate." in text()
    )
    override = {"kind": "override", "by": "anna", "reason": "a demonstration", "outcome": "inconclusive"}
    assert "Gate: **inconclusive**. Approval: override, anna: a demonstration." in text(approval=override)


def test_it_tells_the_data_by_counts_and_no_prompt_or_answer() -> None:
    told = text()
    for fact in (
        "dataset `sha256:rows`",
        "drawn: 20 rows",
        "duplicate: 2 left out",
        "another engine's: 3 left out",
        "train: 10 rows of 5 users or conversations (8 preference, 2 demonstration)",
        "cap by user: 4 left out",
        "replayed from earlier runs: 5 rows",
    ):
        assert f"- {fact}\n" in told
    assert "empty: 0" not in told
    assert "cap by key" not in told
    assert "secret prompt" not in told


def test_it_tells_the_recipe_but_for_what_is_empty() -> None:
    told = text()
    for fact in ("method: dpo", "seed: 7", "dropout: 0.0", "device: cpu", "versions: trl 1.16, peft 0.21"):
        assert f"- {fact}\n" in told
    assert "quantization" not in told
    assert "report_to" not in told


def test_it_tells_the_results_of_gate_parity_and_harness() -> None:
    told = text()
    cells = "| exact match | primary | incumbent | 0.250 | 0.750 | 0.500 | 0.300 to none | 12 | better |"
    assert "Against `support@2`, on the serving engine." in told
    assert "95% bounds, each one-sided" in told
    assert cells in told
    assert "Train-serve parity on 3 rows: 0.0100 nats a token on average, 0.0500 at most." in told
    assert "arc (lm-evaluation-harness), candidate: acc 0.5" in told


def test_it_tells_what_the_load_test_has_found_where_there_was_one() -> None:
    target = {"name": "ttft_p95", "limit": 0.5, "unit": "s", "measured": 0.412, "met": True}
    found = {"verdict": "pass", "targets": [target], "figures": {"requests": 120}}
    told = text(report={**REPORT, "load_test": found})
    assert "Load test: **pass** over 120 requests; ttft_p95 0.412 (wanted 0.500 s)." in told
    assert "Load test" not in text()


def test_a_table_has_as_many_cells_in_every_line() -> None:
    lines = card.table([LINE, {**LINE, "rival": None}]).splitlines()
    assert {line.count("|") for line in lines} == {10}
    assert "| none | 0.750 |" in lines[3]


def test_without_an_incumbent_the_base_is_the_rival() -> None:
    assert "Against `base-model`" in text({**REPORT, "incumbent": None, "parity": {}})
    assert "parity" not in text({**REPORT, "parity": {}})


def test_it_warns_of_what_bends_the_numbers() -> None:
    told = text()
    assert "7 of the base's 12 answers were cut at 99 tokens." in told
    assert "of the candidate's 12 answers were cut" not in told
    assert "2 questions were refused: too long." in told
    assert "it says nothing about other tasks" in told


@pytest.mark.parametrize(
    ("payload", "start", "route"),
    [
        ({"start_from": "support@2", "route": "help"}, "support@2", "help"),
        ({"start_from": None, "route": None}, "the base model", "none"),
    ],
)
def test_promise_06_it_tells_where_it_comes_from(payload: dict[str, Any], start: str, route: str) -> None:
    told = text(job=replace(JOB, payload=payload))
    assert f"adapter `sha256:{'a' * 64}`" in told
    assert "base model `base-model` `digest unknown`" in told
    assert f"trained from: {start}\n- route: {route}\n" in told


def test_promise_06_a_start_that_could_not_be_gone_on_from_is_told() -> None:
    note = "It begins anew and not with support@2: it changes other modules."
    told = text(origin=replace(ORIGIN, manifest={**ORIGIN.manifest, "notes": [note]}))
    assert f"trained from: support@2\n- {note}\n" in told


def test_a_card_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "cards" / "a.md"
    card.write(path, "first: ü")
    card.write(path, "second: ü")
    assert path.read_text(encoding="utf-8") == "second: ü"
    assert [file.name for file in path.parent.iterdir()] == ["a.md"]
    assert path.parent.stat().st_mode & 0o077 == 0
