"""From a version back to the rows it learned from."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from adapters import schema
from adapters.database import Database
from adapters.jobs import Jobs, JobState, finish
from adapters.lineage import completions_behind, lineage_of
from adapters.registry import Registry
from tests.lora import TINY_CONFIG, write_lora

BASE = "base-model"
DATASET = "sha256:" + "d" * 64


def dataset_row(job_id: str, position: int, split: str, completion_id: str | None) -> dict[str, object]:
    return {
        "digest": DATASET,
        "job_id": job_id,
        "position": position,
        "row_id": f"row_{position}",
        "completion_id": completion_id,
        "feedback_id": None,
        "split": split,
    }


def test_promise_06_a_version_names_its_run_its_dataset_and_the_completions_behind_it(
    db: Database, registry: Registry, tmp_path: Path
) -> None:
    jobs = Jobs(db)
    payload = {"method": "supervised", "start_from": "support@1"}
    job = jobs.enqueue(kind="training", route="support", payload=payload)
    job_id, token = job.id, jobs.claim("w", ("training",), 60.0).token  # type: ignore[union-attr]
    rows = [
        dataset_row(job_id, 0, "train", "chatcmpl-b"),
        dataset_row(job_id, 1, "train", "chatcmpl-a"),
        dataset_row(job_id, 2, "train", None),
        dataset_row(job_id, 3, "held_out", "chatcmpl-a"),
    ]
    dataset = {"digest": DATASET, "job_id": job_id, "route": "support", "created": 1.0, "report": {"kept": 4}}
    with db.begin() as connection:
        connection.execute(sa.insert(schema.datasets).values(dataset))
        connection.execute(sa.insert(schema.dataset_rows), rows)
        finish(
            connection,
            job_id,
            token,
            state=JobState.SUCCEEDED,
            result={"gate": {"outcome": "pass"}, "method": "dpo"},
        )
    lora = write_lora(tmp_path / "lora", TINY_CONFIG, seed=1)
    version = registry.import_adapter("support", lora, BASE, None, "anna", origin=job_id)

    lineage = lineage_of(db, version)
    assert lineage is not None
    assert (lineage.job_id, lineage.dataset, lineage.route) == (job_id, DATASET, "support")
    assert (lineage.method, lineage.start_from) == ("dpo", "support@1")
    assert lineage.rows == {"train": 3, "held_out": 1}
    assert lineage.report == {"kept": 4}
    assert lineage.gate == {"outcome": "pass"}
    assert completions_behind(db, version) == ("chatcmpl-a", "chatcmpl-b")


def test_a_version_imported_by_hand_has_no_lineage(db: Database, registry: Registry, tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "lora", TINY_CONFIG, seed=1)
    version = registry.import_adapter("support", lora, BASE, None, "anna")
    assert lineage_of(db, version) is None
    assert completions_behind(db, version) == ()
