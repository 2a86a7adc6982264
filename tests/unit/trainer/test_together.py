"""Training in two real processes of this machine, started by PyTorch's launcher as Accelerate starts those of several
GPUs (on a CPU `accelerate launch` itself starts several only by MPI)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from adapters import keeper, preflight
from adapters.artifacts import WEIGHTS_FILE
from adapters.base_weights import chat_template
from adapters.database import Database
from adapters.errors import BurnishError, InvalidRequest, StaleWorker
from adapters.jobs import Job, Jobs, JobState
from adapters.placements import Placements
from adapters.settings import Settings, load_settings
from tests.conftest import free_port, processes_of, wait_for
from tests.migrated import migrated
from tests.unit.trainer.tiny import row, write_weights
from trainer import dataset, memory, together, train
from trainer.dataset import Built
from trainer.progress import Cancelled, Paused, Unwatched
from trainer.recipe import Recipe
from trainer.rendering import Rendering

MODEL = "tiny"
CONFIG = f"""
[training]
nice = false
threads = 1

[[engines]]
name = "local"
kind = "supervised"
model = "{MODEL}"
max_model_len = 512
"""

PAIRS = tuple(row(f"question {i}", "a" * (6 + i % 3), "b" * (5 + i % 4)) for i in range(9))
HELD_OUT = tuple(row(f"held out {i}", "a" * (6 + i % 3), "b" * 6) for i in range(3))
"""9 pairs in batches of 4 by two processes: one of them reads a pair more than the other now and then."""

HYPERPARAMETERS = {
    "n_epochs": 4,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "rank": 4,
    "learning_rate": 3e-2,
    "early_stopping_patience": 0,
}
STEPS = 8


@dataclass
class Workshop:
    """A home with weights and a database, of which the processes learn by the environment."""

    settings: Settings
    db: Database

    def job(self, method: str = "supervised", **hyperparameters: Any) -> Job:
        """A claimed job whose dataset is drawn."""
        payload = {
            "base_model": MODEL,
            "adapter": "support",
            "seed": 7,
            "hyperparameters": {**HYPERPARAMETERS, **hyperparameters},
        }
        Jobs(self.db).enqueue(kind="training", route=None, payload=payload)
        job = self.claimed()
        dataset.write(self.built(method), self.folder(job) / "dataset")
        return job

    @property
    def weights(self) -> Path:
        return self.settings.weights_root / MODEL

    @property
    def template(self) -> Path | None:
        return chat_template(self.settings.engines[0])

    def built(self, method: str) -> Built:
        return dataset.build(
            PAIRS,
            Rendering(self.weights, self.template),
            self.settings.training,
            7,
            max_length=512,
            asked=method,
            validation=HELD_OUT,
        )

    def claimed(self) -> Job:
        job = Jobs(self.db).claim("worker", ["training"], 600.0)
        assert job is not None
        return job

    def folder(self, job: Job) -> Path:
        return self.settings.run_root / job.id

    def checkpoints(self, job: Job) -> list[str]:
        return sorted(path.name for path in self.folder(job).glob("checkpoints/*"))

    def steps(self, job: Job) -> list[int]:
        """Those that the job's events tell of."""
        events, _ = Jobs(self.db).events(job.id, kinds=["metrics"], limit=1000)
        return [event.data["step"] for event in reversed(events) if "loss" in event.data]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("together") / "home"
    write_weights(home / "weights" / MODEL)
    (home / "burnish.toml").write_text(CONFIG)
    return home


@pytest.fixture(scope="module")
def db(home: Path) -> Iterator[Database]:
    database = migrated(home / "burnish.db")
    yield database
    database.close()


@pytest.fixture
def shop(home: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    monkeypatch.setenv("BURNISH_HOME", str(home))
    monkeypatch.setenv("BURNISH_CONFIG", str(home / "burnish.toml"))
    yield Workshop(load_settings(None, os.environ), db)
    try:
        wait_for(lambda: not processes_of(home), 10)  # nothing is left behind
    finally:
        for process in processes_of(home):
            os.kill(process, signal.SIGKILL)


ONE_PROCESS = """
compute_environment: LOCAL_MACHINE
distributed_type: 'NO'
use_cpu: true
num_processes: 1
num_machines: 1
machine_rank: 0
mixed_precision: 'no'
"""


def two() -> list[str]:
    """Starts two processes of whatever follows, as `accelerate launch` does on two GPUs."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return [*launcher, "--master-port", str(free_port())]


def launch(shop: Workshop, job: Job, is_stopping: Callable[[], bool] = lambda: False) -> None:
    together.launch(two(), job, shop.folder(job), is_stopping)


# -- in two processes, for real --------------------------------------------------------------------
def test_promise_08_two_processes_pause_go_on_and_train_the_plan_of_one(
    shop: Workshop, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs, job = Jobs(shop.db), shop.job("dpo")
    jobs.pause(job.id, "anna")
    with pytest.raises(Paused):
        launch(shop, job)
    assert shop.checkpoints(job) == ["checkpoint-1"]  # both have stopped within one step
    assert train.finished(shop.folder(job)) is None
    jobs.release(job.id, job.token, JobState.PAUSED)
    jobs.resume(job.id, "anna")
    job = shop.claimed()
    launch(shop, job)
    assert "ChildFailedError" not in capfd.readouterr().err  # neither has died of it

    result = train.finished(shop.folder(job))
    assert result is not None
    assert preflight.inspect(result.adapter).rank == 4
    assert result.manifest["processes"] == 2
    assert shop.steps(job) == list(range(1, STEPS + 1))  # each told once, by the first of them

    recipe = Recipe.from_json(result.manifest["recipe"])
    built, folder = shop.built("dpo"), tmp_path / "alone"
    alone = train.train(recipe, built.train, built.held_out, shop.weights, shop.template, folder, Unwatched())
    assert alone.metrics["steps"] == result.metrics["steps"] == STEPS
    assert alone.metrics["trained_tokens"] == result.metrics["trained_tokens"]
    assert alone.metrics["best_step"] == result.metrics["best_step"]
    assert alone.metrics["validation_losses"] == pytest.approx(result.metrics["validation_losses"], rel=0.001)
    ours, theirs = (losses(each) for each in (result, alone))
    assert ours == pytest.approx(theirs, rel=0.01)
    one, other = (load_file(each.adapter / WEIGHTS_FILE) for each in (result, alone))
    far = max(float((one[name] - other[name]).abs().max()) for name in one)
    assert far < 1e-3, "another order of rows or another size of steps would be far more"


def losses(result: train.TrainResult) -> list[float]:
    lines = result.steps_file.read_text().splitlines()[1:]
    return [float(line.split(",")[1]) for line in lines]


def test_promise_07_two_processes_rest_together_and_go_on_together(shop: Workshop) -> None:
    job, placements, seen = shop.job("dpo"), Placements(shop.db), []

    def hold_up_until_it_rests() -> bool:
        seen.append(Jobs(shop.db).get(job.id).progress)
        has_rested = any(progress.get("resting") for progress in seen)
        placements.heartbeat("gateway", "http://127.0.0.1:9", headroom=1.0 if has_rested else -1.0)
        return False

    hold_up_until_it_rests()
    try:
        launch(shop, job, hold_up_until_it_rests)
    finally:
        placements.leave("gateway")
    (rested, *_) = [progress for progress in seen if progress.get("resting")]
    assert rested["headroom"] == -1.0
    assert "step" not in rested  # it looked before its first step
    result = train.finished(shop.folder(job))
    assert result is not None
    assert (result.manifest["processes"], result.metrics["steps"]) == (2, STEPS)
    told = Jobs(shop.db).get(job.id).progress
    assert told["resting"] is False
    assert told["paused_seconds"] > 0
    assert told["headroom"] == 1.0


def test_two_processes_cancel_within_a_step(shop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    job = shop.job()
    Jobs(shop.db).cancel(job.id, "anna")
    with pytest.raises(Cancelled):
        launch(shop, job)
    assert "ChildFailedError" not in capfd.readouterr().err
    assert shop.checkpoints(job) == []
    assert train.finished(shop.folder(job)) is None


def test_promise_08_a_process_that_dies_is_the_end_of_both(shop: Workshop) -> None:
    job = shop.job(n_epochs=50)

    def kill_the_second() -> bool:
        if shop.checkpoints(job):
            for process in processes_of(shop.settings.home):
                if b"\0RANK=1\0" in Path(f"/proc/{process}/environ").read_bytes():
                    os.kill(process, signal.SIGKILL)
        return False

    with pytest.raises(RuntimeError, match=r"the training processes ended with exit code 1 and said nothing"):
        launch(shop, job, kill_the_second)
    assert train.finished(shop.folder(job)) is None


def test_promise_08_a_run_under_accelerate_stops_with_a_checkpoint_when_the_worker_does(
    shop: Workshop, tmp_path: Path
) -> None:
    """In one process, which `accelerate launch` starts otherwise than several: it would end before the training does."""
    config = tmp_path / "accelerate.yaml"
    config.write_text(ONE_PROCESS)
    job = shop.job(n_epochs=50)
    with pytest.raises(Paused):
        together.launch(
            together.command_of(config), job, shop.folder(job), lambda: bool(shop.checkpoints(job))
        )
    assert not processes_of(shop.settings.home)
    folders = [*shop.folder(job).glob("checkpoints/*")]
    assert folders
    assert all((folder / "trainer_state.json").is_file() for folder in folders)


def test_a_bad_recipe_is_reported_as_the_error_it_is(shop: Workshop) -> None:
    job = shop.job(rank=32)  # the engine serves 16
    with pytest.raises(BurnishError) as caught:
        launch(shop, job)
    assert (caught.value.code, caught.value.param) == ("not_servable", "hyperparameters.rank")
    assert "max_lora_rank = 16" in caught.value.message


def test_promise_07_a_run_steps_back_in_all_but_the_thread_that_writes(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the worker starts it: under a keeper that leads a session."""
    config = tmp_path / "burnish.toml"
    config.write_text(CONFIG.replace("nice = false", "nice = true"))
    monkeypatch.setenv("BURNISH_CONFIG", str(config))
    job = shop.job(n_epochs=50)
    command = [sys.executable, "-I", str(keeper.__file__), sys.executable, "-m", "trainer.run"]
    process = subprocess.Popen(
        [*command, job.id, str(job.token), together.PART], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        # Long, since on a machine that others keep busy it gets next to nothing: that is what is tested.
        run = wait_for(lambda: idle_run(process.pid), 120)
        assert os.sched_getscheduler(run) == os.SCHED_OTHER  # of a process: its main thread's
        group = Path(f"/proc/{run}/autogroup")
        if group.exists() and " nice " in (shown := group.read_text()):
            assert shown.split()[-1] == "10"
    finally:
        process.kill()  # the kernel ends the run with its keeper
        process.communicate()


def idle_run(keeper: int) -> int | None:
    """The process that a keeper has started, once one of its threads is in the idle class."""
    for run in memory.descendants(keeper):
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{run}/task").iterdir():
                if os.sched_getscheduler(int(thread.name)) == os.SCHED_IDLE:
                    return run
    return None


# -- what the processes leave ----------------------------------------------------------------------
JOB: Any = type("Job", (), {"id": "ftjob-1", "token": 3})


def leaving(folder: Path, text: str | None, status: int = 0) -> list[str]:
    """A command that ends at once, and leaves such a file."""
    write = "" if text is None else f"open({str(folder / together.OUTCOME)!r}, 'w').write({text!r});"
    return [sys.executable, "-c", f"import sys; {write} sys.exit({status})"]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (None, None),
        (Paused(), Paused),
        (Cancelled(), Cancelled),
        (StaleWorker("another has it"), StaleWorker),
        (InvalidRequest("no such thing", param="rank", code="not_servable"), BurnishError),
    ],
)
def test_what_the_first_process_raised_is_raised_where_it_was_launched(
    raised: Exception | None, expected: type[Exception] | None, tmp_path: Path
) -> None:
    together.tell(tmp_path, raised)
    command = leaving(
        tmp_path, (tmp_path / together.OUTCOME).read_text(), status=1
    )  # the others may fail then
    if expected is None:
        together.launch(command, JOB, tmp_path, lambda: False)
        return
    with pytest.raises(expected) as caught:
        together.launch(command, JOB, tmp_path, lambda: False)
    for name in ("message", "code", "param"):
        assert getattr(caught.value, name, None) == getattr(raised, name, None)


def test_processes_that_die_are_a_runtime_error_whatever_an_earlier_attempt_has_left(tmp_path: Path) -> None:
    together.tell(tmp_path, None)
    with pytest.raises(RuntimeError, match="exit code 3"):
        together.launch(leaving(tmp_path, None, status=3), JOB, tmp_path, lambda: False)


def test_a_process_that_takes_part_is_told_its_job_and_its_claim(tmp_path: Path) -> None:
    file = tmp_path / "arguments"
    show = f"import sys; open({str(file)!r}, 'w').write(' '.join(sys.argv[1:]))"
    with pytest.raises(RuntimeError):
        together.launch([sys.executable, "-c", show], JOB, tmp_path, lambda: False)
    assert file.read_text() == f"-m trainer.run ftjob-1 3 {together.PART}"


def test_the_first_of_several_speaks_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert together.is_first()
    monkeypatch.setenv("RANK", "1")
    assert not together.is_first()
    monkeypatch.setenv("RANK", "0")
    assert together.is_first()


# -- the configuration -----------------------------------------------------------------------------
def test_an_accelerate_configuration_is_part_of_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text("num_processes: 2\nfsdp_config: {fsdp_version: 2}\n")
    assert together.configuration(file) == {"num_processes": 2, "fsdp_config": {"fsdp_version": 2}}
    assert together.configuration(None) is None
    assert together.command_of(file)[1:] == [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(file),
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file or directory"),
        (b"a: [", "while parsing a flow node"),
        (b"- 1", "it is no mapping"),
        (b"", "it is no mapping"),
        (b"\xff\xfe", "'utf-8' codec can't decode"),
    ],
)
def test_promise_11_a_configuration_that_cannot_be_read_is_refused_without_its_path(
    content: bytes | None, why: str, tmp_path: Path
) -> None:
    file = tmp_path / "accelerate.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidRequest) as caught:
        together.configuration(file)
    assert (caught.value.code, caught.value.param) == (
        "accelerate_config_unreadable",
        "training.accelerate_config",
    )
    assert why in caught.value.message
    assert str(tmp_path) not in caught.value.message
