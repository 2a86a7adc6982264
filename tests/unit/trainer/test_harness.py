"""lm-evaluation-harness beside an evaluation. The harness itself is not in the lock: a program of its name and with its
results files stands in for it, as a real process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import EngineFailed, InvalidRequest, Unavailable
from adapters.jobs import Wish
from adapters.keys import Keys
from adapters.placements import Placements
from tests.migrated import migrated
from trainer import harness
from trainer.asking import Asker
from trainer.progress import Cancelled, Paused, Unwatched

URL = "http://127.0.0.1:9"
RESULTS = {"results": {"arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": "N/A", "sample_len": 3}}}

WRITES = """
import json, os, sys
from pathlib import Path
arguments = sys.argv[1:]
folder = Path(arguments[arguments.index("--output_path") + 1])
told = {"arguments": arguments, "key": os.environ["OPENAI_API_KEY"], "folder": str(folder), "pid": os.getpid()}
Path(os.environ["TEST_TOLD"]).write_text(json.dumps(told))
"""
GOOD = f"""{WRITES}
(folder / "support__2").mkdir()
(folder / "support__2" / "results_2026-01-02T03-04-05.json").write_text({json.dumps(RESULTS)!r})
"""
SLEEPS = f"{WRITES}\nimport time; print('loading', flush=True); time.sleep(600)"
FAILS = (
    "import sys; print('loading'); print('ValueError: Tasks not found: arc\\n', file=sys.stderr); sys.exit(1)"
)


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program writes what it was told."""
    monkeypatch.setenv("TEST_TOLD", str(tmp_path / "told.json"))
    return tmp_path / "told.json"


@pytest.fixture
def asker(tmp_path: Path) -> Iterator[Asker]:
    db = migrated(tmp_path / "burnish.db")
    Placements(db).heartbeat("gateway", URL)
    made = Asker(Keys(db), Placements(db), "run-1")
    yield made
    made.close()
    db.close()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a program as the harness, for this process and those that it starts."""

    def install(program: str) -> None:
        for name in harness.NEEDED:
            (tmp_path / "site" / name).mkdir(parents=True)
            (tmp_path / "site" / name / "__init__.py").touch()
        (tmp_path / "site" / "lm_eval" / "__main__.py").write_text(program)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
        monkeypatch.syspath_prepend(tmp_path / "site")

    return install


def run(asker: Asker, watch: Unwatched | None = None) -> dict[str, dict[str, float]]:
    return harness.run_tasks(
        asker, "support@2", ["arc", "mmlu"], Path("/weights"), 4096, watch or Unwatched()
    )


# -- before anything is trained --------------------------------------------------------------------
@pytest.mark.parametrize("missing", harness.NEEDED)
def test_tasks_without_the_harness_are_refused_before_anything_is_trained(
    missing: str, installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(GOOD)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InvalidRequest) as caught:
        harness.check_installed(["arc"])
    assert (caught.value.code, caught.value.param) == ("lm_eval_missing", "lm_eval_tasks")
    assert "pip install 'lm-eval[api]'" in caught.value.message


def test_without_tasks_the_harness_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    harness.check_installed([])


def test_tasks_with_the_harness_are_taken(installed: Any) -> None:
    installed(GOOD)
    harness.check_installed(["arc"])


# -- the command -----------------------------------------------------------------------------------
def test_the_harness_asks_the_gateway_by_token_ids_of_the_models_own_tokenizer() -> None:
    command = harness.command_of(
        f"{URL}/v1/completions", "support@2", ["arc", "mmlu"], Path("/weights"), 4096, Path("/out")
    )
    assert command[:5] == [sys.executable, "-m", "lm_eval", "--model", "local-completions"]
    options = dict(zip(command[3::2], command[4::2], strict=True))
    assert (options["--tasks"], options["--output_path"]) == ("arc,mmlu", "/out")
    given = dict(each.split("=", 1) for each in options["--model_args"].split(","))
    assert given == {
        "model": "support@2",
        "base_url": f"{URL}/v1/completions",
        "tokenizer": "/weights",
        "tokenizer_backend": "huggingface",
        "tokenized_requests": "True",
        "num_concurrent": "4",
        "max_length": "4096",
    }


def test_promise_12_the_pass_is_told_by_the_environment_and_not_by_the_command(
    asker: Asker, installed: Any, told: Path
) -> None:
    installed(GOOD)
    run(asker)
    seen = json.loads(told.read_text())
    assert seen["key"].startswith("sk-burnish-pass-")
    assert seen["key"] not in " ".join(seen["arguments"])


# -- its results -----------------------------------------------------------------------------------
def test_the_numbers_of_each_task_are_read_and_the_files_are_gone(
    asker: Asker, installed: Any, told: Path
) -> None:
    installed(GOOD)
    assert run(asker) == {"arc": {"acc,none": 0.5, "sample_len": 3.0}}
    assert not Path(json.loads(told.read_text())["folder"]).exists()


def test_the_newest_results_count_and_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    for day, accuracy in (("01", 0.1), ("02", 0.2)):
        values = {"acc,none": accuracy, "word_perplexity,none": float("inf"), "bits": float("nan")}
        file = tmp_path / "support__2" / f"results_2026-01-{day}T00-00-00.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"results": {"arc": values}}))
    assert harness.results_in(tmp_path) == {"arc": {"acc,none": 0.2}}


def test_a_harness_that_wrote_no_results_has_failed(asker: Asker, installed: Any) -> None:
    installed("")
    with pytest.raises(EngineFailed, match="wrote no results") as caught:
        run(asker)
    assert caught.value.code == "lm_eval_failed"


def test_a_harness_that_fails_is_told_by_its_last_words(asker: Asker, installed: Any) -> None:
    installed(FAILS)
    with pytest.raises(EngineFailed) as caught:
        run(asker)
    assert caught.value.message == "lm-evaluation-harness failed: ValueError: Tasks not found: arc"
    assert caught.value.code == "lm_eval_failed"


def test_a_harness_that_fails_without_a_word_is_told_too(asker: Asker, installed: Any) -> None:
    installed("raise SystemExit(1)")
    with pytest.raises(EngineFailed, match="failed: it said nothing"):
        run(asker)


def test_nothing_is_started_where_no_gateway_could_be_asked(
    tmp_path: Path, installed: Any, told: Path
) -> None:
    installed(GOOD)
    db = migrated(tmp_path / "empty.db")
    with pytest.raises(Unavailable):
        run(Asker(Keys(db), Placements(db), "run-1"))
    assert not told.exists()
    db.close()


@pytest.mark.parametrize(("wish", "raised"), [(Wish.CANCEL, Cancelled), (Wish.PAUSE, Paused)])
def test_a_wish_ends_the_harness(
    wish: Wish, raised: type[Exception], asker: Asker, installed: Any, told: Path
) -> None:
    class Impatient(Unwatched):
        def step(self, metrics: dict[str, Any]) -> Wish | None:
            return wish if told.exists() else None

    installed(SLEEPS)
    with pytest.raises(raised):
        run(asker, Impatient())
    with pytest.raises(ProcessLookupError):
        os.kill(json.loads(told.read_text())["pid"], 0)
