"""Real training of a tiny model on this machine's CPU: it learns, it is repeatable, and no kill or pause shows in it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters import preflight
from adapters.artifacts import CONFIG_FILE, WEIGHTS_FILE
from adapters.errors import InvalidRequest, StaleWorker
from adapters.jobs import Wish
from adapters.probe import PROBE_TEXT
from adapters.rows import Row
from adapters.traffic_settings import Priority
from tests.lora import TINY_CONFIG, write_lora
from tests.unit.trainer.tiny import row, tokenizer, write_weights
from trainer import pace
from trainer.plan import lay_down
from trainer.progress import Cancelled, Paused, Unwatched
from trainer.recipe import Recipe
from trainer.train import TrainResult, train

ROOT = Path(__file__).resolve().parents[3]
METHODS = ("supervised", "dpo", "kto")
MODULES = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")

PAIRS = [row(f"question {i}", "a" * (6 + i % 3), "b" * (5 + i % 4)) for i in range(8)]
HELD_OUT = [row(f"held out {i}", "a" * (6 + i % 3), "b" * 6) for i in range(4)]
ROWS = {"supervised": PAIRS, "dpo": PAIRS, "kto": PAIRS[:4]}  # of kto each is two: one liked, one not
STEPS = 8
AN_EPOCH = 2
KILLED_AT = 5


def recipe(method: str = "supervised", **changes: Any) -> Recipe:
    """8 rows in batches of 4, four times: 8 steps, with an evaluation and a checkpoint after every second."""
    made = Recipe(
        method=method,
        base_model="tiny",
        base_digest="sha256:base",
        dataset="sha256:rows",
        start_from=None,
        seed=7,
        n_epochs=4,
        batch_size=4,
        gradient_accumulation=1,
        learning_rate=3e-2,
        rank=4,
        alpha=8.0,
        dropout=0.0,
        target_modules=MODULES,
        max_length=256,
        warmup_ratio=0.1,
        weight_decay=0.0,
        beta=0.1,
        sft_weight=1.0,
        early_stopping_patience=0,
        packing=False,
        padding_free=False,
        gradient_checkpointing=False,
        quantization=None,
        report_to=(),
        threads=1,
    )
    return replace(made, **changes)


class Following(Unwatched):
    """Keeps what it is told, and wishes something from a step on."""

    def __init__(self, wish: Wish | None = None, at: int = 0) -> None:
        self.steps: list[dict[str, Any]] = []
        self.checkpoints: list[int] = []
        self.notes: list[str] = []
        self._wish, self._at = wish, at

    def step(self, metrics: dict[str, Any]) -> Wish | None:
        if "loss" in metrics:
            self.steps.append(metrics)
        return self._wish if len(self.steps) >= self._at else None

    def checkpoint(self, step: int, metrics: dict[str, Any]) -> None:
        self.checkpoints.append(step)

    def note(self, message: str) -> None:
        self.notes.append(message)


class Pressed(Following):
    """Has no headroom at every other look, so that each rest is one sleep; wishes something from a rest on."""

    def __init__(self, wish: Wish | None = None, at_rest: int = 0) -> None:
        super().__init__()
        self.rests = 0
        self._looks = 0
        self._wished, self._at_rest = wish, at_rest

    def headroom(self) -> float | None:
        self._looks += 1
        return -1.0 if self._looks % 2 else 1.0

    def step(self, metrics: dict[str, Any]) -> Wish | None:
        super().step(metrics)
        self.rests += metrics.get("resting") is True
        return self._wished if self._wished and self.rests >= self._at_rest else None


class Broken(Unwatched):
    """Raises at a step."""

    def __init__(self, at: int) -> None:
        self._at = at

    def step(self, metrics: dict[str, Any]) -> Wish | None:
        if metrics.get("step") == self._at:
            raise StaleWorker("another worker's by now")
        return None


class Killed(Unwatched):
    """Ends the process at a step, as the kernel does: nothing is tidied up."""

    def step(self, metrics: dict[str, Any]) -> Wish | None:
        if metrics.get("step") == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return None


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("tiny") / "weights")


Run = Callable[..., TrainResult]


@pytest.fixture
def run(weights: Path, tmp_path: Path) -> Run:
    """Trains in a folder of its own, or in the one that is named."""

    def begin(
        made: Recipe,
        folder: Path | None = None,
        watch: Unwatched | None = None,
        *,
        rows: list[Row] | None = None,
        held_out: list[Row] = HELD_OUT,
        start: Path | None = None,
        **more: Any,
    ) -> TrainResult:
        learned = ROWS[made.method] if rows is None else rows
        return train(
            made,
            learned,
            held_out,
            weights,
            None,
            folder or tmp_path / "run",
            watch or Unwatched(),
            start=start,
            **more,
        )

    return begin


@pytest.fixture
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "SLICE_SECONDS", 0.01)
    monkeypatch.setattr(pace, "LOOK_SECONDS", 0.0)


@pytest.fixture(scope="module")
def trained(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TrainResult]:
    """What an undisturbed run of a method gives; trained once."""
    results: dict[str, TrainResult] = {}

    def of(method: str) -> TrainResult:
        if method not in results:
            folder = tmp_path_factory.mktemp(method) / "run"
            results[method] = train(
                recipe(method), ROWS[method], HELD_OUT, weights, None, folder, Unwatched()
            )
        return results[method]

    return of


@pytest.fixture(scope="module")
def killed(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders, by method, of runs that a SIGKILL has ended after step 5. Their processes are forks of one, so that
    the libraries are imported once."""
    folder = tmp_path_factory.mktemp("killed")
    code = f"from {__name__} import train_until_killed as go; go({str(weights)!r}, {str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
    return folder


def train_until_killed(weights: str, folder: str) -> None:
    for method in METHODS:
        child = os.fork()
        if child == 0:
            train(recipe(method), ROWS[method], HELD_OUT, Path(weights), None, Path(folder, method), Killed())
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status), f"{method} ended by itself: {status}"
        assert os.WTERMSIG(status) == signal.SIGKILL


def files(adapter: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in adapter.iterdir()}


def table(result: TrainResult) -> list[dict[str, str]]:
    with result.steps_file.open() as file:
        return list(csv.DictReader(file))


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    """As they were after the last step, whichever checkpoint was chosen."""
    return dict(load_file(folder / "checkpoints" / f"checkpoint-{STEPS}" / WEIGHTS_FILE))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@torch.no_grad()
def logprobs(model: Any, prompt: list[int], answer: list[int]) -> list[float]:
    """Of the answer's tokens, told without the trainer."""
    table = model(torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
    return [float(table[len(prompt) + place - 1, id]) for place, id in enumerate(answer)]


# -- it learns -------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_a_run_reduces_its_loss(method: str, trained: Callable[[str], TrainResult]) -> None:
    result = trained(method)
    losses = [float(line["train_loss"]) for line in table(result)]
    assert len(losses) == STEPS
    assert sum(losses[-AN_EPOCH:]) < 0.98 * sum(losses[:AN_EPOCH])
    validation = result.metrics["validation_losses"]
    assert len(validation) == 4
    assert min(validation) < validation[0]


@pytest.mark.parametrize("method", METHODS)
def test_promise_04_a_run_writes_an_adapter_that_preflight_accepts(
    method: str, trained: Callable[[str], TrainResult], weights: Path
) -> None:
    config = json.loads((weights / "config.json").read_text())
    facts = preflight.inspect(trained(method).adapter, max_rank=4, base_config=config)
    assert (facts.rank, facts.alpha, facts.target_modules) == (4, 8.0, MODULES)
    assert facts.base_model_name_or_path == "tiny"
    assert set(files(trained(method).adapter)) == {CONFIG_FILE, WEIGHTS_FILE}


def test_dpo_moves_the_answers_apart_and_learns_to_write_the_better_one(
    trained: Callable[[str], TrainResult], run: Run
) -> None:
    watch = Following()
    run(recipe("dpo"), watch=watch)
    assert watch.steps[-1]["reward_margin"] > watch.steps[0]["reward_margin"]
    assert watch.steps[0]["reward_margin"] == pytest.approx(0, abs=0.01)  # it begins as its reference


def test_each_step_reads_the_rows_that_were_laid_down_for_it(run: Run, weights: Path) -> None:
    """At a learning rate of next to nothing each step's loss is the base model's, on the answers of its rows."""
    rows = [row(f"question {i}", letter * (3 + 2 * i)) for i, letter in enumerate("abcdefgh")]
    result = run(recipe(learning_rate=1e-9, n_epochs=2, batch_size=2), rows=rows)
    model, tokens = AutoModelForCausalLM.from_pretrained(weights), AutoTokenizer.from_pretrained(weights)
    said = []
    for each in rows:
        prompt = tokens.apply_chat_template(each.prompt, add_generation_prompt=True, return_dict=False)
        said.append(logprobs(model, prompt, tokens(each.answer["content"] + "<|im_end|>")["input_ids"]))
    lengths = [len(tokens(each.prompt[0]["content"] + each.answer["content"])["input_ids"]) for each in rows]
    plan = lay_down(lengths, epochs=2, batch_size=2, parts=1, least_rows=1, seed=7)
    expected = [[value for part in step for row in part for value in said[row]] for step in plan.steps]
    means = [-sum(values) / len(values) for values in expected]
    assert max(means) - min(means) > 0.1
    assert [float(line["train_loss"]) for line in table(result)] == pytest.approx(means, abs=0.01)


def test_a_batch_computed_in_parts_gives_nearly_the_same(
    run: Run, trained: Callable[[str], TrainResult]
) -> None:
    whole = trained("supervised").metrics
    parts = run(recipe(gradient_accumulation=2, gradient_checkpointing=True)).metrics
    assert parts["first_loss"] == pytest.approx(whole["first_loss"], rel=0.01)
    assert parts["last_loss"] == pytest.approx(whole["last_loss"], rel=0.05)


def test_a_run_whose_labels_are_all_masked_fails_before_its_first_step(run: Run, tmp_path: Path) -> None:
    watch = Following()
    with pytest.raises(InvalidRequest) as caught:
        run(recipe(max_length=16), tmp_path / "run", watch)
    assert caught.value.code == "all_labels_masked"
    assert watch.steps == []
    assert not (tmp_path / "run").exists()


def test_kto_refuses_a_single_answer_that_it_could_compare_with_nothing(run: Run) -> None:
    with pytest.raises(InvalidRequest) as caught:
        run(recipe("kto"), rows=[row("question", "yes", liked=True)])
    assert caught.value.code == "too_few_rows"


# -- it is repeatable ------------------------------------------------------------------------------
def test_the_same_arguments_give_the_same_bytes(run: Run, trained: Callable[[str], TrainResult]) -> None:
    again = run(recipe())
    assert files(again.adapter) == files(trained("supervised").adapter)
    assert again.fingerprint == trained("supervised").fingerprint


def test_another_seed_gives_another_adapter(run: Run, trained: Callable[[str], TrainResult]) -> None:
    other = run(recipe(seed=8))
    assert files(other.adapter)[WEIGHTS_FILE] != files(trained("supervised").adapter)[WEIGHTS_FILE]


def test_nothing_of_this_machine_is_in_an_adapter(
    trained: Callable[[str], TrainResult], weights: Path
) -> None:
    for content in files(trained("supervised").adapter).values():
        assert str(weights.parent).encode() not in content
        assert b"/tmp" not in content


def test_a_finished_run_is_not_trained_again(trained: Callable[[str], TrainResult], run: Run) -> None:
    result, watch = trained("supervised"), Following()
    assert run(recipe(), result.adapter.parent, watch) == result
    assert watch.steps == []


def test_held_out_rows_never_influence_the_weights_other_than_by_choosing_the_checkpoint(
    run: Run, trained: Callable[[str], TrainResult], tmp_path: Path
) -> None:
    undisturbed = last_weights(trained("supervised").adapter.parent)
    others = [row("something else", "z" * 50)] * 3
    for name, held_out in (("others", others), ("none", [])):
        result = run(recipe(), tmp_path / name, held_out=held_out)
        assert same(last_weights(tmp_path / name), undisturbed)
    assert result.metrics["validation_loss"] is None
    assert result.metrics["best_step"] == STEPS
    assert same(dict(load_file(result.adapter / WEIGHTS_FILE)), undisturbed)


# -- a kill ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_promise_08_a_killed_run_goes_on_and_gives_the_same_adapter(
    method: str, killed: Path, run: Run, trained: Callable[[str], TrainResult], tmp_path: Path
) -> None:
    folder = shutil.copytree(killed / method, tmp_path / "run")
    watch = Following()
    result = run(recipe(method), folder, watch)
    assert [told["step"] for told in watch.steps] == [5, 6, 7, 8]  # what was after the last checkpoint
    assert files(result.adapter) == files(trained(method).adapter)
    assert result.fingerprint == trained(method).fingerprint
    assert result.steps_file.read_bytes() == trained(method).steps_file.read_bytes()


def test_promise_08_a_checkpoint_that_a_kill_has_left_half_is_not_gone_on_from(
    killed: Path, run: Run, trained: Callable[[str], TrainResult], tmp_path: Path
) -> None:
    folder = shutil.copytree(killed / "supervised", tmp_path / "run")
    state = folder / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    state.write_bytes(state.read_bytes()[:100])
    watch = Following()
    result = run(recipe(), folder, watch)
    assert watch.steps[0]["step"] == 3
    assert files(result.adapter) == files(trained("supervised").adapter)


@pytest.mark.parametrize("method", METHODS)
def test_promise_08_a_run_that_ends_before_its_first_checkpoint_begins_again(
    method: str, run: Run, trained: Callable[[str], TrainResult], tmp_path: Path
) -> None:
    with pytest.raises(StaleWorker):
        run(recipe(method), tmp_path / "run", Broken(at=1))
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    assert files(run(recipe(method), tmp_path / "run").adapter) == files(trained(method).adapter)


def test_promise_08_a_run_killed_while_it_wrote_its_adapter_writes_it_again_without_a_step(
    run: Run, trained: Callable[[str], TrainResult], tmp_path: Path
) -> None:
    folder = shutil.copytree(trained("supervised").adapter.parent, tmp_path / "run")
    (folder / "adapter").rename(folder / ".adapter")
    (folder / ".adapter" / WEIGHTS_FILE).write_bytes(b"half")
    watch = Following()
    assert files(run(recipe(), folder, watch).adapter) == files(trained("supervised").adapter)
    assert watch.steps == []


# -- a rest ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_promise_07_a_run_that_rested_ends_with_the_same_weights(
    method: str, run: Run, tmp_path: Path, short_rests: None
) -> None:
    """Bit for bit, in micro-batches, and where dropout is possible with it."""
    made = recipe(method, gradient_accumulation=2, dropout=0.3 if method == "supervised" else 0.0)
    undisturbed, watch = run(made, tmp_path / "undisturbed"), Pressed()
    result = run(made, tmp_path / "run", watch, priority=Priority())
    assert watch.rests > 2 * STEPS
    assert same(last_weights(tmp_path / "run"), last_weights(tmp_path / "undisturbed"))
    assert files(result.adapter) == files(undisturbed.adapter)
    assert result.fingerprint == undisturbed.fingerprint
    assert result.steps_file.read_bytes() == undisturbed.steps_file.read_bytes()


def test_promise_07_a_run_looks_after_every_micro_batch(run: Run, tmp_path: Path, short_rests: None) -> None:
    made, watch = recipe("dpo", gradient_accumulation=2), Pressed()
    run(made, tmp_path / "run", watch, priority=Priority())
    reference = len(PAIRS) // 2 + len(HELD_OUT) // 2
    evaluations = 4 * len(HELD_OUT) // 2
    probes = 2 * (1 + len(HELD_OUT))
    assert watch.rests == reference + 1 + 2 * STEPS + evaluations + probes  # and once before the first step


def test_promise_07_without_priority_a_run_does_not_rest(run: Run, tmp_path: Path) -> None:
    watch = Pressed()
    run(recipe(), tmp_path / "run", watch, priority=Priority(enabled=False))
    assert watch.rests == 0


def test_promise_07_a_run_that_is_paused_while_it_rests_within_a_step_ends_it_and_goes_on_where_it_was(
    run: Run, tmp_path: Path, short_rests: None
) -> None:
    made = recipe(gradient_accumulation=2, dropout=0.3)
    undisturbed = run(made, tmp_path / "undisturbed")
    with pytest.raises(Paused):
        watch = Pressed(Wish.PAUSE, at_rest=2)  # the first is before the first step, the second in its middle
        run(made, tmp_path / "run", watch, priority=Priority())
    assert (watch.rests, watch.checkpoints) == (2, [1])
    result = run(made, tmp_path / "run")
    assert files(result.adapter) == files(undisturbed.adapter)


def test_promise_07_a_run_that_is_cancelled_while_it_rests_ends_within_the_step(
    run: Run, tmp_path: Path, short_rests: None
) -> None:
    watch = Pressed(Wish.CANCEL, at_rest=2)
    with pytest.raises(Cancelled):
        run(recipe(gradient_accumulation=2), tmp_path / "run", watch, priority=Priority())
    assert (watch.steps, watch.checkpoints) == ([], [])


# -- a wish ----------------------------------------------------------------------------------------
def test_promise_08_a_pause_is_obeyed_within_a_step_and_does_not_show_in_the_adapter(
    run: Run, tmp_path: Path
) -> None:
    """With dropout, so that the random numbers have to go on where they were too."""
    made = recipe(dropout=0.3, report_to=("tensorboard",))
    undisturbed = run(made, tmp_path / "undisturbed")
    watch = Following(Wish.PAUSE, at=3)
    with pytest.raises(Paused):
        run(made, tmp_path / "paused", watch)
    assert len(watch.steps) == 3
    assert watch.checkpoints == [2, 3]
    rest = Following()
    result = run(made, tmp_path / "paused", rest)
    assert [told["step"] for told in rest.steps] == [4, 5, 6, 7, 8]
    assert files(result.adapter) == files(undisturbed.adapter)
    assert list((tmp_path / "paused" / "tensorboard").rglob("events.*"))


def test_a_pause_before_the_first_step_is_obeyed_too(
    run: Run, trained: Callable[[str], TrainResult], tmp_path: Path
) -> None:
    watch = Following(Wish.PAUSE)
    with pytest.raises(Paused):
        run(recipe("dpo"), tmp_path / "run", watch)  # while the reference is asked
    assert watch.steps == []
    assert files(run(recipe("dpo"), tmp_path / "run").adapter) == files(trained("dpo").adapter)


def test_a_pause_after_the_last_step_leaves_the_adapter_to_the_next_attempt(
    run: Run, trained: Callable[[str], TrainResult], tmp_path: Path
) -> None:
    with pytest.raises(Paused):
        run(recipe(), tmp_path / "run", Following(Wish.PAUSE, at=STEPS))
    rest = Following()
    assert files(run(recipe(), tmp_path / "run", rest).adapter) == files(trained("supervised").adapter)
    assert rest.steps == []


def test_a_cancellation_is_obeyed_within_a_step(run: Run, tmp_path: Path) -> None:
    watch = Following(Wish.CANCEL, at=3)
    with pytest.raises(Cancelled):
        run(recipe(), tmp_path / "run", watch)
    assert len(watch.steps) == 3
    assert watch.checkpoints == [2]
    assert not (tmp_path / "run" / "adapter").exists()


# -- when it stops by itself -----------------------------------------------------------------------
def test_a_run_that_gets_no_better_stops_early_and_keeps_its_best_checkpoint(
    run: Run, tmp_path: Path
) -> None:
    rows = [row(f"question {i}", "a" * 20) for i in range(8)]
    opposite = [row(f"question {i}", "z" * 20) for i in range(4)]
    result = run(recipe(early_stopping_patience=2), tmp_path / "run", rows=rows, held_out=opposite)
    losses = result.metrics["validation_losses"]
    assert len(losses) == 3
    assert losses.index(min(losses)) == 0
    assert (result.metrics["steps"], result.metrics["best_step"]) == (3 * AN_EPOCH, AN_EPOCH)
    best = load_file(tmp_path / "run" / "checkpoints" / f"checkpoint-{AN_EPOCH}" / WEIGHTS_FILE)
    assert same(dict(load_file(result.adapter / WEIGHTS_FILE)), dict(best))
    watch = Following()
    shutil.rmtree(result.adapter)
    run(recipe(early_stopping_patience=2), tmp_path / "run", watch, rows=rows, held_out=opposite)
    assert watch.steps == []  # it is over, for a later attempt too


# -- a warm start ----------------------------------------------------------------------------------
def test_a_warm_start_goes_on_from_the_earlier_adapter(
    run: Run, trained: Callable[[str], TrainResult], weights: Path
) -> None:
    earlier = trained("supervised")
    result = run(recipe(start_from="tiny@1", learning_rate=1e-3), start=earlier.adapter)
    assert result.metrics["first_loss"] == pytest.approx(earlier.metrics["last_loss"], rel=0.05)
    halfway = (earlier.metrics["first_loss"] + earlier.metrics["last_loss"]) / 2
    assert result.metrics["first_loss"] < halfway
    assert result.manifest["notes"] == []
    assert preflight.inspect(result.adapter).rank == 4
    checkpoint = result.adapter.parent / "checkpoints" / f"checkpoint-{STEPS}"
    config = json.loads((checkpoint / CONFIG_FILE).read_text())
    assert config["base_model_name_or_path"] == str(weights)  # else PEFT asks the hub for `tiny`


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_promise_08_a_warm_start_is_compared_with_what_it_began_with_also_after_a_kill(
    method: str, run: Run, trained: Callable[[str], TrainResult], tmp_path: Path
) -> None:
    start = trained("supervised").adapter
    made, watch = recipe(method, start_from="tiny@1"), Following()
    undisturbed = run(made, tmp_path / "undisturbed", watch, start=start)
    if method == "dpo":
        assert watch.steps[0]["reward_margin"] == pytest.approx(0, abs=0.01)
    else:  # 0.5 is what KTO loses where nothing has moved
        assert watch.steps[0]["loss"] == pytest.approx(0.5, abs=0.01)
    with pytest.raises(StaleWorker):
        run(made, tmp_path / "broken", Broken(at=KILLED_AT), start=start)
    result = run(made, tmp_path / "broken", start=start)
    assert files(result.adapter) == files(undisturbed.adapter)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"rank": 8, "target_modules": MODULES}, "its rank and alpha are 8 and 16, not 4 and 8"),
        ({"rank": 4, "target_modules": ("q_proj", "v_proj")}, "it changes other modules"),
    ],
)
def test_a_start_that_cannot_be_gone_on_from_begins_anew_with_a_note(
    other: dict[str, Any], why: str, run: Run, trained: Callable[[str], TrainResult], tmp_path: Path
) -> None:
    start = write_lora(tmp_path / "lora", TINY_CONFIG, **other)
    watch = Following()
    result = run(recipe(start_from="tiny@1"), watch=watch, start=start)
    assert result.manifest["notes"] == watch.notes == [f"It begins anew and not with tiny@1: {why}."]
    assert files(result.adapter) == files(trained("supervised").adapter)


# -- what it leaves --------------------------------------------------------------------------------
def test_the_manifest_holds_what_is_needed_to_train_the_same_again(
    trained: Callable[[str], TrainResult],
) -> None:
    result = trained("dpo")
    manifest = json.loads((result.adapter.parent / "manifest.json").read_text())
    assert manifest == result.manifest
    assert Recipe.from_json(manifest["recipe"]) == recipe("dpo")
    assert (manifest["recipe"]["dataset"], manifest["recipe"]["base_digest"]) == (
        "sha256:rows",
        "sha256:base",
    )
    assert manifest["recipe"]["seed"] == 7
    assert {"python", "torch", "transformers", "peft", "trl", "accelerate", "burnish"} <= {
        *manifest["versions"]
    }
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["rows"] == {"train": 8, "held_out": 4}
    assert manifest["dtype"] in ("float32", "bfloat16")
    assert manifest["device"]
    assert manifest["processes"] == 1
    assert (manifest["metrics"]["steps"], manifest["metrics"]["epochs"]) == (STEPS, 4.0)


def test_tokens_are_counted_as_often_as_they_are_read(trained: Callable[[str], TrainResult]) -> None:
    around = "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|im_end|>"
    letters = sum(len(each.prompt[0]["content"] + each.answer["content"]) for each in PAIRS)
    tokens = letters + len(PAIRS) * len(tokenizer()(around)["input_ids"])
    assert trained("supervised").metrics["trained_tokens"] == 4 * tokens


def test_the_result_file_has_openais_columns(trained: Callable[[str], TrainResult]) -> None:
    lines = table(trained("supervised"))
    assert list(lines[0]) == [
        "step",
        "train_loss",
        "train_accuracy",
        "valid_loss",
        "valid_mean_token_accuracy",
    ]
    assert [int(line["step"]) for line in lines] == list(range(1, STEPS + 1))
    evaluated = [int(line["step"]) for line in lines if line["valid_loss"]]
    assert evaluated == [2, 4, 6, 8]
    assert all(float(line["train_loss"]) > 0 for line in lines)
    assert all(0 <= float(line["train_accuracy"]) <= 1 for line in lines)


@pytest.mark.parametrize("method", METHODS)
def test_promise_04_fingerprint_and_probes_are_what_transformers_and_peft_compute(
    method: str, trained: Callable[[str], TrainResult], weights: Path
) -> None:
    result = trained(method)
    tokens = AutoTokenizer.from_pretrained(weights)
    ids = tokens(PROBE_TEXT)["input_ids"]
    assert [probe.row_id for probe in result.probe] == [held.id for held in HELD_OUT]
    for dtype in (torch.float32, torch.bfloat16):
        base = AutoModelForCausalLM.from_pretrained(weights, dtype=dtype)
        model = PeftModel.from_pretrained(base, str(result.adapter)).to(dtype).eval()
        name = str(dtype).removeprefix("torch.")
        seen = getattr(result.fingerprint, name)
        assert seen == pytest.approx(logprobs(model, ids[:1], ids[1:]), abs=1e-4)
        for held, probe in zip(HELD_OUT, result.probe, strict=True):
            prompt = tokens.apply_chat_template(held.prompt, add_generation_prompt=True, return_dict=False)
            answer = tokens(held.answer["content"] + "<|im_end|>")["input_ids"]
            assert getattr(probe.seen, name) == pytest.approx(logprobs(model, prompt, answer), abs=1e-4)
    assert result.fingerprint.float32 != result.fingerprint.bfloat16


def test_promise_04_an_adapter_answers_otherwise_than_the_base(
    trained: Callable[[str], TrainResult], weights: Path
) -> None:
    fingerprints = [torch.tensor(trained(method).fingerprint.float32) for method in METHODS]
    assert (fingerprints[0] - fingerprints[1]).abs().max() > 1e-3
    assert (fingerprints[0] - fingerprints[2]).abs().max() > 1e-3


def test_disliked_answers_are_no_probes(run: Run) -> None:
    held_out = [row("one", "yes", liked=True), row("two", "no", liked=False), row("long", "x" * 400)]
    result = run(recipe(n_epochs=1), held_out=held_out)
    assert [probe.row_id for probe in result.probe] == [held_out[0].id]


# -- NF4 -------------------------------------------------------------------------------------------
def has_nf4() -> bool:
    """Whether bitsandbytes computes with 4-bit weights on this CPU, found out without the trainer."""
    try:
        import bitsandbytes

        layer = bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=torch.float32).to("cpu")
        layer(torch.ones(1, 64))
    except Exception:
        return False
    return True


@pytest.mark.skipif(not has_nf4(), reason="bitsandbytes does not work on this machine")
def test_nf4_trains_for_real_and_evaluations_change_nothing_of_it(
    run: Run, weights: Path, tmp_path: Path
) -> None:
    result = run(recipe(quantization="nf4"), tmp_path / "run")
    assert result.metrics["last_loss"] < 0.98 * result.metrics["first_loss"]
    preflight.inspect(result.adapter, base_config=json.loads((weights / "config.json").read_text()))
    run(recipe(quantization="nf4"), tmp_path / "unevaluated", held_out=[])
    assert same(last_weights(tmp_path / "run"), last_weights(tmp_path / "unevaluated"))


@pytest.mark.skipif(not has_nf4(), reason="bitsandbytes does not work on this machine")
def test_nf4_rounds_the_base(run: Run, trained: Callable[[str], TrainResult]) -> None:
    result = run(recipe(quantization="nf4", n_epochs=1))
    whole = trained("supervised").metrics["first_loss"]
    assert result.metrics["first_loss"] != whole
    assert result.metrics["first_loss"] == pytest.approx(whole, rel=0.05)


def test_nf4_is_refused_where_bitsandbytes_does_not_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    if has_nf4():
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InvalidRequest) as caught:
        run(recipe(quantization="nf4"))
    assert (caught.value.code, caught.value.param) == ("quantization_unavailable", "quantization")
